"""Stages: trainings and labellings in a row, in one work directory, each of which goes on where it was stopped.

`run_chain` is the chain from image tags to a segmenter; those of `chains.py` are named by a variant. Another is another
list.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from forec_jax.experiment import build, sources
from forec_jax.experiment.label import true_masks, write_labels
from forec_jax.experiment.load import THRESHOLD, Run, choose_threshold, load_run
from forec_jax.experiment.masks import Labelling
from forec_jax.experiment.run import run_training
from forec_jax.experiment.workdir import WorkdirError, damage_named, make_workdir
from forec_jax.files import read_json, write_json
from forec_jax.kinds import mapping

log = logging.getLogger(__name__)

STAGES = ("classifier", "wsss", "segmenter")
"""The trainings, by the variants of configs/tags.py that they are; also their work directories' names."""

OPTIONS = "chain.json"
"""In the work directory: what was asked for beside the stages' configs."""


class TrainingStage(NamedTuple):
    """A stage that trains."""

    name: str  # of its work directory
    config: ConfigDict
    takes: Mapping[str, str] = {}  # dotted key -> the stage whose folder it is set to
    finish: Callable[[Path], None] = lambda workdir: None  # what is done in its work directory afterwards, each time


class LabellingStage(NamedTuple):
    """A stage that writes a data set."""

    name: str  # of its folder
    run: str  # the stage that labels
    write: Callable[[Run, Path], Any]
    checkpoint: str = "last"  # of that stage


Stage = TrainingStage | LabellingStage


def run_stages(stages: Sequence[Stage], workdir: Path) -> int | None:
    """Does one stage after another, and leaves what is done as it is; returns the signal that ended one, if any."""
    for number, stage in enumerate(stages, start=1):
        log.info("stage %d of %d: %s", number, len(stages), stage.name)
        folder = workdir / stage.name
        if isinstance(stage, LabellingStage):
            if not folder.exists():
                stage.write(load_run(workdir / stage.run, stage.checkpoint), folder)
            continue
        c = stage.config.copy_and_resolve_references()  # other stages may have the same
        c.update_from_flattened_dict({key: str(workdir / other) for key, other in stage.takes.items()})
        if (stopped_by := run_training(c, folder)) is not None:
            return stopped_by
        stage.finish(folder)
    return None


def run_chain(configs: Mapping[str, ConfigDict], workdir: Path, *, split: str, masks: Mapping[str, Any]) -> int | None:
    """Trains the classifier, then WSSSByRec guided by it, writes its masks as labels, and trains the segmenter on them.

    Both stages from tags get the threshold of their masks. Returns the signal that ended a stage, None at the end.

    Args:
      configs: by the names of STAGES; what one stage takes from another is filled in here.
      workdir: holds a folder for each stage, and `masks`.
      split: whose masks the thresholds are chosen on.
      masks: how masks become labels: `keep`, `confidence` and `labelled` of a `Labelling`.

    Raises, before the first stage, what would only show after hours of it: a split that is not there, true masks that
    cannot be had, devices that do not fit; WorkdirError where `workdir` was begun with another `split` or other `masks`.
    """
    check(configs, split, masks["labelled"])
    begin(workdir, {"split": split, **masks})

    def threshold(folder: Path) -> None:
        if not (folder / THRESHOLD).exists():
            choose_threshold(load_run(folder, "last"), folder, split, "teacher")

    guided = {"method.wsss_rec.classifier": "classifier"}
    stages = (
        TrainingStage("classifier", configs["classifier"], finish=threshold),
        TrainingStage("wsss", configs["wsss"], guided, threshold),
        LabellingStage("masks", "wsss", lambda run, folder: write_labels(run, folder, Labelling(**masks))),
        TrainingStage("segmenter", configs["segmenter"], {"data.root": "masks"}),
    )
    return run_stages(stages, workdir)


def check(configs: Mapping[str, ConfigDict], split: str, labelled: str) -> None:
    """Raises where a later stage could not begin."""
    for c in configs.values():
        build.build_mesh(c)
    dataset, pool = sources.build_dataset(configs["wsss"]), configs["wsss"].data.pool
    dataset.source(split)
    true_masks(dataset.source(pool), dataset.maskless, labelled, len(dataset.classes))


def begin(workdir: Path, options: Mapping[str, Any]) -> None:
    """Writes down the options, or checks that they are those already there."""
    make_workdir(workdir)
    stored = workdir / OPTIONS
    before = options
    if stored.exists():
        with damage_named(stored, "remove it if the options are those that the work directory was begun with"):
            before = mapping(read_json(stored))
    if changed := [
        f"--{key}={options[key]} (was {before.get(key)})" for key in options if before.get(key) != options[key]
    ]:
        raise WorkdirError(f"--workdir={workdir} was begun with other options: {', '.join(changed)}; choose another")
    write_json(stored, dict(options))
