"""A linear head: class scores straight from features: the encoder's last, or those that another head fuses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.layers import Conv, resize_valid

Array = jax.Array


class LinearHead(nn.Module):
    """A 1x1 convolution; called as a decoder is, with maps of which it reads the last."""

    channels: int
    train: bool  # has no effect: nothing here behaves otherwise
    dtype: Any = jnp.float32
    upsample: bool = False

    @nn.compact
    def __call__(self, *inputs: Any) -> tuple[Array, Array]:
        """(*maps, size, valid), the last map [B,h,w,C] -> f32[B,h,w,channels] (or [B,*size,channels]), [B,h,w,C]."""
        *_, high, size, valid = inputs
        output = Conv(self.channels, last=True, dtype=self.dtype, name="last")(high).astype(jnp.float32)
        return (resize_valid(output, size, valid, align_corners=True) if self.upsample else output), high


def or_linear(
    decoder: Callable[[HeadSpec, bool], nn.Module], dtype: Any
) -> Callable[[HeadSpec], Callable[[bool], nn.Module]]:
    """`Decoder.head` of a decoder (head, train -> module) whose heads may be linear as well."""

    def head(spec: HeadSpec) -> Callable[[bool], nn.Module]:
        if spec.linear:
            return lambda train: LinearHead(spec.channels, train, dtype, bool(spec.reads) and spec.upsample)
        return lambda train: decoder(spec, train)

    return head
