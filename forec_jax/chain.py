"""From image tags to a segmenter: the stages of WSSSByRec and its bridge in one work directory."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from forec_jax.bridge import write_masks
from forec_jax.runs import THRESHOLD, choose_threshold, load_run, run_training

STAGES = ("classifier", "wsss", "segmenter")
"""The trainings, by the variants of configs/tags.py that they are; also their work directories' names."""


class Masks(NamedTuple):
    """How masks from tags become labels: `write_masks` has the meanings."""

    split: str  # whose masks the thresholds are chosen on
    keep: float
    confidence: float
    labelled: str


def run_chain(configs: dict[str, ConfigDict], masks: Masks, workdir: Path) -> int | None:
    """Trains the classifier, then WSSSByRec guided by it, writes its masks as labels, and trains the segmenter on them.

    Every stage goes on where it was stopped, and one that is done is left as it is. Both stages from tags get the
    threshold of their masks. Returns the signal that ended a stage, None at the end of the last.

    Args:
      configs: by the names of STAGES; what one stage takes from another is filled in here.
      masks: options of the masks.
      workdir: holds a folder for each stage, and `masks`.
    """
    folders = {stage: workdir / stage for stage in STAGES}
    configs["wsss"].method.classifier = str(folders["classifier"])
    configs["segmenter"].data.root = str(workdir / "masks")
    for stage in ("classifier", "wsss"):
        if (stopped_by := run_training(configs[stage], folders[stage])) is not None:
            return stopped_by
        if not (folders[stage] / THRESHOLD).exists():
            choose_threshold(load_run(folders[stage], "last"), folders[stage], masks.split, "teacher")
    if not (workdir / "masks").exists():
        run, options = load_run(folders["wsss"], "last"), masks._asdict()
        del options["split"]
        write_masks(run, workdir / "masks", network="teacher", **options)
    return run_training(configs["segmenter"], folders["segmenter"])
