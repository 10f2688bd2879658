"""Virtual adversarial perturbations of images and features (Miyato et al., TPAMI 2018; T-VAT: Liu et al., CVPR 2022)."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, HeadOutput, Network, PyTree, Variables
from forec_jax.methods.parts.heads import SEGMENTATION, decode_heads
from forec_jax.models.resize import nearest

Place = Literal["image", "encoder", "fused"]
"""What is perturbed: the image, the encoder's maps, or the fused map that the decoder classifies."""

_DISTANCE = 1e-6
_MARGIN = 1e-8
"""Of `published_perturbation`: xi, and what its code adds to a length before it divides by it."""


def adversarial_perturbation(
    decode: Callable[[PyTree], Array], features: PyTree, valid: Array, epsilon: Array | float, key: Array
) -> PyTree:
    """The perturbation of length `epsilon` that a step of gradient ascent finds to change the predictions most.

    Around the features z the divergence KL(p(z) || p(z + r)) is r'Hr/2: its gradient at a small random d points along
    H d. The published step takes that gradient at a distance xi = 1e-6 of z, where float32 knows little of it
    (`published_perturbation`); here H d is exact: H = J'FJ with the Jacobian J of the logits and F = diag(p) - pp' of
    each pixel.

    Args:
        decode: features -> logits f32[B,H,W,K], each row by itself (inference mode), twice differentiable in reverse.
        features: a tree of float arrays [B,...].
        valid: bool[B,H,W], the pixels whose predictions count.
        epsilon: the length, of all of a row's features together: a number, or f32[B].
        key: of the random d.

    Returns:
        A tree like the features, without gradient; 0 in a row whose predictions nothing changes.
    """
    features = jax.lax.stop_gradient(features)
    logits, pull = jax.vjp(decode, features)
    # The pull-back u -> J'u is linear, and the pull-back of that is d -> Jd.
    _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jnp.zeros_like(logits))
    (change,) = push(unit_rows(random_like(key, features)))
    p = jax.nn.softmax(logits, axis=-1)
    steepest = p * (change - jnp.sum(p * change, axis=-1, keepdims=True)) * valid[..., None]
    (direction,) = pull(steepest.astype(logits.dtype))
    scaled = jax.tree.map(lambda leaf: (_for_rows(epsilon, leaf) * leaf).astype(leaf.dtype), unit_rows(direction))
    return jax.lax.stop_gradient(scaled)


def published_perturbation(
    decode: Callable[[PyTree], Array],
    features: PyTree,
    valid: Array,
    epsilon: Array | float,
    key: Array,
    rows: Array | float,
) -> PyTree:
    """The perturbation as PS-MT's code finds it in float32: epsilon g / (|g| + 1e-8), much shorter than epsilon.

    g is the gradient with respect to d, a random draw of length 1, of KL(p(z) || p(z + xi d)) / rows. As xi is 1e-6, so is
    a factor of g: |g| is far below the 1e-8, and g holds the rounding of p more than the slope along d.

    Args:
        decode: features -> logits f32[B,H,W,K], each row by itself (inference mode).
        features: a tree of float arrays [B,...].
        valid: bool[B,H,W], the pixels whose predictions count.
        epsilon: what the code calls the length.
        key: of the random d, uniform in a cube before it is scaled.
        rows: f32[B] or a number: among how many rows the code takes the mean of the divergences.

    Returns:
        A tree like the features, without gradient.
    """
    features = jax.lax.stop_gradient(features)
    p = jax.nn.softmax(decode(features), axis=-1)

    def divergence(draw: PyTree) -> Array:
        moved = jax.nn.log_softmax(decode(jax.tree.map(lambda z, d: z + _DISTANCE * d, features, draw)), axis=-1)
        return -jnp.sum(jnp.sum(p * moved * valid[..., None], axis=(1, 2, 3)) / rows)  # and a constant

    in_cube = functools.partial(jax.random.uniform, minval=-0.5, maxval=0.5)
    slope = jax.grad(divergence)(unit_rows(random_like(key, features, in_cube)))
    return jax.lax.stop_gradient(jax.tree.map(lambda leaf: epsilon * leaf, unit_rows(slope, _MARGIN)))


