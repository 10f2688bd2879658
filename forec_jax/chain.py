"""From image tags to a segmenter: the stages of WSSSByRec and its bridge in one work directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from forec_jax.bridge import write_masks
from forec_jax.runs import THRESHOLD, choose_threshold, load_run, run_training

STAGES = ("classifier", "wsss", "segmenter")
"""The trainings, by the variants of configs/tags.py that they are; also their work directories' names."""


def run_chain(configs: Mapping[str, ConfigDict], workdir: Path, *, split: str, masks: Mapping[str, Any]) -> int | None:
    """Trains the classifier, then WSSSByRec guided by it, writes its masks as labels, and trains the segmenter on them.

    Every stage goes on where it was stopped, and one that is done is left as it is. Both stages from tags get the
    threshold of their masks. Returns the signal that ended a stage, None at the end of the last.

    Args:
      configs: by the names of STAGES; what one stage takes from another is filled in here.
      workdir: holds a folder for each stage, and `masks`.
      split: whose masks the thresholds are chosen on.
      masks: how masks become labels: `keep`, `confidence` and `labelled` of `write_masks`.
    """
    folders = {stage: workdir / stage for stage in STAGES}
    configs["wsss"].method.classifier = str(folders["classifier"])
    configs["segmenter"].data.root = str(workdir / "masks")
    for stage in ("classifier", "wsss"):
        if (stopped_by := run_training(configs[stage], folders[stage])) is not None:
            return stopped_by
        if not (folders[stage] / THRESHOLD).exists():
            choose_threshold(load_run(folders[stage], "last"), folders[stage], split, "teacher")
    if not (workdir / "masks").exists():
        write_masks(load_run(folders["wsss"], "last"), workdir / "masks", network="teacher", **masks)
    return run_training(configs["segmenter"], folders["segmenter"])
