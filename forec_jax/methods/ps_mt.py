"""PS-MT: two teachers in turn, and perturbed features (Liu et al., "Perturbed and Strict Mean Teachers", CVPR 2022)."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    FirstState,
    HeadOutput,
    Labelled,
    PyTree,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
    Views,
)
from forec_jax.methods.entry import Epoch, MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import (
    SEGMENTATION,
    STUDENT,
    head_names,
    mean_class_probabilities,
    mean_logits,
    run_heads,
)
from forec_jax.methods.parts.teacher import (
    TEACHER_HEADS,
    ema_decay,
    first_teacher,
    teacher_statistics,
    updated_teacher,
)
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.vat import (
    adversarial_perturbation,
    logits_from,
    published_perturbation,
    run_changed,
)
from forec_jax.methods.parts.views import labelled_and_others
from forec_jax.options import STEPS, at_least, option

TEACHERS = ("teacher_1", "teacher_2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A built method has `warmup` in steps."""

    warmup: float = option(0.0625, "without L_u: steps, or below 1 a fraction of all; published: 5 of 80 epochs", STEPS)
    warmup_passes: int = option(
        0, "the warm-up in passes over the labelled list, beside the schedule (it sets optim.hold too)", at_least(0)
    )
    epoch: int = option(0, "steps until the other teacher's turn; 0: unlabelled images / batch.unlabelled", at_least(0))
    teacher_mode: Literal["inference", "train"] = option(
        "inference", 'of the teachers as they label: "inference", or "train": BatchNorm of the batch, as published'
    )
    top_classes: int = option(
        0,
        "of the teacher whose turn it is not, a pixel's so many likeliest classes count, the others are its partner's; "
        "0: all, published: 7",
        at_least(0),
    )
    epsilon: float = option(2.0, "T-VAT: length of the perturbation of an image's features; 0: none", at_least(0))
    perturbed: Literal["encoder", "fused"] = option(
        "encoder", 'T-VAT: of the "encoder"\'s maps, or of the "fused" map that the decoder classifies, as published'
    )
    direction: Literal["exact", "published"] = option(
        "exact", 'T-VAT: "exact", or "published": by PS-MT\'s code in float32, which makes it some 1e-4 long'
    )


