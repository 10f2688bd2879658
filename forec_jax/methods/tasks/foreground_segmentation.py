"""Binary foreground segmentation as the auxiliary task: what FOrec's Table 5 compares with."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array, HeadOutput, HeadSpec, Metrics, PyTree, Term, Terms, Views
from forec_jax.losses import mean_cross_entropy
from forec_jax.methods.entry import TaskEntry, TaskOptions, TaskParts
from forec_jax.methods.parts.background import PseudoTruth, RowWeights, is_background, is_known
from forec_jax.options import taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TaskOptions, RowWeights, PseudoTruth):
    """None of its own."""


@dataclasses.dataclass(frozen=True)
class ForegroundSegmentation(RowWeights, PseudoTruth):
    """Cross-entropy of a second decoder with two classes, background 0 and foreground 1, where the class is known."""

    memory: ClassVar[PyTree] = ()
    background_classes: tuple[int, ...]

    @property
    def head(self) -> HeadSpec:
        """A decoder like the segmentation's, ending in two classes."""
        return HeadSpec("foreground", 2)

    def loss(
        self, outputs: Mapping[str, HeadOutput], views: Views, key: Array, memory: PyTree
    ) -> tuple[Terms, Metrics, PyTree]:
        """The labelled and the unlabelled rows' mean cross-entropy over the pixels of known class."""
        del key
        included = is_known(views, self.threshold)
        foreground = ~is_background(views.label, self.background_classes)
        label = jnp.where(included, foreground.astype(jnp.int32), IGNORE)
        logits = outputs[self.head.name].output
        row = views.labelled_row[:, None, None]
        labelled = mean_cross_entropy(logits, label, included & row)
        unlabelled = mean_cross_entropy(logits, label, included & ~row)
        terms = {
            "foreground_labelled_loss": Term(labelled, self.labelled_weight),
            "foreground_unlabelled_loss": Term(unlabelled, self.unlabelled_weight),
        }
        return terms, {}, memory


def build(o: Options, p: TaskParts) -> ForegroundSegmentation:
    """The task for a data set's background."""
    return ForegroundSegmentation(p.background(ENTRY.name), **taken(ForegroundSegmentation, o))


ENTRY = TaskEntry("foreground_segmentation", Options, build, {"foreground_segmentation": {}})
