"""Rows of several runs side by side: mean and spread of their scores, and paired differences to a baseline."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forec_jax.experiment.layout import Cell, Spread, Table, spread_of
from forec_jax.experiment.load import Stored, read_stored
from forec_jax.experiment.results import Result
from forec_jax.experiment.sweep_state import Record, read_record
from forec_jax.experiment.table import (
    REPEATED,
    Row,
    differences,
    experiment_of,
    incomparable,
    network_of,
    result_of,
    spread,
)
from forec_jax.experiment.use import Seen
from forec_jax.training import newest_step

Pair = tuple[Any, ...]
"""What two runs have in common that are compared with each other."""


class Columns(NamedTuple):
    """Which scores of a run are shown."""

    splits: Sequence[str]  # empty: those that the runs were scored on in training
    checkpoints: Sequence[str] = ("last", "best")
    networks: Sequence[str] = ("teacher", "student")

    def heads(self) -> dict[str, tuple[str, str, str]]:
        """Split, checkpoint and network of each column, by its head."""
        every = itertools.product(self.splits, self.checkpoints, self.networks)
        return {" ".join(which): which for which in every}

    def one_a_split(self) -> list[str]:
        """The head of one column of each split, whose images and protocol all columns of it share."""
        return list({split: head for head, (split, _, _) in self.heads().items()}.values())


class Group(NamedTuple):
    """The runs of a row that are repetitions of one experiment."""

    name: str
    baseline: str  # the row that it is compared with, or ""
    runs: Sequence[Row]
    planned: int  # how many runs the row should have


def compare_rows(
    records: Mapping[Path, Record], columns: Columns, root: str | None = None, seen: Seen | None = None
) -> tuple[list[Table], list[str]]:
    """Tables of the rows of sweeps: scores, and differences to each baseline; and what to know of them.

    Runs count where they are finished. Only repetitions of one experiment that were scored on the same images are averaged:
    what else lies in a row's folders becomes a row of its own. Differences are of runs with the same seed and the same
    labelled images, scored alike. `root` and `seen` are as `compare_runs` has them.
    """
    finished, notes = _finished_runs(records, root)
    splits = columns.splits or list(dict.fromkeys(stored.config.eval.split for stored in finished.values()))
    columns = columns._replace(splits=splits)
    scored = {folder: Row("", stored, _scores(stored, columns, seen or Seen())) for folder, stored in finished.items()}
    groups: list[Group] = []
    for workdir, record in records.items():
        for row, folders in record.rows.items():
            named = {f"{row}, {draw}" if draw else row: workdir / folder for draw, folder in folders}
            runs = [scored[folder]._replace(name=name) for name, folder in named.items() if folder in scored]
            found, remarks = _in_groups(row, record.baselines.get(row, ""), runs, columns, len(folders))
            groups += found
            notes += remarks
    notes += _remarks([run for group in groups for run in group.runs], columns)
    tables = [_score_table(groups, columns.heads())]
    if compared := [group for group in groups if group.baseline]:
        partners = {(group.name, _pair_of(run)): run for group in groups for run in group.runs}
        table, remarks = _difference_table(compared, partners, columns.heads())
        tables.append(table)
        notes += remarks
    return tables, [*dict.fromkeys(notes), HOW]


HOW = (
    "65.19 +- 0.73 (3): mean, standard deviation (n - 1) and number of the runs; of a difference, of the pairs of runs with "
    "the same seed and labelled images"
)
"""How to read a cell."""


def records_of(workdirs: Sequence[Path], baseline: str) -> dict[Path, Record]:
    """The rows of sweeps; a run of its own is a row. `baseline` names the row that all others are compared with."""
    records = {workdir: read_record(workdir) or _single(workdir) for workdir in workdirs}
    rows = [row for record in records.values() for row in record.rows]
    if not baseline:
        return records
    if baseline not in rows:
        raise ValueError(f"--baseline={baseline}: there is no such row; the rows are: {'; '.join(rows)}")
    against = {row: baseline for row in rows if row != baseline}
    return {workdir: record._replace(baselines=against) for workdir, record in records.items()}


def _single(workdir: Path) -> Record:
    return Record({workdir.name: [("", ".")]}, {}, ())


def _finished_runs(records: Mapping[Path, Record], root: str | None) -> tuple[dict[Path, Stored], list[str]]:
    """The runs that have ended, by folder; and a word on each that has not."""
    finished, notes = {}, []
    for workdir, record in records.items():
        for row, (draw, folder) in ((row, run) for row, runs in record.rows.items() for run in runs):
            name, place = f"{row}, {draw}" if draw else row, workdir / folder
            if not (place / "config.json").exists():
                notes.append(f"missing: {name}: not begun")
                continue
            stored = read_stored(place, root)
            step, steps = newest_step(place / "checkpoints", "last") or 0, stored.config.steps
            if step < steps:
                notes.append(f"missing: {name}: at step {step} of {steps}")
            else:
                finished[place] = stored
    return finished, notes


def _scores(stored: Stored, columns: Columns, seen: Seen) -> dict[str, Result]:
    """A run's scores by the heads of their columns."""
    dataset = stored.dataset()
    return {
        head: result_of(stored, dataset, split, network, checkpoint, seen)
        for head, (split, checkpoint, network) in columns.heads().items()
    }


