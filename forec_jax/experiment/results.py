"""The scores of a run's checkpoints that were found once: kept beside the run, and looked up before one is found anew."""

import datetime
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import forec_jax
from forec_jax.data import Dataset, Source
from forec_jax.evaluation import EvaluationOptions
from forec_jax.experiment import contents
from forec_jax.experiment.load import Stored, stored_threshold
from forec_jax.experiment.summary import evaluations
from forec_jax.experiment.workdir import WorkdirError, damage_named
from forec_jax.files import read_json, write_json
from forec_jax.kinds import listed, mapping, number, text, whole
from forec_jax.locking import only_one
from forec_jax.options import from_config
from forec_jax.training.events import METRICS_FILE, read_events

log = logging.getLogger(__name__)

EVALUATIONS = "evaluations.json"
"""What `forec-jax evaluate` and `table` found of a run, beside what its training logged."""


class Question(NamedTuple):
    """What a score is the answer to: equal questions have equal answers."""

    split: str  # of the data set, or the folder with the images
    sha256: str  # of the images and masks
    step: int
    network: str
    protocol: Mapping[str, Any]


class Result(NamedTuple):
    """An evaluation of a checkpoint."""

    question: Question
    images: int
    miou: float | None  # None where no pixel was counted
    iou: Mapping[str, float | None]
    checkpoint: str = ""
    date: str = ""


def protocol_of(c: ConfigDict, workdir: Path) -> dict[str, Any]:
    """How a run is scored: two scores by different protocols say nothing about each other."""
    found: dict[str, Any] = {"mode": c.eval.mode, "longest_side": c.data.longest_side}
    if c.eval.mode != "whole":
        found["crop"] = c.eval.crop
    if c.eval.mode == "sliding":
        found["stride"] = from_config(EvaluationOptions, c.eval, "eval").stride
    if tuple(c.eval.scales) != (1.0,):
        found["scales"] = list(c.eval.scales)
    if c.eval.flip:
        found["flip"] = True
    if (chosen := stored_threshold(workdir)) is not None:
        found["mask_threshold"] = chosen.threshold
    return found


def sum_of(dataset: Dataset, source: Source) -> str:
    """The sum of the images and masks that a source of a data set holds."""
    return contents.one_sum(contents.chosen_sums(dataset.sums, source.ids))


def known_results(stored: Stored) -> Iterator[Result]:
    """The scores of a run that are on record, those of its training first."""
    yield from _logged_results(stored)
    try:
        yield from kept_results(stored.workdir)
    except WorkdirError as error:
        log.warning("%s", error)


def kept_results(workdir: Path) -> list[Result]:
    """What `keep_result` wrote. Raises WorkdirError where that is damaged."""
    if not (workdir / EVALUATIONS).exists():
        return []
    with damage_named(workdir / EVALUATIONS, "remove it, and its scores are found anew"):
        entries = read_json(workdir / EVALUATIONS)
        return [_from_entry(entry) for entry in listed(entries)]


def _logged_results(stored: Stored) -> Iterator[Result]:
    """What the training logged, where it says which images it scored; those have not changed since unless sums differ."""
    began = contents.stored_contents(stored.workdir)
    if began is None or began.changed:
        return
    c = stored.config
    # A threshold for masks is chosen after the training.
    protocol = {key: value for key, value in protocol_of(c, stored.workdir).items() if key != "mask_threshold"}
    for event in logged_evaluations(stored.workdir):
        for network in networks_of(event):
            question = Question(began.split, contents.one_sum(began.scored), event["step"], network, protocol)
            with damage_named(
                stored.workdir / METRICS_FILE, f"remove its line of step {event['step']} if labels.json is right"
            ):
                iou = dict(zip(stored.labels.classes, event[f"{network}_iou"], strict=True))
            yield Result(question, len(began.scored), event[f"{network}_miou"], iou)


def logged_evaluations(workdir: Path) -> list[Mapping[str, Any]]:
    """The evaluations in a run's log."""
    return evaluations(read_events(workdir / METRICS_FILE)) if (workdir / METRICS_FILE).exists() else []


def networks_of(event: Mapping[str, Any]) -> list[str]:
    """The networks that an evaluation of a training scored."""
    return [network for network in ("teacher", "student") if f"{network}_miou" in event]


def found_before(results: Iterable[Result], question: Question) -> Result | None:
    """The answer to a question that is on record, if it is."""
    return next((result for result in results if result.question == question), None)


def keep_result(workdir: Path, result: Result) -> None:
    """Adds a result to those on record, in the place of an earlier answer to the same question.

    A work directory that cannot be written, or whose record is damaged, is a warning: the score was found.
    """
    result = result._replace(date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    try:
        with only_one(workdir / f".{EVALUATIONS}.lock"):
            others = [other for other in kept_results(workdir) if other.question != result.question]
            write_json(workdir / EVALUATIONS, [as_entry(one) for one in (*others, result)])
    except (OSError, WorkdirError) as error:
        log.warning("the result is not kept in %s (%s)", workdir / EVALUATIONS, error)


def forget_after(workdir: Path, step: int) -> None:
    """Takes the scores of later steps off record: a training that goes on from `step` makes these states anew."""
    try:
        kept = kept_results(workdir)
    except WorkdirError as error:
        log.warning("%s", error)
        return
    if any(result.question.step > step for result in kept):
        write_json(workdir / EVALUATIONS, [as_entry(one) for one in kept if one.question.step <= step])


def as_entry(result: Result) -> dict[str, Any]:
    """A result as it is stored and shown."""
    return {
        **result.question._asdict(),
        "checkpoint": result.checkpoint,
        "images": result.images,
        "miou": result.miou,
        "iou": result.iou,
        "date": result.date,
        "version": forec_jax.__version__,
    }


def _from_entry(entry: Mapping[str, Any]) -> Result:
    """The inverse of `as_entry`."""
    question = Question(
        text(entry["split"]),
        text(entry["sha256"]),
        whole(entry["step"]),
        text(entry["network"]),
        mapping(entry["protocol"]),
    )
    iou = {name: number(value) for name, value in mapping(entry["iou"]).items()}
    images, miou = whole(entry["images"]), number(entry["miou"])
    return Result(question, images, miou, iou, text(entry["checkpoint"]), text(entry["date"]))
