"""ST and ST++: trainings in a row, each beside the masks that one before it has written (Yang et al., CVPR 2022).

ST trains on the labels, labels all other images, and trains on both. ST++ first labels the half of the images on which the
checkpoints of the first training agree most, trains on these, labels the other half with that, and trains on all.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from forec_jax.config import check_options
from forec_jax.experiment import build
from forec_jax.experiment.label import Labelling, write_labels
from forec_jax.experiment.run import check_rows
from forec_jax.experiment.stages import LabellingStage, TrainingStage, begin, run_stages

CHAINS = {"st": ("first", "second"), "st_plus_plus": ("first", "second", "third")}
"""The trainings of each chain, by the part of a variant that names it; they are their work directories' names too."""

RELIABLE, MASKS = "reliable", "masks"
"""Folders of masks: of the reliable half, and of all images."""


class HandOver(NamedTuple):
    """How one stage labels for the next."""

    network: str = "student"
    checkpoint: str = "last"  # or "best", on the validation images, as the published code has it as an option
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0)
    flips: bool = True
    keep: float = 0.5  # st_plus_plus: the share of the images that are reliable


def chain_of(variant: str) -> str:
    """The chain that a variant names, or ""."""
    return next((part for part in variant.split("+") if part in CHAINS), "")


def stage_variants(variant: str) -> dict[str, str]:
    """The variant of each training of a chain: supervised in its place, then st."""
    name = chain_of(variant)

    def of(method: str) -> str:
        return "+".join(method if part == name else part for part in variant.split("+"))

    first, *others = CHAINS[name]
    return {first: of("supervised"), **dict.fromkeys(others, of("st"))}


def run_self_training(chain: str, configs: Mapping[str, ConfigDict], workdir: Path, how: HandOver) -> int | None:
    """Does all stages of a chain, and goes on where it was stopped; returns the signal that ended one, None at the end.

    Args:
      chain: of CHAINS.
      configs: by the names of its trainings. Where the masks are is filled in here, and for st_plus_plus the milestones
        of the first: a third and two thirds of its steps, where it has none.
      workdir: holds a folder for each training, and those of masks.
      how: how masks are made.

    Raises, before the first stage, OptionError for what could not be trained, and WorkdirError where `workdir` was begun
    otherwise.
    """
    for c in configs.values():
        check_options(c)
        check_rows(c)
        build.build_mesh(c)
    workdir = workdir.absolute()
    begin(workdir, {"chain": chain, **how._asdict(), "scales": list(how.scales)})
    return run_stages(_stages(chain, configs, workdir, how), workdir)


def _stages(
    chain: str, configs: Mapping[str, ConfigDict], workdir: Path, how: HandOver
) -> list[TrainingStage | LabellingStage]:
    """The stages of a chain, in a row."""
    every = Labelling(network=how.network, flips=how.flips, scales=how.scales)

    def masks(folder: str, by: str, labelling: Labelling) -> LabellingStage:
        return LabellingStage(folder, by, lambda run, out: write_labels(run, out, labelling), how.checkpoint)

    def beside(name: str, folder: str) -> TrainingStage:
        return TrainingStage(name, configs[name], {"data.pseudo": folder})

    first = configs["first"]
    if chain == "st":
        return [TrainingStage("first", first), masks(MASKS, "first", every), beside("second", MASKS)]
    first.milestones = first.milestones or (max(first.steps // 3, 1), max(2 * first.steps // 3, 1))
    reliable = dataclasses.replace(every, keep=how.keep, rank="agreement")
    rest = dataclasses.replace(every, stored=str(workdir / RELIABLE))
    return [
        TrainingStage("first", first),
        masks(RELIABLE, "first", reliable),
        beside("second", RELIABLE),
        masks(MASKS, "second", rest),
        beside("third", MASKS),
    ]
