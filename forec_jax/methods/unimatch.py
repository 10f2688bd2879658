"""UniMatch: two strong views, and the weak one with perturbed features (Yang et al., CVPR 2023)."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax

from forec_jax.augment import Rows
from forec_jax.contracts import Array, Aux, Batch, HeadOutput, Metrics, PyTree, Terms, TrainState, Variables, Views
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.dropout import channel_dropout
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, decode_heads, head_names, run_heads
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.two_views import PseudoLabelLoss, joined, two_view_terms
from forec_jax.methods.parts.views import (
    both_parts,
    labelled_rows,
    strong_rows,
    student_input,
    unit_image,
    unlabelled_views,
    weak_rows,
)
from forec_jax.methods.parts.weak_to_strong import WEAK_TO_STRONG
from forec_jax.options import BELOW_1, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The view whose features are perturbed."""

    dropout: float = option(0.5, "share of the channels of the perturbed features that are dropped", BELOW_1)


class _FirstPass(NamedTuple):
    """What the student makes of the labelled and the weak rows in one pass."""

    labelled: dict[str, HeadOutput]  # by head
    weak: Array  # f32[b,H,W,K], logits of the weak rows
    perturbed: Array  # f32[b,H,W,K], of the same rows from features with channels dropped


class Seen(NamedTuple):
    """What a step shows the student, and what it says."""

    image: Array  # f32[B,H,W,3], the labelled rows and the strong views
    labelled: dict[str, HeadOutput]  # by head
    labelled_views: Views
    perturbed: Array  # f32[b,H,W,K], logits of the weak rows from perturbed features
    weak: Rows
    strong: dict[str, HeadOutput]  # by head, of two views of each row, as `strong_rows` lays them
    strong_rows: Rows
    batch_stats: PyTree


@dataclasses.dataclass(frozen=True)
class UniMatch(SemiSupervised, Options):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * (L_1 / 4 + L_2 / 4 + L_fp / 2) + auxiliary terms.

    The student labels the weak view itself, in the pass in which it learns from the labelled rows. In that pass the
    decoder sees every row again with channels of its features dropped, and should say the same of the weak ones: L_fp.
    Two strong views of each unlabelled row go through in a second pass. Auxiliary heads see the labelled rows and the
    strong views, with features as they are. The teacher is the student's EMA, to score beside it, and teaches nothing.
    """

    own_passes: ClassVar[bool] = True
    completes_labels: ClassVar[bool] = False

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        seen = self.passes(params, state, batch, key)
        terms, metrics = consistency(seen, functools.partial(self.unsupervised, step=state.step))
        return self.completed(seen, self.supervised(seen) | terms, metrics, state, key)

    def passes(
        self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array, extra: PyTree = ()
    ) -> Seen:
        """The student's two passes. `extra` are arrays [b,H,W,...] of the weak rows, which are mixed as their labels are."""
        labelled, unlabelled = both_parts(batch, "unimatch")
        colour_key, mixing_key, strong_key, pass_key, second_key, _ = _keys(key)
        rows = labelled_rows(colour_key, labelled, self.labelled_colour)
        image, views = student_input(self.labelled_mixing(mixing_key, rows), None)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        first, stats = self.first_pass(student, image, unit_image(unlabelled.image), pass_key)

        probabilities = jax.lax.stop_gradient(jax.nn.softmax(first.weak, axis=-1))
        weak = weak_rows(unlabelled, probabilities)._replace(extra=extra)
        strong = strong_rows(strong_key, weak, self.colour, self.mixing)
        outputs, stats = run_heads(
            self.network,
            student._replace(batch_stats=stats),
            strong.strong,
            head_names(self.auxiliary),
            train=True,
            rng=second_key,
        )
        return Seen(joined(image, strong.strong), first.labelled, views, first.perturbed, weak, outputs, strong, stats)

    def supervised(self, seen: Seen) -> Terms:
        """L_s with its weight."""
        logits = seen.labelled[SEGMENTATION].output
        return supervised_terms(logits, seen.labelled_views, loss=self.supervised_loss, weight=self.supervised_weight)

    def completed(self, seen: Seen, terms: Terms, metrics: Metrics, state: TrainState, key: Array) -> tuple[Terms, Aux]:
        """The method's own terms with the auxiliary tasks', and what the loss leaves behind."""
        *_, pass_key, _, task_key = _keys(key)
        task_terms, task_metrics, memory = self.task_terms(
            joined(seen.labelled, seen.strong),
            joined(seen.labelled_views, unlabelled_views(seen.strong_rows)),
            state,
            task_key,
        )
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], seen.image, pass_key, self.bn_mode)
        aux = Aux({STUDENT: seen.batch_stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | task_terms, aux

    def first_pass(self, student: Variables, image: Array, weak: Array, key: Array) -> tuple[_FirstPass, PyTree]:
        """Labelled and weak rows, both f32[b,H,W,3], with features as they are and perturbed; and the new batch_stats."""
        drop_key, dropout_key = jax.random.split(key)
        number, rows = len(image), len(image) + len(weak)
        features, stats = self.network.encode(student, joined(image, weak), train=True, rng=dropout_key)
        of_labelled = jax.tree.map(lambda leaf: leaf[:number], features)
        features_of = dict.fromkeys(head_names(self.auxiliary), of_labelled)
        features_of[SEGMENTATION] = joined(features, channel_dropout(drop_key, features, self.dropout))
        outputs, stats = decode_heads(
            self.network, student._replace(batch_stats=stats), features_of, train=True, rng=dropout_key
        )
        logits = outputs[SEGMENTATION].output
        labelled = outputs | {SEGMENTATION: jax.tree.map(lambda leaf: leaf[:number], outputs[SEGMENTATION])}
        return _FirstPass(labelled, logits[number:rows], logits[rows + number :]), stats


def consistency(seen: Seen, loss: PseudoLabelLoss) -> tuple[Terms, Metrics]:
    """L_1 / 4 + L_2 / 4 + L_fp / 2, times the weight of `loss`; metrics of the strong views."""
    terms, metrics = two_view_terms(loss, seen.strong[SEGMENTATION].output, unlabelled_views(seen.strong_rows))
    perturbed, _ = loss(seen.perturbed, unlabelled_views(seen.weak))
    terms["perturbed_loss"] = perturbed["unsupervised_loss"]
    return {name: term._replace(weight=0.5 * term.weight) for name, term in terms.items()}, metrics


def _keys(key: Array) -> Array:
    """The keys of a step: colours, mixing, strong views, the two passes, tasks."""
    return jax.random.split(key, 6)


def build(o: Options, p: Parts) -> UniMatch:
    """The method from its parts."""
    return semi_supervised(UniMatch, p, o)


ENTRY = MethodEntry(
    "unimatch",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published=WEAK_TO_STRONG,
)
