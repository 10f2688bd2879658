"""What the methods of one student with an EMA of it have in common; their losses are their own."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from forec_jax.augment import Mixing, NoMixing
from forec_jax.contracts import (
    Array,
    FirstState,
    HeadOutput,
    Labelled,
    Metrics,
    Network,
    PyTree,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
    Views,
)
from forec_jax.losses import mean_cross_entropy
from forec_jax.methods.parts.heads import (
    STUDENT,
    Auxiliary,
    Pass,
    auxiliary_terms,
    class_probabilities,
    first_memory,
    head_names,
    run_heads,
    two_passes,
)
from forec_jax.methods.parts.ramp import ramp_up
from forec_jax.methods.parts.teacher import TEACHER_HEADS, EmaOptions, ema_of_students, first_teacher
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedLoss, SupervisedWeight, unsupervised_terms
from forec_jax.methods.parts.views import (
    Colour,
    apart,
    interleave,
    labelled_rows,
    labels_alone,
    student_input,
    taught_views,
    unchanged,
    unlabelled_rows,
)


@dataclasses.dataclass(frozen=True)
class EmaMethod(EmaOptions):
    """One student and its EMA, by the student's name in the teacher; all of `contracts.Method` but the loss."""

    teacher_heads: ClassVar[tuple[str, ...]] = TEACHER_HEADS
    network: Network

    @property
    def networks(self) -> dict[str, Network]:
        """The student."""
        return {STUDENT: self.network}

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory (none)."""
        student = self.network.init(key)
        teacher = first_teacher(student, self.teacher_heads)
        return {STUDENT: student.params}, {STUDENT: student.batch_stats}, {STUDENT: teacher}, {}

    def update_teacher(
        self,
        state: TrainState,
        params: dict[str, PyTree],
        batch_stats: dict[str, PyTree],
        teacher_stats: dict[str, PyTree],
    ) -> dict[str, Variables]:
        """The EMA after a step, of every trained network that the teacher has."""
        return ema_of_students(
            state,
            params,
            batch_stats,
            teacher_stats,
            decay=self.decay,
            bn_mode=self.bn_mode,
            frozen=self.network.frozen,
        )

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]."""
        return class_probabilities(self.network, variables[STUDENT], image, valid)


@dataclasses.dataclass(frozen=True)
class WithLabels(EmaMethod, SupervisedWeight):
    """The fields of a method that learns from masks."""

    colour: Colour
    mixing: Mixing
    auxiliary: tuple[Auxiliary, ...] = ()
    supervised_loss: SupervisedLoss = mean_cross_entropy
    colour_labelled: bool = True  # whether labelled rows change their colours as well

    @property
    def labelled_colour(self) -> Colour:
        """The change of colours of labelled rows."""
        return self.colour if self.colour_labelled else unchanged

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory: the auxiliary tasks'."""
        params, batch_stats, teacher, _ = super().init(key)
        return params, batch_stats, teacher, self.first_memory()

    def first_memory(self) -> dict[str, PyTree]:
        """What a student's auxiliary tasks remember at first."""
        return first_memory(self.auxiliary)


