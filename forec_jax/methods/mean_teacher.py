"""Mean teacher with thresholded pseudo-labels: the baseline FOrec stands on (FOrec, section 4.2)."""

import dataclasses

import jax

from forec_jax.contracts import Array, Aux, Batch, Labelled, PyTree, Terms, TrainState, Unlabelled, Variables, Views
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import (
    SEGMENTATION,
    STUDENT,
    class_probabilities,
)
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.views import labelled_and_others
from forec_jax.options import NoOptions


@dataclasses.dataclass(frozen=True)
class MeanTeacher(SemiSupervised):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * L_u + auxiliary terms.

    The teacher, an EMA of the student, labels the weak view in inference mode. Colour changes come first, on each
    image; then image, label, confidence and validity are mixed with the same boxes, unlabelled rows among themselves by
    `mixing`, labelled rows among themselves by `labelled_mixing`; either may hold the student's own geometry beside that
    (augment/geometry.py). Student, BatchNorm and normalisers see the whole global batch at once; with `separate_passes` the
    student and BatchNorm see the labelled rows, then the others.
    With `partial_labels` the teacher also labels the pixels of labelled rows that nobody labelled (they are UNLABELLED;
    void stays void), and the batch needs no unlabelled rows.
    """

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "mean_teacher", self.partial_labels)
        view_key, dropout_key, task_key = jax.random.split(key, 3)
        teacher = state.teacher[STUDENT]
        image, views = self.views(teacher, labelled, unlabelled, view_key)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = self.run_student(student, image, labelled, dropout_key)
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        unsupervised, metrics = self.unsupervised(logits, views, state.step)
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)

        teacher_stats = teacher_statistics(self.network, teacher, image, dropout_key, self.bn_mode)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | unsupervised | task_terms, aux

    def views(
        self, teacher: Variables, labelled: Labelled, unlabelled: Unlabelled | Labelled | None, key: Array
    ) -> tuple[Array, Views]:
        """The student's images and what it should say about them."""
        return self.taught(lambda image: class_probabilities(self.network, teacher, image), labelled, unlabelled, key)


def build(o: NoOptions, p: Parts) -> MeanTeacher:
    """The method from its parts."""
    return semi_supervised(MeanTeacher, p, o)


ENTRY = MethodEntry("mean_teacher", NoOptions, (SupervisedOptions, PseudoLabelOptions), build)
