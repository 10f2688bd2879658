"""A network that judges class maps beside the student: its variables, its optimiser, and how both learn from one scalar."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import optax

from forec_jax.contracts import Array, FirstState, Network, PyTree, Variables, Views
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import STUDENT, run_heads
from forec_jax.methods.parts.terms import labelled_pixels
from forec_jax.models.critic import SCORE
from forec_jax.options import at_least, from_to, option

T = TypeVar("T")

DISCRIMINATOR = "discriminator"
"""The name, among a method's networks, of one that tells truth from prediction."""

Optimizers = dict[str, optax.GradientTransformation]
"""By the network that each is of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticOptions:
    """A critic and its optimiser."""

    lr: float = option(1e-4, "of the critic's Adam, at the start", at_least(0))
    channels: int = option(
        64, "of the critic's first convolution; later ones have up to eight times as many", at_least(1)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseCriticOptions(CriticOptions):
    """A critic that judges each pixel."""

    halvings: int = option(
        5,
        "how many of its convolutions halve its map; published: 5, which leaves little of a small image",
        from_to(0, 5),
    )

    @property
    def size(self) -> dict[str, int]:
        """How large its network is."""
        return {"channels": self.channels, "halvings": self.halvings}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapOptions:
    """What a critic sees where there is no truth."""

    gaps: Literal["hidden", "shown"] = option(
        "hidden",
        'void and padding to the critic: "hidden", so that they give nothing away; "shown", as published: no class in a '
        "labelled row's, predictions in an unlabelled row's",
    )


@dataclasses.dataclass(frozen=True)
class WithDiscriminator(SemiSupervised):
    """A student, and a discriminator that has no teacher."""

    discriminator: Network = dataclasses.field(kw_only=True)

    @property
    def networks(self) -> dict[str, Network]:
        """The student and its discriminator."""
        return {STUDENT: self.network, DISCRIMINATOR: self.discriminator}

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory."""
        return with_critic(super().init(key), DISCRIMINATOR, self.discriminator, key)


def with_critic(first: FirstState, name: str, critic: Network, key: Array) -> FirstState:
    """The first params, batch_stats, teacher and memory, with a critic's among the first two."""
    params, batch_stats, teacher, memory = first
    variables = critic.init(jax.random.fold_in(key, 1))
    return params | {name: variables.params}, batch_stats | {name: variables.batch_stats}, teacher, memory


def critic_output(network: Network, critic: Variables, shown: Array) -> tuple[Array, PyTree]:
    """What a critic without dropout says of f32[B,H,W,C] in train mode, f32[B,H,W,D], and its new batch_stats."""
    no_key = jax.random.key(0)  # of no effect
    outputs, stats = run_heads(network, critic, shown, (SCORE,), train=True, rng=no_key)
    return outputs[SCORE].output, stats


def both_ways(judge: Callable[[Variables, PyTree], T], critic: Variables, shown: PyTree) -> tuple[T, T]:
    """What a critic says of what it is shown, twice: for its own loss, and for the loss of what is shown.

    The first is cut off from what is shown, the second from the critic's parameters, so that a loss of either reaches one
    network alone, and the sum of both is a step of each at the parameters that both had before it. The values are the same:
    the compiler computes them once.
    """
    return judge(critic, jax.lax.stop_gradient(shown)), judge(jax.lax.stop_gradient(critic), shown)


def own_adam(network: str) -> Callable[[CriticOptions, Callable[[float], optax.Schedule]], Optimizers]:
    """An entry's `optimizers`: the critic of this name has Adam to itself, with the same decay over time as the student's.

    Its two decay rates are those of the published critics.
    """
    return lambda o, decayed: {network: optax.adam(decayed(o.lr), b1=0.9, b2=0.99)}


def with_truth(views: Views, probabilities: Array, hide_gaps: bool) -> Array:
    """The truth f32[B,H,W,K] (one-hot; of void zeros, unless hidden) where there is one, elsewhere the prediction.

    A constant.
    """
    truth = jax.nn.one_hot(views.label, probabilities.shape[-1], dtype=probabilities.dtype)
    is_truth = labelled_pixels(views) if hide_gaps else views.is_ground_truth
    return jnp.where(is_truth[..., None], truth, jax.lax.stop_gradient(probabilities))


def without_padding(views: Views, shown: Array, hide_gaps: bool) -> Array:
    """[B,H,W,C] as it is shown to a critic: zeros in the padding if gaps are hidden."""
    return jnp.where(views.valid[..., None], shown, 0.0) if hide_gaps else shown
