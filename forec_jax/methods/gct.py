"""GCT: of two students the less flawed one teaches the other, pixel by pixel (Ke et al., ECCV 2020)."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

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
from forec_jax.losses import flaw_target, handled, keeps_own, mean_squared_distance
from forec_jax.methods.entry import Epoch, MethodEntry, Parts, refuse_classmix, semi_supervised
from forec_jax.methods.parts.critic import (
    DenseCriticOptions,
    GapOptions,
    both_ways,
    critic_output,
    own_adam,
    with_critic,
    without_padding,
)
from forec_jax.methods.parts.heads import SEGMENTATION
from forec_jax.methods.parts.ramp import exponential_rise
from forec_jax.methods.parts.students import STUDENTS, StudentsOptions, TwoStudents, of_student
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, labelled_pixels, supervised_terms
from forec_jax.methods.parts.views import both_parts, self_labelled
from forec_jax.models import flaw_detector
from forec_jax.options import at_least, option

FLAW_DETECTOR = "flaw_detector"
"""The name of F among the networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Guidance(GapOptions):
    """How much the flaw detector's word counts."""

    correction_weight: float = option(1.0, "of L_fc, where both students are bad", at_least(0))
    flaw_weight: float = option(10.0, "of L_F, by which the flaw detector learns", at_least(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(_Guidance, StudentsOptions, DenseCriticOptions):
    """The students, the flaw detector and its optimiser."""

    ramp_epochs: int = option(
        0, "the rise of L_dc in passes over the unlabelled images, in place of method.ramp; 0: none", at_least(0)
    )


class Said(NamedTuple):
    """What a student says, and what the flaw detector says of that."""

    probabilities: Array  # f32[B,H,W,K]
    learning: Array  # f32[B,H,W], the flaw with a gradient for the flaw detector alone
    judging: Array  # f32[B,H,W], the same with a gradient for the student alone
    flaw: Array  # f32[B,H,W] in [0, 1], the same as students are compared by it; no gradient


@dataclasses.dataclass(frozen=True)
class Gct(TwoStudents, _Guidance):
    """L = sum over both students of (supervised_weight * L_s + L_fc + unsupervised_weight * rise * L_dc) + L_F + tasks.

    The flaw detector F says of [image, softmax] where it is wrong. L_F teaches it that in labelled rows and reaches no
    student. L_dc, the squared distance, asks a student for the other's softmax where its own is more flawed; L_fc for a
    softmax without a flaw where both flaws are above `threshold`. Both are of all rows, and leave F as it is. The auxiliary
    tasks of a student take what L_dc asks for as pseudo-label and confidence. Each student has an EMA that teaches nothing.
    """

    completes_labels: ClassVar[bool] = False
    why_not_partial: ClassVar[str] = "compares predictions with whole masks"
    flaw_detector: Network = dataclasses.field(kw_only=True)

    @property
    def networks(self) -> dict[str, Network]:
        """The students and the flaw detector."""
        return super().networks | {FLAW_DETECTOR: self.flaw_detector}

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory."""
        own_key = jax.random.fold_in(key, len(STUDENTS))
        return with_critic(super().init(key), FLAW_DETECTOR, self.flaw_detector, own_key)

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = both_parts(batch, "gct")
        view_key, task_key, *own_keys = jax.random.split(key, 2 + len(STUDENTS))
        image, unsaid = self.untaught(labelled, unlabelled, view_key)
        detector = Variables(params[FLAW_DETECTOR], state.batch_stats[FLAW_DETECTOR])
        outputs, said, stats, teacher_stats = {}, {}, {}, {}
        for name, own_key in zip(STUDENTS, own_keys, strict=True):
            student = Variables(params[name], state.batch_stats[name])
            outputs[name], stats[name] = self.run_student(student, image, labelled, own_key)
            teacher_stats[name] = teacher_statistics(self.network, state.teacher[name], image, own_key, self.bn_mode)
            probabilities = jax.nn.softmax(outputs[name][SEGMENTATION].output, axis=-1)
            said[name], detector = self.said(detector, image, probabilities, unsaid)
        stats[FLAW_DETECTOR] = detector.batch_stats

        terms: Terms = {"flaw_loss": Term(self.flaw_loss(list(said.values()), unsaid), self.flaw_weight)}
        metrics: Metrics = {}
        views = {}
        for name, other in zip(STUDENTS, reversed(STUDENTS), strict=True):
            target = self.target(said[name], said[other])
            views[name] = self_labelled(unsaid, target)
            logits = outputs[name][SEGMENTATION].output
            found = supervised_terms(logits, unsaid, loss=self.supervised_loss, weight=self.supervised_weight)
            guided, seen = self.guided(said[name], said[other], target, unsaid, state.step)
            terms |= of_student(name, found | guided)
            metrics |= of_student(name, seen)
        task_terms, task_metrics, memory = self.both_task_terms(outputs, views, state, task_key)
        return terms | task_terms, Aux(stats, teacher_stats, memory, metrics | task_metrics)

    def said(self, detector: Variables, image: Array, probabilities: Array, views: Views) -> tuple[Said, Variables]:
        """What a student says of the images and F of that, and F with the statistics after it."""
        shown = without_padding(views, jnp.concatenate([image, probabilities], axis=-1), self.gaps == "hidden")
        (learning, stats), (judging, _) = both_ways(self.judge, detector, shown)
        flaw = handled(judging, self.counted(views))
        return Said(probabilities, learning, judging, flaw), detector._replace(batch_stats=stats)

    def judge(self, detector: Variables, shown: Array) -> tuple[Array, PyTree]:
        """F's flaws f32[B,H,W] of f32[B,H,W,3+K], and its new batch_stats."""
        flaws, stats = critic_output(self.flaw_detector, detector, shown)
        return flaws[..., 0], stats

    def counted(self, views: Views) -> Array:
        """bool[B,H,W]: the pixels over which L_dc and L_fc are means: all but the padding, or with `gaps` shown all."""
        return views.valid | (self.gaps == "shown")

    def flaw_loss(self, said: list[Said], views: Views) -> Mean:
        """L_F: the squared distance from the flaws' target, over both students' labelled rows."""
        truth = labelled_pixels(views) & views.valid if self.gaps == "hidden" else _rows(views)
        label = jnp.where(views.is_ground_truth, views.label, -1)
        squares = [jnp.square(one.learning - flaw_target(one.probabilities, label, truth)) for one in said]
        total = sum((jnp.sum(jnp.where(truth, square, 0.0)) for square in squares), start=jnp.zeros(()))
        return Mean(total, len(said) * jnp.sum(truth, dtype=jnp.float32))

    def target(self, own: Said, other: Said) -> Array:
        """What L_dc asks a student for, f32[B,H,W,K] without gradient: at ties its own word, which costs nothing."""
        keeps = keeps_own(own.flaw, other.flaw, self.threshold)
        return jax.lax.stop_gradient(jnp.where(keeps[..., None], own.probabilities, other.probabilities))

    def guided(self, own: Said, other: Said, target: Array, views: Views, step: Array) -> tuple[Terms, Metrics]:
        """A student's L_dc and L_fc with their weights in a step, and how often both are bad or the other is better."""
        counted = self.counted(views)
        number = jnp.sum(counted, dtype=jnp.float32)
        bad = counted & (own.flaw > self.threshold) & (other.flaw > self.threshold)
        correction = Mean(jnp.sum(jnp.where(bad, jnp.square(own.judging), 0.0)), number)
        rise = exponential_rise(step - int(self.start), self.ramp)
        terms = {
            "consistency_loss": Term(
                mean_squared_distance(own.probabilities, target, counted), self.unsupervised_weight * rise
            ),
            "correction_loss": Term(correction, self.correction_weight * self.started(step)),
        }
        taught = counted & ~keeps_own(own.flaw, other.flaw, self.threshold)
        shares = {"both_bad": bad, "taught_by_other": taught}
        return terms, {name: Mean(jnp.sum(where, dtype=jnp.float32), number) for name, where in shares.items()}


def _rows(views: Views) -> Array:
    """bool[B,H,W]: every pixel of the labelled rows."""
    return jnp.broadcast_to(views.labelled_row[:, None, None], views.valid.shape)


def build(o: Options, p: Parts) -> Gct:
    """The method with its flaw detector. Raises OptionError for ClassMix, which needs labels before there are any."""
    refuse_classmix("gct", p)
    detector = flaw_detector(len(p.labels.classes), **o.size, compute_dtype=p.compute_dtype)
    return semi_supervised(Gct, p, o, flaw_detector=detector)


def of_epoch(o: Options, epoch: Epoch) -> dict[str, Any]:
    """The rise in steps, where it is given in epochs."""
    return {"method.ramp": o.ramp_epochs * epoch.steps} if o.ramp_epochs else {}


ENTRY = MethodEntry(
    "gct",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "method.threshold": 0.6,
        "method.unsupervised_weight": 100.0,
        "method.gct.ramp_epochs": 5,
        "augment.mixing": "none",
    },
    optimizers=own_adam(FLAW_DETECTOR),
    of_epoch=of_epoch,
)
