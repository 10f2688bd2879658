"""From image tags to a segmenter: the stages of WSSSByRec and its bridge in one work directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from forec_jax.experiment import build, sources
from forec_jax.experiment.label import true_masks, write_masks
from forec_jax.experiment.load import THRESHOLD, choose_threshold, load_run
from forec_jax.experiment.run import run_training
from forec_jax.experiment.workdir import WorkdirError, make_workdir
from forec_jax.files import write_json

STAGES = ("classifier", "wsss", "segmenter")
"""The trainings, by the variants of configs/tags.py that they are; also their work directories' names."""

OPTIONS = "chain.json"
"""In the work directory: what was asked for beside the stages' configs."""


def run_chain(configs: Mapping[str, ConfigDict], workdir: Path, *, split: str, masks: Mapping[str, Any]) -> int | None:
    """Trains the classifier, then WSSSByRec guided by it, writes its masks as labels, and trains the segmenter on them.

    Every stage goes on where it was stopped, and one that is done is left as it is. Both stages from tags get the
    threshold of their masks. Returns the signal that ended a stage, None at the end of the last.

    Args:
      configs: by the names of STAGES; what one stage takes from another is filled in here.
      workdir: holds a folder for each stage, and `masks`.
      split: whose masks the thresholds are chosen on.
      masks: how masks become labels: `keep`, `confidence` and `labelled` of `write_masks`.

    Raises, before the first stage, what would only show after hours of it: a split that is not there, true masks that
    cannot be had, devices that do not fit; WorkdirError where `workdir` was begun with another `split` or other `masks`.
    """
    check(configs, split, masks["labelled"])
    begin(workdir, {"split": split, **masks})
    folders = {stage: workdir / stage for stage in STAGES}
    configs["wsss"].method.wsss_rec.classifier = str(folders["classifier"])
    configs["segmenter"].data.root = str(workdir / "masks")
    for stage in ("classifier", "wsss"):
        if (stopped_by := run_training(configs[stage], folders[stage])) is not None:
            return stopped_by
        if not (folders[stage] / THRESHOLD).exists():
            choose_threshold(load_run(folders[stage], "last"), folders[stage], split, "teacher")
    if not (workdir / "masks").exists():
        write_masks(load_run(folders["wsss"], "last"), workdir / "masks", network="teacher", **masks)
    return run_training(configs["segmenter"], folders["segmenter"])


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
    before = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else options
    if changed := [
        f"--{key}={options[key]} (was {before.get(key)})" for key in options if before.get(key) != options[key]
    ]:
        raise WorkdirError(f"--workdir={workdir} was begun with other options: {', '.join(changed)}; choose another")
    write_json(stored, dict(options))
