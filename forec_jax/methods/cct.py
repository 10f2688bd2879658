"""CCT: auxiliary decoders of perturbed maps agree with the main one (Ouali et al., CVPR 2020)."""

import dataclasses
import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    HeadOutput,
    HeadSpec,
    PyTree,
    Terms,
    TrainState,
    Variables,
    Views,
)
from forec_jax.losses import ohem_cross_entropy
from forec_jax.methods.entry import MethodEntry, Parts, refuse_classmix, semi_supervised
from forec_jax.methods.parts.background import is_background
from forec_jax.methods.parts.dropout import channel_dropout
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, decode_heads, head_names
from forec_jax.methods.parts.perturbations import cut_box, shown_where, weak_pixels, with_noise
from forec_jax.methods.parts.ramp import exponential_rise, logarithmic_rise
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import (
    PseudoLabelOptions,
    SupervisedLoss,
    SupervisedOptions,
    supervised_terms,
    unsupervised_terms,
)
from forec_jax.methods.parts.vat import adversarial_perturbation
from forec_jax.methods.parts.views import PaddingOptions, labelled_and_others, self_labelled
from forec_jax.models.network import named_key
from forec_jax.options import STEPS, OptionError, at_least, option

Kind = Literal["dropout", "cutout", "vat", "context", "object", "drop", "noise"]
"""What an auxiliary decoder's map is changed by."""

