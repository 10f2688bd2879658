"""DMT: where a student and the model whose stored masks it learns from disagree, the surer one decides what a label counts.

Feng et al., "DMT: Dynamic Mutual Training for Semi-Supervised Learning", Pattern Recognition 2022. This is one training of
it; two networks that label for each other, round after round, are `experiment/mutual_training.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Mean, Metrics, Term, Terms, Views
from forec_jax.losses import cross_entropy
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.terms import (
    PseudoLabelOptions,
    SupervisedOptions,
    kept_errors,
    labelled_pixels,
    pseudo_labelled_pixels,
)
from forec_jax.methods.self_training import SelfTraining
from forec_jax.options import at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How fast a stored label loses weight with the student's doubt."""

    agreement_power: float = option(
        5.0, "gamma_1: a label that the student would give too counts p^gamma_1; 0: 1 (Cityscapes: 3)", at_least(0)
    )
    difference_power: float = option(
        5.0, "gamma_2: another one counts p^gamma_2, or 0 where the student is surer; 0: 1 (Cityscapes: 3)", at_least(0)
    )


@dataclasses.dataclass(frozen=True)
class Dmt(SelfTraining, Options):
    """L = (supervised_weight * sum of L_s + unsupervised_weight * ramp * sum of w L_u) / N + auxiliary terms.

    The sums are over pixels, of true and of stored masks, and N is the number of both: a label of weight 0 counts in N.
    `dynamic_weight` is w. `normaliser` is not asked. Before `start` stored masks are in neither the sum nor N.
    """

    def mask_terms(self, logits: Array, views: Views, step: Array) -> tuple[Terms, Metrics]:
        """L_s and L_u of the logits f32[B,H,W,K] in a step, and what is measured beside them."""
        truth = self.supervised_loss(logits, views.label, labelled_pixels(views))
        stored = pseudo_labelled_pixels(views) & (views.confidence > self.threshold) & (step >= self.start)
        powers = self.agreement_power, self.difference_power
        weight = jnp.where(stored, dynamic_weight(logits, views.label, views.confidence, *powers), 0.0)
        stored_number = jnp.sum(stored, dtype=jnp.float32)
        number = truth.number + stored_number
        taught, metrics = kept_errors(logits, views, stored, weight, number)
        same = stored & (jnp.argmax(logits, axis=-1) == views.label)
        metrics |= {
            "agreement": Mean(jnp.sum(same, dtype=jnp.float32), stored_number),
            "label_weight": Mean(jnp.sum(weight), stored_number),
        }
        return {
            "supervised_loss": Term(Mean(truth.total, number), self.supervised_weight),
            "unsupervised_loss": Term(taught, self.weight_of_unsupervised(step)),
        }, metrics


def dynamic_weight(
    logits: Array, label: Array, confidence: Array, agreement_power: float, difference_power: float
) -> Array:
    """What each stored label counts, f32[B,H,W] in [0, 1], without gradient (DMT, section 3.2).

    With p the student's probability of the label: p^agreement_power where the student would give it too; 0 where it would
    not and is surer than the model that gave it; p^difference_power otherwise. As sure is not surer.

    Args:
        logits: f32[B,H,W,K], the student's.
        label: i32[B,H,W] in [0, K); elsewhere the weight means nothing.
        confidence: f32[B,H,W] in [0, 1], of the model that gave the label.
        agreement_power: gamma_1, at least 0.
        difference_power: gamma_2, at least 0.
    """
    logits = jax.lax.stop_gradient(logits)
    of_label = jnp.exp(-cross_entropy(logits, label))
    surer = jnp.max(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), axis=-1) > confidence
    same = jnp.argmax(logits, axis=-1) == label
    return jnp.where(same, of_label**agreement_power, jnp.where(surer, 0.0, of_label**difference_power))


def build(o: Options, p: Parts) -> Dmt:
    """The method from its parts."""
    return semi_supervised(Dmt, p, o)


ENTRY = MethodEntry(
    "dmt",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "batch.unlabelled": 0,
        "batch.pseudo": 8,
        "method.threshold": 0.0,  # labels that are too unsure are void already
        "method.ramp": 0.0,  # it starts from a trained network
        "augment.mixing": "none",
        "augment.colour_labelled": False,
    },
    needs=frozenset({"labelled", "pseudo"}),
)
