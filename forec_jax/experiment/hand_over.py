"""How one training of a chain labels for the next: the options of `forec-jax chain`."""

from dataclasses import dataclass
from typing import Any, Literal

from forec_jax.experiment.label import write_masks
from forec_jax.experiment.masks import Labelling
from forec_jax.experiment.stages import LabellingStage
from forec_jax.options import SCALES, option


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """What every chain that is named by a variant has."""

    network: Literal["student", "teacher"] = option(
        "student", "which network of a training is handed over; published: the one that is trained, there is no EMA"
    )
    checkpoint: Literal["last", "best"] = option(
        "last", "which of its states; best, as published: by the score on the validation images, which then teach"
    )
    scales: tuple[float, ...] = option((0.5, 0.75, 1.0, 1.5, 2.0), "of an image, at which it is labelled", SCALES)
    flips: bool = option(True, "label the mirrored image as well; the mean of all probabilities counts")


def masks_stage(folder: str, by: str, how: HandOver, **more: Any) -> LabellingStage:
    """A stage in which the training `by` labels what has no mask yet; `more` are further fields of a `Labelling`."""
    labelling = Labelling(network=how.network, flips=how.flips, scales=how.scales, **more)
    return LabellingStage(folder, by, lambda run, out: write_masks(run, out, labelling), how.checkpoint)
