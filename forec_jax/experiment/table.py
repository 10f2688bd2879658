"""Runs side by side: their scores, what their configs differ in, and which scores cannot be compared."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forec_jax.data import Dataset
from forec_jax.experiment import contents
from forec_jax.experiment.layout import NOTHING, Cell, Spread, Table, spread_of
from forec_jax.experiment.load import Stored, by_name, load_run, read_stored
from forec_jax.experiment.results import (
    Question,
    Result,
    found_before,
    known_results,
    logged_evaluations,
    networks_of,
    protocol_of,
    sum_of,
)
from forec_jax.experiment.score import evaluated, say_if_changed
from forec_jax.experiment.use import Seen
from forec_jax.experiment.workdir import REPORTING_KEYS, SPLIT, damage_named
from forec_jax.files import read_json
from forec_jax.keys import flat
from forec_jax.training import newest_step

DRAWS = ("seed", "data.labelled", "data.unlabelled", "data.protocol")
"""Options in which the repetitions of one experiment differ: the seed, and which images are labelled."""

IMAGES = ("labelled", "unlabelled")
"""Parts of a split: the sums of their images stand beside the options that name them."""

REPEATED = (*DRAWS, *(f"({part} images)" for part in IMAGES))
"""All that repetitions of one experiment may differ in."""

MOST = 12  # options that are named


class Row(NamedTuple):
    """A run with its scores."""

    name: str
    stored: Stored
    results: Mapping[str, Result]  # by column: a split, and which network and checkpoint where these differ

    def options(self) -> dict[str, Any]:
        """What may make its scores others: its options, and which images are labelled."""
        every = flat(self.stored.config.to_dict())
        kept = {key: value for key, value in every.items() if not key.startswith((*REPORTING_KEYS, "plugin"))}
        return kept | _labelled_images(self.stored.workdir)


def compare_runs(
    workdirs: Sequence[Path],
    splits: Sequence[str],
    network: str,
    checkpoint: str,
    root: str | None = None,
    seen: Seen | None = None,
) -> tuple[Table, list[str]]:
    """A table of mIoU in percent: a row a run, a column a split; and what to know before these are compared.

    A score that is on record is taken from there, as long as images, masks and protocol are the same. `root` is where the
    runs' data set lies now, if it moved; `seen` is how images are shown.
    """
    seen = seen or Seen()
    rows = []
    for name, workdir in by_name(workdirs).items():
        stored = read_stored(workdir, root)
        dataset = stored.dataset()
        results = {split: result_of(stored, dataset, split, network, checkpoint, seen) for split in splits}
        rows.append(Row(name, stored, results))
    cells: list[tuple[Cell, ...]] = [(row.name, *(percent(row, split) for split in splits)) for row in rows]
    cells += [(name, *(spread(group, split) for split in splits)) for name, group in repetitions(rows)]
    table = Table(f"mIoU (%) of the {network}, {checkpoint} checkpoint", ("", *splits), tuple(cells))
    differing, reasons = differences(rows), incomparable(rows, splits, unfinished=checkpoint == "last")
    return table, [
        *(["", "The runs differ in", *(f"  {line}" for line in differing)] if differing else []),
        *(["", *reasons] if reasons else []),
    ]


def result_of(stored: Stored, dataset: Dataset, split: str, network: str, checkpoint: str, seen: Seen) -> Result:
    """A run's score on a split of its data set: from its records, or found now and kept there."""
    stored = stored._replace(config=seen.of(stored.config))
    step, tested = newest_step(stored.workdir / "checkpoints", checkpoint), network_of(stored.workdir, network)
    known = dataset.sums or dataset.fixed  # otherwise a change of its images would not be seen
    if step is not None and tested is not None and known:
        protocol = protocol_of(stored.config, stored.workdir)
        question = Question(split, sum_of(dataset, dataset.scored(split)), step, tested, protocol)
        if result := found_before(known_results(stored), question):
            say_if_changed(stored.workdir, dataset, split)
            return result
    run = load_run(stored.workdir, checkpoint)._replace(config=stored.config)
    return evaluated(run, dataset, split, network, checkpoint)[1]


