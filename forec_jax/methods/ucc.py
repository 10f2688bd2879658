"""UCC: two heads of one encoder label each other's strong view (Fan et al., CVPR 2022, arXiv 2205.10334).

Reconstructed from the abstract and from memory, not verified."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.augment import CopyPaste, Rows, from_either
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
from forec_jax.methods.parts.class_bank import BANK, BankOptions, bank_metrics
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, head_names, mean_logits, run_heads
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import (
    PseudoLabelOptions,
    SupervisedOptions,
    supervised_terms,
    under_name,
)
from forec_jax.methods.parts.views import (
    both_parts,
    interleave,
    labelled_rows,
    pseudo_labelled_rows,
    student_input,
    unit_image,
)
from forec_jax.options import ASCENDING, SHARE, at_least, option

SECOND = "segmentation_2"
"""The second head; the first is the segmentation."""

HEADS = SEGMENTATION, SECOND
OTHER = {SEGMENTATION: SECOND, SECOND: SEGMENTATION}
ByHead = dict[str, Array]


class Words(NamedTuple):
    """What is said of each pixel beside the first head's label."""

    logits: ByHead  # f32[B,H,W,K], of the weak view
    label: Array  # i32[B,H,W], the second head's
    confidence: Array  # f32[B,H,W], the second head's
    known: Array  # bool[B,H,W]: the label comes from a mask, and nothing is unsure of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Weighing(BankOptions):
    """How unsure pseudo-labels are weighed, how the bank moves, and who predicts. All of it is inferred."""

    uncertainty: Literal["heads", "views", "none"] = option(
        "heads",
        'V of w = exp(-V): the divergence between both "heads" of the weak view, or between both "views" of the head that '
        'labels; "none": w = 1',
    )
    by_confidence: bool = option(True, "w is times the confidence of the pseudo-label as well")
    prediction: Literal["first", "mean"] = option(
        "first", 'who predicts: the "first" head, or the "mean" of both logits'
    )
    paste_labelled: float = option(0.5, "share of the pastes that come from a labelled row", SHARE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(_Weighing):
    """The same, and what is pasted. All of it is inferred."""

    paste_probability: float = option(0.0, "of a paste of badly known classes into an unlabelled row; 0: none", SHARE)
    paste_classes: int = option(1, "classes drawn a batch, with replacement", at_least(1))
    paste_scale: tuple[float, float] = option((1.0, 1.0), "range of the scale of the row pasted from", ASCENDING)


@dataclasses.dataclass(frozen=True)
class Ucc(SemiSupervised, _Weighing):
    """The sum over both heads of supervised_weight * L_s + unsupervised_weight * ramp * L_x, and the auxiliary terms.

    L_x is the mean of w times a head's cross-entropy, on the strong view of the unlabelled rows, against what the other head
    says in inference mode of the weak one. Labels and w are constants. Where pixels of pseudo-labelled classes are mixed
    (ClassMix) the first head names the classes. Auxiliary tasks hear the first head. The EMA is there to score.

    With `copy_paste` a bank says how probable the first head finds the true class, for each class, over many steps; some
    unlabelled rows get pixels of badly known classes from labelled rows (with the masks' labels, whose w is 1) and from
    each other (with both heads' labels).
    """

    completes_labels: ClassVar[bool] = False
    why_not_partial: ClassVar[str] = "has two heads that label the weak views of unlabelled images"
    teacher_heads: ClassVar[tuple[str, ...]] = HEADS
    copy_paste: CopyPaste | None = None

    def first_memory(self) -> dict[str, PyTree]:
        """The tasks' memory, and with `copy_paste` the bank f32[K]."""
        classes = next(head.channels for head in self.network.heads if head.name == SEGMENTATION)
        return super().first_memory() | ({BANK: jnp.zeros(classes)} if self.copy_paste else {})

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = both_parts(batch, "ucc")
        view_key, dropout_key, task_key = jax.random.split(key, 3)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        image, said, words = self.views(student, labelled, unlabelled, state.memory, view_key)
        heads = *head_names(self.auxiliary), SECOND
        outputs, stats = self.run(student, image, labelled, dropout_key, heads)
        terms: Terms = {}
        metrics: Metrics = {}
        for head, labeller in OTHER.items():
            logits, views = outputs[head].output, said[labeller]
            found = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
            weight = jnp.where(words.known, 1.0, self.pixel_weight(labeller, words.logits, outputs))
            unsupervised, seen = self.unsupervised(logits, views, state.step, pixel_weight=weight)
            terms |= under_name(head, found | unsupervised, SEGMENTATION)
            metrics |= under_name(head, seen, SEGMENTATION)
        task_terms, task_metrics, memory = self.task_terms(outputs, said[SEGMENTATION], state, task_key)
        if self.copy_paste:
            metrics |= bank_metrics(state.memory[BANK])
            memory |= {BANK: self.after_step(state.memory[BANK], outputs[SEGMENTATION].output, said[SEGMENTATION])}
        teacher = state.teacher[STUDENT]
        teacher_stats = teacher_statistics(self.network, teacher, image, dropout_key, self.bn_mode, heads=HEADS)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | task_terms, aux

    def views(
        self,
        student: Variables,
        labelled: Labelled,
        unlabelled: Unlabelled | Labelled,
        memory: Mapping[str, PyTree],
        key: Array,
    ) -> tuple[Array, dict[str, Views], Words]:
        """The student's images; the views with each head's labels; what else was said of the weak images.

        The words are pasted and mixed as the labels are, and their logits 0 in labelled rows. What is pasted depends on the
        bank in the memory.
        """
        colour_l, colour_u, mixing_l, mixing_u, pass_key, paste_key = jax.random.split(key, 6)
        frozen = jax.lax.stop_gradient(student)
        outputs, _ = run_heads(self.network, frozen, unit_image(unlabelled.image), HEADS, train=False, rng=pass_key)
        weak = {head: outputs[head].output for head in HEADS}
        first, second = (
            pseudo_labelled_rows(colour_u, unlabelled, jax.nn.softmax(weak[head], axis=-1), self.colour)
            for head in HEADS
        )
        unsure = jnp.zeros_like(second.valid)
        rows = first._replace(extra=Words(weak, second.label, second.confidence, unsure))
        if self.copy_paste:
            rows = self.pasted(self.copy_paste, rows, labelled, memory[BANK], paste_key)
        rows = self.mixing(mixing_u, rows)
        truth = self.labelled_mixing(mixing_l, labelled_rows(colour_l, labelled, self.labelled_colour))
        own = with_truths_word(truth, rows)
        image, views = student_input(own, rows)
        words: Words = jax.tree.map(interleave, own.extra, rows.extra)
        of_second = views._replace(
            label=jnp.where(views.valid | views.is_ground_truth, words.label, views.label), confidence=words.confidence
        )
        return image, {SEGMENTATION: views, SECOND: of_second}, words

    def pasted(self, copy_paste: CopyPaste, rows: Rows, labelled: Labelled, bank: Array, key: Array) -> Rows:
        """Unlabelled rows with pixels of badly known classes, of labelled rows in changed colours or of each other."""
        colour_key, source_key, paste_key = jax.random.split(key, 3)
        truth = with_truths_word(labelled_rows(colour_key, labelled, self.colour), rows)
        truth = truth._replace(is_ground_truth=jnp.zeros_like(truth.is_ground_truth))
        return copy_paste.from_rows(paste_key, rows, from_either(source_key, rows, truth, self.paste_labelled), bank)

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


def with_truths_word(truth: Rows, like: Rows) -> Rows:
    """Rows of ground truth with the fields of `like`, whose words are the masks' and whose logits are 0."""
    nothing = jax.tree.map(lambda leaf: jnp.zeros((len(truth.label), *leaf.shape[1:]), leaf.dtype), like.extra.logits)
    return truth._replace(extra=Words(nothing, truth.label, truth.confidence, truth.is_ground_truth))


def build(o: Options, p: Parts) -> Ucc:
    """The method with its second head, and what it pastes."""
    paste = CopyPaste(o.paste_classes, o.paste_probability, o.paste_scale, p.labels.background_classes)
    heads = (HeadSpec(SECOND, len(p.labels.classes)),)
    return semi_supervised(Ucc, p, o, heads, copy_paste=paste if o.paste_probability else None)


ENTRY = MethodEntry(
    "ucc",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "method.threshold": 0.0,
        "method.ucc.paste_probability": 0.5,
        "augment.mixing": "none",
        "augment.mix_labelled": False,
        "augment.colour_labelled": False,
    },
)
