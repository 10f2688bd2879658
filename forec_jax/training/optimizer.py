"""Optimisers and schedules."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import optax

from forec_jax.contracts import Array, PyTree
from forec_jax.options import BELOW_1, at_least, option

ENCODER, HEADS = "encoder", "heads"
SHARED = "shared"


def poly_schedule(peak: float, steps: int, power: float, warmup: int, hold: int = 0) -> optax.Schedule:
    """lr(t) = peak * (1 - t/steps)^power, per step, after a linear rise over the first `warmup` steps.

    In the first `hold` of the steps the rate does not decay: t and `steps` are counted from their end.
    A Python int gives a NumPy number, so that no device is waited for.
    """
    decaying = max(steps - hold, 1)

    def schedule(step: Array | int) -> Array:
        on_host = isinstance(step, int)
        smaller: Any = np.minimum if on_host else jax.numpy.minimum
        larger: Any = np.maximum if on_host else jax.numpy.maximum
        progress = smaller(larger(step - hold, 0) / decaying, 1.0)
        rise = smaller((step + 1) / (warmup + 1), 1.0)
        return peak * rise * (1.0 - progress) ** power

    return schedule


def _parameter_groups(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """A tree of "encoder" or "heads", one a parameter; `params` is network name -> part -> parameters."""
    return {
        network: {
            part: jax.tree.map(lambda _, group=ENCODER if part == ENCODER else HEADS: group, tree)
            for part, tree in parts.items()
        }
        for network, parts in params.items()
    }


def with_own_optimizers(
    shared: optax.GradientTransformation, own: Mapping[str, optax.GradientTransformation]
) -> optax.GradientTransformation:
    """`shared` for all networks but those named in `own`, each of which has its own; neither sees the other's gradients."""
    if not own:
        return shared

    def owner(params: dict[str, PyTree]) -> dict[str, PyTree]:
        return {
            name: jax.tree.map(lambda _, group=name if name in own else SHARED: group, parts)
            for name, parts in params.items()
        }

    return optax.partition({SHARED: shared, **own}, owner)


def _is_kernel(params: PyTree) -> PyTree:
    """True for convolution kernels, False for biases and BatchNorm's scale and shift."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The optimiser of all networks that have none of their own."""

    name: Literal["sgd", "adamw"] = option("sgd", "the optimiser")
    lr: float = option(1e-3, "learning rate of the encoder, at the start", at_least(0))
    head_lr_multiplier: float = option(10.0, "the heads' learning rate is that many times the encoder's", at_least(0))
    momentum: float = option(0.9, "of SGD, nesterov off", BELOW_1)
    weight_decay: float = option(1e-4, "added to SGD's gradient; AdamW's is decoupled", at_least(0))
    decay_batch_norm: bool = option(True, "False: no weight decay on BatchNorm and biases")
    poly_power: float = option(0.9, "lr(t) = lr * (1 - t/steps)^poly_power", at_least(0))
    warmup: int = option(0, "steps of a linear rise", at_least(0))
    hold: int = option(0, "first steps in which the rate does not decay; the decay counts from their end", at_least(0))
    clip_norm: float = option(0.0, "bound on the gradient's norm; 0: none", at_least(0))


def make_optimizer(
    o: OptimizerOptions, steps: int, freeze: Literal["", "encoder"] = ""
) -> optax.GradientTransformation:
    """SGD with momentum, or AdamW, with poly decay over `steps`.

    What `freeze` names is not moved, by weight decay neither, and has no moments.
    """
    mask = None if o.decay_batch_norm else _is_kernel

    def rule(multiplier: float) -> optax.GradientTransformation:
        schedule = poly_schedule(o.lr * multiplier, steps, o.poly_power, o.warmup, o.hold)
        if o.name == "adamw":
            return optax.adamw(schedule, weight_decay=o.weight_decay, mask=mask)
        decay = optax.add_decayed_weights(o.weight_decay, mask)
        return optax.chain(decay, optax.sgd(schedule, momentum=o.momentum, nesterov=False))

    encoder = optax.set_to_zero() if freeze == ENCODER else rule(1.0)
    rules = optax.partition({ENCODER: encoder, HEADS: rule(o.head_lr_multiplier)}, _parameter_groups)
    return optax.chain(optax.clip_by_global_norm(o.clip_norm), rules) if o.clip_norm else rules