@dataclasses.dataclass(frozen=True)
class SemiSupervised(WithLabels, PseudoLabelOptions):
    """The fields of a method that learns from pseudo-labels as well. `start` and `ramp` are in steps.

    Before `start` labels alone teach: an untrained network may be sure of what it says. The teacher follows all the same,
    and BatchNorm sees all rows.
    """

    own_passes: ClassVar[bool] = False  # whether the method has passes of its own, whatever `separate_passes` says
    completes_labels: ClassVar[bool] = True  # whether it takes partial labels, whose other pixels are pseudo-labelled
    why_not_partial: ClassVar[str] = "asks its views of unlabelled images"  # the reason, where it does not
    labelled_mixing: Mixing = dataclasses.field(default_factory=NoMixing)
    partial_labels: bool = False  # whether labelled rows have UNLABELLED pixels, which are then pseudo-labelled

    def taught(
        self, teach: Callable[[Array], Array], labelled: Labelled, unlabelled: Unlabelled | Labelled | None, key: Array
    ) -> tuple[Array, Views]:
        """The student's images and what it should say about them, taught by class probabilities; see `taught_views`."""
        return taught_views(
            teach,
            labelled,
            unlabelled,
            key,
            colour=self.colour,
            labelled_colour=self.labelled_colour,
            mixing=self.mixing,
            labelled_mixing=self.labelled_mixing,
            partial_labels=self.partial_labels,
        )

    def untaught(self, labelled: Labelled, unlabelled: Unlabelled | Labelled | None, key: Array) -> tuple[Array, Views]:
        """The student's images and what is known of them before anybody has seen them."""
        colour_l, colour_u, mixing_l, mixing_u = jax.random.split(key, 4)
        rows = self.labelled_mixing(mixing_l, labelled_rows(colour_l, labelled, self.labelled_colour))
        if unlabelled is None:
            return student_input(rows, None)
        return student_input(rows, self.mixing(mixing_u, unlabelled_rows(colour_u, unlabelled, self.colour)))

    def run_student(
        self, student: Variables, image: Array, labelled: Labelled, key: Array
    ) -> tuple[dict[str, HeadOutput], PyTree]:
        """Every head's output for the student's images, and its new batch_stats; in one pass or two."""
        return self.run(student, image, labelled, key, head_names(self.auxiliary))

    def run(
        self, variables: Variables, image: Array, labelled: Labelled, key: Array, heads: tuple[str, ...]
    ) -> tuple[dict[str, HeadOutput], PyTree]:
        """The heads' outputs in train mode for the student's images, and the new batch_stats; in one pass or two."""

        def forward(stats: PyTree, image: Array, key: Array) -> tuple[dict[str, HeadOutput], PyTree]:
            return run_heads(self.network, variables._replace(batch_stats=stats), image, heads, train=True, rng=key)

        return self.in_passes(forward, variables.batch_stats, image, labelled, key)

    def in_passes(
        self, forward: Pass, stats: PyTree, rows: PyTree, labelled: Labelled, keys: PyTree
    ) -> tuple[PyTree, PyTree]:
        """One pass over all rows, or with `separate_passes` one over the labelled rows and then one over the others."""
        count = labelled.image.shape[0]
        alone = count == jax.tree.leaves(rows)[0].shape[0]
        if alone or not self.separate_passes:
            return forward(stats, rows, keys)
        return two_passes(forward, stats, rows, count, keys)

    def of_unlabelled(self, function: Callable[[PyTree], Array], rows: PyTree, labelled: Labelled) -> Array:
        """What a function makes of the rows with pixels that nobody labelled; zeros for the other rows."""
        if self.partial_labels:
            return function(rows)
        number = labelled.image.shape[0]
        found = function(jax.tree.map(lambda leaf: apart(leaf, number)[1], rows))
        return interleave(jnp.zeros((number, *found.shape[1:]), found.dtype), found)

    def unsupervised(
        self, logits: Array, views: Views, step: Array, *, warmup: int = 0, **how: Any
    ) -> tuple[Terms, Metrics]:
        """L_u with its weight in a step: 0 before `start` and before the method's own `warmup`, then the ramp.

        `how` are further arguments of `unsupervised_terms`.
        """
        return unsupervised_terms(
            logits,
            views,
            threshold=self.threshold,
            normaliser=self.normaliser,
            weight=self.weight_of_unsupervised(step, warmup),
            **how,
        )

    def weight_of_unsupervised(self, step: Array, warmup: int = 0) -> Array:
        """L_u's weight in a step, f32[]."""
        return self.unsupervised_weight * ramp_up(step - max(int(self.start), warmup), self.ramp)

    def started(self, step: Array) -> Array | float:
        """1 from `start` on, 0 before it: for losses of unlabelled rows that need no pseudo-label."""
        return (step >= self.start).astype(jnp.float32) if self.start else 1.0

    def task_terms(
        self, outputs: Mapping[str, HeadOutput], views: Views, state: TrainState, key: Array
    ) -> tuple[Terms, Metrics, dict[str, PyTree]]:
        """The auxiliary tasks' terms, metrics and memory in a step; before `start` they see no unlabelled row."""
        if self.start:
            views = labels_alone(views, state.step < self.start)
        return auxiliary_terms(self.auxiliary, outputs, views, key, state.memory)
