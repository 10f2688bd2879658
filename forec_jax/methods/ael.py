"""AEL: pastes, boxes and pixels are drawn for the classes that are learnt badly (Hu et al., "Semi-Supervised Semantic
Segmentation via Adaptive Equalization Learning", NeurIPS 2021)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from forec_jax.augment import AdaptiveCutMix, CopyPaste, Rows
from forec_jax.contracts import (
    IGNORE,
    Array,
    Aux,
    Batch,
    FirstState,
    Labelled,
    Mean,
    Metrics,
    PyTree,
    Term,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
    Views,
)
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.class_bank import BANK, BankOptions, bank_metrics, sampling_rates
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, run_heads
from forec_jax.methods.parts.teacher import TEACHER_HEADS, teacher_statistics
from forec_jax.methods.parts.terms import (
    PseudoLabelOptions,
    SupervisedOptions,
    kept_errors,
    pseudo_labelled_pixels,
    supervised_terms,
)
from forec_jax.methods.parts.views import (
    apart,
    labelled_and_others,
    labelled_rows,
    pseudo_labelled,
    pseudo_labels,
    student_input,
    unlabelled_rows,
)
from forec_jax.options import ASCENDING, SHARE, OptionError, at_least, must_be, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalization(BankOptions):
    """How sure classes are known, and which pixels count."""

    bank_start: Literal["zero", "noise"] = option(
        "zero", 'b at first: "zero", or "noise" from 0 to 1, as in the authors\' code'
    )
    sampling_power: float = option(1.0, "of a class's rate (1 - b) / max(1 - b); 0: every pixel counts", at_least(0))
    confidence_power: float = option(2.0, "of the teacher's confidence as a pixel's weight; 0: none", at_least(0))
    labelled_weight: float = option(1.0, "of the teacher's word on labelled pixels, beside the others", at_least(0))
    label_mode: Literal["inference", "train"] = option(
        "inference", 'of the teacher as it labels: "inference", or "train": BatchNorm of the batch, as published'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Equalization):
    """The same, and what is pasted."""

    paste_probability: float = option(0.5, "of copy-paste into a labelled row; 0: none", SHARE)
    paste_classes: int = option(1, "classes drawn a batch, with replacement; published: 3 on Cityscapes", at_least(1))
    paste_scale: tuple[float, float] = option((0.1, 2.0), "range of the scale of the row pasted from", ASCENDING)
    not_pasted: tuple[int, ...] = option(
        (),
        "numbers of classes that are never pasted, beside the background; published: (0, 1, 2, 8, 10)",
        must_be(
            "whole numbers from 0 on, such as (0, 1)",
            lambda found: all(isinstance(number, int) and number >= 0 for number in found),
        ),
    )
    cutmix_probability: float = option(1.0, "of adaptive CutMix of an unlabelled row; 0: none", SHARE)
    row_area: float = option(0.03, "share of a row from which on it may be a class's partner; Cityscapes: 0.01", SHARE)
    box_area: float = option(0.03, "share of a row above which a component has its box; Cityscapes: 0.005", SHARE)
    cell: int = option(8, "side in pixels of the cells in which components are looked for", at_least(1))


@dataclasses.dataclass(frozen=True)
class Ael(SemiSupervised, Equalization):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * (labelled_weight * C_l + C_u) + auxiliary terms.

    The bank says how probable the student finds the true class, for each class, over many steps. Labelled rows get pixels of
    badly known classes from other labelled rows, unlabelled rows boxes around such classes from other unlabelled rows. The
    teacher, an EMA of the student, labels both: labelled rows after the paste, unlabelled ones before the boxes. C is the
    cross-entropy against its word, of pixels drawn by the rate of the class that the student sees there, weighted by the
    teacher's confidence squared; a word up to the threshold has no error, and counts in what is divided by.
    With `partial_labels` the teacher labels the pixels that nobody did, and labelled rows get boxes after pastes.
    """

    classes: int = dataclasses.field(kw_only=True)
    copy_paste: CopyPaste = dataclasses.field(kw_only=True)
    cutmix: AdaptiveCutMix = dataclasses.field(kw_only=True)

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory: the tasks', and the bank f32[K]."""
        params, batch_stats, teacher, memory = super().init(key)
        noise = jax.random.uniform(jax.random.fold_in(key, 1), (self.classes,))
        bank = noise if self.bank_start == "noise" else jnp.zeros_like(noise)
        return params, batch_stats, teacher, memory | {BANK: bank}

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "ael", self.partial_labels)
        view_key, dropout_key, *sampling_keys, task_key = jax.random.split(key, 5)
        image, views, of_truth, teacher_stats = self.views(state, labelled, unlabelled, view_key)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = self.run_student(student, image, labelled, dropout_key)
        logits, bank = outputs[SEGMENTATION].output, state.memory[BANK]

        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        weight = self.weight_of_unsupervised(state.step)
        mean, metrics = self.equalized(logits, views, bank, sampling_keys[0])
        terms["unsupervised_loss"] = Term(mean, weight)
        mean, _ = self.equalized(logits, of_truth, bank, sampling_keys[1])
        terms["labelled_consistency_loss"] = Term(mean, self.labelled_weight * weight)
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)

        metrics |= bank_metrics(bank)
        bank = self.after_step(bank, logits, views)
        if self.label_mode == "inference":
            teacher = state.teacher[STUDENT]
            teacher_stats = teacher_statistics(self.network, teacher, image, dropout_key, self.bn_mode)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory | {BANK: bank}, metrics | task_metrics)
        return terms | task_terms, aux

    def views(
        self, state: TrainState, labelled: Labelled, unlabelled: Unlabelled | Labelled | None, key: Array
    ) -> tuple[Array, Views, Views, PyTree]:
        """The student's images, what it should say about them, and what the teacher says where there is a ground truth.

        Behind them the teacher's statistics as labelling leaves them.
        """
        colour_l, colour_u, paste_key, box_l, box_u, mixing_l, mixing_u, pass_key = jax.random.split(key, 8)
        bank = state.memory[BANK]
        rows = self.copy_paste(paste_key, labelled_rows(colour_l, labelled, self.labelled_colour), bank)
        others = None if unlabelled is None else unlabelled_rows(colour_u, unlabelled, self.colour)
        _, seen = student_input(rows, others)
        word, stats = self.teach(state.teacher[STUDENT], seen.image, pass_key)
        word_l, word_u = zip(*(apart(part, len(rows.label)) for part in word), strict=True)

        rows = rows._replace(extra=word_l)
        if self.partial_labels:
            rows = self.cutmix(box_l, pseudo_labelled(rows, *word_l), bank)
        rows = self.labelled_mixing(mixing_l, rows)
        if others is not None:
            others = self.cutmix(box_u, pseudo_labelled(others, *word_u)._replace(extra=word_u), bank)
            others = self.mixing(mixing_u, others)
        _, of_truth = student_input(by_teacher(rows), others and by_teacher(others))
        return *student_input(rows, others), of_truth, stats

    def teach(self, teacher: Variables, image: Array, key: Array) -> tuple[tuple[Array, Array], PyTree]:
        """The teacher's classes i32[B,H,W] with their confidences, and its statistics as this leaves them."""
        train = self.label_mode == "train"
        outputs, stats = run_heads(self.network, teacher, image, TEACHER_HEADS, train=train, rng=key)
        logits = outputs[SEGMENTATION].output.astype(jnp.float32)
        return pseudo_labels(jax.nn.softmax(logits, axis=-1)), stats

    def equalized(self, logits: Array, views: Views, bank: Array, key: Array) -> tuple[Mean, Metrics]:
        """C of the pseudo-labelled pixels: the sum of s q^2 [q > threshold] CE over that of s q^2.

        s is drawn by the rate of the class that the student's logits f32[B,H,W,K] name; q is the teacher's confidence.
        """
        rate = sampling_rates(bank, self.sampling_power)[jnp.argmax(logits, axis=-1)]
        counts = pseudo_labelled_pixels(views) & jax.random.bernoulli(key, rate)
        weight = jnp.where(counts, views.confidence**self.confidence_power, 0.0)
        kept = pseudo_labelled_pixels(views) & (views.confidence > self.threshold)
        mean, metrics = kept_errors(logits, views, kept, jnp.where(kept, weight, 0.0), jnp.sum(weight))
        asked = jnp.sum(pseudo_labelled_pixels(views), dtype=jnp.float32)
        return mean, metrics | {"sampled": Mean(jnp.sum(counts, dtype=jnp.float32), asked)}


