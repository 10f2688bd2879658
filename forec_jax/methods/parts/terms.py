"""The two segmentation losses of semi-supervised training, and what is measured beside them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array, Mean, Metrics, Term, Terms, Views
from forec_jax.losses import (
    balanced_cross_entropy,
    dice_cross_entropy,
    dice_loss,
    focal_loss,
    mean_cross_entropy,
    ohem_cross_entropy,
    weighted_cross_entropy,
)
from forec_jax.options import SHARE, STEPS, OptionError, at_least, must_be, option

T = TypeVar("T")

MEDIAN_FREQUENCY = "median_frequency"

Normaliser = Literal["valid", "kept", "eta", "batch"]
SupervisedLoss = Callable[[Array, Array, Array], Mean]
"""(logits f32[B,H,W,K], label i32[B,H,W], included bool[B,H,W]) -> the loss over (some of) the included pixels."""
PixelError = Callable[[Array, Array, Array], Array]
"""(logits f32[B,H,W,K], label i32[B,H,W], weight f32[B,H,W]) -> each pixel's error times its weight, f32[B,H,W]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedWeight:
    """How much L_s counts."""

    supervised_weight: float = option(1.0, "of L_s; 0 trains by the auxiliary tasks alone", at_least(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedOptions(SupervisedWeight):
    """L_s, the loss of the ground truth."""

    supervised_loss: Literal["cross_entropy", "ohem", "focal", "dice", "dice_cross_entropy"] = option(
        "cross_entropy",
        'L_s: "cross_entropy"; "ohem": of the hard pixels alone (Cityscapes); "focal": sure pixels count less; "dice": the '
        'overlap of regions; "dice_cross_entropy": the sum of both',
    )
    class_weights: str = option(
        "",
        'what classes weigh in L_s (not "ohem"): numbers in their order, such as "1,2,0.5", or "median_frequency", counted '
        "on the labelled training masks; empty: all the same",
    )
    focal_gamma: float = option(
        2.0, "focal: the power of 1 - p by which a pixel counts less the surer it is", at_least(0)
    )
    ohem_threshold: float = option(
        0.7,
        "ohem: a pixel is hard where its true class has at most this probability",
        must_be("a probability above 0; published: 0.7", lambda value: 0 < value <= 1),
    )
    ohem_min_kept: int = option(
        100_000,
        "ohem: at least so many pixels a labelled row; UniMatch 100,000, U2PL 50,000",
        must_be("at least 1 pixel; published: 50000 to 100000", lambda value: value >= 1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PseudoLabelOptions:
    """L_u, the loss of the pseudo-labels. A built method has `start` and `ramp` in steps."""

    threshold: float = option(
        0.95,
        "confidence above which a pseudo-label counts; s4gan: the discriminator's, in an image, adv_semseg: in a pixel; "
        "gct: the flaw above which a pixel is bad",
        SHARE,
    )
    unsupervised_weight: float = option(1.0, "of L_u; s4gan, adv_semseg: of the self-training", at_least(0))
    start: float = option(
        0.0, "first from labels alone, in the tasks too: steps, or below 1 a fraction of all steps", STEPS
    )
    start_passes: int = option(
        0, "the same in passes over the labelled images, in place of `start`; 0: none", at_least(0)
    )
    ramp: float = option(
        0.0, "rise of that weight from 0, by a cosine: steps, or below 1 a fraction of all steps; 0: none", STEPS
    )
    separate_passes: bool = option(
        False,
        "labelled rows pass the student first, then the others, each with BatchNorm's statistics of its own (ReCo, PS-MT, "
        "S4GAN); otherwise all together",
    )
    normaliser: Normaliser = option(
        "valid",
        'what L_u is divided by: "valid" (all pseudo-labelled pixels) or "kept" (confident); "eta": all of them count, '
        "each image's times its share of confident ones (ReCo), \"batch\": all times the batch's share (VAT)",
    )


def supervised_loss(
    o: SupervisedOptions, classes: Sequence[str], frequency_weights: Sequence[float] | None = None
) -> SupervisedLoss:
    """L_s as the options describe it; `frequency_weights` are those of the labelled masks (`_class_weights`).

    Raises OptionError for weights that are not one number a class, or that the loss cannot take.
    """
    weights = _class_weights(o.class_weights, classes, frequency_weights)
    match o.supervised_loss:
        case "ohem":
            if o.class_weights:
                raise OptionError(
                    'method.class_weights: "ohem" chooses pixels by their loss and takes none; leave it empty'
                )
            return functools.partial(ohem_cross_entropy, threshold=o.ohem_threshold, min_kept=o.ohem_min_kept)
        case "focal":
            return functools.partial(focal_loss, class_weights=weights, gamma=o.focal_gamma)
        case "dice":
            return functools.partial(dice_loss, class_weights=weights)
        case "dice_cross_entropy":
            return functools.partial(dice_cross_entropy, class_weights=weights)
        case _ if o.class_weights:
            return functools.partial(balanced_cross_entropy, class_weights=weights)
        case _:
            return mean_cross_entropy


def _class_weights(given: str, classes: Sequence[str], frequency_weights: Sequence[float] | None) -> tuple[float, ...]:
    """What classes weigh by method.class_weights. Where nothing is trained, `frequency_weights` are None and count as 1."""
    if given == MEDIAN_FREQUENCY and frequency_weights is not None:
        return tuple(frequency_weights)
    if given in ("", MEDIAN_FREQUENCY):
        return (1.0,) * len(classes)
    try:
        weights = tuple(map(float, given.split(",")))
    except ValueError:
        weights = ()
    if len(weights) != len(classes) or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise OptionError(
            f"method.class_weights={given!r} must be {len(classes)} numbers from 0 on, one above it, in the order "
            f"{', '.join(classes)}; or {MEDIAN_FREQUENCY!r}"
        )
    return weights


def supervised_terms(
    logits: Array, views: Views, *, loss: SupervisedLoss = mean_cross_entropy, weight: float = 1.0
) -> Terms:
    """L_s times `weight`: a loss over the ground-truth pixels that are not IGNORE."""
    return {"supervised_loss": Term(loss(logits, views.label, labelled_pixels(views)), weight)}


def under_name(name: str, found: Mapping[str, T], usual: str = "") -> dict[str, T]:
    """Terms or metrics of one of several (students, heads), each after its name; those of `usual` keep their own names."""
    return dict(found) if name == usual else {f"{name}_{key}": value for key, value in found.items()}


def labelled_pixels(views: Views) -> Array:
    """bool[B,H,W]: where the ground truth names a class."""
    return views.is_ground_truth & (views.label != IGNORE)


def unsupervised_terms(
    logits: Array,
    views: Views,
    *,
    threshold: float,
    normaliser: Normaliser,
    weight: Array | float,
    pixel_weight: Array | float = 1.0,
    error: PixelError = weighted_cross_entropy,
    name: str = "unsupervised_loss",
) -> tuple[Terms, Metrics]:
    """L_u (FOrec, section 4.2): cross-entropy against the pseudo-labels whose confidence is above the threshold.

    `normaliser="valid"` divides by all pseudo-labelled pixels that are not padding (UniMatch), "kept" by those above the
    threshold. "eta" takes all pseudo-labelled pixels, each times the share of them above the threshold in its image, and
    divides by their number (ReCo, Eq. 5); "batch" does so with the share of the whole batch (VAT). A threshold of 0 keeps
    all. Each pixel's cross-entropy, or another `error`, is times `pixel_weight`, which may be f32[B,H,W].
    """
    kept = pseudo_labelled_pixels(views) & (views.confidence > threshold)
    share, number = _pixel_weights(pseudo_labelled_pixels(views), kept, normaliser)
    mean, metrics = kept_errors(logits, views, kept, share * pixel_weight, number, error)
    return {name: Term(mean, weight)}, metrics


def kept_errors(
    logits: Array,
    views: Views,
    kept: Array,
    pixel_weight: Array,
    number: Array,
    error: PixelError = weighted_cross_entropy,
) -> tuple[Mean, Metrics]:
    """The sum of the pseudo-labelled pixels' errors, each times its weight, over a number; and who was kept.

    Args:
        logits: f32[B,H,W,K].
        views: whose pseudo-labels are asked for.
        kept: bool[B,H,W], of the pseudo-labelled pixels; for the metrics.
        pixel_weight: f32[B,H,W], 0 where a pixel does not count.
        number: f32[], what the sum is divided by.
        error: of a pixel.
    """
    errors = error(logits, views.label, pixel_weight)
    return Mean(jnp.sum(errors), number), _pseudo_label_metrics(views, pseudo_labelled_pixels(views), kept)


def pseudo_labelled_pixels(views: Views) -> Array:
    """bool[B,H,W]: where a class is named, and not by the ground truth."""
    return ~views.is_ground_truth & views.valid & (views.label != IGNORE)


def _pixel_weights(candidate: Array, kept: Array, normaliser: Normaliser) -> tuple[Array, Array]:
    """What each pixel of L_u counts, f32[B,H,W], and the number f32[] that the sum is divided by."""
    match normaliser:
        case "eta":
            of_image = jnp.sum(candidate, axis=(1, 2), keepdims=True)
            eta = jnp.sum(kept, axis=(1, 2), keepdims=True) / jnp.maximum(of_image, 1)
            return jnp.where(candidate, eta, 0.0), jnp.sum(candidate, dtype=jnp.float32)
        case "batch":
            number = jnp.sum(candidate, dtype=jnp.float32)
            share = jnp.sum(kept, dtype=jnp.float32) / jnp.maximum(number, 1.0)
            return jnp.where(candidate, share, 0.0), number
        case "kept":
            return kept.astype(jnp.float32), jnp.sum(kept, dtype=jnp.float32)
        case _:
            return kept.astype(jnp.float32), jnp.sum(candidate, dtype=jnp.float32)


def _pseudo_label_metrics(views: Views, candidate: Array, kept: Array) -> Metrics:
    """The share of the pseudo-labelled pixels that was kept, and their mean confidence."""
    candidates = jnp.sum(candidate, dtype=jnp.float32)
    return {
        "kept": Mean(jnp.sum(kept, dtype=jnp.float32), candidates),
        "confidence": Mean(jnp.sum(jnp.where(candidate, views.confidence, 0.0)), candidates),
    }
