"""UniMatch V2: two strong views with complementary dropout, and an EMA teacher (Yang et al., TPAMI 2025)."""

import dataclasses
import functools
from typing import ClassVar

import jax

from forec_jax.contracts import Aux, Batch, PyTree, Terms, TrainState, Variables
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.dropout import complementary_dropout
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import (
    SEGMENTATION,
    STUDENT,
    class_probabilities,
    decode_heads,
    head_names,
    run_heads,
)
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.two_views import joined, two_view_terms
from forec_jax.methods.parts.views import (
    both_parts,
    labelled_rows,
    strong_rows,
    student_input,
    unit_image,
    unlabelled_views,
    weak_rows,
)
from forec_jax.methods.parts.weak_to_strong import WEAK_TO_STRONG
from forec_jax.options import SHARE, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Complementary dropout."""

    dropout: float = option(0.5, "share of the pairs of views that keep each other's dropped channels", SHARE)


@dataclasses.dataclass(frozen=True)
class UniMatchV2(SemiSupervised, Options):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * (L_1 + L_2) / 2 + auxiliary terms.

    The teacher, an EMA of the student, labels the weak view of each unlabelled row in inference mode. The student sees the
    labelled rows in one pass, and two strong views of each unlabelled row in another. Between encoder and segmentation
    each view of a pair keeps the channels that the other drops. Auxiliary heads see all rows and features as they are.
    """

    own_passes: ClassVar[bool] = True
    completes_labels: ClassVar[bool] = False

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: jax.Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = both_parts(batch, "unimatch_v2")
        colour_key, mixing_key, strong_key, drop_key, dropout_key, task_key = jax.random.split(key, 6)
        teacher, heads = state.teacher[STUDENT], head_names(self.auxiliary)
        rows = labelled_rows(colour_key, labelled, self.labelled_colour)
        image, views = student_input(self.labelled_mixing(mixing_key, rows), None)
        probabilities = class_probabilities(self.network, teacher, unit_image(unlabelled.image))
        weak = weak_rows(unlabelled, probabilities)
        pairs = strong_rows(strong_key, weak, self.colour, self.mixing)
        strong, strong_views = pairs.strong, unlabelled_views(pairs)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = run_heads(self.network, student, image, heads, train=True, rng=dropout_key)
        student, strong_key = student._replace(batch_stats=stats), jax.random.fold_in(dropout_key, 1)
        features, stats = self.network.encode(student, strong, train=True, rng=strong_key)
        features_of = dict.fromkeys(heads, features) | {
            SEGMENTATION: complementary_dropout(drop_key, features, self.dropout)
        }
        strong_outputs, stats = decode_heads(
            self.network, student._replace(batch_stats=stats), features_of, train=True, rng=strong_key
        )
        terms = supervised_terms(
            outputs[SEGMENTATION].output, views, loss=self.supervised_loss, weight=self.supervised_weight
        )
        unsupervised, metrics = two_view_terms(
            functools.partial(self.unsupervised, step=state.step), strong_outputs[SEGMENTATION].output, strong_views
        )
        task_terms, task_metrics, memory = self.task_terms(
            joined(outputs, strong_outputs), joined(views, strong_views), state, task_key
        )
        teacher_stats = teacher_statistics(self.network, teacher, joined(image, strong), dropout_key, self.bn_mode)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | unsupervised | task_terms, aux


def build(o: Options, p: Parts) -> UniMatchV2:
    """The method from its parts."""
    return semi_supervised(UniMatchV2, p, o)


ENTRY = MethodEntry(
    "unimatch_v2",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={**WEAK_TO_STRONG, "ema.decay": 0.996},
)