def _in_groups(
    row: str, baseline: str, runs: Sequence[Row], columns: Columns, planned: int
) -> tuple[list[Group], list[str]]:
    """A row's runs, apart where they are no repetitions of one experiment; and in what these differ."""
    apart: dict[str, list[Row]] = {}
    for run in runs:
        apart.setdefault(experiment_of(run), []).append(run)
    several = sorted(apart.values(), key=len, reverse=True) or [[]]
    groups, notes = [Group(row, baseline, several[0], planned)], []
    for number, others in enumerate(several[1:], 2):
        name, pair = f"{row} ({number})", [several[0][0], others[0]]
        groups.append(Group(name, baseline, others, len(others)))
        why = differences(pair, REPEATED) + incomparable(pair, columns.one_a_split(), unfinished=False)
        why += [] if why else ["another number of images is trained on"]
        notes.append(f"NOT AVERAGED: {name}, {_names(others)}, is another experiment than {row}:")
        notes += [f"  {reason}" for reason in why]
    return groups, notes


def _remarks(runs: Sequence[Row], columns: Columns) -> Iterator[str]:
    """What makes scores of different rows incomparable, and which networks stand for others."""
    if not runs:
        return
    yield from incomparable(runs, columns.one_a_split(), unfinished=False)
    for run in runs if "teacher" in columns.networks else ():
        if network_of(run.stored.workdir, "teacher") == "student":
            yield f"{run.stored.config.method.name} has no teacher: its student stands in that column"


def _score_table(groups: Sequence[Group], heads: Iterable[str]) -> Table:
    """A row a group: mean, standard deviation and number of runs."""
    rows: list[tuple[Cell, ...]] = [
        (group.name, *(spread(group.runs, head) for head in heads), f"{len(group.runs)} of {group.planned}")
        for group in groups
    ]
    return Table("mIoU (%)", ("", *heads, "runs"), tuple(rows))


def _difference_table(
    groups: Sequence[Group], partners: Mapping[tuple[str, Pair], Row], heads: Iterable[str]
) -> tuple[Table, list[str]]:
    """A row a group with a baseline; runs without a partner there, by its name and what a pair shares, are named."""
    rows: list[tuple[Cell, ...]] = []
    notes = []
    for group in groups:
        found = [(run, partners.get((group.baseline, _pair_of(run)))) for run in group.runs]
        pairs = [(run, other) for run, other in found if other is not None]
        cells = (_difference(pairs, head) for head in heads)
        rows.append((f"{group.name} - {group.baseline}", *cells, f"{len(pairs)} of {group.planned}"))
        if alone := [run for run, other in found if other is None]:
            notes.append(
                f"{_names(alone)}: no run of {group.baseline} with the same seed and labelled images to compare with"
            )
    return Table("Difference to the baseline", ("", *heads, "runs"), tuple(rows)), notes


def _pair_of(run: Row) -> Pair:
    """What two runs have in common that are compared with each other."""
    options = run.options()
    return options["seed"], options.get("(labelled images)", options["data.labelled"]), tuple(run.stored.labels.classes)


def _difference(pairs: Sequence[tuple[Row, Row]], head: str) -> Spread | None:
    """The differences of scores that were found alike, on the same images."""
    found = []
    for run, other in pairs:
        one, two = run.results.get(head), other.results.get(head)
        if one is None or two is None or one.miou is None or two.miou is None:
            continue
        if (one.question.sha256, one.question.protocol) == (two.question.sha256, two.question.protocol):
            found.append(100 * (one.miou - two.miou))
    return spread_of(found, signed=True)


def _names(runs: Sequence[Row]) -> str:
    return "; ".join(run.name for run in runs)
