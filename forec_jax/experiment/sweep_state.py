"""What is done of a sweep: how far each training is, and what its work directory keeps for tables."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from forec_jax.config import check_options, chosen
from forec_jax.experiment.build import keys_of_epoch
from forec_jax.experiment.run import check_rows, with_absolute_paths
from forec_jax.experiment.sources import check_root
from forec_jax.experiment.sweep import Planned
from forec_jax.experiment.workdir import WorkdirError, check_same_config, damage_named, read_config, stored_summary
from forec_jax.files import read_json, write_json
from forec_jax.keys import flat
from forec_jax.locking import only_one
from forec_jax.training import holds_any, newest_step
from forec_jax.training.events import METRICS_FILE, read_events

RECORD = "sweep.json"
"""In the work directory of a sweep: its rows and where their runs are."""


class State(NamedTuple):
    """How far a training is."""

    step: int  # of the checkpoint that it goes on from
    done: bool


def state_of(folder: Path, c: ConfigDict) -> State:
    """How far the training in a folder is.

    Raises OptionError for a config that cannot be used, WorkdirError where the folder's training is one of another config.
    A training without a checkpoint failed at its start and may be mended, as `check_same_run` has it.
    """
    check_options(c)
    check_root(c)
    c = with_absolute_paths(chosen(c))
    check_rows(c)
    if not (folder / "config.json").exists() or not holds_any(folder / "checkpoints"):
        return State(0, False)
    stored, given = (flat(json.loads(config.to_json())) for config in (read_config(folder / "config.json"), c))
    for key in keys_of_epoch(c):  # from the data, which is not read here
        given[key] = stored.get(key)
    check_same_config(stored, given, folder)
    written = flat(read_json(folder / "config.json"))
    done = summary_of(folder).get("config") == written  # another run's may be left from before
    return State(newest_step(folder / "checkpoints", "last") or 0, done)


def summary_of(folder: Path) -> Mapping[str, Any]:
    """What a training says at its end; empty where it has not ended. A damaged summary is written anew by the training."""
    try:
        return stored_summary(folder)
    except (OSError, WorkdirError):
        return {}


def rate_of(folders: Iterable[Path]) -> float | None:
    """The images a second of trainings so far; None where nothing is on record."""
    events = (event for folder in folders for event in read_events(folder / METRICS_FILE))
    rates = [event["images_per_second"] for event in events if event.get("images_per_second")]
    return median(rates) if rates else None


class Record(NamedTuple):
    """What a sweep's work directory says of it."""

    rows: Mapping[str, Sequence[tuple[str, str]]]  # row, in the order of the table -> repetition and folder of each run
    baselines: Mapping[str, str]  # row -> the one that it is compared with
    splits: Sequence[str]


def keep_record(workdir: Path, planned: Sequence[Planned], splits: Sequence[str]) -> None:
    """Writes rows and folders into the work directory, for tables."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for run in planned:
        rows.setdefault(run.row, []).append((run.draw, run.folder))
    baselines = {run.row: run.baseline for run in planned}
    listed = [{"row": row, "baseline": baselines[row], "runs": runs} for row, runs in rows.items()]
    with only_one(workdir / f".{RECORD}.lock"):  # the tasks of an array begin at once
        write_json(workdir / RECORD, {"rows": listed, "splits": list(splits)})


def read_record(workdir: Path) -> Record | None:
    """What `keep_record` wrote; None where this is no sweep's work directory. Raises WorkdirError for a damaged file."""
    if not (workdir / RECORD).is_file():
        return None
    with damage_named(workdir / RECORD, "the command of the sweep with --dry_run writes it anew"):
        content = read_json(workdir / RECORD)
        rows = {of["row"]: [(str(draw), _inside(folder)) for draw, folder in of["runs"]] for of in content["rows"]}
        baselines = {of["row"]: of["baseline"] for of in content["rows"] if of["baseline"]}
        return Record(rows, baselines, [str(split) for split in content["splits"]])


def _inside(folder: str) -> str:
    """A folder's name, which stays in the work directory."""
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{folder!r} is outside")
    return folder
