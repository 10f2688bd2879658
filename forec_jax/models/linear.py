"""A linear head: class scores straight from the encoder's last features, whose mean over the image classifies it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.models.layers import Conv

Array = jax.Array


class LinearHead(nn.Module):
    """A 1x1 convolution; called as `DeepLabDecoder` is."""

    channels: int
    train: bool  # has no effect: nothing here behaves otherwise
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, low: Array, high: Array, size: tuple[int, int], valid: Array | None) -> tuple[Array, Array]:
        """[B,h,w,C], [B,h',w',C'] -> f32[B,h',w',channels], [B,h',w',C']."""
        del low, size, valid
        return Conv(self.channels, last=True, dtype=self.dtype, name="last")(high).astype(jnp.float32), high
