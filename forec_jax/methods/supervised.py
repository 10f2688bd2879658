"""Supervised training on the labelled rows, with an EMA of the student to score beside it."""

import dataclasses

import jax

from forec_jax.contracts import Array, Aux, Batch, PyTree, Terms, TrainState, Variables
from forec_jax.methods.entry import MethodEntry, Parts
from forec_jax.methods.parts.ema import WithLabels
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, auxiliary_terms, head_names, run_heads
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import SupervisedOptions, supervised_terms
from forec_jax.methods.parts.views import labelled_rows, student_input
from forec_jax.options import NoOptions, taken


@dataclasses.dataclass(frozen=True)
class Supervised(WithLabels):
    """L = supervised_weight * L_s + auxiliary terms, on labelled rows alone.

    The teacher is the student's EMA and teaches nothing.
    """

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        if batch.labelled is None:
            raise ValueError("supervised training needs labelled rows: set batch.labelled above 0")
        colour_key, mixing_key, dropout_key, task_key = jax.random.split(key, 4)
        labelled = self.mixing(mixing_key, labelled_rows(colour_key, batch.labelled, self.labelled_colour))
        image, views = student_input(labelled, None)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = run_heads(
            self.network, student, image, head_names(self.auxiliary), train=True, rng=dropout_key
        )
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        task_terms, metrics, memory = auxiliary_terms(self.auxiliary, outputs, views, task_key, state.memory)
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        return terms | task_terms, Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics)


def build(_: NoOptions, p: Parts) -> Supervised:
    """The method from its parts. Rows with partial labels are mixed where asked alone: no teacher completes them."""
    changes = p.labelled_changes(completed=False)
    options = taken(Supervised, p.shared(SupervisedOptions), p.ema)
    loss, labelled = p.supervised_loss, p.colour_labelled
    return Supervised(p.network(p.heads), p.colour, changes, p.auxiliary, loss, labelled, **options)


ENTRY = MethodEntry(
    "supervised",
    NoOptions,
    (SupervisedOptions,),
    build,
    published={"batch.unlabelled": 0},
    needs=frozenset({"labelled"}),
)
