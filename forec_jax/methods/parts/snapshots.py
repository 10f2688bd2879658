"""Earlier selves of a student: kept in the state, drawn at random, asked together (PrevMatch)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Network, PyTree, Variables
from forec_jax.methods.parts.heads import SEGMENTATION
from forec_jax.methods.parts.teacher import first_teacher


class Snapshots(NamedTuple):
    """The latest snapshots, float32, one in each of N places. No gradient reaches them."""

    variables: Variables  # arrays [N,...]: the segmentation's, without the parts that training leaves as they are
    step: Array  # i32[N], before which each was taken; -1: none yet


class Drawn(NamedTuple):
    """Some of the snapshots, and what each counts."""

    place: Array  # i32[n]
    weight: Array  # f32[n], which add up to 1; all 0 where there is no snapshot yet


def no_snapshots(student: Variables, places: int, frozen: tuple[str, ...] = ()) -> Snapshots:
    """Room for so many snapshots of a student; `frozen` are the parts that training leaves as they are."""
    room = jax.tree.map(lambda leaf: jnp.zeros((places, *leaf.shape), leaf.dtype), _changing(student, frozen))
    return Snapshots(room, jnp.full(places, -1, jnp.int32))


def with_snapshot(
    snapshots: Snapshots, student: Variables, step: Array, every: int, frozen: tuple[str, ...] = ()
) -> Snapshots:
    """The snapshots with the student in the oldest one's place, where `step` i32[] is a multiple of `every` above 0.

    Once a step, however often it is asked: the parts of a batch that is taken in parts see the same snapshots.
    """
    place = step // every % len(snapshots.step)
    due = (step > 0) & (step % every == 0) & (snapshots.step[place] != step)
    now = jax.lax.stop_gradient(_changing(student, frozen))

    def taken(before: Snapshots) -> Snapshots:
        room = jax.tree.map(lambda all_, one: all_.at[place].set(one), before.variables, now)
        return Snapshots(room, before.step.at[place].set(step))

    after: Snapshots = jax.lax.cond(due, taken, lambda before: before, snapshots)
    return after


def draw_snapshots(key: Array, snapshots: Snapshots, most: int) -> Drawn:
    """1 to `most` different snapshots (all, where there are fewer) and weights of theirs from Dirichlet(1, ..., 1).

    There are always `most` places; those beyond the number that is drawn have a weight of 0.
    """
    number_key, order_key, weight_key = jax.random.split(key, 3)
    there = snapshots.step >= 0
    order = jnp.argsort(jnp.where(there, jax.random.uniform(order_key, there.shape), 2.0))
    number = jnp.minimum(jax.random.randint(number_key, (), 1, most + 1), jnp.sum(there))
    # Dirichlet(1, ..., 1) are independent exponential draws over their sum.
    share = jnp.where(jnp.arange(most) < number, jax.random.exponential(weight_key, (most,)), 0.0)
    return Drawn(order[:most], share / jnp.maximum(jnp.sum(share), jnp.finfo(share.dtype).tiny))


def snapshot_probabilities(
    network: Network, snapshots: Snapshots, drawn: Drawn, student: Variables, image: Array
) -> Array:
    """Softmax of the drawn snapshots' weighted sum of logits, f32[b,H,W,K], in inference mode; no gradient.

    One snapshot after another, so that the memory is that of one pass. What snapshots lack is the student's.
    """
    student = jax.lax.stop_gradient(student)

    def with_next(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        place, weight = one
        snapshot = jax.tree.map(lambda leaf: leaf[place], snapshots.variables)
        variables = Variables(*({**rest, **kept} for rest, kept in zip(student, snapshot, strict=True)))
        features, _ = network.encode(variables, image, train=False, rng=None)
        said, _ = network.decode(variables, SEGMENTATION, features, train=False, rng=None)
        return total + weight * said.output.astype(jnp.float32), None

    classes = next(head.channels for head in network.heads if head.name == SEGMENTATION)
    nothing = jnp.zeros((*image.shape[:3], classes), jnp.float32)
    logits, _ = jax.lax.scan(with_next, nothing, drawn)
    return jax.nn.softmax(jax.lax.stop_gradient(logits), axis=-1)


def _changing(student: Variables, frozen: tuple[str, ...]) -> PyTree:
    """What a snapshot holds of the student."""
    parts = first_teacher(student)
    return Variables(*({name: part for name, part in tree.items() if name not in frozen} for tree in parts))