def random_like(key: Array, tree: PyTree, draw: Callable[..., Array] = jax.random.normal) -> PyTree:
    """Random arrays of the tree's shapes and dtypes, standard normal unless another `draw` is given."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noise = [draw(leaf_key, leaf.shape).astype(leaf.dtype) for leaf_key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


def unit_rows(tree: PyTree, margin: float = 0.0) -> PyTree:
    """Arrays [B,...] divided by each row's length over the whole tree, plus a margin; a row of zeros stays."""
    squares = (
        jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=range(1, leaf.ndim)) for leaf in jax.tree.leaves(tree)
    )
    length = jnp.sqrt(sum(squares)) + margin
    factor = jnp.where(length > 0, 1.0 / jnp.where(length > 0, length, 1.0), 0.0)
    return jax.tree.map(lambda leaf: (leaf.astype(jnp.float32) * _for_rows(factor, leaf)).astype(leaf.dtype), tree)


def adaptive_length(tree: PyTree, valid: Array) -> Array:
    """f32[B]: half the root of the sum of squared differences between each value's two neighbours, in rows and in columns.

    An image of little contrast is perturbed little (French et al., BMVC 2020, code). Values without both neighbours, or with
    one in the padding, do not count.

    Args:
        tree: arrays [B,h,w,C].
        valid: bool[B,H,W]; at another size the nearest pixels say.
    """
    squares = jnp.zeros(valid.shape[0])
    for leaf in jax.tree.leaves(tree):
        known = nearest(valid, leaf.shape[1:3])
        for axis in (1, 2):
            value, there = (jnp.moveaxis(x, axis, 1) for x in (leaf.astype(jnp.float32), known))
            both = there[:, 2:] & there[:, :-2]
            steps = jnp.where(both[..., None], value[:, 2:] - value[:, :-2], 0.0)
            squares += jnp.sum(jnp.square(steps), axis=(1, 2, 3))
    return 0.5 * jnp.sqrt(squares)


def fixed_length(tree: PyTree, valid: Array) -> Array:
    """f32[B]: the root of the number of a row's values outside the padding, as if each were moved by 1.

    Args:
        tree: arrays [B,h,w,C].
        valid: bool[B,H,W]; at another size the nearest pixels say.
    """
    numbers = (
        leaf.shape[-1] * jnp.sum(nearest(valid, leaf.shape[1:3]), axis=(1, 2), dtype=jnp.float32)
        for leaf in jax.tree.leaves(tree)
    )
    return jnp.sqrt(sum(numbers, start=jnp.zeros(())))


def logits_from(network: Network, variables: Variables, place: Place) -> Callable[[PyTree], Array]:
    """What lies behind a place, in inference mode: the image, or features of that place -> logits f32[B,H,W,K]."""
    decode = network.classify if place == "fused" else network.decode

    def logits(seen: PyTree) -> Array:
        if place == "image":
            seen, _ = network.encode(variables, seen, train=False, rng=None)
        found: Array = decode(variables, SEGMENTATION, seen, train=False, rng=None)[0].output
        return found

    return logits


def run_changed(
    network: Network,
    student: Variables,
    image: Array,
    heads: tuple[str, ...],
    change: Callable[[PyTree], PyTree],
    place: Place,
    *,
    rng: Array,
) -> tuple[dict[str, HeadOutput], PyTree]:
    """Every head in train mode, the segmentation from changed features; the outputs by head and the new batch_stats.

    Args:
        network: whose heads are run.
        student: its variables.
        image: f32[B,H,W,3] in [0, 1].
        heads: segmentation, and others that see the features as they are.
        change: features of the place -> changed ones.
        place: which features; not the image.
        rng: of the dropout.
    """
    features, stats = network.encode(student, image, train=True, rng=rng)
    features_of, changes = dict.fromkeys(heads, features), {}
    if place == "encoder":
        features_of[SEGMENTATION] = change(features)
    else:
        changes[SEGMENTATION] = change
    student = student._replace(batch_stats=stats)
    return decode_heads(network, student, features_of, train=True, rng=rng, changes=changes)


def _for_rows(values: Array | float, leaf: Array) -> Array:
    """A number, or one of each row f32[B], to meet [B,...]."""
    return jnp.reshape(values, (-1, *(1,) * (leaf.ndim - 1)))
