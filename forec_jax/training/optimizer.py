"""Optimisers and schedules."""

from collections.abc import Mapping

import jax
import optax

from forec_jax.contracts import Array, PyTree

ENCODER, HEADS = "encoder", "heads"
SHARED = "shared"


def poly_schedule(peak: float, steps: int, power: float, warmup: int) -> optax.Schedule:
    """lr(t) = peak * (1 - t/steps)^power, per step, after a linear rise over the first `warmup` steps."""

    def schedule(step: Array) -> Array:
        progress = jax.numpy.minimum(step / steps, 1.0)
        rise = jax.numpy.minimum((step + 1) / (warmup + 1), 1.0)
        return peak * rise * (1.0 - progress) ** power

    return schedule


def parameter_groups(params: dict[str, PyTree]) -> dict[str, PyTree]:
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


def is_kernel(params: PyTree) -> PyTree:
    """True for convolution kernels, False for biases and BatchNorm's scale and shift."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
    *,
    name: str,
    lr: float,
    head_lr_multiplier: float,
    momentum: float,
    weight_decay: float,
    decay_batch_norm: bool,
    steps: int,
    poly_power: float,
    warmup: int,
    clip_norm: float,
) -> optax.GradientTransformation:
    """SGD with momentum, or AdamW; poly decay; the heads' learning rate is `head_lr_multiplier` times the encoder's.

    SGD's weight decay is added to the gradient (as in the published systems), AdamW's is decoupled.
    `clip_norm` bounds the gradient's global norm; 0 leaves it alone.
    """
    mask = None if decay_batch_norm else is_kernel

    def rule(multiplier: float) -> optax.GradientTransformation:
        schedule = poly_schedule(lr * multiplier, steps, poly_power, warmup)
        match name:
            case "sgd":
                decay = optax.add_decayed_weights(weight_decay, mask)
                return optax.chain(decay, optax.sgd(schedule, momentum=momentum, nesterov=False))
            case "adamw":
                return optax.adamw(schedule, weight_decay=weight_decay, mask=mask)
        raise ValueError(f"optim.name={name!r}: choose 'sgd' or 'adamw'")

    rules = optax.partition({ENCODER: rule(1.0), HEADS: rule(head_lr_multiplier)}, parameter_groups)
    return optax.chain(optax.clip_by_global_norm(clip_norm), rules) if clip_norm else rules
