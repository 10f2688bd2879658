"""Regional contrast: ReCo's loss over sampled pixels (Liu et al., "Bootstrapping Semantic Segmentation with Regional
Contrast", ICLR 2022, section 3). U2PL's is the same loss with other positives and with keys that were kept. CAC's pixels
have a positive each, and share all keys that were kept.

Shapes: N pixels, D dimensions, K classes, Q queries a class, M negative keys a query; S is Q, or 1 where the queries of a
class share their keys. Every shape is static: absent classes are drawn for as well, and masked out of the loss.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Mean

Keys = Literal["active", "random"]

_TINY = 1e-12  # squared length below which a vector has no direction
_KEYS_AT_ONCE = 8192  # of `directional_contrast`: N times so many float32 are live
_FAR = -1e9  # a key that is none: finite, as a row of -inf has no gradient
_RESOLUTION = 2**20  # units into which the probabilities of the classes are cut


class ClassMeans(NamedTuple):
    """What the valid pixels of a batch say about its classes; constants, without gradient."""

    mean: Array  # f32[K,D], the mean representation: the positive key (Eq. 2); 0 where the class is absent
    number: Array  # i32[K], of valid pixels


class Draws(NamedTuple):
    """The sampled pixels by index. Those of inactive classes mean nothing: mask them out."""

    query: Array  # i32[K,Q], of the representation
    key: Array  # i32[K,S,M], of what the keys are drawn from
    active: Array  # bool[K], whether the class enters the loss


def class_means(representation: Array, label: Array, valid: Array, classes: int) -> ClassMeans:
    """The mean representation of each class over the global batch.

    Args:
        representation: f32[N,D].
        label: i32[N], in [0, K) where valid.
        valid: bool[N].
        classes: K.
    """
    member = (label[:, None] == jnp.arange(classes)[None]) & valid[:, None]
    count = jnp.sum(member, axis=0, dtype=jnp.int32)
    constant = jax.lax.stop_gradient(representation)
    total = jnp.einsum("nk,nd->kd", member.astype(jnp.float32), constant, precision="highest")
    return ClassMeans(total / jnp.maximum(count, 1)[:, None], count)


def class_weights(means: ClassMeans, keys: Keys, temperature: float) -> Array:
    """i32[K,K]: in row c, how often each class is drawn as a negative of c, relative to the others; 0 for c itself.

    "active" keys follow the class relation graph (Eq. 3): the softmax of the mean representations' cosines over
    `temperature` (1 is the paper's formula). "random" keys are any pixels of other classes: the classes' numbers of pixels.
    Weights are integers, so that a rounding difference between two machines changes next to no draw.
    """
    classes = means.number.shape[0]
    other = (means.number > 0)[None, :] & ~jnp.eye(classes, dtype=bool)
    if keys == "random":
        return jnp.where(other, means.number[None, :], 0)
    direction = unit(means.mean)
    cosine = jnp.matmul(direction, direction.T, precision="highest")
    # Finite where nothing is left to choose from: the softmax of a row of -inf is NaN.
    share = jax.nn.softmax(jnp.where(other, cosine / temperature, -1e9), axis=-1)
    return jnp.where(other, jnp.maximum(jnp.round(share * _RESOLUTION).astype(jnp.int32), 1), 0)


def draw(
    key: Array, label: Array, valid: Array, eligible: Array, weights: Array, *, queries: int, sets: int, keys: int
) -> Draws:
    """Queries and negative keys of each class, with replacement.

    A pixel is drawn by its place among those of its class, a uniform integer below their number (the inverse of the
    cumulative count), so that every device and every number of devices draws the same.

    Args:
        key: a random key.
        label: i32[N], in [0, K) where valid.
        valid: bool[N], the pixels that may be keys.
        eligible: bool[N], those of them that may be queries (hard ones, say).
        weights: i32[K,K], of `class_weights`.
        queries: Q.
        sets: S, Q or 1: sets of keys a class.
        keys: M, keys in a set.
    """
    classes = weights.shape[0]
    query_order, query_count, query_start = by_class(label, valid & eligible, classes)
    key_order, key_count, key_start = by_class(label, valid, classes)

    def draw_class(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        index, weight, class_key = inputs
        query_key, other_key, place_key = jax.random.split(class_key, 3)
        place = jax.random.randint(query_key, (queries,), 0, jnp.maximum(query_count[index], 1))
        other = _draw_by_weight(other_key, weight, (sets, keys))
        negative = jax.random.randint(place_key, (sets, keys), 0, jnp.maximum(key_count[other], 1))
        return query_order[query_start[index] + place], key_order[key_start[other] + negative]

    # One class after another: the random numbers of all of them at once would be many times the result.
    query, negative = jax.lax.map(draw_class, (jnp.arange(classes), weights, jax.random.split(key, classes)))
    return Draws(query, negative, (query_count > 0) & jnp.any(weights > 0, axis=-1))


def by_class(label: Array, chosen: Array, classes: int) -> tuple[Array, Array, Array]:
    """The chosen pixels ordered by class: i32[N] indices (the others follow), i32[K] counts and i32[K] first places."""
    group = jnp.where(chosen, label, classes)
    count = jnp.sum(group[:, None] == jnp.arange(classes)[None], axis=0, dtype=jnp.int32)
    # A class that none was chosen of may start past the end; what it draws is masked, but must be a pixel.
    start = jnp.minimum(jnp.cumsum(count) - count, label.shape[0] - 1)
    return jnp.argsort(group, stable=True).astype(jnp.int32), count, start


def _draw_by_weight(key: Array, weight: Array, shape: tuple[int, ...]) -> Array:
    """i32[shape] draws of an index into i32[K], as often as the weights say; K - 1 where all are 0."""
    cumulative = jnp.cumsum(weight)
    point = jax.random.randint(key, shape, 0, jnp.maximum(cumulative[-1], 1))
    index = jnp.sum(point[..., None] >= cumulative.reshape((1,) * point.ndim + (-1,)), axis=-1, dtype=jnp.int32)
    return jnp.minimum(index, weight.shape[0] - 1)


def regional_contrast(
    representation: Array, positive: Array, keys: Array, draws: Draws, *, temperature: float, at_once: int
) -> Mean:
    """The contrast of given draws (ReCo, Eq. 1): the mean over queries, then over the classes that enter.

    A query's loss is the cross-entropy of picking its class's positive among it and the negative keys, by cosine over
    `temperature`. Only the queries have a gradient. (Eq. 1 writes sums; means are what was published with it, and make
    the weight independent of Q and of the classes at hand.) With no class to contrast it is 0.

    Memory: the keys of `at_once` queries of a class are gathered at a time, used for the loss and its gradient, and
    dropped: at_once * M * D float32 are live, 256 * 512 * 256 * 4 B = 134 MB with the defaults, 0.5 MB with shared keys,
    whatever the number of classes and pixels. Beside it stay the draws, K * S * M * 4 B (11 MB for 21 classes), and the
    representation itself, N * D * 4 B (107 MB for 16 crops of 321 at a quarter).

    Args:
        representation: f32[N,D], of which `draws.query` are indices.
        positive: f32[K,D], the positive key of each class: ReCo's is `class_means` of the same representation.
        keys: f32[P,D], of which `draws.key` are indices: the same representation, or what was kept of earlier ones.
        draws: of `draw`, or of that form.
        temperature: above 0.
        at_once: queries whose keys are gathered together; changes time and memory, not the result. Many suit a GPU, as
            few as fit a core's cache a CPU. Shared keys are gathered once.
    """
    constant = jax.lax.stop_gradient(keys)
    length = jnp.sqrt(jnp.maximum(jnp.sum(constant * constant, axis=-1), _TINY))
    # All queries at once, outside of the maps: their gradient is scattered into the representation once, not K times.
    queries = unit(representation[draws.query])

    def error(query: Array, positive: Array, key: Array) -> Array:
        near = jnp.dot(query, positive, precision="highest") / temperature
        far = jnp.matmul(constant[key], query, precision="highest") / (length[key] * temperature)
        return jax.nn.logsumexp(jnp.append(far, near)) - near

    def class_errors(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        query, positive, key = inputs
        if key.shape[0] == 1:
            return jax.vmap(jax.value_and_grad(error), (0, None, None))(query, positive, key[0])
        return jax.lax.map(
            lambda pair: jax.value_and_grad(error)(pair[0], positive, pair[1]), (query, key), batch_size=at_once
        )

    fixed = jax.lax.stop_gradient(queries)
    errors, slopes = jax.lax.map(class_errors, (fixed, unit(jax.lax.stop_gradient(positive)), draws.key))
    # The tangent at the queries has the loss's value and gradient, and lets go of the keys before the backward pass.
    tangent = errors + jnp.sum(slopes * (queries - fixed), axis=-1)
    return Mean(
        jnp.sum(jnp.where(draws.active, jnp.mean(tangent, axis=-1), 0.0)), jnp.sum(draws.active, dtype=jnp.float32)
    )


def directional_contrast(
    vector: Array, positive: Array, label: Array, keys: Array, key_label: Array, *, temperature: float
) -> Array:
    """The contrast of each pixel by itself (Lai et al., "Semi-supervised Semantic Segmentation with Directional
    Context-aware Consistency", CVPR 2021), f32[N]: -log of the share of its positive among it and the keys of other
    classes, by cosine over `temperature`.

    Only `vector` has a gradient. All keys serve all pixels, so that they are matrix products and nothing is gathered; N
    times 8192 products are live at a time, and taken again in the backward pass.

    Args:
        vector: f32[N,D].
        positive: f32[N,D], of the same place in the other view.
        label: i32[N], a key of this class is no negative.
        keys: f32[R,D].
        key_label: i32[R], their classes, below 0 where there is none.
        temperature: above 0.
    """
    vector, positive, keys = unit(vector), *(unit(jax.lax.stop_gradient(constant)) for constant in (positive, keys))
    at_once = min(_KEYS_AT_ONCE, len(keys))
    beyond = -len(keys) % at_once
    keys = jnp.pad(keys, ((0, beyond), (0, 0))).reshape(-1, at_once, keys.shape[1])
    key_label = jnp.pad(key_label, (0, beyond), constant_values=-1).reshape(-1, at_once)

    @jax.checkpoint
    def far(some: tuple[Array, Array]) -> Array:
        keys, key_label = some
        negative = (key_label[None] >= 0) & (key_label[None] != label[:, None])
        product = jnp.matmul(vector, keys.T, precision="highest") / temperature
        return jax.nn.logsumexp(jnp.where(negative, product, _FAR), axis=-1)

    near = jnp.sum(vector * positive, axis=-1) / temperature
    others = jax.lax.map(far, (keys, key_label))
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=0) - near)  # exact where the loss is small


def unit(vectors: Array) -> Array:
    """f32[...,D] at length 1; a vector of length 0 stays, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors * vectors, axis=-1, keepdims=True), _TINY))
