"""A store of vectors by class that keeps the newest: a memory bank, as part of a method's memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Mean


class Ring(NamedTuple):
    """K stores of Q places; the places from `number` on are empty."""

    values: Array  # f32[K,Q,D]
    number: Array  # i32[K], of what is stored, at most Q
    next: Array  # i32[K], the place that is written next

    @property
    def places(self) -> int:
        """Q."""
        return self.values.shape[1]


def empty_ring(classes: int, places: int, size: int) -> Ring:
    """A ring without anything in it: K `classes`, Q `places`, vectors of `size`."""
    return Ring(jnp.zeros((classes, places, size)), jnp.zeros((classes,), jnp.int32), jnp.zeros((classes,), jnp.int32))


def push(ring: Ring, key: Array, vectors: Array, eligible: Array, most: int) -> Ring:
    """The ring after some of the vectors went into it, in the place of the oldest.

    Of each class's eligible vectors at most `most` are taken, drawn uniformly and in a random order. One order serves all
    classes. It comes from the key and the vectors' places in the global batch, so that every number of devices stores the
    same.

    Args:
        ring: of K classes, Q places and vectors of size D.
        key: a random key.
        vectors: f32[N,D]; kept without gradient.
        eligible: bool[N,K], for which classes' stores a vector may be taken.
        most: at most Q of them are stored in one call, whatever this says.
    """
    most = min(most, ring.places, len(vectors))
    order = jax.random.permutation(key, len(vectors))
    found = jnp.cumsum(eligible[order], axis=0, dtype=jnp.int32)  # so many up to here, [N,K]
    taken = jnp.minimum(found[-1], most)
    rank = jnp.arange(most)
    nth = jax.vmap(lambda so_far: jnp.searchsorted(so_far, rank + 1))(found.T)  # [K,most], N where there is none
    chosen = order[jnp.minimum(nth, len(vectors) - 1)]
    place = (ring.next[:, None] + rank[None]) % ring.places
    place = jnp.where(rank[None] < taken[:, None], place, ring.places)  # beyond the end: not written
    which = jnp.arange(len(ring.number))[:, None]
    values = ring.values.at[which, place].set(jax.lax.stop_gradient(vectors)[chosen], mode="drop")
    return Ring(values, jnp.minimum(ring.number + taken, ring.places), (ring.next + taken) % ring.places)


def draw_places(ring: Ring, key: Array, shape: tuple[int, ...]) -> Array:
    """i32[K,*shape]: uniform draws of a stored place of each class, with replacement; 0 where nothing is stored."""
    stored = jnp.maximum(ring.number, 1).reshape(-1, *(1,) * len(shape))
    return jax.random.randint(key, (len(ring.number), *shape), 0, stored)


def filled(ring: Ring) -> Mean:
    """The share of the places that hold something; 1 is a full ring."""
    return Mean(jnp.sum(ring.number, dtype=jnp.float32), jnp.float32(ring.number.size * ring.places))
