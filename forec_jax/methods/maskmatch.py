"""MaskMatch: a strong view, and one of which most patches are hidden ("Semi-supervised Semantic Segmentation Meets Masked
Modeling", arXiv 2312.08631). Reconstructed from the abstract, not verified."""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from forec_jax.augment import Rows, hide_patches, mean_colour
from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    Labelled,
    Metrics,
    PyTree,
    Term,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
    Views,
)
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, class_probabilities, head_names, run_heads
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.two_views import joined, two_view_terms
from forec_jax.methods.parts.views import (
    both_parts,
    interleave,
    labelled_rows,
    student_input,
    unit_image,
    unlabelled_views,
    weak_rows,
)
from forec_jax.methods.parts.weak_to_strong import WEAK_TO_STRONG
from forec_jax.models.scales import mean_over_scales
from forec_jax.options import SCALES, SHARE, at_least, must_be, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The masked view, and the teacher's scales. The paper's abstract gives the visible 30 % and no other value."""

    visible: float = option(
        0.3, "share of the patches that the masked view shows", must_be("above 0, at most 1", lambda s: 0 < s <= 1)
    )
    patch: int = option(32, "side of a patch in pixels", at_least(1))
    masked_view: Literal["weak", "strong"] = option(
        "weak", 'of which patches are hidden: the "weak" view, or the "strong" one with its colours and boxes'
    )
    masked_share: float = option(0.5, "of the masked view in L_u; the rest is the strong view's", SHARE)
    scales: tuple[float, ...] = option(
        (0.75, 1.0, 1.25),
        "at which the teacher sees the weak view; its probabilities are averaged",
        SCALES,
    )


@dataclasses.dataclass(frozen=True)
class MaskMatch(SemiSupervised, Options):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * ((1 - m) L_strong + m L_masked) + auxiliary terms.

    m is `masked_share`. The teacher, an EMA of the student, labels the whole weak view at several scales. The student sees
    the labelled rows in one pass, and in another of each unlabelled row a strong view and one of which only a share of
    the patches is visible; it is asked for the label of every pixel of both. Auxiliary heads see all rows, so that
    a reconstruction beside this method paints what is hidden.
    """

    own_passes: ClassVar[bool] = True
    completes_labels: ClassVar[bool] = False

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = both_parts(batch, "maskmatch")
        colour_key, mixing_key, view_key, first_key, second_key, task_key = jax.random.split(key, 6)
        teacher, heads = state.teacher[STUDENT], head_names(self.auxiliary)
        rows = labelled_rows(colour_key, labelled, self.labelled_colour)
        image, views = student_input(self.labelled_mixing(mixing_key, rows), None)
        seen = self.two_views(weak_rows(unlabelled, self.taught_at_scales(teacher, unlabelled)), view_key)
        seen_views = unlabelled_views(seen)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = run_heads(self.network, student, image, heads, train=True, rng=first_key)
        student = student._replace(batch_stats=stats)
        others, stats = run_heads(self.network, student, seen.strong, heads, train=True, rng=second_key)
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        unsupervised, metrics = self.both(others[SEGMENTATION].output, seen_views, state.step)
        task_terms, task_metrics, memory = self.task_terms(
            joined(outputs, others), joined(views, seen_views), state, task_key
        )
        teacher_stats = teacher_statistics(self.network, teacher, joined(image, seen.strong), first_key, self.bn_mode)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | unsupervised | task_terms, aux

    def taught_at_scales(self, teacher: Variables, part: Unlabelled | Labelled) -> Array:
        """The mean over the scales of the teacher's class probabilities f32[b,H,W,K] of the weak view."""
        # Padding has one colour, whatever lies in it: a resize mixes it with the image's border.
        image = jnp.where(part.valid[..., None], unit_image(part.image), mean_colour())
        predict = functools.partial(class_probabilities, self.network, teacher)
        return mean_over_scales(predict, image, None, self.scales, self.network.multiple)

    def two_views(self, weak: Rows, key: Array) -> Rows:
        """Of each weak row a strong view and a masked one, side by side, as `interleave` lays them."""
        colour_key, mixing_key, mask_key = jax.random.split(key, 3)
        strong = self.mixing(mixing_key, weak._replace(strong=self.colour(colour_key, weak.clean, weak.valid)))
        whole = strong if self.masked_view == "strong" else weak
        masked = whole._replace(strong=hide_patches(mask_key, whole.strong, self.patch, self.visible))
        pairs: Rows = jax.tree.map(interleave, strong, masked)
        return pairs

    def both(self, logits: Array, views: Views, step: Array) -> tuple[Terms, Metrics]:
        """L_u of the strong and of the masked views, and the metrics of both."""
        terms, metrics = two_view_terms(functools.partial(self.unsupervised, step=step), logits, views)
        shares = {"unsupervised_loss": 1 - self.masked_share, "masked_loss": self.masked_share}
        return {
            name: Term(mean, 2 * share * half)  # `two_view_terms` gives each view a half
            for (name, share), (mean, half) in zip(shares.items(), terms.values(), strict=True)
        }, metrics


def build(o: Options, p: Parts) -> MaskMatch:
    """The method from its parts."""
    return semi_supervised(MaskMatch, p, o)


ENTRY = MethodEntry(
    "maskmatch",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published=WEAK_TO_STRONG,  # of FixMatch, which it is built on
)
