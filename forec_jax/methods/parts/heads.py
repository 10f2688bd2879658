"""Running a student with its heads, shared by the methods."""

import zlib
from collections.abc import Mapping
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

STUDENT = "student"
"""The trained network's name among a method's."""

SEGMENTATION = "segmentation"


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
    network: Network, variables: Variables, features_of: Mapping[str, PyTree], *, train: bool, rng: Array
) -> tuple[dict[str, HeadOutput], PyTree]:
    """Every named head on the features that are given for it; returns the outputs by head and the new batch_stats."""
    outputs, stats = {}, variables.batch_stats
    for head, features in features_of.items():
        outputs[head], stats = network.decode(
            variables._replace(batch_stats=stats), head, features, train=train, rng=rng
        )
    return outputs, stats


def class_probabilities(network: Network, variables: Variables, image: Array, valid: Array | None = None) -> Array:
    """f32[B,H,W,K] in inference mode."""
    features, _ = network.encode(variables, image, valid=valid, train=False, rng=None)
    head, _ = network.decode(variables, SEGMENTATION, features, train=False, rng=None)
    return jax.nn.softmax(head.output.astype(jnp.float32), axis=-1)


def auxiliary_terms(
    auxiliary: tuple[Auxiliary, ...], outputs: Mapping[str, HeadOutput], views: Views, key: Array
) -> tuple[Terms, Metrics]:
    """Every auxiliary task's terms, each times its task's weight."""
    terms: Terms = {}
    metrics: Metrics = {}
    for weight, task in auxiliary:
        # By name, so that another task beside it does not change a task's draws.
        task_key = jax.random.fold_in(key, zlib.crc32(task.head.name.encode()))
        task_terms, task_metrics = task.loss(outputs, views, task_key)
        terms |= {name: Term(term.mean, weight * term.weight) for name, term in task_terms.items()}
        metrics |= task_metrics
    return terms, metrics


def head_names(auxiliary: tuple[Auxiliary, ...]) -> tuple[str, ...]:
    """The student's heads: segmentation and one for each auxiliary task."""
    return (SEGMENTATION, *(task.head.name for _, task in auxiliary))
