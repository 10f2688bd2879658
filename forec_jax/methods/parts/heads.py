"""Running a student with its heads, shared by the methods."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    Array,
    AuxiliaryTask,
    HeadOutput,
    Metrics,
    Network,
    PyTree,
    Term,
    Terms,
    Variables,
    Views,
)
from forec_jax.methods.parts.views import apart, interleave
from forec_jax.models.network import named_key

STUDENT = "student"
"""The trained network's name among a method's."""

SEGMENTATION = "segmentation"


Pass = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
"""(batch_stats, rows, keys) -> what a network makes of the rows, and the batch_stats after them."""


class Auxiliary(NamedTuple):
    """An auxiliary task with its weight in the loss."""

    weight: float
    task: AuxiliaryTask


def run_heads(
    network: Network, variables: Variables, image: Array, heads: tuple[str, ...], *, train: bool, rng: Array
) -> tuple[dict[str, HeadOutput], PyTree]:
    """One encoder pass and every named head on it; returns the outputs by head and the new batch_stats."""
    features, stats = network.encode(variables, image, train=train, rng=rng)
    features_of = dict.fromkeys(heads, features)
    return decode_heads(network, variables._replace(batch_stats=stats), features_of, train=train, rng=rng)


def decode_heads(
    network: Network,
    variables: Variables,
    features_of: Mapping[str, PyTree],
    *,
    train: bool,
    rng: Array,
    changes: Mapping[str, Callable[[PyTree], PyTree]] = MappingProxyType({}),
) -> tuple[dict[str, HeadOutput], PyTree]:
    """Every named head on the features that are given for it; returns the outputs by head and the new batch_stats.

    A head that is named in `changes` classifies its fused features as they are changed there, no other head does.
    Heads that read the same head and are given the same features, as objects, share what is fused. A head's
    statistics are moved by its own features, and not by those that are given to a head which reads it.
    """
    owners = {spec.name: spec.reads or spec.name for spec in network.heads}
    outputs, fused, stats = {}, {}, variables.batch_stats
    for head, features in features_of.items():
        owner, now = owners[head], variables._replace(batch_stats=stats)
        place = owner, id(features)
        if place not in fused:
            fused[place], moved = network.fuse(now, owner, features, train=train, rng=rng)
            if features_of.get(owner, features) is features:
                stats = moved
    for head, features in features_of.items():
        seen = fused[owners[head], id(features)]
        if head in changes:
            seen = changes[head](seen)
        outputs[head], stats = network.classify(variables._replace(batch_stats=stats), head, seen, train=train, rng=rng)
    return outputs, stats


def two_passes(forward: Pass, stats: PyTree, rows: PyTree, labelled: int, keys: PyTree) -> tuple[PyTree, PyTree]:
    """A pass over the labelled rows, then one over the others: BatchNorm normalises each kind by itself.

    Args:
        forward: the pass; what it makes of rows are arrays with a row for each.
        stats: the batch_stats, which the labelled rows move first and the others after that.
        rows: arrays [B,...] as `interleave` joins them.
        labelled: how many of them are labelled rows.
        keys: random keys; each pass has keys of its own.

    Returns:
        What was made of all rows, in their order, and the batch_stats after both passes.
    """
    first, others = (jax.tree.map(lambda leaf, part=part: apart(leaf, labelled)[part], rows) for part in (0, 1))
    first_keys, other_keys = (jax.tree.map(lambda key, part=part: jax.random.split(key)[part], keys) for part in (0, 1))
    of_first, stats = forward(stats, first, first_keys)
    of_others, stats = forward(stats, others, other_keys)
    return jax.tree.map(interleave, of_first, of_others), stats


def class_probabilities(network: Network, variables: Variables, image: Array, valid: Array | None = None) -> Array:
    """f32[B,H,W,K] in inference mode."""
    return jax.nn.softmax(_class_logits(network, variables, image, valid).astype(jnp.float32), axis=-1)


def mean_class_probabilities(
    network: Network, several: Sequence[Variables], image: Array, valid: Array | None = None
) -> Array:
    """f32[B,H,W,K] in inference mode: the softmax of the mean logits of several variables of a network."""
    return jax.nn.softmax(mean_logits([_class_logits(network, one, image, valid) for one in several]), axis=-1)


def mean_logits(logits: Sequence[Array]) -> Array:
    """The mean of several f32[...,K]."""
    return sum(logits, start=jnp.zeros(())) / len(logits)


def _class_logits(network: Network, variables: Variables, image: Array, valid: Array | None) -> Array:
    features, _ = network.encode(variables, image, valid=valid, train=False, rng=None)
    head, _ = network.decode(variables, SEGMENTATION, features, train=False, rng=None)
    return head.output


def first_memory(auxiliary: tuple[Auxiliary, ...]) -> dict[str, PyTree]:
    """What the tasks that remember something remember at first, by their heads' names; arrays of their own."""
    remembering = {task.head.name: task.memory for _, task in auxiliary if jax.tree.leaves(task.memory)}
    return jax.tree.map(
        lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype), remembering
    )  # of the type that a step gives


def auxiliary_terms(
    auxiliary: tuple[Auxiliary, ...],
    outputs: Mapping[str, HeadOutput],
    views: Views,
    key: Array,
    memory: Mapping[str, PyTree],
) -> tuple[Terms, Metrics, dict[str, PyTree]]:
    """Every auxiliary task's terms, each times its task's weight; metrics; and the memory with what they remember now."""
    terms: Terms = {}
    metrics: Metrics = {}
    remembered = dict(memory)
    for weight, task in auxiliary:
        # By name, so that another task beside it does not change a task's draws.
        name = task.head.name
        task_terms, task_metrics, now = task.loss(outputs, views, named_key(key, name), memory.get(name, task.memory))
        terms |= {term: Term(mean, weight * share) for term, (mean, share) in task_terms.items()}
        metrics |= task_metrics
        if name in memory:
            remembered[name] = jax.lax.stop_gradient(now)
    return terms, metrics, remembered


def head_names(auxiliary: tuple[Auxiliary, ...]) -> tuple[str, ...]:
    """The student's heads: segmentation and one for each auxiliary task."""
    return (SEGMENTATION, *(task.head.name for _, task in auxiliary))
