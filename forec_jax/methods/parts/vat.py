"""Virtual adversarial perturbations of features (Miyato et al., TPAMI 2018; PS-MT's T-VAT, Liu et al., CVPR 2022)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, PyTree


def adversarial_perturbation(
    decode: Callable[[PyTree], Array], features: PyTree, valid: Array, epsilon: Array | float, key: Array
) -> PyTree:
    """The perturbation of length `epsilon` that a step of gradient ascent finds to change the predictions most.

    Around the features z the divergence KL(p(z) || p(z + r)) is r'Hr/2: its gradient at a small random d points along
    H d. The published step takes that gradient at a distance xi = 1e-6 of z, where float32 knows little of it; here H d
    is exact: H = J'FJ with the Jacobian J of the logits and F = diag(p) - pp' of each pixel.

    Args:
        decode: features -> logits f32[B,H,W,K], each row by itself (inference mode), twice differentiable in reverse.
        features: a tree of float arrays [B,...].
        valid: bool[B,H,W], the pixels whose predictions count.
        epsilon: the length, of all of a row's features together.
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
    scaled = jax.tree.map(lambda leaf: epsilon * leaf, unit_rows(direction))
    return jax.lax.stop_gradient(scaled)


def random_like(key: Array, tree: PyTree) -> PyTree:
    """Standard normal arrays of the tree's shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noise = [
        jax.random.normal(leaf_key, leaf.shape).astype(leaf.dtype) for leaf_key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noise)


def unit_rows(tree: PyTree) -> PyTree:
    """Arrays [B,...] scaled so that each row has length 1 over the whole tree; a row of zeros stays."""
    squares = (
        jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=range(1, leaf.ndim)) for leaf in jax.tree.leaves(tree)
    )
    length = jnp.sqrt(sum(squares))
    factor = jnp.where(length > 0, 1.0 / jnp.where(length > 0, length, 1.0), 0.0)
    return jax.tree.map(
        lambda leaf: (leaf.astype(jnp.float32) * factor.reshape(-1, *(1,) * (leaf.ndim - 1))).astype(leaf.dtype), tree
    )
