"""U-Net (Ronneberger et al., MICCAI 2015) as in WSSSByRec, its encoder: no normalisation, images of any size."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.models.conv import conv2d
from forec_jax.models.layers import channelwise, keep_valid, same_padding
from forec_jax.models.network import Encoder, EncoderEntry, Form
from forec_jax.options import ABOVE_0, one_of, option

Array = jax.Array

CHANNELS = (64, 128, 256, 512)
"""Of the levels at stride 1, 2, 4 and 8; below them are two convolutions at stride 16."""


@dataclass(frozen=True)
class UNetOptions:
    """The form of a U-Net, encoder and decoder."""

    width: float = option(1.0, "multiplies all channels; 1 has 64, 128, 256, 512, and 1024 at the bottom", ABOVE_0)
    align_corners: bool = option(True, "of the bilinear upsampling; False: WSSSByRec")
    last_size: int = option(1, "kernel of each head's last convolution: 1, or WSSSByRec's 3", one_of(1, 3))


def level_channels(o: UNetOptions) -> tuple[int, ...]:
    """The channels of the levels."""
    return tuple(max(1, round(o.width * number)) for number in CHANNELS)


class Convolution(nn.Module):
    """3x3 convolution with bias and LeakyReLU; initial values by fan-in (He et al., ICCV 2015), as nothing normalises."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array | None) -> Array:
        """[B,h,w,C] -> [B,h,w,features] in `dtype`."""
        shape = (3, 3, x.shape[-1], self.features)
        deviation = (2.0 / (9 * x.shape[-1])) ** 0.5
        kernel = self.param("kernel", nn.initializers.constant(deviation), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = keep_valid(x, valid).astype(self.dtype)
        y = conv2d(x, kernel.astype(self.dtype), strides=1, padding=same_padding(3), dilation=1, groups=1)
        return nn.leaky_relu(y + channelwise(bias).astype(y.dtype))


class _Encoder(nn.Module):
    """Two convolutions a level, 2x2 max-pooling between levels, and two convolutions at the bottom."""

    channels: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> tuple[tuple[Array, ...], Array]:
        """[B,H,W,3] -> the levels' maps [B,h,w,C], and the bottom's."""
        skips = []
        for level, number in enumerate(self.channels):
            for index in (1, 2):
                x = Convolution(number, self.dtype, name=f"level{level}_{index}")(x, valid)
            skips.append(x)
            x = halved(x, valid)
        x = Convolution(2 * self.channels[-1], self.dtype, name="bottom_1")(x, valid)
        return tuple(skips), Convolution(self.channels[-1], self.dtype, name="bottom_2")(x, valid)


def halved(x: Array, valid: Array | None) -> Array:
    """2x2 max-pooling of [B,H,W,C] -> [B,ceil(H/2),ceil(W/2),C]; a window at an odd border has what is inside."""
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    if valid is not None:
        stride = valid.shape[1] // x.shape[1]
        x = jnp.where(valid[:, ::stride, ::stride, None], x, lowest)
    for axis in (1, 2):
        margins = [(0, 0)] * 4
        margins[axis] = (0, x.shape[axis] % 2)
        x = jnp.pad(x, margins, constant_values=lowest)
        pair = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        x = pair.max(axis + 1)
    return x if valid is None else jnp.where(x > lowest, x, jnp.zeros((), x.dtype))


def build(variant: str, o: UNetOptions, form: Form) -> Encoder:
    """U-Net's encoder. It has no BatchNorm: batch_stats are empty and train changes nothing."""
    del variant  # there is one

    def module(train: bool) -> nn.Module:
        del train
        return _Encoder(level_channels(o), form.dtype)

    return Encoder(module, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), gives="levels")


ENTRY = EncoderEntry("unet", ("unet",), UNetOptions, build, decoder="unet")
