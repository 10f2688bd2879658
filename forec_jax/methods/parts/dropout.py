"""Dropout of whole channels between encoder and decoder: the perturbations of features of UniMatch, V1 and V2."""

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, PyTree


def channel_dropout(key: Array, features: PyTree, probability: float = 0.5) -> PyTree:
    """Every channel of every row is zero with `probability`, otherwise divided by 1 - probability.

    `features` is a tree of arrays [B,h,w,C]; each has draws of its own (UniMatch V1, section 3.2).
    """
    leaves, structure = jax.tree.flatten(features)
    dropped = []
    for leaf_key, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        kept = jax.random.bernoulli(leaf_key, 1.0 - probability, (leaf.shape[0], 1, 1, leaf.shape[-1]))
        dropped.append(jnp.where(kept, leaf / (1.0 - probability), 0.0).astype(leaf.dtype))
    return jax.tree.unflatten(structure, dropped)


def complementary_dropout(key: Array, features: PyTree, share: float = 0.5) -> PyTree:
    """Of the rows 2i and 2i + 1 each keeps the channels that the other drops, times 2 (UniMatch V2, section 3.3).

    So does a random `share` of the pairs; the others, rounded down, stay as they are. `features` is a tree of arrays
    [2b,h,w,C]; arrays of equal channels share their draws, as the maps of a transformer's blocks do.
    """
    pair_key, channel_key = jax.random.split(key)
    pairs = len(jax.tree.leaves(features)[0]) // 2
    untouched = jax.random.permutation(pair_key, jnp.arange(pairs)) < int(pairs * (1.0 - share))

    def dropped(leaf: Array) -> Array:
        channels = leaf.shape[-1]
        first = 2.0 * jax.random.bernoulli(channel_key, 0.5, (pairs, channels))
        factor = jnp.where(untouched[:, None, None], 1.0, jnp.stack([first, 2.0 - first], axis=1))
        return leaf * factor.reshape(2 * pairs, 1, 1, channels).astype(leaf.dtype)

    return jax.tree.map(dropped, features)