def by_teacher(rows: Rows) -> Rows:
    """The rows with the teacher's word, their `extra`, where the ground truth names a class, and nothing elsewhere."""
    label, confidence = rows.extra
    named = rows.is_ground_truth & (rows.label != IGNORE)
    return rows._replace(
        label=jnp.where(named, label, IGNORE),
        confidence=confidence,
        is_ground_truth=jnp.zeros_like(rows.is_ground_truth),
    )


def build(o: Options, p: Parts) -> Ael:
    """The method with what it pastes. Raises OptionError for a class that does not exist."""
    classes = len(p.labels.classes)
    if any(number >= classes for number in o.not_pasted):
        raise OptionError(f"method.ael.not_pasted={o.not_pasted}: the classes are numbered from 0 to {classes - 1}")
    left_out = *o.not_pasted, *p.labels.background_classes
    copy_paste = CopyPaste(o.paste_classes, o.paste_probability, o.paste_scale, left_out)
    cutmix = AdaptiveCutMix(o.cutmix_probability, o.row_area, o.box_area, o.cell)
    return semi_supervised(Ael, p, o, classes=classes, copy_paste=copy_paste, cutmix=cutmix)


ENTRY = MethodEntry(
    "ael",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={"method.threshold": 0.7, "augment.mixing": "none", "augment.mix_labelled": False},
)
