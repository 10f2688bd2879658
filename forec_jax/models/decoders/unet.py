"""U-Net's decoder (Ronneberger et al., MICCAI 2015), one a head."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.encoders.unet import Convolution, UNetOptions, level_channels
from forec_jax.models.layers import Conv, resize_valid
from forec_jax.models.network import Decoder, DecoderEntry, Form

Array = jax.Array


class _Decoder(nn.Module):
    """From the bottom up: bilinear upsampling, the level's map beside it, two convolutions; then a last convolution."""

    channels: tuple[int, ...]
    outputs: int
    align_corners: bool
    last_size: int
    dtype: Any

    @nn.compact
    def __call__(
        self, skips: tuple[Array, ...], bottom: Array, size: tuple[int, int], valid: Array | None
    ) -> tuple[Array, Array]:
        """The encoder's maps -> f32[B,H,W,outputs], [B,H,W,C]."""
        del size  # the first level's
        x = bottom
        for level in reversed(range(len(skips))):
            skip, number = skips[level], self.channels[max(level - 1, 0)]
            x = jnp.concatenate(
                [resize_valid(x, (skip.shape[1], skip.shape[2]), valid, self.align_corners), skip], axis=-1
            )
            x = Convolution(self.channels[level], self.dtype, name=f"level{level}_1")(x, valid)
            x = Convolution(number, self.dtype, name=f"level{level}_2")(x, valid)
        last = Conv(self.outputs, size=self.last_size, last=True, dtype=self.dtype, name="last")
        return last(x, valid).astype(jnp.float32), x


def build(o: UNetOptions, form: Form) -> Decoder:
    """U-Net's decoder. No head is linear, and all give the image's size; raises ValueError for another."""

    def head(spec: HeadSpec) -> Callable[[bool], nn.Module]:
        if spec.linear or not spec.upsample:
            raise ValueError(
                f"a U-Net's heads are decoders up to the image's size; {spec.name} is not one (it cannot classify tags: "
                "choose resnet18, resnet34, resnet50, ... for that)"
            )
        return lambda train: _Decoder(level_channels(o), spec.channels, o.align_corners, o.last_size, form.dtype)

    return Decoder(head, reads="levels")


ENTRY = DecoderEntry("unet", UNetOptions, build)
