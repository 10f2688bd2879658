"""FixMatch for segmentation: the student labels itself (Sohn et al., NeurIPS 2020; Yang et al., UniMatch, CVPR 2023)."""

import dataclasses

import jax

from forec_jax.contracts import Array, Aux, Batch, PyTree, Terms, TrainState, Variables
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
from forec_jax.methods.parts.weak_to_strong import WEAK_TO_STRONG
from forec_jax.options import NoOptions


@dataclasses.dataclass(frozen=True)
class FixMatch(SemiSupervised):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * L_u + auxiliary terms.

    As MeanTeacher, but the student itself, as it is before the step and in inference mode, labels the weak view. The
    teacher is its EMA, to score beside it, and teaches nothing.
    """

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "fixmatch", self.partial_labels)
        view_key, dropout_key, task_key = jax.random.split(key, 3)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        labelling = jax.lax.stop_gradient(student)
        image, views = self.taught(
            lambda image: class_probabilities(self.network, labelling, image),
            labelled,
            unlabelled,
            view_key,
        )
        outputs, stats = self.run_student(student, image, labelled, dropout_key)
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        unsupervised, metrics = self.unsupervised(logits, views, state.step)
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | unsupervised | task_terms, aux


def build(o: NoOptions, p: Parts) -> FixMatch:
    """The method from its parts."""
    return semi_supervised(FixMatch, p, o)


ENTRY = MethodEntry(
    "fixmatch",
    NoOptions,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published=WEAK_TO_STRONG,  # as UniMatch's baseline
)
