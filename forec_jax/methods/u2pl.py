"""U2PL: what a teacher is unsure of still teaches what a pixel is not (Wang et al., CVPR 2022)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    FirstState,
    HeadSpec,
    Mean,
    Metrics,
    PyTree,
    Term,
    Terms,
    TrainState,
    Variables,
    Views,
)
from forec_jax.losses import class_means, entropy, masked_percentile, regional_contrast
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.anchors import (
    Negatives,
    Pixels,
    anchors,
    draw_anchors,
    negatives,
    pixels_of,
    present_classes,
    reliable,
)
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, class_probabilities, head_names
from forec_jax.methods.parts.ring import Ring, empty_ring, filled, push
from forec_jax.methods.parts.teacher import TEACHER_HEADS
from forec_jax.methods.parts.terms import (
    PseudoLabelOptions,
    SupervisedOptions,
    kept_errors,
    pseudo_labelled_pixels,
    supervised_terms,
)
from forec_jax.methods.parts.views import PaddingOptions, labelled_and_others
from forec_jax.options import ABOVE_0, SHARE, at_least, from_to, one_of, option

EMBEDDING = "embedding"
"""The head whose vectors are contrasted, and what is stored of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast(PaddingOptions):
    """Which pseudo-labels count, and who is contrasted with whom."""

    drop: float = option(
        20.0,
        "percent of the pseudo-labels, the most unsure ones, that are left out at first; falls to 0",
        from_to(0, 100),
    )
    contrast_weight: float = option(0.1, "of L_c; the released code sets 1, which acts as less", at_least(0))
    negatives: Negatives = option(
        "paper", 'who is a negative: "paper", or "released": as in the authors\' code, with its slips'
    )
    channels: int = option(256, "of the embedding", at_least(1))
    queries: int = option(256, "anchors drawn of each class", at_least(1))
    negative_keys: int = option(50, "drawn for each anchor", at_least(1))
    temperature: float = option(0.5, "tau of L_c", ABOVE_0)
    anchor_threshold: float = option(
        0.3, "delta_p: the teacher's probability of its class that an anchor exceeds", SHARE
    )
    low_rank: int = option(
        0,
        "r_l: first rank of the classes that an unsure pixel is a negative of; 0: 3, or 1 of up to 3 classes",
        at_least(0),
    )
    high_rank: int = option(20, "r_h: first rank, counted from 0, beyond these classes", at_least(1))
    queue: int = option(4096, "negatives stored of each class; published: 30,000", at_least(1))
    pushed: int = option(512, "of them that a step renews at most; published: all there are", at_least(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Contrast):
    """The contrast, and where it takes place."""

    stride: int = option(4, "resolution of the embedding: 4, a quarter of the image's, or 1", one_of(4, 1))


@dataclasses.dataclass(frozen=True)
class U2pl(SemiSupervised, Contrast):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * L_u + contrast_weight * L_c + auxiliary terms.

    The teacher, an EMA of the student, labels the weak view in inference mode. Then it sees what the student sees, in train
    mode: the entropy of what it says there tells how sure it is of a pixel, and its embedding there gives L_c its positives
    and negatives. L_u leaves out the share `drop` (1 - t) of the pseudo-labels with the highest entropies, over the batch.
    It is the mean cross-entropy of the others, times all pseudo-labels for each of those. L_c pulls pixels of which the
    teacher is sure to their class's mean and away from stored pixels that are not of it. No threshold is asked.
    With `partial_labels` the pixels that nobody labelled are pseudo-labelled ones.
    """

    teacher_heads: ClassVar[tuple[str, ...]] = (*TEACHER_HEADS, EMBEDDING)
    classes: int = dataclasses.field(kw_only=True)
    steps: int = dataclasses.field(kw_only=True)  # of the whole training: t is the share of them that is over

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory: the tasks', and an empty store."""
        params, batch_stats, teacher, memory = super().init(key)
        return params, batch_stats, teacher, memory | {EMBEDDING: empty_ring(self.classes, self.queue, self.channels)}

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "u2pl", self.partial_labels)
        unlabelled = self.with_gaps(unlabelled)
        view_key, dropout_key, teacher_key, task_key, contrast_key = jax.random.split(key, 5)
        teacher = jax.lax.stop_gradient(state.teacher[STUDENT])
        image, views = self.taught(
            lambda weak: class_probabilities(self.network, teacher, weak), labelled, unlabelled, view_key
        )
        student, heads = Variables(params[STUDENT], state.batch_stats[STUDENT]), head_names(self.auxiliary)
        outputs, stats = self.run(student, image, labelled, dropout_key, (*heads, EMBEDDING))
        guide, teacher_stats = self.run(teacher, image, labelled, teacher_key, self.teacher_heads)
        logits, probability = outputs[SEGMENTATION].output, jax.nn.softmax(guide[SEGMENTATION].output, axis=-1)

        unsure = entropy(probability)
        percent, asked = self.percent_dropped(state.step), pseudo_labelled_pixels(views)
        bound = masked_percentile(unsure, asked, 100.0 - percent)
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        mean, metrics = sure_cross_entropy(logits, views, asked & (unsure < bound))
        terms["unsupervised_loss"] = Term(mean, self.weight_of_unsupervised(state.step))

        embedding = outputs[EMBEDDING].output
        sure = asked & (unsure <= masked_percentile(unsure, asked, percent))
        size = embedding.shape[1], embedding.shape[2]
        pixels = pixels_of(views, probability, sure, asked & (unsure >= bound), size)
        mine, guides = (vectors.reshape(-1, self.channels) for vectors in (embedding, guide[EMBEDDING].output))
        ring, started = state.memory[EMBEDDING], self.started(state.step)
        contrast, ring = self.contrast(mine, guides, pixels, ring, contrast_key, started)
        terms["contrast_loss"] = Term(contrast, self.contrast_weight * started)
        metrics["negatives_stored"] = filled(ring)

        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)
        own = teacher_stats if self.bn_mode == "own" else teacher.batch_stats
        aux = Aux({STUDENT: stats}, {STUDENT: own}, memory | {EMBEDDING: ring}, metrics | task_metrics)
        return terms | task_terms, aux

    def percent_dropped(self, step: Array) -> Array:
        """alpha_t = drop (1 - t), f32[] in percent."""
        return self.drop * (1.0 - jnp.clip(step.astype(jnp.float32) / self.steps, 0.0, 1.0))

    def contrast(
        self, embedding: Array, guides: Array, pixels: Pixels, ring: Ring, key: Array, started: Array | float
    ) -> tuple[Mean, Ring]:
        """L_c of the student's f32[N,D] with the teacher's f32[N,D], and the store after this step's negatives went in.

        The mean over a class's anchors, summed over classes, by the number of present classes (Eq. 7).
        """
        push_key, draw_key = jax.random.split(key)
        eligible = negatives(pixels, self.negatives, self.low_rank, self.high_rank) & (jnp.asarray(started) > 0)
        ring = push(ring, push_key, guides, eligible, self.pushed)
        is_anchor = anchors(pixels, self.anchor_threshold)
        draws = draw_anchors(
            draw_key, pixels, is_anchor, ring, self.negatives, queries=self.queries, keys=self.negative_keys
        )
        positive = class_means(guides, pixels.label, reliable(pixels), self.classes).mean
        stored = ring.values.reshape(-1, self.channels)
        mean = regional_contrast(embedding, positive, stored, draws, temperature=self.temperature, at_once=self.queries)
        return mean._replace(number=jnp.sum(present_classes(pixels), dtype=jnp.float32)), ring


def sure_cross_entropy(logits: Array, views: Views, kept: Array) -> tuple[Mean, Metrics]:
    """L_u: the mean over the kept pixels, times the pseudo-labelled ones for each of them; 0 where none is kept."""
    number = jnp.sum(kept, dtype=jnp.float32)
    factor = jnp.sum(pseudo_labelled_pixels(views), dtype=jnp.float32) / jnp.maximum(number, 1.0)
    return kept_errors(logits, views, kept, jnp.where(kept, factor, 0.0), number)


def build(o: Options, p: Parts) -> U2pl:
    """The method with the head of its embedding."""
    classes = len(p.labels.classes)
    head = HeadSpec(EMBEDDING, o.channels, upsample=o.stride == 1, reads=SEGMENTATION)
    own = dataclasses.replace(o, low_rank=o.low_rank or (1 if classes <= 3 else 3))
    return semi_supervised(U2pl, p, own, (head,), classes=classes, steps=p.steps)


ENTRY = MethodEntry(
    "u2pl",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "ema.bn_mode": "own",
        "augment.mixing": "cutmix_half",
        "augment.mixing_probability": 0.5,
        "augment.mix_labelled": False,
    },
)
