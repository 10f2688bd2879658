"""ST: training on labels and on a model's stored masks, which see strong changes (Yang et al., ST++, CVPR 2022)."""

import dataclasses

import jax

from forec_jax.contracts import Array, Aux, Batch, Metrics, PyTree, Terms, TrainState, Variables, Views
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.views import labelled_rows, stored_rows, student_input
from forec_jax.options import NoOptions


@dataclasses.dataclass(frozen=True)
class SelfTraining(SemiSupervised):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * L_u + auxiliary terms; L_u asks for the stored masks.

    No teacher is asked: its labels were written before (data.pseudo). The student's EMA is there to score beside it.
    """

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        if batch.labelled is None or batch.pseudo is None:
            raise ValueError("stored masks come beside true ones: set batch.labelled and batch.pseudo above 0")
        colour_l, colour_p, mixing_l, mixing_p, dropout_key, task_key = jax.random.split(key, 6)
        labelled = self.labelled_mixing(mixing_l, labelled_rows(colour_l, batch.labelled, self.labelled_colour))
        image, views = student_input(labelled, self.mixing(mixing_p, stored_rows(colour_p, batch.pseudo, self.colour)))

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = self.run_student(student, image, batch.labelled, dropout_key)
        terms, metrics = self.mask_terms(outputs[SEGMENTATION].output, views, state.step)
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | task_terms, aux

    def mask_terms(self, logits: Array, views: Views, step: Array) -> tuple[Terms, Metrics]:
        """L_s and L_u of the logits f32[B,H,W,K] in a step, and what is measured beside them."""
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        unsupervised, metrics = self.unsupervised(logits, views, step)
        return terms | unsupervised, metrics


def build(o: NoOptions, p: Parts) -> SelfTraining:
    """The method from its parts."""
    return semi_supervised(SelfTraining, p, o)


ENTRY = MethodEntry(
    "st",
    NoOptions,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={  # labelled and stored pixels weigh the same; only the stored ones see strong changes
        "batch.unlabelled": 0,
        "batch.pseudo": 8,
        "method.threshold": 0.0,
        "method.supervised_weight": 0.5,
        "method.unsupervised_weight": 0.5,
        "method.normaliser": "kept",
        "augment.mixing": "cutout",
        "augment.mixing_probability": 0.5,
        "augment.mix_labelled": False,
        "augment.colour_labelled": False,
    },
    needs=frozenset({"labelled", "pseudo"}),
)
