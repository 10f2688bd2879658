"""PseudoSeg: pseudo-labels of the decoder and of attention over class activation maps (Zou et al., ICLR 2021)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    UNLABELLED,
    Array,
    Aux,
    Batch,
    FirstState,
    HeadOutput,
    Labelled,
    Metrics,
    Network,
    PyTree,
    Term,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
    Views,
)
from forec_jax.losses import calibrated_fusion, mean_cross_entropy, weighted_soft_cross_entropy
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.critic import with_critic
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, head_names, run_heads
from forec_jax.methods.parts.refined_maps import bias_of_tags, depth_of_tags, refined_maps
from forec_jax.methods.parts.tags import TAGS, pooled, tag_errors, tags_head
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, labelled_pixels, supervised_terms
from forec_jax.methods.parts.views import (
    apart,
    both_parts,
    interleave,
    labelled_rows,
    pseudo_labelled_rows,
    student_input,
    unit_image,
)
from forec_jax.models import attention_network
from forec_jax.options import ABOVE_0, SHARE, OptionError, at_least, option

ATTENTION = "attention"
"""Its name among the networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fusion:
    """How pseudo-labels are made, and what their makers' own losses count."""

    temperature: float = option(0.5, "of the fused label: below 1 it is sharper than the mean of both", ABOVE_0)
    attention_weight: float = option(1.0, "of L_a, by which the attention learns", at_least(0))
    tags_weight: float = option(1.0, "of L_t, by which the classifier learns", at_least(0))
    tag_threshold: float = option(0.5, "probability from which on an image without a mask shows a class", SHARE)
    label_mode: Literal["inference", "train"] = option(
        "inference",
        'of decoder and attention when they label: "inference", or "train": BatchNorm of the batch, published',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(_Fusion):
    """The fusion and the attention."""

    channels: int = option(128, "of the attention's queries and keys", at_least(1))


@dataclasses.dataclass(frozen=True)
class PseudoSeg(SemiSupervised, _Fusion):
    """L = supervised_weight * L_s + attention_weight * L_a + tags_weight * L_t + unsupervised_weight * ramp * L_u + tasks.

    L_t teaches a linear classifier which classes a labelled row shows. Its activation maps, refined by attention over the
    features, are a second segmentation; L_a, the cross-entropy of labelled rows, teaches the attention alone. L_u is
    the cross-entropy of the strong view of unlabelled rows against both segmentations of the weak view, fused
    (`calibrated_fusion`). Labels, maps and features that the attention sees are constants. The EMA is there to score.
    """

    completes_labels: ClassVar[bool] = False
    why_not_partial: ClassVar[str] = "learns from whole masks which classes an image shows"
    attention: Network = dataclasses.field(kw_only=True)
    foreground: tuple[int, ...] = dataclasses.field(kw_only=True)  # the classes that have activation maps

    @property
    def networks(self) -> dict[str, Network]:
        """The student and the attention."""
        return {STUDENT: self.network, ATTENTION: self.attention}

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory."""
        return with_critic(super().init(key), ATTENTION, self.attention, key)

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = both_parts(batch, "pseudoseg")
        label_key, view_key, pass_key, task_key = jax.random.split(key, 4)
        student, attention = (Variables(params[name], state.batch_stats[name]) for name in (STUDENT, ATTENTION))
        bias = bias_of_tags(self.network, student)
        fused, student, attention = self.labels(student, attention, unlabelled, bias, label_key)
        image, views, target = self.views(labelled, unlabelled, fused, view_key)
        outputs, stats = self.run(student, image, labelled, pass_key, (*head_names(self.auxiliary), TAGS))

        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        own: tuple[HeadOutput, Views] = jax.tree.map(
            lambda leaf: apart(leaf, len(labelled.image))[0], (outputs[TAGS], views)
        )
        found, seen, attention = self.own_terms(attention, *own, bias)
        unsupervised, metrics = self.unsupervised(
            logits, views, state.step, error=lambda said, _, weight: weighted_soft_cross_entropy(said, target, weight)
        )
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, pass_key, self.bn_mode)
        new_stats = {STUDENT: stats, ATTENTION: attention.batch_stats}
        aux = Aux(new_stats, {STUDENT: teacher_stats}, memory, metrics | seen | task_metrics)
        return terms | found | unsupervised | task_terms, aux

    def labels(
        self, student: Variables, attention: Variables, part: Unlabelled | Labelled, bias: Array, key: Array
    ) -> tuple[Array, Variables, Variables]:
        """The weak view's fused labels f32[b,H,W,K], no gradient, and student and attention as labelling leaves them."""
        image, train = unit_image(part.image), self.label_mode == "train"
        (frozen, teacher), stats = jax.lax.stop_gradient((student, attention)), student.batch_stats
        outputs, _ = run_heads(self.network, frozen, image, (SEGMENTATION, TAGS), train=False, rng=key)
        decoded, tags = outputs[SEGMENTATION].output, outputs[TAGS]
        if train:
            outputs, stats = run_heads(self.network, frozen, image, (SEGMENTATION,), train=True, rng=key)
            decoded = outputs[SEGMENTATION].output
        shown = jax.nn.sigmoid(pooled(tags.output, part.valid)) >= self.tag_threshold
        refined, moved = refined_maps(self.attention, teacher, tags, bias, shown, part.valid, train=train)
        fused = calibrated_fusion(decoded, refined, part.valid, self.temperature)
        if isinstance(part, Labelled):
            truth = jax.nn.one_hot(part.label, fused.shape[-1])
            fused = jnp.where((part.label < UNLABELLED)[..., None], truth, fused)
        return fused, student._replace(batch_stats=stats), attention._replace(batch_stats=moved)

    def views(
        self, labelled: Labelled, unlabelled: Unlabelled | Labelled, fused: Array, key: Array
    ) -> tuple[Array, Views, Array]:
        """The student's images, the views, and the fused labels f32[B,H,W,K], mixed as they are; 0 in labelled rows."""
        colour_l, colour_u, mixing_l, mixing_u = jax.random.split(key, 4)
        pseudo = pseudo_labelled_rows(colour_u, unlabelled, fused, self.colour)
        rows = self.mixing(mixing_u, pseudo._replace(extra=fused))
        truth = self.labelled_mixing(mixing_l, labelled_rows(colour_l, labelled, self.labelled_colour))
        none = jnp.zeros((len(truth.label), *fused.shape[1:]))
        image, views = student_input(truth._replace(extra=none), rows)
        return image, views, interleave(none, rows.extra)

    def own_terms(
        self, attention: Variables, tags: HeadOutput, views: Views, bias: Array
    ) -> tuple[Terms, Metrics, Variables]:
        """L_a and L_t of labelled rows, how many tags are right, and the attention with the statistics after it."""
        known = labelled_pixels(views)
        is_class = views.label[..., None] == jnp.array(self.foreground)[None, None, None]
        shown = jnp.any(is_class & known[..., None], axis=(1, 2))
        refined, stats = refined_maps(self.attention, attention, tags, bias, shown, views.valid, train=True)
        scores = pooled(tags.output, views.valid)
        error, right = tag_errors(scores, shown.astype(jnp.float32), jnp.any(known, axis=(1, 2)))
        terms = {
            "attention_loss": Term(mean_cross_entropy(refined, views.label, known), self.attention_weight),
            "tags_loss": Term(error, self.tags_weight),
        }
        return terms, {"tags_right": right}, attention._replace(batch_stats=stats)


def build(o: Options, p: Parts) -> PseudoSeg:
    """The method with its classifier and its attention. Raises OptionError where no class is foreground."""
    classes, background = len(p.labels.classes), p.labels.background_classes
    foreground = tuple(k for k in range(classes) if k not in background)
    if not foreground:
        raise OptionError("pseudoseg needs a class that is not background, and all are: set data.background")
    head = tags_head(foreground)
    attention = attention_network(
        depth_of_tags(p.network((head,))),
        len(foreground),
        classes,
        channels=o.channels,
        rest=bool(background),
        compute_dtype=p.compute_dtype,
    )
    return semi_supervised(PseudoSeg, p, o, (head,), attention=attention, foreground=foreground)


ENTRY = MethodEntry(
    "pseudoseg",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "method.threshold": 0.0,
        "augment.mixing": "cutout_square",
        "augment.mixing_probability": 1.0,
        "augment.mix_labelled": False,
        "augment.colour_labelled": False,
    },
)
