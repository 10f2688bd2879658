"""ST and ST++: trainings in a row, each beside the masks that one before it has written (Yang et al., CVPR 2022).

ST trains on the labels, labels all other images, and trains on both. ST++ first labels the half of the images on which the
checkpoints of the first training agree most, trains on these, labels the other half with that, and trains on all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from forec_jax.experiment.hand_over import HandOver, masks_stage
from forec_jax.experiment.stages import Stage, TrainingStage
from forec_jax.options import SHARE, option

RELIABLE, MASKS = "reliable", "masks"
"""Folders of masks: of the reliable half, and of all images."""


@dataclass(frozen=True, kw_only=True)
class ReliableFirst(HandOver):
    """ST++'s hand-over."""

    keep: float = option(0.5, "share of the images, those with the most reliable masks, of the second training", SHARE)


def st(configs: Mapping[str, ConfigDict], workdir: Path, how: HandOver) -> list[Stage]:
    """ST's stages; `configs` are those of "first" and "second"."""
    del workdir
    return [
        TrainingStage("first", configs["first"]),
        masks_stage(MASKS, "first", how),
        _beside("second", MASKS, configs),
    ]


def st_plus_plus(configs: Mapping[str, ConfigDict], workdir: Path, how: ReliableFirst) -> list[Stage]:
    """ST++'s stages; `configs` are those of "first", "second" and "third".

    Where the first has no milestones they are a third and two thirds of its steps.
    """
    first = configs["first"]
    first.milestones = first.milestones or (max(first.steps // 3, 1), max(2 * first.steps // 3, 1))
    return [
        TrainingStage("first", first),
        masks_stage(RELIABLE, "first", how, keep=how.keep, rank="agreement"),
        _beside("second", RELIABLE, configs),
        masks_stage(MASKS, "second", how, stored=str(workdir / RELIABLE)),
        _beside("third", MASKS, configs),
    ]


def _beside(name: str, folder: str, configs: Mapping[str, ConfigDict]) -> TrainingStage:
    """A training beside the masks of a folder."""
    return TrainingStage(name, configs[name], {"data.pseudo": folder})
