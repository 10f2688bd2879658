"""S4GAN: a discriminator that tells truth from prediction (Mittal et al., TPAMI 2019, without its tag branch)."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    HeadOutput,
    PyTree,
    Term,
    Terms,
    TrainState,
    Variables,
    Views,
)
from forec_jax.losses import discrimination, feature_matching
from forec_jax.methods.entry import MethodEntry, Parts, refuse_classmix, semi_supervised
from forec_jax.methods.parts.critic import (
    DISCRIMINATOR,
    CriticOptions,
    GapOptions,
    WithDiscriminator,
    both_ways,
    own_adam,
    with_truth,
    without_padding,
)
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, run_heads
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import (
    PseudoLabelOptions,
    SupervisedOptions,
    labelled_pixels,
    supervised_terms,
)
from forec_jax.methods.parts.views import interleave, labelled_and_others, self_labelled
from forec_jax.models import discriminator_network
from forec_jax.models.critic import SCORE
from forec_jax.options import BELOW_1, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Game(GapOptions):
    """What the discriminator is shown, and how much it counts."""

    feature_matching_weight: float = option(0.1, "of L_fm", at_least(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(_Game, CriticOptions):
    """The discriminator and its optimiser."""

    dropout: float = option(0.5, "of the discriminator's channels; published: 0.5", BELOW_1)


class _Exhibit(NamedTuple):
    """What the discriminator is shown: N pairs of an image and a class map, of B rows."""

    pair: Array  # f32[N,H,W,3+K]; only what is shown as a prediction carries a gradient
    is_real: Array  # bool[N], what stands for truth
    is_fake: Array  # bool[N], what stands for prediction; a pair may be neither
    prediction: Array  # i32[B], the pair that shows a row's prediction, if any does


@dataclasses.dataclass(frozen=True)
class S4Gan(WithDiscriminator, _Game):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * L_st + feature_matching_weight * L_fm + L_D + tasks.

    The discriminator D sees [image, truth] of the labelled and [image, softmax] of the unlabelled rows. L_D teaches it
    to tell them apart and reaches no other network; L_fm asks the student for predictions with the features of truth,
    L_st for its own argmax in the rows that D takes for truth with more than `threshold`; both leave D alone. Where
    nothing is said of a labelled row's pixel (void), D sees the prediction, and in the padding nothing: neither tells
    truth from prediction (unless `gaps` are "shown"). Auxiliary tasks see the student's own argmax and its confidence.
    The teacher is the student's EMA, to score beside it, and teaches nothing.
    Before `start` D learns, and the student from labels alone.
    With `partial_labels` D sees each row twice, as predicted and with the truth that it has, so that the batch needs no
    unlabelled rows; pixels that nobody labelled learn from their argmax where D trusts the prediction.
    """

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "s4gan", self.partial_labels)
        view_key, dropout_key, critic_key, task_key = jax.random.split(key, 4)
        image, views = self.untaught(labelled, unlabelled, view_key)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = self.run_student(student, image, labelled, dropout_key)
        logits = outputs[SEGMENTATION].output
        probabilities = jax.nn.softmax(logits, axis=-1)
        views = self_labelled(views, probabilities)

        show = shown_twice if self.partial_labels else shown_once
        exhibit = show(image, views, probabilities, self.gaps == "hidden")
        discriminator = Variables(params[DISCRIMINATOR], state.batch_stats[DISCRIMINATOR])
        learning, judging = both_ways(functools.partial(self.judge, key=critic_key), discriminator, exhibit.pair)
        real, fake = discrimination(learning.output, exhibit.is_real, exhibit.is_fake)

        score = judging.output[exhibit.prediction]
        trust = jnp.broadcast_to(jax.nn.sigmoid(score)[:, None, None], views.confidence.shape)
        unsupervised, metrics = self.unsupervised(logits, views._replace(confidence=trust), state.step)
        adversarial = {
            "feature_matching_loss": Term(
                feature_matching(judging.latent, exhibit.is_real, exhibit.is_fake),
                self.feature_matching_weight * self.started(state.step),
            ),
            "discriminator_real_loss": Term(real, 0.5),
            "discriminator_fake_loss": Term(fake, 0.5),
        }
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)

        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        new_stats = {STUDENT: stats, DISCRIMINATOR: state.batch_stats[DISCRIMINATOR]}
        terms |= unsupervised | adversarial | task_terms
        return terms, Aux(new_stats, {STUDENT: teacher_stats}, memory, metrics | task_metrics)

    def judge(self, discriminator: Variables, pair: Array, key: Array) -> HeadOutput:
        """The discriminator's logits f32[B] and pooled features f32[B,D]; the same dropout for the same key."""
        outputs, _ = run_heads(self.discriminator, discriminator, pair, (SCORE,), train=True, rng=key)
        return outputs[SCORE]


def shown_once(image: Array, views: Views, probabilities: Array, hide_gaps: bool = True) -> _Exhibit:
    """Labelled rows with their truth, unlabelled rows with their prediction."""
    is_truth = views.labelled_row[:, None, None, None]
    shown = jnp.where(is_truth, with_truth(views, probabilities, hide_gaps), probabilities)
    rows = jnp.arange(image.shape[0])
    return _Exhibit(_beside_image(image, views, shown, hide_gaps), views.labelled_row, ~views.labelled_row, rows)


def shown_twice(image: Array, views: Views, probabilities: Array, hide_gaps: bool = True) -> _Exhibit:
    """Every row with what truth it has, and with its prediction. A row without any truth stands for neither.

    The two of a row differ in its labelled pixels alone, and there are as many of one kind as of the other: neither
    anything else in a row nor the number of rows tells truth from prediction.
    """
    truth = _beside_image(image, views, with_truth(views, probabilities, hide_gaps), hide_gaps)
    prediction = _beside_image(image, views, probabilities, hide_gaps)
    has_truth = jnp.any(labelled_pixels(views) & views.valid, axis=(1, 2))
    neither = jnp.zeros_like(has_truth)
    return _Exhibit(
        interleave(truth, prediction),
        interleave(has_truth, neither),
        interleave(neither, has_truth),
        2 * jnp.arange(image.shape[0]) + 1,
    )


def _beside_image(image: Array, views: Views, shown: Array, hide_gaps: bool) -> Array:
    """f32[B,H,W,3+K]: the image with the class map that is shown for it, zeros in the padding if that is hidden."""
    return jnp.concatenate([image, without_padding(views, shown, hide_gaps)], axis=-1)


def build(o: Options, p: Parts) -> S4Gan:
    """The method with its discriminator. Raises OptionError for ClassMix, which needs labels before there are any."""
    refuse_classmix("s4gan", p)
    discriminator = discriminator_network(
        len(p.labels.classes), channels=o.channels, dropout=o.dropout, compute_dtype=p.compute_dtype
    )
    # Labelled rows are mixed and zoomed alike whatever augment.mix_labelled and student_labelled say: boxes or padding in
    # predictions alone would give them away.
    return semi_supervised(S4Gan, p, o, discriminator=discriminator, labelled_mixing=p.unlabelled_changes)


ENTRY = MethodEntry(
    "s4gan",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    # Images as they are, self-training in what the discriminator trusts (VOC 0.6, Cityscapes 0.7).
    published={"method.threshold": 0.6, "method.normaliser": "kept", "augment.mixing": "none"},
    optimizers=own_adam(DISCRIMINATOR),
)
