"""AdvSemSeg: a discriminator that judges each pixel of a class map (Hung et al., BMVC 2018)."""

import dataclasses

import jax

from forec_jax.contracts import Array, Aux, Batch, PyTree, Term, Terms, TrainState, Variables, Views
from forec_jax.losses import taken_for_real
from forec_jax.methods.entry import MethodEntry, Parts, refuse_classmix, semi_supervised
from forec_jax.methods.parts.critic import (
    DISCRIMINATOR,
    DenseCriticOptions,
    GapOptions,
    WithDiscriminator,
    both_ways,
    critic_output,
    own_adam,
    with_truth,
    without_padding,
)
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import (
    PseudoLabelOptions,
    SupervisedOptions,
    labelled_pixels,
    supervised_terms,
)
from forec_jax.methods.parts.views import apart, interleave, labelled_and_others, self_labelled
from forec_jax.models import pixel_discriminator
from forec_jax.options import STEPS, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Game(GapOptions):
    """How much the discriminator's judgement counts. A built method has `trust_start` in steps."""

    labelled_weight: float = option(0.01, "of L_adv in labelled rows", at_least(0))
    unlabelled_weight: float = option(0.001, "of L_adv in unlabelled rows", at_least(0))
    trust_start: float = option(
        0.25, "without L_semi: steps, or below 1 a fraction of all; published: a quarter", STEPS
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(_Game, DenseCriticOptions):
    """The discriminator and its optimiser."""


@dataclasses.dataclass(frozen=True)
class AdvSemSeg(WithDiscriminator, _Game):
    """L = supervised_weight * L_s + L_adv + unsupervised_weight * ramp * L_semi + L_D + auxiliary terms.

    The discriminator D sees class maps: of labelled rows the truth, of all rows the student's softmax. L_D teaches it to
    tell them apart, pixel by pixel, and reaches no other network. L_adv asks the student for predictions that D takes for
    truth. L_semi asks it, from `trust_start` on, for its own argmax in the pixels without a truth that D takes for truth
    with more than `threshold`. Both leave D alone. What D sees of void and padding, and what auxiliary tasks and the teacher
    are, is as in S4Gan.
    With `partial_labels` D learns from the pixels alone that somebody labelled, of truth and prediction alike, so that the
    batch needs no unlabelled rows; the others are judged.
    """

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "adv_semseg", self.partial_labels)
        view_key, dropout_key, task_key = jax.random.split(key, 3)
        image, views = self.untaught(labelled, unlabelled, view_key)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = self.run_student(student, image, labelled, dropout_key)
        logits = outputs[SEGMENTATION].output
        probabilities = jax.nn.softmax(logits, axis=-1)
        views = self_labelled(views, probabilities)

        discriminator = Variables(params[DISCRIMINATOR], state.batch_stats[DISCRIMINATOR])
        learning, judging = both_ways(self.judge, discriminator, self.shown(views, probabilities))
        game, score = self.game(learning, judging, views, state.step)
        unsupervised, metrics = self.unsupervised(
            logits, views._replace(confidence=jax.nn.sigmoid(score)), state.step, warmup=int(self.trust_start)
        )
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)

        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        new_stats = {STUDENT: stats, DISCRIMINATOR: state.batch_stats[DISCRIMINATOR]}
        terms |= game | unsupervised | task_terms
        return terms, Aux(new_stats, {STUDENT: teacher_stats}, memory, metrics | task_metrics)

    def shown(self, views: Views, probabilities: Array) -> Array:
        """Of each row f32[B,H,W,K] the class map with its truth, then its prediction: f32[2B,H,W,K]."""
        hide_gaps = self.gaps == "hidden"
        truth = with_truth(views, probabilities, hide_gaps)
        return interleave(*(without_padding(views, shown, hide_gaps) for shown in (truth, probabilities)))

    def judge(self, discriminator: Variables, shown: Array) -> Array:
        """The discriminator's logits f32[N,H,W] that a pixel of class maps f32[N,H,W,K] is truth."""
        logits, _ = critic_output(self.discriminator, discriminator, shown)
        return logits[..., 0]

    def game(self, learning: Array, judging: Array, views: Views, step: Array) -> tuple[Terms, Array]:
        """L_D and L_adv from D's logits of what it was shown, and those of the predictions f32[B,H,W] without gradient."""
        rows = len(views.label)
        (of_truth, of_prediction), (_, score) = apart(learning, rows), apart(judging, rows)
        truth = labelled_pixels(views) & views.valid
        others = views.valid & ~views.is_ground_truth
        predicted = truth if self.partial_labels else truth | others
        terms = {
            "discriminator_real_loss": Term(taken_for_real(of_truth, truth), 0.5),
            "discriminator_fake_loss": Term(taken_for_real(-of_prediction, predicted), 0.5),
            "adversarial_labelled_loss": Term(taken_for_real(score, truth), self.labelled_weight),
            "adversarial_unlabelled_loss": Term(
                taken_for_real(score, others), self.unlabelled_weight * self.started(step)
            ),
        }
        return terms, jax.lax.stop_gradient(score)


def build(o: Options, p: Parts) -> AdvSemSeg:
    """The method with its discriminator. Raises OptionError for ClassMix, which needs labels before there are any."""
    refuse_classmix("adv_semseg", p)
    discriminator = pixel_discriminator(len(p.labels.classes), **o.size, compute_dtype=p.compute_dtype)
    own = dataclasses.replace(o, trust_start=p.in_steps(o.trust_start))
    # Labelled rows are mixed and zoomed as the others are, whatever the options say: see s4gan.
    return semi_supervised(AdvSemSeg, p, own, discriminator=discriminator, labelled_mixing=p.unlabelled_changes)


ENTRY = MethodEntry(
    "adv_semseg",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    # Images as they are, self-training in the pixels that the discriminator trusts.
    published={
        "method.threshold": 0.2,
        "method.unsupervised_weight": 0.1,
        "method.normaliser": "kept",
        "augment.mixing": "none",
    },
    optimizers=own_adam(DISCRIMINATOR),
)
