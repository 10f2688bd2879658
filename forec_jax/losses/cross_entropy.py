"""Cross-entropy over pixels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Mean

_TINY = 1e-12


def cross_entropy(logits: Array, label: Array) -> Array:
    """Each pixel's cross-entropy, f32[B,H,W], in nats.

    Args:
        logits: f32[B,H,W,K].
        label: i32[B,H,W] in [0, K); any other value (IGNORE) gives 0 and no gradient.

    The label is picked by comparison with an iota instead of a gather: its gradient is then elementwise as well.
    """
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    is_class = label[..., None] == jnp.arange(classes, dtype=label.dtype)[None, None, None]
    picked = jnp.sum(jnp.where(is_class, logits, 0.0), axis=-1)
    known = (label >= 0) & (label < classes)
    return jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0)


def mean_cross_entropy(logits: Array, label: Array, included: Array) -> Mean:
    """The cross-entropy's mean over the included pixels.

    Args:
        logits: f32[B,H,W,K].
        label: i32[B,H,W] in [0, K) where included.
        included: bool[B,H,W]; the others have neither value nor gradient.
    """
    error = jnp.where(included, cross_entropy(logits, label), 0.0)
    return Mean(jnp.sum(error), jnp.sum(included, dtype=jnp.float32))


def weighted_cross_entropy(logits: Array, label: Array, weight: Array) -> Array:
    """Each pixel's cross-entropy times its weight, f32[B,H,W].

    Args:
        logits: f32[B,H,W,K].
        label: i32[B,H,W] in [0, K) where the weight is above 0.
        weight: f32[B,H,W], at least 0; carries no gradient. Where it is 0, a pixel has neither value nor gradient.
    """
    return jnp.where(weight > 0, jax.lax.stop_gradient(weight) * cross_entropy(logits, label), 0.0)


def ohem_cross_entropy(
    logits: Array, label: Array, included: Array, *, threshold: Array | float, min_kept: int
) -> Mean:
    """The cross-entropy's mean over the hard pixels alone (online hard example mining).

    Hard is an included pixel whose true class has at most the probability `threshold`. Where those are fewer than
    `min_kept` a row, the bound rises to the probability of the pixel that makes up the number: that many of the whole
    batch are kept (more at ties, all where there are fewer).

    Args:
        logits: f32[B,H,W,K].
        label: i32[B,H,W] in [0, K) where included.
        included: bool[B,H,W]; the others have neither value nor gradient.
        threshold: in [0, 1], a number or f32[]. Published for Cityscapes: 0.7.
        min_kept: pixels for each row with an included pixel. Published as a number for a device's rows: 100,000 (U2PL)
            and 200,000 (UniMatch) for two rows, hence 50,000 and 100,000 here.

    The pixels are ranked over the global batch, not device by device as in the published systems. With accumulation a
    batch is the part at hand: each part keeps its own hardest pixels, as many a row as the whole batch would, and the
    mean is over all that were kept.
    """
    # exp(-cross-entropy) is the true class's probability; ranking by the error itself avoids its rounding near 1.
    error = jnp.where(included, cross_entropy(logits, label), -jnp.inf)
    hardest_first = jnp.sort(jax.lax.stop_gradient(error), axis=None, descending=True)
    a_row = min(min_kept, label[0].size)  # cannot be more, and must not overflow when multiplied
    number = jnp.sum(jnp.any(included, axis=(1, 2))) * a_row
    # Past the included pixels the sorted errors are -inf, and every included pixel is kept.
    at_least = hardest_first[jnp.maximum(number - 1, 0)]
    bound = jnp.minimum(-jnp.log(threshold), at_least)
    hard = included & (error >= bound)
    return Mean(jnp.sum(jnp.where(hard, error, 0.0)), jnp.sum(hard, dtype=jnp.float32))


def balanced_cross_entropy(logits: Array, label: Array, included: Array, *, class_weights: Sequence[float]) -> Mean:
    """The cross-entropy's mean over the included pixels, each as often as its class weighs: sum w_y CE / sum w_y.

    Args:
        logits: f32[B,H,W,K].
        label: i32[B,H,W] in [0, K) where included.
        included: bool[B,H,W]; the others have neither value nor gradient.
        class_weights: K numbers, at least 0. With one number for all it is `mean_cross_entropy`.
    """
    weight = weight_of_label(label, included, class_weights)
    return Mean(jnp.sum(weighted_cross_entropy(logits, label, weight)), jnp.sum(weight))


def focal_loss(logits: Array, label: Array, included: Array, *, class_weights: Sequence[float], gamma: float) -> Mean:
    """FL = -w_y (1 - p_y)^gamma log p_y (Lin et al., ICCV 2017, Eq. 5), p_y the softmax's value for the true class.

    The sum is divided by that of the weights w_y, so that gamma = 0 gives `balanced_cross_entropy`.

    Args:
        logits: f32[B,H,W,K].
        label: i32[B,H,W] in [0, K) where included.
        included: bool[B,H,W]; the others have neither value nor gradient.
        class_weights: K numbers, at least 0; the paper's alpha.
        gamma: at least 0. Published: 2.
    """
    weight, error = weight_of_label(label, included, class_weights), cross_entropy(logits, label)
    # 1 - p without its rounding near p = 1; above 0, where the power has a derivative for every gamma.
    unsure = jnp.maximum(-jnp.expm1(-error), _TINY)
    return Mean(jnp.sum(jnp.where(weight > 0, weight * unsure**gamma * error, 0.0)), jnp.sum(weight))


def weight_of_label(label: Array, included: Array, class_weights: Sequence[float]) -> Array:
    """f32[B,H,W]: what the label i32[B,H,W] of each pixel weighs by K numbers; 0 where it is not included."""
    return jnp.where(included, jnp.asarray(class_weights, jnp.float32)[jnp.where(included, label, 0)], 0.0)
