"""UniMatch: two strong views, and the weak one with perturbed features (Yang et al., CVPR 2023)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Aux, Batch, HeadOutput, PyTree, Terms, TrainState, Variables, Views
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.dropout import channel_dropout
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, decode_heads, head_names, run_heads
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.two_views import joined, two_view_terms
from forec_jax.methods.parts.views import (
    labelled_rows,
    strong_pair,
    student_input,
    unit_image,
    views_of,
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
        if batch.labelled is None or batch.unlabelled is None:
            raise ValueError("unimatch needs both: set batch.labelled and batch.unlabelled above 0")
        colour_key, mixing_key, strong_key, pass_key, second_key, task_key = jax.random.split(key, 6)
        rows = labelled_rows(colour_key, batch.labelled, self.labelled_colour)
        image, views = student_input(self.labelled_mixing(mixing_key, rows), None)
        weak = unit_image(batch.unlabelled.image)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        first, stats = self.first_pass(student, image, weak, pass_key)

        probabilities = jax.lax.stop_gradient(jax.nn.softmax(first.weak, axis=-1))
        seen = weak_rows(batch.unlabelled, probabilities)
        strong, strong_views = strong_pair(strong_key, seen, self.colour, self.mixing)
        student = student._replace(batch_stats=stats)
        outputs, stats = run_heads(
            self.network, student, strong, head_names(self.auxiliary), train=True, rng=second_key
        )
        logits = first.labelled[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        unsupervised, metrics = two_view_terms(self, outputs[SEGMENTATION].output, strong_views, state.step)
        unsupervised |= self.perturbed_term(first.perturbed, views_of(seen, jnp.zeros(len(weak), bool))[1], state)
        terms |= {name: term._replace(weight=0.5 * term.weight) for name, term in unsupervised.items()}
        task_terms, task_metrics, memory = self.task_terms(
            joined(first.labelled, outputs), joined(views, strong_views), state, task_key
        )
        teacher_stats = teacher_statistics(
            self.network, state.teacher[STUDENT], joined(image, strong), pass_key, self.bn_mode
        )
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
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

    def perturbed_term(self, logits: Array, views: Views, state: TrainState) -> Terms:
        """L_fp, with the weight of L_u in a step."""
        terms, _ = self.unsupervised(logits, views, state.step)
        return {"perturbed_loss": terms["unsupervised_loss"]}


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