_SURE = 0.9
"""The probability of its class from which a pixel is left out of L_s at last, where `annealing` is set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(PaddingOptions):
    """How many auxiliary decoders see a map that is changed in which way, and L_s. A method has `annealing` in steps."""

    dropout_decoders: int = option(6, "whose map lacks half of its channels", at_least(0))
    cutout_decoders: int = option(6, "whose map lacks a box inside the foreground", at_least(0))
    vat_decoders: int = option(2, "whose map is moved to where their prediction changes most", at_least(0))
    context_decoders: int = option(2, "whose map shows the foreground alone", at_least(0))
    object_decoders: int = option(2, "whose map shows the background alone", at_least(0))
    drop_decoders: int = option(6, "whose map lacks its strongest pixels", at_least(0))
    noise_decoders: int = option(6, "whose map is times 1 + noise", at_least(0))
    epsilon: float = option(2.0, "vat: length of the perturbation of an image's map", at_least(0))
    annealing: float = option(
        0.0,
        "L_s of the pixels alone whose class is below a bound (ab-CE), which rises from 1/K to 0.9 over so many steps, or "
        "below 1 a fraction of all; published: 0.4; 0: of all pixels",
        STEPS,
    )

    @property
    def decoders(self) -> tuple[tuple[str, Kind], ...]:
        """The auxiliary decoders: the names of their heads, and what their maps are changed by."""
        numbers: dict[Kind, int] = {kind: getattr(self, f"{kind}_decoders") for kind in get_args(Kind)}
        return tuple((f"cct_{kind}_{n}", kind) for kind, number in numbers.items() for n in range(1, number + 1))


class Seen(NamedTuple):
    """What the auxiliary decoders see of some rows, and what they should say."""

    fused: PyTree  # the map that the main decoder classifies
    target: Array  # f32[B,H,W,K], what it says
    views: Views


@dataclasses.dataclass(frozen=True)
class Cct(SemiSupervised, Options):
    """L = supervised_weight * L_s + unsupervised_weight * rise * L_c + auxiliary terms.

    L_c is the mean over the auxiliary decoders of the squared distance between their softmax and the main decoder's, which
    is a constant. They see the main decoder's fused map of the unlabelled rows, each changed in its own way. So the
    main decoder's last half learns from labels alone, the auxiliary decoders from L_c alone, all before them from both.
    With partial labels the pixels that nobody labelled are the unlabelled ones.
    The EMA is there to score, teaches nothing, and has no auxiliary decoder.
    """

    background: tuple[int, ...] = dataclasses.field(kw_only=True)  # classes; the others are the foreground

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "cct", self.partial_labels)
        unlabelled = self.with_gaps(unlabelled)
        view_key, dropout_key, decoder_key, task_key = jax.random.split(key, 4)
        image, views = self.untaught(labelled, unlabelled, view_key)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        forward = functools.partial(self.main_pass, student)
        (outputs, fused), stats = self.in_passes(forward, student.batch_stats, image, labelled, dropout_key)
        logits = outputs[SEGMENTATION].output
        target = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1))
        views = self_labelled(views, target)

        loss = self.loss_of_labels(state.step, logits.shape[-1])
        terms = supervised_terms(logits, views, loss=loss, weight=self.supervised_weight)
        asked = functools.partial(self.squares, student, decoder_key)
        squares = self.of_unlabelled(asked, Seen(fused, target, views), labelled)
        consistency, metrics = unsupervised_terms(
            logits,
            views,
            threshold=self.threshold,
            normaliser=self.normaliser,
            weight=self.unsupervised_weight * exponential_rise(state.step - int(self.start), self.ramp),
            error=lambda _, __, weight: jnp.where(weight > 0, weight * squares, 0.0),
            name="consistency_loss",
        )
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | consistency | task_terms, aux

    def loss_of_labels(self, step: Array, classes: int) -> SupervisedLoss:
        """L_s in a step: of the pixels that are not yet sure, one a row at least, where `annealing` is set."""
        if not self.annealing:
            return self.supervised_loss
        bound = 1 / classes + (_SURE - 1 / classes) * logarithmic_rise(step, self.annealing)
        return functools.partial(ohem_cross_entropy, threshold=bound, min_kept=1)

    def main_pass(
        self, student: Variables, stats: PyTree, image: Array, key: Array
    ) -> tuple[tuple[dict[str, HeadOutput], PyTree], PyTree]:
        """The segmentation's and the tasks' outputs, the map that the segmentation classifies, and the new batch_stats."""
        fused: PyTree = ()

        def noted(features: PyTree) -> PyTree:
            nonlocal fused
            fused = features
            return features

        features, stats = self.network.encode(student._replace(batch_stats=stats), image, train=True, rng=key)
        outputs, stats = decode_heads(
            self.network,
            student._replace(batch_stats=stats),
            dict.fromkeys(head_names(self.auxiliary), features),
            train=True,
            rng=key,
            changes={SEGMENTATION: noted},
        )
        return (outputs, fused), stats

    def squares(self, student: Variables, key: Array, seen: Seen) -> Array:
        """Each pixel's squared distance f32[B,H,W], a mean over classes and auxiliary decoders.

        One decoder's output at a time is kept, as it is computed again in the backward pass.
        """
        total = jnp.zeros(seen.target.shape[:-1])
        for head, kind in self.decoders:
            square = jax.checkpoint(functools.partial(self.square, head, kind))
            total += square(student, seen, named_key(key, head))
        return total / len(self.decoders)

    def square(self, head: str, kind: Kind, student: Variables, seen: Seen, key: Array) -> Array:
        """The same of one auxiliary decoder."""

        def decode(features: PyTree) -> Array:
            found: Array = self.network.classify(student, head, features, train=False, rng=None)[0].output
            return found

        if kind == "vat":
            aims = seen.views.valid & ~seen.views.is_ground_truth
            step = adversarial_perturbation(decode, seen.fused, aims, self.epsilon, key)
            features = jax.tree.map(jnp.add, seen.fused, step)
        else:
            features = self.changed(kind, seen, key)
        said = jax.nn.softmax(decode(features).astype(jnp.float32), axis=-1)
        return jnp.mean(jnp.square(said - seen.target), axis=-1)

    def changed(self, kind: Kind, seen: Seen, key: Array) -> PyTree:
        """The map as an auxiliary decoder sees it, where its change does not depend on the decoder."""
        background = is_background(jnp.argmax(seen.target, axis=-1), self.background)
        match kind:
            case "dropout":
                return channel_dropout(key, seen.fused)
            case "cutout":
                return shown_where(seen.fused, ~cut_box(key, ~background & seen.views.valid))
            case "context":
                return shown_where(seen.fused, ~background)
            case "object":
                return shown_where(seen.fused, background)
            case "drop":
                return weak_pixels(key, seen.fused, seen.views.valid)
            case "noise":
                return with_noise(key, seen.fused)
        raise ValueError(kind)


def build(o: Options, p: Parts) -> Cct:
    """The method with its auxiliary decoders: 1x1 convolutions of the map that the segmentation's decoder fuses.

    Where no class is called background the first one is taken for it. Raises OptionError for no auxiliary decoder, for
    two choices of the pixels in L_s, and for ClassMix, which needs labels before there are any.
    """
    refuse_classmix("cct", p)
    if o.annealing and p.shared(SupervisedOptions).supervised_loss != "cross_entropy":
        raise OptionError("method.cct.annealing chooses pixels for L_s: set method.supervised_loss=cross_entropy")
    if not o.decoders:
        raise OptionError("method.cct.*_decoders are all 0, and cct learns by its auxiliary decoders: set one above 0")
    classes, background = len(p.labels.classes), p.labels.background_classes or (0,)
    heads = tuple(HeadSpec(name, classes, linear=True, reads=SEGMENTATION) for name, _ in o.decoders)
    own = dataclasses.replace(o, annealing=p.in_steps(o.annealing))
    return semi_supervised(Cct, p, own, heads, background=background)


ENTRY = MethodEntry(
    "cct",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "method.threshold": 0.0,
        "method.unsupervised_weight": 30.0,
        "method.ramp": 0.1,
        "augment.mixing": "none",
    },
)
