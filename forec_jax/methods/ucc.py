"""UCC: two heads of one encoder label each other's strong view (Fan et al., CVPR 2022, arXiv 2205.10334).

Reconstructed from the abstract, not verified."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    HeadOutput,
    HeadSpec,
    Labelled,
    Metrics,
    PyTree,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
    Views,
)
from forec_jax.losses import weighted_divergence
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, head_names, mean_logits, run_heads
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms, under_name
from forec_jax.methods.parts.views import (
    both_parts,
    interleave,
    labelled_rows,
    pseudo_labelled_rows,
    student_input,
    unit_image,
)
from forec_jax.options import option

SECOND = "segmentation_2"
"""The second head; the first is the segmentation."""

HEADS = SEGMENTATION, SECOND
OTHER = {SEGMENTATION: SECOND, SECOND: SEGMENTATION}
ByHead = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How unsure pseudo-labels are weighed, and who predicts. All of it is inferred."""

    uncertainty: Literal["heads", "views", "none"] = option(
        "heads",
        'V of w = exp(-V): the divergence between both "heads" of the weak view, or between both "views" of the head that '
        'labels; "none": w = 1',
    )
    by_confidence: bool = option(True, "w is times the confidence of the pseudo-label as well")
    prediction: Literal["first", "mean"] = option(
        "first", 'who predicts: the "first" head, or the "mean" of both logits'
    )


@dataclasses.dataclass(frozen=True)
class Ucc(SemiSupervised, Options):
    """The sum over both heads of supervised_weight * L_s + unsupervised_weight * ramp * L_x, and the auxiliary terms.

    L_x is the mean of w times a head's cross-entropy, on the strong view of the unlabelled rows, against what the other head
    says in inference mode of the weak one. Labels and w are constants. Where pixels of pseudo-labelled classes are mixed
    (ClassMix) the first head names the classes. Auxiliary tasks hear the first head. The EMA is there to score.
    """

    completes_labels: ClassVar[bool] = False
    why_not_partial: ClassVar[str] = "has two heads that label the weak views of unlabelled images"
    teacher_heads: ClassVar[tuple[str, ...]] = HEADS

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = both_parts(batch, "ucc")
        view_key, dropout_key, task_key = jax.random.split(key, 3)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        image, said, weak = self.views(student, labelled, unlabelled, view_key)
        heads = *head_names(self.auxiliary), SECOND
        outputs, stats = self.run(student, image, labelled, dropout_key, heads)
        terms: Terms = {}
        metrics: Metrics = {}
        for head, labeller in OTHER.items():
            logits, views = outputs[head].output, said[labeller]
            found = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
            weight = self.pixel_weight(labeller, weak, outputs)
            unsupervised, seen = self.unsupervised(logits, views, state.step, pixel_weight=weight)
            terms |= under_name(head, found | unsupervised, SEGMENTATION)
            metrics |= under_name(head, seen, SEGMENTATION)
        task_terms, task_metrics, memory = self.task_terms(outputs, said[SEGMENTATION], state, task_key)
        teacher = state.teacher[STUDENT]
        teacher_stats = teacher_statistics(self.network, teacher, image, dropout_key, self.bn_mode, heads=HEADS)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | task_terms, aux

    def views(
        self, student: Variables, labelled: Labelled, unlabelled: Unlabelled | Labelled, key: Array
    ) -> tuple[Array, dict[str, Views], ByHead]:
        """The student's images; the views with each head's labels; each head's logits f32[B,H,W,K] of the weak images.

        The logits are mixed as the labels are, and 0 in labelled rows.
        """
        colour_l, colour_u, mixing_l, mixing_u, pass_key = jax.random.split(key, 5)
        frozen = jax.lax.stop_gradient(student)
        outputs, _ = run_heads(self.network, frozen, unit_image(unlabelled.image), HEADS, train=False, rng=pass_key)
        weak = {head: outputs[head].output for head in HEADS}
        first, second = (
            pseudo_labelled_rows(colour_u, unlabelled, jax.nn.softmax(weak[head], axis=-1), self.colour)
            for head in HEADS
        )
        rows = self.mixing(mixing_u, first._replace(extra=(weak, second.label, second.confidence)))
        truth = self.labelled_mixing(mixing_l, labelled_rows(colour_l, labelled, self.labelled_colour))
        none = jax.tree.map(lambda leaf: jnp.zeros((len(truth.label), *leaf.shape[1:]), leaf.dtype), rows.extra[0])
        own = truth._replace(extra=(none, truth.label, truth.confidence))
        image, views = student_input(own, rows)
        mixed, label, confidence = jax.tree.map(interleave, own.extra, rows.extra)
        of_second = views._replace(
            label=jnp.where(views.valid | views.is_ground_truth, label, views.label), confidence=confidence
        )
        return image, {SEGMENTATION: views, SECOND: of_second}, mixed

    def pixel_weight(self, labeller: str, weak: ByHead, outputs: Mapping[str, HeadOutput]) -> Array:
        """w of a head's pseudo-labels, f32[B,H,W], without gradient."""
        probabilities = jax.nn.softmax(weak[labeller], axis=-1)
        weight = jnp.max(probabilities, axis=-1) if self.by_confidence else jnp.ones(probabilities.shape[:-1])
        if self.uncertainty != "none":
            second_word = weak[OTHER[labeller]] if self.uncertainty == "heads" else outputs[labeller].output
            weight *= jnp.exp(-weighted_divergence(second_word, probabilities, jnp.ones_like(weight)))
        return jax.lax.stop_gradient(weight)

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]; see `prediction`."""
        if self.prediction == "first":
            return super().predict(variables, image, valid)
        student = variables[STUDENT]
        features, _ = self.network.encode(student, image, valid=valid, train=False, rng=None)
        logits = [self.network.decode(student, head, features)[0].output.astype(jnp.float32) for head in HEADS]
        return jax.nn.softmax(mean_logits(logits), axis=-1)


def build(o: Options, p: Parts) -> Ucc:
    """The method with its second head."""
    return semi_supervised(Ucc, p, o, (HeadSpec(SECOND, len(p.labels.classes)),))


ENTRY = MethodEntry(
    "ucc",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "method.threshold": 0.0,
        "augment.mixing": "classmix",
        "augment.mix_labelled": False,
        "augment.colour_labelled": False,
    },
)
