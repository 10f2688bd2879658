"""S4MIM's task: each class has a painter of its own ("Masked Image Modeling Boosting Semi-Supervised Semantic Segmentation",
arXiv 2411.08756). Reconstructed from the abstract, not verified."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, HeadOutput, HeadSpec, Mean, Metrics, PyTree, Term, Terms, Views
from forec_jax.losses import squared_error
from forec_jax.losses.contrast import unit
from forec_jax.methods.entry import TaskEntry, TaskOptions, TaskParts
from forec_jax.methods.parts.background import PseudoTruth, RowWeights, is_known
from forec_jax.methods.parts.heads import SEGMENTATION
from forec_jax.models.resize import nearest
from forec_jax.options import at_least, option, taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Painting(RowWeights, PseudoTruth):
    """What is painted, and what is pulled together."""

    aggregation: float = option(
        0.1, "weight of pulling the segmentation's features of a class together, image by image; 0: none", at_least(0)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(_Painting, TaskOptions):
    """The task's. The paper's abstract gives none of the values."""


@dataclasses.dataclass(frozen=True)
class ClassReconstruction(_Painting):
    """Paints each pixel by the three channels of its class, and pulls the features of a class in an image together.

    A pixel's class is its ground truth, or the teacher's pseudo-label where it is more confident than `threshold`; pixels
    of unknown class are left out. The target is the clean image, whatever of it the student was shown: beside a method
    that hides patches (maskmatch) this is masked image modelling, class by class.
    """

    memory: ClassVar[PyTree] = ()
    classes: int

    @property
    def head(self) -> HeadSpec:
        """A decoder like the segmentation's, ending in three colours for each class."""
        return HeadSpec("class_reconstruction", 3 * self.classes)

    def loss(
        self, outputs: Mapping[str, HeadOutput], views: Views, key: Array, memory: PyTree
    ) -> tuple[Terms, Metrics, PyTree]:
        """The labelled and the unlabelled rows' mean squared error, and the distance of features to their class's."""
        del key
        known, row = is_known(views, self.threshold), views.labelled_row[:, None, None]
        painted = painted_by_class(outputs[self.head.name].output, views.label)
        terms = {
            f"class_reconstruction_{rows}_loss": Term(squared_error(painted, views.image, known & which), weight)
            for rows, which, weight in (
                ("labelled", row, self.labelled_weight),
                ("unlabelled", ~row, self.unlabelled_weight),
            )
        }
        if self.aggregation:
            latent = outputs[SEGMENTATION].latent
            size = latent.shape[1], latent.shape[2]
            mean = distance_to_class(latent, nearest(views.label, size), nearest(known, size), self.classes)
            terms["aggregation_loss"] = Term(mean, self.aggregation)
        valid = jnp.sum(views.valid, dtype=jnp.float32)
        return terms, {"class_reconstructed": Mean(jnp.sum(known, dtype=jnp.float32), valid)}, memory


def painted_by_class(output: Array, label: Array) -> Array:
    """Of f32[B,H,W,3K] the three channels of each pixel's class i32[B,H,W], f32[B,H,W,3]; 0 for no class.

    The channels of class k are 3k, 3k + 1 and 3k + 2. Picked by comparison: the gradient is elementwise as well.
    """
    colours = output.reshape(*output.shape[:3], -1, 3)
    is_class = label[..., None] == jnp.arange(colours.shape[3])[None, None, None]
    return jnp.sum(jnp.where(is_class[..., None], colours, 0.0), axis=3)


def distance_to_class(features: Array, label: Array, known: Array, classes: int) -> Mean:
    """The mean over known pixels of 1 - cosine to the mean feature of their class in their image.

    Args:
        features: [B,h,w,D]. The means are constants.
        label: i32[B,h,w], in [0, K) where known.
        known: bool[B,h,w]; the others have neither value nor gradient.
        classes: K.
    """
    features = jnp.where(known[..., None], features.astype(jnp.float32), 0.0)
    member = (label[..., None] == jnp.arange(classes)[None, None, None]) & known[..., None]
    member = member.astype(jnp.float32)
    total = jnp.einsum("bhwk,bhwd->bkd", member, jax.lax.stop_gradient(features), precision="highest")
    own = jnp.einsum("bhwk,bkd->bhwd", member, unit(total), precision="highest")  # a sum points where the mean does
    distance = jnp.where(known, 1.0 - jnp.sum(unit(features) * own, axis=-1), 0.0)
    return Mean(jnp.sum(distance), jnp.sum(known, dtype=jnp.float32))


def build(o: Options, p: TaskParts) -> ClassReconstruction:
    """The task for the data set's classes."""
    return ClassReconstruction(len(p.labels.classes), **taken(ClassReconstruction, o))


ENTRY = TaskEntry("class_reconstruction", Options, build, {"s4mim": {}})
