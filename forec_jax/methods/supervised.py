"""Supervised training on the labelled rows, with an EMA of the student to score beside it."""

import dataclasses

import jax

from forec_jax.augment import Mixing
from forec_jax.contracts import Array, Aux, Batch, Network, PyTree, Terms, TrainState, Variables
from forec_jax.losses import mean_cross_entropy
from forec_jax.methods.segmentation_terms import SupervisedLoss, supervised_terms
from forec_jax.methods.student import (
    SEGMENTATION,
    STUDENT,
    Auxiliary,
    auxiliary_terms,
    class_probabilities,
    head_names,
    run_heads,
)
from forec_jax.methods.teacher import BatchNormMode, ema_of_student, first_teacher, teacher_statistics
from forec_jax.methods.views import Colour, labelled_rows, student_input


@dataclasses.dataclass(frozen=True)
class Supervised:
    """L = supervised_weight * L_s + auxiliary terms, on labelled rows alone.

    The teacher is the student's EMA and teaches nothing.
    """

    network: Network
    colour: Colour
    mixing: Mixing
    auxiliary: tuple[Auxiliary, ...] = ()
    supervised_loss: SupervisedLoss = mean_cross_entropy
    supervised_weight: float = 1.0
    decay: float = 0.99
    bn_mode: BatchNormMode = "ema"

    @property
    def networks(self) -> dict[str, Network]:
        """The student."""
        return {STUDENT: self.network}

    def init(self, key: Array) -> tuple[dict[str, PyTree], dict[str, PyTree], dict[str, Variables], PyTree]:
        """The first params, batch_stats, teacher and memory."""
        student = self.network.init(key)
        teacher = {STUDENT: first_teacher(student)}
        return {STUDENT: student.params}, {STUDENT: student.batch_stats}, teacher, {}

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        if batch.labelled is None:
            raise ValueError("supervised training needs labelled rows: set batch.labelled above 0")
        colour_key, mixing_key, dropout_key, task_key = jax.random.split(key, 4)
        labelled = self.mixing(mixing_key, labelled_rows(colour_key, batch.labelled, self.colour))
        image, views = student_input(labelled, None)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = run_heads(
            self.network, student, image, head_names(self.auxiliary), train=True, rng=dropout_key
        )
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        task_terms, metrics = auxiliary_terms(self.auxiliary, outputs, views, task_key)
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        return terms | task_terms, Aux({STUDENT: stats}, {STUDENT: teacher_stats}, state.memory, metrics)

    def update_teacher(
        self,
        state: TrainState,
        params: dict[str, PyTree],
        batch_stats: dict[str, PyTree],
        teacher_stats: dict[str, PyTree],
    ) -> dict[str, Variables]:
        """The EMA after a step."""
        return ema_of_student(state, params, batch_stats, teacher_stats, decay=self.decay, bn_mode=self.bn_mode)

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]."""
        return class_probabilities(self.network, variables[STUDENT], image, valid)
