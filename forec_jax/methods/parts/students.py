"""Two students of one architecture that learn from each other, and the EMA of each."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeVar

import jax

from forec_jax.contracts import (
    Array,
    FirstState,
    HeadOutput,
    Metrics,
    Network,
    PyTree,
    Terms,
    TrainState,
    Variables,
    Views,
)
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, class_probabilities, mean_class_probabilities
from forec_jax.methods.parts.teacher import first_teacher
from forec_jax.methods.parts.terms import under_name
from forec_jax.options import OptionError, option

T = TypeVar("T")

STUDENTS = (STUDENT, "student_2")
"""The students' names among a method's networks. The first has the name of an only student, for all that looks at one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentsOptions:
    """Of a method with two students."""

    prediction: Literal["first", "mean"] = option(
        "first", 'who predicts: the "first" student (published), or both, by the "mean" of their logits'
    )


@dataclasses.dataclass(frozen=True)
class TwoStudents(SemiSupervised, StudentsOptions):
    """Two students that differ in their first values, and their EMAs by the same names; all but the loss.

    `evaluate` scores the EMAs as the teacher, and the trained networks as the student; both are sets of two. The loss gives
    statistics for both, and so does `update_teacher` with the EMA. Auxiliary tasks attach to each student, which has their
    heads; what they remember is apart, by the student's name.
    Raises OptionError where both would start with the same segmentation head.
    """

    def __post_init__(self) -> None:
        if SEGMENTATION in self.network.given:
            raise OptionError(
                f"{type(self).__name__} has two students, and model.weights would give both the same segmentation head: "
                "they would say the same, and learn nothing from each other; give weights of the encoder alone"
            )

    @property
    def networks(self) -> dict[str, Network]:
        """The students."""
        return dict.fromkeys(STUDENTS, self.network)

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats and teacher of each student, from a key of its own, and memory by student."""
        params, batch_stats, teacher, memory = {}, {}, {}, {}
        for number, name in enumerate(STUDENTS):
            student = self.network.init(jax.random.fold_in(key, number))
            params[name], batch_stats[name] = student
            teacher[name], memory[name] = first_teacher(student, self.teacher_heads), self.first_memory()
        return params, batch_stats, teacher, memory

    def both_task_terms(
        self,
        outputs: Mapping[str, Mapping[str, HeadOutput]],
        views: Mapping[str, Views],
        state: TrainState,
        key: Array,
    ) -> tuple[Terms, Metrics, dict[str, PyTree]]:
        """The auxiliary tasks of each student, whose outputs and views are given by its name; both have the same draws."""
        terms: Terms = {}
        metrics: Metrics = {}
        memory = {}
        for name in STUDENTS:
            own = state._replace(memory=state.memory[name])
            found, seen, memory[name] = self.task_terms(outputs[name], views[name], own, key)
            terms |= of_student(name, found)
            metrics |= of_student(name, seen)
        return terms, metrics, memory

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]; see `prediction`."""
        if self.prediction == "first":
            return class_probabilities(self.network, variables[STUDENT], image, valid)
        return mean_class_probabilities(self.network, [variables[name] for name in STUDENTS], image, valid)


def of_student(name: str, found: Mapping[str, T]) -> dict[str, T]:
    """A student's terms or metrics: those of the first under their usual names, those of the second after its own."""
    return under_name(name, found, STUDENT)
