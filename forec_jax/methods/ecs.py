"""ECS: a network that corrects predictions gives the pseudo-labels (Mendel et al., ECCV 2020).

Reconstructed from the abstract, not verified."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    FirstState,
    Mean,
    Metrics,
    Network,
    PyTree,
    Term,
    Terms,
    TrainState,
    Variables,
    Views,
)
from forec_jax.losses import cross_entropy, mean_cross_entropy
from forec_jax.methods.entry import MethodEntry, Parts, refuse_classmix, semi_supervised
from forec_jax.methods.parts.critic import (
    DenseCriticOptions,
    both_ways,
    critic_output,
    own_adam,
    with_critic,
    without_padding,
)
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, labelled_pixels, supervised_terms
from forec_jax.methods.parts.views import labelled_and_others, pseudo_labelled
from forec_jax.models import corrector
from forec_jax.options import at_least, option

CORRECTOR = "corrector"
"""The name of C among the networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Correction:
    """How much the corrector's word counts. All of it is inferred."""

    approval_weight: float = option(
        1.0, "of L_a, which asks the student for predictions that C calls right", at_least(0)
    )
    right_weight: float = option(
        1.0, "of a pixel in L_C where the student is right; below 1, C learns more from its mistakes", at_least(0)
    )
    certainty: Literal["max", "none"] = option("max", 'w: "max", the probability of what C is surest of; "none": w = 1')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(_Correction, DenseCriticOptions):
    """The corrector, its optimiser and its weights. All of it is inferred."""


@dataclasses.dataclass(frozen=True)
class Ecs(SemiSupervised, _Correction):
    """L = supervised_weight * L_s + approval_weight * L_a + unsupervised_weight * ramp * L_u + L_C + auxiliary terms.

    The corrector C sees [image, softmax] and says of each pixel that it is right, or which class is. L_C teaches it that
    by the student's argmax in labelled pixels, and reaches no student; L_a asks the student there for predictions that C
    calls right. L_u asks it, where there is no truth, for its own argmax where C calls that right, else for C's class,
    each pixel times w. Both leave C alone. Padding is hidden from C. With partial labels C learns from the labelled pixels,
    and the others are corrected. The EMA is there to score.
    """

    corrector: Network = dataclasses.field(kw_only=True)

    @property
    def networks(self) -> dict[str, Network]:
        """The student and the corrector."""
        return {STUDENT: self.network, CORRECTOR: self.corrector}

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory."""
        return with_critic(super().init(key), CORRECTOR, self.corrector, key)

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "ecs", self.partial_labels)
        view_key, dropout_key, task_key = jax.random.split(key, 3)
        image, unsaid = self.untaught(labelled, unlabelled, view_key)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = self.run_student(student, image, labelled, dropout_key)
        logits = outputs[SEGMENTATION].output
        probabilities = jax.nn.softmax(logits, axis=-1)

        corrector = Variables(params[CORRECTOR], state.batch_stats[CORRECTOR])
        shown = without_padding(unsaid, jnp.concatenate([image, probabilities], axis=-1), hide_gaps=True)
        (learning, own_stats), (judging, _) = both_ways(self.judge, corrector, shown)
        views = corrected(unsaid, probabilities, judging)
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        judged, seen = self.judged(learning, judging, probabilities, views)
        weight = views.confidence if self.certainty == "max" else 1.0
        unsupervised, metrics = self.unsupervised(logits, views, state.step, pixel_weight=weight)
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)

        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        new_stats = {STUDENT: stats, CORRECTOR: own_stats}
        aux = Aux(new_stats, {STUDENT: teacher_stats}, memory, metrics | seen | task_metrics)
        return terms | judged | unsupervised | task_terms, aux

    def judge(self, corrector: Variables, shown: Array) -> tuple[Array, PyTree]:
        """C's logits f32[B,H,W,K+1] of f32[B,H,W,3+K], and its new batch_stats."""
        return critic_output(self.corrector, corrector, shown)

    def judged(self, learning: Array, judging: Array, probabilities: Array, views: Views) -> tuple[Terms, Metrics]:
        """L_C and L_a from C's logits f32[B,H,W,K+1] with a gradient for C, and for the student; and how good C is."""
        known = labelled_pixels(views) & views.valid
        number, classes = jnp.sum(known, dtype=jnp.float32), probabilities.shape[-1]
        right = jnp.argmax(probabilities, axis=-1) == views.label
        target = jnp.where(right, classes, views.label)
        weight = jnp.where(known, jnp.where(right, self.right_weight, 1.0), 0.0)
        mistakes = Mean(jnp.sum(weight * cross_entropy(learning, target)), jnp.sum(weight))
        approval = mean_cross_entropy(judging, jnp.full_like(target, classes), known)
        terms = {"corrector_loss": Term(mistakes, 1.0), "approval_loss": Term(approval, self.approval_weight)}
        spotted = known & ((jnp.argmax(learning, axis=-1) == classes) == right)
        return terms, {"spotted": Mean(jnp.sum(spotted, dtype=jnp.float32), number)}


def corrected(views: Views, probabilities: Array, judging: Array) -> Views:
    """The views with the student's argmax where C calls it right, else C's class, and how sure C is; no gradient.

    Args:
        views: before anybody has said anything.
        probabilities: f32[B,H,W,K], the student's.
        judging: f32[B,H,W,K+1], C's logits.
    """
    own, verdict = jnp.argmax(probabilities, axis=-1), jnp.argmax(judging, axis=-1)
    label = jnp.where(verdict == probabilities.shape[-1], own, verdict)
    certainty = jax.lax.stop_gradient(jnp.max(jax.nn.softmax(judging, axis=-1), axis=-1))
    return pseudo_labelled(views, label.astype(jnp.int32), certainty)


def build(o: Options, p: Parts) -> Ecs:
    """The method with its corrector. Raises OptionError for ClassMix, which needs labels before there are any."""
    refuse_classmix("ecs", p)
    network = corrector(len(p.labels.classes), **o.size, compute_dtype=p.compute_dtype)
    return semi_supervised(Ecs, p, o, corrector=network)


ENTRY = MethodEntry(
    "ecs",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={"method.threshold": 0.0, "method.unsupervised_weight": 0.1, "augment.mixing": "none"},
    optimizers=own_adam(CORRECTOR),
)
