"""A linear head: class scores straight from the encoder's last features, whose mean over the image classifies it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.layers import Conv

Array = jax.Array


class LinearHead(nn.Module):
    """A 1x1 convolution; called as a decoder is, with maps of which it reads the last."""

    channels: int
    train: bool  # has no effect: nothing here behaves otherwise
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Any) -> tuple[Array, Array]:
        """(*maps, size, valid), the last map [B,h,w,C] -> f32[B,h,w,channels], [B,h,w,C]."""
        *_, high, _, _ = inputs
        return Conv(self.channels, last=True, dtype=self.dtype, name="last")(high).astype(jnp.float32), high


def or_linear(
    decoder: Callable[[HeadSpec, bool], nn.Module], dtype: Any
) -> Callable[[HeadSpec], Callable[[bool], nn.Module]]:
    """`Decoder.head` of a decoder (head, train -> module) whose heads may be linear as well."""

    def head(spec: HeadSpec) -> Callable[[bool], nn.Module]:
        if spec.linear:
            return lambda train: LinearHead(spec.channels, train, dtype)
        return lambda train: decoder(spec, train)

    return head
