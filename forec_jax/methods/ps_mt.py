"""PS-MT: two teachers in turn, and perturbed features (Liu et al., "Perturbed and Strict Mean Teachers", CVPR 2022)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from forec_jax.augment import Mixing, NoMixing
from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    Labelled,
    Network,
    PyTree,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
    Views,
)
from forec_jax.losses import mean_cross_entropy
from forec_jax.methods.ramp import ramp_up
from forec_jax.methods.segmentation_terms import (
    Normaliser,
    SupervisedLoss,
    confidence_weighted_terms,
    supervised_terms,
)
from forec_jax.methods.student import SEGMENTATION, STUDENT, Auxiliary, auxiliary_terms, decode_heads, head_names
from forec_jax.methods.teacher import BatchNormMode, ema_decay, first_teacher, teacher_statistics, updated_teacher
from forec_jax.methods.vat import adversarial_perturbation
from forec_jax.methods.views import Colour, taught_views

TEACHERS = ("teacher_1", "teacher_2")


@dataclasses.dataclass(frozen=True)
class PsMt:
    """L = supervised_weight * L_s + unsupervised_weight * ramp * L_u + auxiliary terms, after `warmup` steps without L_u.

    Each teacher is an EMA of the student over every other epoch; their mean logits label the weak view. L_u is the
    cross-entropy against labels above the threshold, each weighted by its confidence. The student's segmentation is
    decoded from features that are moved towards where the teachers' decoders change their mind most (T-VAT), in
    labelled and unlabelled rows alike; auxiliary heads see the features as they are. In the warm-up both teachers
    follow the student, and nothing is perturbed. Everything else is as in MeanTeacher.
    """

    network: Network
    colour: Colour
    mixing: Mixing
    auxiliary: tuple[Auxiliary, ...] = ()
    supervised_loss: SupervisedLoss = mean_cross_entropy
    supervised_weight: float = 1.0
    labelled_mixing: Mixing = dataclasses.field(default_factory=NoMixing)
    threshold: float = 0.6
    unsupervised_weight: float = 1.0
    ramp: int = 0  # steps after the warm-up over which that weight rises from 0
    normaliser: Normaliser = "valid"
    decay: float = 0.996
    bn_mode: BatchNormMode = "ema"
    warmup: int = 0  # steps
    epoch: int = 0  # steps until the other teacher's turn; 0 is unknown, which is enough to predict
    epsilon: float = 2.0  # length of the perturbation; 0: none
    partial_labels: bool = False  # the teachers label the UNLABELLED pixels of labelled rows; as in the mean teacher

    @property
    def networks(self) -> dict[str, Network]:
        """The student."""
        return {STUDENT: self.network}

    def init(self, key: Array) -> tuple[dict[str, PyTree], dict[str, PyTree], dict[str, Variables], PyTree]:
        """The first params, batch_stats, teachers and memory."""
        student = self.network.init(key)
        teachers = {name: first_teacher(student) for name in TEACHERS}
        return {STUDENT: student.params}, {STUDENT: student.batch_stats}, teachers, {}

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        if batch.labelled is None or (batch.unlabelled is None and not self.partial_labels):
            raise ValueError("ps_mt needs both: set batch.labelled and batch.unlabelled above 0 (or data.partial)")
        view_key, dropout_key, task_key, vat_key = jax.random.split(key, 4)
        image, views = self.views(state.teacher, batch.labelled, batch.unlabelled, view_key)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        features, stats = self.network.encode(student, image, train=True, rng=dropout_key)
        features_of = dict.fromkeys(head_names(self.auxiliary), features)
        if self.epsilon:
            features_of[SEGMENTATION] = self.perturbed(features, views, state, vat_key)
        outputs, stats = decode_heads(
            self.network, student._replace(batch_stats=stats), features_of, train=True, rng=dropout_key
        )
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        unsupervised, metrics = confidence_weighted_terms(
            logits,
            views,
            threshold=self.threshold,
            normaliser=self.normaliser,
            weight=self.unsupervised_weight * ramp_up(state.step - self.warmup, self.ramp),
        )
        task_terms, task_metrics = auxiliary_terms(self.auxiliary, outputs, views, task_key)

        teacher_stats = {
            name: teacher_statistics(self.network, teacher, image, dropout_key, self.bn_mode)
            for name, teacher in state.teacher.items()
        }
        return terms | unsupervised | task_terms, Aux(
            {STUDENT: stats}, teacher_stats, state.memory, metrics | task_metrics
        )

    def views(
        self, teachers: dict[str, Variables], labelled: Labelled, unlabelled: Unlabelled | None, key: Array
    ) -> tuple[Array, Views]:
        """The student's images and what it should say about them."""
        return taught_views(
            lambda image: self.predict(teachers, image, None),
            labelled,
            unlabelled,
            key,
            colour=self.colour,
            mixing=self.mixing,
            labelled_mixing=self.labelled_mixing,
            partial_labels=self.partial_labels,
        )

    def perturbed(self, features: PyTree, views: Views, state: TrainState, key: Array) -> PyTree:
        """The student's features moved by T-VAT's perturbation; as they are in the warm-up."""
        teachers = jax.lax.stop_gradient(state.teacher)
        epsilon = jnp.where(state.step < self.warmup, 0.0, self.epsilon)
        decode = functools.partial(self.mean_logits, teachers)
        return jax.tree.map(jnp.add, features, adversarial_perturbation(decode, features, views.valid, epsilon, key))

    def mean_logits(self, variables: dict[str, Variables], features: PyTree) -> Array:
        """The mean over the networks of what their decoders say of the same features, f32[B,H,W,K]."""
        heads = (self.network.decode(v, SEGMENTATION, features, train=False, rng=None)[0] for v in variables.values())
        return sum((head.output for head in heads), start=jnp.zeros(())) / len(variables)

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
            moved = updated_teacher(
                teacher,
                student,
                teacher_stats[name],
                decay=ema_decay(state.step, self.decay),
                bn_mode=self.bn_mode,
            )
            return jax.tree.map(functools.partial(jnp.where, self.has_turn(state.step, turn)), moved, teacher)

        return {name: after(turn, name) for turn, name in enumerate(TEACHERS)}

    def has_turn(self, step: Array, turn: int) -> Array:
        """bool[]: whether teacher number `turn` (0 or 1) follows the student in this step."""
        epochs = (step - self.warmup) // self.epoch
        return (step < self.warmup) | (epochs % len(TEACHERS) == turn)

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]: of the networks' mean logits."""
        logits = []
        for network in variables.values():
            features, _ = self.network.encode(network, image, valid=valid, train=False, rng=None)
            logits.append(self.mean_logits({STUDENT: network}, features))
        return jax.nn.softmax(sum(logits, start=jnp.zeros(())) / len(logits), axis=-1)