def network_of(workdir: Path, network: str) -> str | None:
    """The network that stands for `network` in a run: the student where there is no teacher; None if that is unknown."""
    scored = logged_evaluations(workdir)
    if network == "student" or not scored:
        return "student" if network == "student" else None
    return networks_of(scored[-1])[0]


def repetitions(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The groups of two or more runs that differ in seed or labelled images alone, and a name for each."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(experiment_of(row), []).append(row)
    several = [group for group in groups.values() if len(group) > 1]
    for number, group in enumerate(several, 1):
        yield f"mean of {len(group)}" + (f" ({number})" if len(several) > 1 else ""), group


def experiment_of(row: Row) -> str:
    """What runs have in common that are repetitions of one experiment, scored alike on the same images."""
    began = contents.stored_contents(row.stored.workdir)
    options = row.options()
    kept = {key: value for key, value in options.items() if key not in REPEATED}
    # Without a record of how many images are labelled, another list may be of another length.
    drawn = (began.labelled, len(began.trained)) if began else [options.get(key) for key in DRAWS[1:]]
    asked = [(result.question.sha256, result.question.protocol) for result in row.results.values()]
    return json.dumps([kept, drawn, asked], sort_keys=True, default=str)


def percent(row: Row, column: str) -> str:
    """A score in a cell."""
    miou = row.results[column].miou
    return NOTHING if miou is None else f"{100 * miou:.2f}"


def spread(group: Sequence[Row], column: str) -> Spread | None:
    """Mean and standard deviation (of the sample) of a group's scores in a cell."""
    return spread_of([100 * miou for row in group if (miou := row.results[column].miou) is not None])


def _labelled_images(workdir: Path) -> dict[str, str]:
    """Which images are labelled and which are not, as sums, beside the options that name them."""
    if not (workdir / SPLIT).exists():
        return {}
    with damage_named(workdir / SPLIT, "remove it if the lists of images are as they were"):
        sums = read_json(workdir / SPLIT)
        return {_images_of(part): sums[part][:8] for part in IMAGES}


def _images_of(part: str) -> str:
    """What stands for the images of a part of the split among a run's options."""
    return f"({part} images)"


def differences(rows: Sequence[Row], leave: Collection[str] = ()) -> list[str]:
    """The options in which the runs differ, but those of `leave`, a line each, with values in the order of the rows."""
    options = [row.options() for row in rows]
    keys = {key for of_run in options for key in of_run if key not in leave}
    missing = object()
    different = [key for key in keys if any(o.get(key, missing) != options[0].get(key, missing) for o in options)]
    # What all runs have comes first: the rest is of methods and parts that some do not use.
    different.sort(key=lambda key: (not all(key in of_run for of_run in options), key))
    lines = [f"{key}: " + " | ".join(short(of_run.get(key, NOTHING)) for of_run in options) for key in different[:MOST]]
    return [*lines, f"... and {len(different) - MOST} more (config.json)"] if len(different) > MOST else lines


def short(value: Any) -> str:
    """A value, its end where it is long."""
    text = str(value)
    return text if len(text) <= 40 else f"...{text[-37:]}"


def incomparable(rows: Sequence[Row], splits: Sequence[str], *, unfinished: bool) -> list[str]:
    """What makes scores in these columns incomparable, a line each; `unfinished` asks for the end of every training."""
    first, found = rows[0], []
    for row in rows if unfinished else ():
        step, steps = row.results[splits[0]].question.step, row.stored.config.steps
        if step < steps:
            found.append(f"{row.name} is not finished: step {step} of {steps}")
    for other in rows[1:]:
        pair = f"{first.name} and {other.name}"
        if first.stored.labels.classes != other.stored.labels.classes:
            found.append(f"{pair} know different classes")
        for split in splits:
            one, two = (row.results[split].question for row in (first, other))
            if one.sha256 != two.sha256:
                found.append(f"{pair} were scored on different images or masks of {split}")
            if one.protocol != two.protocol:
                found.append(f"{pair} were scored differently: {in_words(one.protocol, two.protocol)}")
    return [f"NOT COMPARABLE: {reason}" for reason in dict.fromkeys(found)]


def in_words(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Where two protocols differ."""
    keys: Iterable[str] = sorted(one.keys() | two.keys())
    return ", ".join(f"{k} {one.get(k, NOTHING)} | {two.get(k, NOTHING)}" for k in keys if one.get(k) != two.get(k))
