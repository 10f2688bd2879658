"""The reconstruction tasks: the whole image, or its foreground only (FOrec)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp

from forec_jax.contracts import (
    IGNORE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Array,
    HeadOutput,
    HeadSpec,
    Mean,
    Metrics,
    PyTree,
    Term,
    Terms,
    Views,
)
from forec_jax.losses import squared_error
from forec_jax.methods.entry import TaskEntry, TaskOptions, TaskParts
from forec_jax.methods.parts.background import PseudoTruth, RowWeights, is_background, is_known
from forec_jax.options import option, taken

RECONSTRUCTION = "reconstruction"
"""The head's name, of both tasks: a network paints the one or the other."""

Void = Literal["exclude", "zero"]
PixelSpace = Literal["unit", "imagenet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Painting(RowWeights):
    """What both tasks have."""

    pixel_space: PixelSpace = option(
        "unit", 'targets in [0, 1], or "imagenet": normalised by ImageNet\'s mean and deviation'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ForegroundPainting(_Painting, PseudoTruth):
    """What the foreground's has beside that."""

    void: Void = option(
        "exclude", 'foreground: void ground truth is left out, or "zero" as Eq. 3 to the letter; padding is out'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(_ForegroundPainting, TaskOptions):
    """Which of the two tasks it is."""

    target: Literal["image", "foreground"] = option("image", '"image": every pixel; "foreground": FOrec, section 4.4')


def _reconstruction_terms(
    output: Array, target: Array, included: Array, views: Views, weights: tuple[float, float]
) -> Terms:
    """Mean squared errors, apart for labelled and unlabelled rows, with their weights (labelled, unlabelled)."""
    row = views.labelled_row[:, None, None]
    labelled = squared_error(output, target, included & row)
    unlabelled = squared_error(output, target, included & ~row)
    return {
        "reconstruction_labelled_loss": Term(labelled, weights[0]),
        "reconstruction_unlabelled_loss": Term(unlabelled, weights[1]),
    }


def _target_pixels(image: Array, space: PixelSpace) -> Array:
    """The pixels to reconstruct from f32[B,H,W,3] in [0,1]: as they are, or normalised by ImageNet's mean and deviation."""
    if space == "unit":
        return image
    mean, std = _imagenet()
    return (image - mean) / std


def unit_pixels(output: Array, space: PixelSpace) -> Array:
    """The inverse of `_target_pixels`: what a head painted, f32[B,H,W,3], in [0,1] where it paints colours that exist."""
    if space == "unit":
        return output
    mean, std = _imagenet()
    return output * std + mean


def _imagenet() -> tuple[Array, Array]:
    """ImageNet's mean and deviation, f32[1,1,1,3]."""
    return jnp.asarray(IMAGENET_MEAN)[None, None, None], jnp.asarray(IMAGENET_STD)[None, None, None]


@dataclasses.dataclass(frozen=True)
class ImageReconstruction(_Painting):
    """Standard reconstruction (FOrec, section 4.3): every valid pixel of the clean view."""

    memory: ClassVar[PyTree] = ()

    @property
    def head(self) -> HeadSpec:
        """A decoder like the segmentation's, ending in the three colours."""
        return HeadSpec(RECONSTRUCTION, 3)

    def loss(
        self, outputs: Mapping[str, HeadOutput], views: Views, key: Array, memory: PyTree
    ) -> tuple[Terms, Metrics, PyTree]:
        """The labelled and the unlabelled rows' mean squared error."""
        del key
        target = _target_pixels(views.image, self.pixel_space)
        weights = (self.labelled_weight, self.unlabelled_weight)
        terms = _reconstruction_terms(outputs[self.head.name].output, target, views.valid, views, weights)
        return terms, {}, memory


@dataclasses.dataclass(frozen=True)
class ForegroundReconstruction(_ForegroundPainting):
    """FOrec (section 4.4, Eq. 3): foreground pixels as they are, background as 0, pixels of unknown class left out.

    A pixel's class is its ground truth, or the teacher's pseudo-label where it is more confident than `threshold`.
    Void pixels of the ground truth are excluded; `void="zero"` reads Eq. 3 to the letter (not foreground, hence 0).
    Padding is excluded in either case, of which the paper does not speak.
    """

    memory: ClassVar[PyTree] = ()
    background_classes: tuple[int, ...]

    @property
    def head(self) -> HeadSpec:
        """A decoder like the segmentation's, ending in the three colours."""
        return HeadSpec(RECONSTRUCTION, 3)

    def target(self, views: Views) -> tuple[Array, Array]:
        """The pixels to paint, f32[B,H,W,3], and which of them count, bool[B,H,W]."""
        included = is_known(views, self.threshold)
        void = views.is_ground_truth & views.valid & (views.label == IGNORE)
        if self.void == "zero":
            included |= void
        painted = included & ~void & ~is_background(views.label, self.background_classes)
        target = jnp.where(painted[..., None], _target_pixels(views.image, self.pixel_space), 0.0)
        return target, included

    def loss(
        self, outputs: Mapping[str, HeadOutput], views: Views, key: Array, memory: PyTree
    ) -> tuple[Terms, Metrics, PyTree]:
        """The labelled and the unlabelled rows' mean squared error over the included pixels."""
        del key
        target, included = self.target(views)
        weights = (self.labelled_weight, self.unlabelled_weight)
        terms = _reconstruction_terms(outputs[self.head.name].output, target, included, views, weights)
        valid = jnp.sum(views.valid, dtype=jnp.float32)
        return terms, {"reconstructed": Mean(jnp.sum(included, dtype=jnp.float32), valid)}, memory


def build(o: Options, p: TaskParts) -> ImageReconstruction | ForegroundReconstruction:
    """The task that `target` names."""
    if o.target == "image":
        return ImageReconstruction(**taken(ImageReconstruction, o))
    return ForegroundReconstruction(p.background("forec"), **taken(ForegroundReconstruction, o))


ENTRY = TaskEntry(
    RECONSTRUCTION, Options, build, {"reconstruction": {"target": "image"}, "forec": {"target": "foreground"}}
)
