"""U-Net (Ronneberger et al., MICCAI 2015) as in WSSSByRec: one encoder, a decoder a head, no normalisation."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadOutput, HeadSpec, Network, PyTree, Variables
from forec_jax.models.conv import conv2d
from forec_jax.models.layers import Conv, draw_variables, keep_valid, same_padding, valid_extent
from forec_jax.models.network import ImageSize, check_valid, named_key
from forec_jax.models.resize import resize

Array = jax.Array

CHANNELS = (64, 128, 256, 512)
"""Of the levels at stride 1, 2, 4 and 8; below them are two convolutions at stride 16."""

_INIT_SIZE = 64  # of the image whose shapes lay out the parameters; nothing depends on it


class UNetFeatures(NamedTuple):
    """What the encoder saw; every head reads it."""

    skips: tuple[Array, ...]  # [B,h,w,C] at stride 1, 2, 4 and 8, in the compute dtype
    bottom: Array  # [B,h,w,C] at stride 16
    size: ImageSize
    valid: Array | None  # bool[B,H,W], or None when every pixel counts

    @property
    def high(self) -> Array:
        """The last features, by the name that they have in the other networks."""
        return self.bottom


def unet_network(
    *, heads: tuple[HeadSpec, ...], width: float = 1.0, align_corners: bool = True, compute_dtype: Any = jnp.float32
) -> Network:
    """Builds a U-Net of 3x3 convolutions with LeakyReLU, whose heads share the encoder and nothing else.

    Args:
      heads: the decoders to grow; names are unique and not "encoder". None is linear, and all give the image's size.
      width: factor on all channels; 1.0 has 64, 128, 256, 512, and 1024 at the bottom.
      align_corners: of the bilinear upsampling.
      compute_dtype: of activations, float32 or bfloat16; outputs are float32.

    Returns:
      The network, of images of any size. It has no BatchNorm: batch_stats are empty and train changes nothing.
    """
    if unfit := [head.name for head in heads if head.linear or not head.upsample]:
        raise ValueError(f"a U-Net's heads are decoders up to the image's size; {', '.join(unfit)} is not one")
    dtype = jnp.dtype(compute_dtype)
    channels = tuple(max(1, round(width * number)) for number in CHANNELS)
    encoder = _Encoder(channels, dtype)
    decoders = {head.name: _Decoder(channels, head.channels, align_corners, dtype) for head in heads}

    def encode(
        variables: Variables,
        image: Array,
        *,
        valid: Array | None = None,
        train: bool = False,
        rng: Array | None = None,
    ) -> tuple[UNetFeatures, PyTree]:
        del train, rng
        check_valid(image, valid)
        maps: Any = encoder.apply({"params": variables.params["encoder"]}, image, valid)
        skips, bottom = maps
        return UNetFeatures(skips, bottom, ImageSize(*image.shape[1:3]), valid), variables.batch_stats

    def decode(
        variables: Variables,
        head: str,
        features: UNetFeatures,
        *,
        train: bool = False,
        rng: Array | None = None,
    ) -> tuple[HeadOutput, PyTree]:
        del train, rng
        inputs = (features.skips, features.bottom, features.valid)
        found: Any = decoders[head].apply({"params": variables.params[head]}, *inputs)
        return HeadOutput(*found), variables.batch_stats

    @jax.jit
    def init(key: Array) -> Variables:
        image = jax.ShapeDtypeStruct((1, _INIT_SIZE, _INIT_SIZE, 3), jnp.float32)
        parts = {"encoder": draw_variables(encoder, named_key(key, "encoder"), image, None)}
        skips, bottom = jax.eval_shape(partial(encoder.apply, valid=None), parts["encoder"], image)
        for name, decoder in decoders.items():
            parts[name] = draw_variables(decoder, named_key(key, name), skips, bottom, None)
        return Variables({name: part["params"] for name, part in parts.items()}, {name: {} for name in parts})

    return Network(init, encode, decode, tuple(heads))


class _Convolution(nn.Module):
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
        return nn.leaky_relu(y + bias.astype(y.dtype))


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
                x = _Convolution(number, self.dtype, name=f"level{level}_{index}")(x, valid)
            skips.append(x)
            x = halved(x, valid)
        x = _Convolution(2 * self.channels[-1], self.dtype, name="bottom_1")(x, valid)
        return tuple(skips), _Convolution(self.channels[-1], self.dtype, name="bottom_2")(x, valid)


class _Decoder(nn.Module):
    """From the bottom up: bilinear upsampling, the level's map beside it, two convolutions; then a 1x1 convolution."""

    channels: tuple[int, ...]
    outputs: int
    align_corners: bool
    dtype: Any

    @nn.compact
    def __call__(self, skips: tuple[Array, ...], bottom: Array, valid: Array | None) -> tuple[Array, Array]:
        """The encoder's maps -> f32[B,H,W,outputs], [B,H,W,C]."""
        x = bottom
        for level in reversed(range(len(skips))):
            skip, number = skips[level], self.channels[max(level - 1, 0)]
            x = jnp.concatenate([self._enlarged(x, skip, valid), skip], axis=-1)
            x = _Convolution(self.channels[level], self.dtype, name=f"level{level}_1")(x, valid)
            x = _Convolution(number, self.dtype, name=f"level{level}_2")(x, valid)
        return Conv(self.outputs, last=True, dtype=self.dtype, name="last")(x).astype(jnp.float32), x

    def _enlarged(self, x: Array, like: Array, valid: Array | None) -> Array:
        size = (like.shape[1], like.shape[2])
        if valid is None:
            return resize(x, size, align_corners=self.align_corners)
        before, after = (valid_extent(valid, valid.shape[1] // height) for height in (x.shape[1], size[0]))
        return resize(x, size, align_corners=self.align_corners, extent_in=before, extent_out=after)


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