@dataclasses.dataclass(frozen=True)
class PsMt(SemiSupervised, Options):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * L_u + auxiliary terms, after `warmup` steps without L_u.

    Each teacher is an EMA of the student over every other epoch; their mean logits label the weak view. L_u is the
    cross-entropy against labels above the threshold, each weighted by its confidence. The student's segmentation is
    decoded from features (the encoder's, or its decoder's fused map) that are moved towards where the teachers' decoders
    change their mind most (T-VAT), in labelled and unlabelled rows alike; auxiliary heads see the features as they are.
    In the warm-up both teachers
    follow the student, and nothing is perturbed. Everything else is as in MeanTeacher. Teachers that label in train mode
    move their BatchNorm statistics by it, before the EMA.
    An `epoch` of 0 is unknown, which is enough to predict.
    """

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teachers and memory."""
        params, batch_stats, _, memory = super().init(key)
        student = Variables(params[STUDENT], batch_stats[STUDENT])
        return params, batch_stats, {name: first_teacher(student) for name in TEACHERS}, memory

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "ps_mt", self.partial_labels)
        view_key, dropout_key, task_key, vat_key = jax.random.split(key, 4)
        image, views, teachers = self.views(state, labelled, unlabelled, view_key, dropout_key)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = self.in_passes(
            functools.partial(self.perturbed_pass, student, state),
            student.batch_stats,
            (image, views),
            labelled,
            (dropout_key, vat_key),
        )
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        unsupervised, metrics = self.unsupervised(
            logits, views, state.step, pixel_weight=views.confidence, warmup=int(self.warmup)
        )
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)

        teacher_stats = {
            name: teacher_statistics(self.network, teacher, image, dropout_key, self.bn_mode)
            for name, teacher in teachers.items()
        }
        return terms | unsupervised | task_terms, Aux({STUDENT: stats}, teacher_stats, memory, metrics | task_metrics)

    def perturbed_pass(
        self, student: Variables, state: TrainState, stats: PyTree, rows: tuple[Array, Views], keys: tuple[Array, Array]
    ) -> tuple[dict[str, HeadOutput], PyTree]:
        """Every head's output for images and their views, and the new batch_stats; the segmentation is perturbed."""
        (image, views), (dropout_key, vat_key) = rows, keys
        student, heads = student._replace(batch_stats=stats), head_names(self.auxiliary)
        if not self.epsilon:
            return run_heads(self.network, student, image, heads, train=True, rng=dropout_key)

        def change(features: PyTree) -> PyTree:
            return self.moved(features, views, state, vat_key)

        return run_changed(self.network, student, image, heads, change, self.perturbed, rng=dropout_key)

    def views(
        self,
        state: TrainState,
        labelled: Labelled,
        unlabelled: Unlabelled | Labelled | None,
        key: Array,
        dropout_key: Array,
    ) -> tuple[Array, Views, dict[str, Variables]]:
        """The student's images, what it should say about them, and the teachers as labelling leaves them."""
        teachers = state.teacher

        def teach(image: Array) -> Array:
            nonlocal teachers
            logits, teachers = self.said(teachers, image, dropout_key)
            logits = self.assisted(logits, self.has_turn(state.step, 0))
            return jax.nn.softmax(mean_logits(list(logits.values())), axis=-1)

        image, views = self.taught(teach, labelled, unlabelled, key)
        return image, views, teachers

    def said(
        self, teachers: dict[str, Variables], image: Array, key: Array
    ) -> tuple[dict[str, Array], dict[str, Variables]]:
        """What each teacher says of the images, logits f32[b,H,W,K], and the teachers with the statistics after it."""
        logits, after = {}, {}
        for name, teacher in teachers.items():
            train = self.teacher_mode == "train"
            outputs, stats = run_heads(self.network, teacher, image, TEACHER_HEADS, train=train, rng=key)
            logits[name], after[name] = outputs[SEGMENTATION].output, teacher._replace(batch_stats=stats)
        return logits, after

    def assisted(self, logits: dict[str, Array], first_has_turn: Array) -> dict[str, Array]:
        """The teachers' logits, where the one whose turn it is not says no more than its likeliest classes."""
        first, second = (logits[name] for name in TEACHERS)
        if not 0 < self.top_classes < first.shape[-1]:
            return logits
        helped = (
            jnp.where(first_has_turn, first, _filled(first, second, self.top_classes)),
            jnp.where(first_has_turn, _filled(second, first, self.top_classes), second),
        )
        return dict(zip(TEACHERS, helped, strict=True))

    def moved(self, features: PyTree, views: Views, state: TrainState, key: Array) -> PyTree:
        """The student's features moved by T-VAT's perturbation; as they are in the warm-up."""
        epsilon = jnp.where(state.step < self.warmup, 0.0, self.epsilon)
        decode = functools.partial(self.mean_logits, jax.lax.stop_gradient(state.teacher))
        if self.direction == "exact":
            found = adversarial_perturbation(decode, features, views.valid, epsilon, key)
        else:  # labelled and unlabelled rows pass the original one after the other
            labelled = jnp.sum(views.labelled_row)
            alike = jnp.where(views.labelled_row, labelled, len(views.labelled_row) - labelled)
            found = published_perturbation(decode, features, views.valid, epsilon, key, alike)
        return jax.tree.map(jnp.add, features, found)

    def mean_logits(self, variables: dict[str, Variables], features: PyTree) -> Array:
        """The mean over the networks of what their decoders say of the same features, f32[B,H,W,K].

        The features are those that are perturbed: the encoder's, or fused.
        """
        return mean_logits([logits_from(self.network, v, self.perturbed)(features) for v in variables.values()])

    def update_teacher(
        self,
        state: TrainState,
        params: dict[str, PyTree],
        batch_stats: dict[str, PyTree],
        teacher_stats: dict[str, PyTree],
    ) -> dict[str, Variables]:
        """The EMA of the teacher whose epoch it is, or in the warm-up of both; the other one stays."""
        if not self.epoch:
            raise ValueError("ps_mt needs the steps of an epoch, after which the teachers change: method.ps_mt.epoch")
        student = Variables(params[STUDENT], batch_stats[STUDENT])

        def after(turn: int, name: str) -> Variables:
            teacher = state.teacher[name]
            if self.teacher_mode == "train":  # both have labelled, whoever follows the student
                teacher = teacher._replace(batch_stats=teacher_stats[name])
            moved = updated_teacher(
                teacher,
                student,
                teacher_stats[name],
                decay=ema_decay(state.step, self.decay),
                bn_mode=self.bn_mode,
                frozen=self.network.frozen,
            )
            return jax.tree.map(functools.partial(jnp.where, self.has_turn(state.step, turn)), moved, teacher)

        return {name: after(turn, name) for turn, name in enumerate(TEACHERS)}

    def has_turn(self, step: Array, turn: int) -> Array:
        """bool[]: whether teacher number `turn` (0 or 1) follows the student in this step."""
        epochs = (step - self.warmup) // self.epoch
        return (step < self.warmup) | (epochs % len(TEACHERS) == turn)

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]: of the networks' mean logits."""
        return mean_class_probabilities(self.network, list(variables.values()), image, valid)


def _filled(logits: Array, others: Array, top: int) -> Array:
    """Logits f32[...,K]: a pixel's `top` largest of its own, elsewhere the others'."""
    least = jax.lax.top_k(logits, top)[0][..., -1:]
    return jnp.where(logits >= least, logits, others)


def build(o: Options, p: Parts) -> PsMt:
    """The method from its parts."""
    return semi_supervised(PsMt, p, dataclasses.replace(o, warmup=p.in_steps(o.warmup)))


def of_epoch(o: Options, epoch: Epoch) -> dict[str, Any]:
    """The epoch after which the teachers change, where none is given; a warm-up in passes, in which the rate waits."""
    turns = {} if o.epoch else {"method.ps_mt.epoch": epoch.steps}
    steps = o.warmup_passes * epoch.labelled
    return turns | ({"method.ps_mt.warmup": steps, "optim.hold": steps} if o.warmup_passes else {})


ENTRY = MethodEntry(
    "ps_mt",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "method.threshold": 0.6,
        "method.unsupervised_weight": 0.6,  # VOC's classic lists but 92's (0.06); train_aug 1.5, Cityscapes 3
        "method.ramp": 0.15,  # 12 of 80 epochs
        "method.normaliser": "kept",
        "ema.decay": 0.996,
        "augment.mixing": "cutmix_beta",
        "augment.mixing_probability": 1.0,
        "augment.mix_labelled": False,
    },
    of_epoch=of_epoch,
)
