"""Test-time augmentation: the mean of what is said of an image at several sizes, and of its mirror image."""

import dataclasses
import functools

from forec_jax.contracts import Array, Variables
from forec_jax.evaluation.sliding import Predicts
from forec_jax.models.scales import both_ways, mean_over_scales


@dataclasses.dataclass(frozen=True)
class Averaged:
    """The mean over `scales`, and with `flip` over both directions, of the class probabilities at the image's own size.

    Every image is scaled as it would be alone: H x W pixels become round(s H) x round(s W), bilinearly, corners on
    corners, whatever the padding; the probabilities are scaled back in the same way. All scales of a bucket of image shapes
    are one program.
    """

    single: Predicts
    scales: tuple[float, ...]
    flip: bool
    multiple: int  # of sides (contracts.Network)

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]; `valid` marks a top-left rectangle."""
        said = functools.partial(self.single.predict, variables)
        return mean_over_scales(both_ways(said) if self.flip else said, image, valid, self.scales, self.multiple)
