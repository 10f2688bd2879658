"""DeepLabV3+'s decoder (Chen et al., ECCV 2018): atrous spatial pyramid pooling, fused with low-level features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders.linear import LinearHead
from forec_jax.models.layers import Conv, ConvNorm, keep_valid, mean_pixel, valid_extent
from forec_jax.models.network import Decoder, DecoderEntry, Form
from forec_jax.models.resize import resize
from forec_jax.options import BELOW_1, at_least, must_be, one_of, option

Array = jax.Array

RATES = must_be("whole numbers from 1 on, such as (6, 12, 18)", lambda rates: len(rates) > 0 and min(rates) >= 1)


@dataclass(frozen=True)
class DeepLabOptions:
    """The decoder's form. The defaults are the common one (UniMatch, ST++); `U2PL` is the other in use.

    Convolutions before BatchNorm carry no bias (some projects have one there; it changes nothing).
    """

    rates: tuple[int, ...] = option((6, 12, 18), "dilations of the ASPP's atrous branches", RATES)
    channels: int = option(256, "of every branch and of both 3x3 convolutions", at_least(1))
    low_level_channels: int = option(48, "of the projected low-level features", at_least(1))
    projection_size: int = option(1, "kernel that joins the branches: 1, or U2PL's 3", one_of(1, 3))
    dropout: float = option(0.0, "of channels, after the ASPP and both 3x3 convolutions; U2PL: 0.1", BELOW_1)
    align_corners: bool = option(True, "of every bilinear resize")
    share_aspp: bool = option(False, "all heads read one ASPP: less to compute, not the paper's (docs/performance.md)")


U2PL = DeepLabOptions(rates=(12, 24, 36), low_level_channels=256, projection_size=3, dropout=0.1)
"""U2PL's, AEL's and semi_seg_proto's decoder; their encoder is output stride 8, deep stem, multi_grid (2, 2, 4)."""


def _atrous_pyramid(
    x: Array, valid: Array | None, options: DeepLabOptions, train: bool, momentum: float, dtype: Any
) -> Array:
    """The ASPP, [B,h,w,C] -> [B,h,w,options.channels]: image pooling, 1x1 and three dilated 3x3 branches, joined.

    Called in a module's compact method; the layers are that module's.
    """
    shared: dict[str, Any] = {"train": train, "momentum": momentum, "dtype": dtype}
    x = keep_valid(x, valid)
    pooled = ConvNorm(options.channels, name="pooling", **shared)(mean_pixel(x, valid))
    branches = [
        jnp.broadcast_to(pooled, (*x.shape[:-1], options.channels)),
        ConvNorm(options.channels, name="point", **shared)(x),
    ]
    for index, rate in enumerate(options.rates, start=1):
        branch = ConvNorm(options.channels, size=3, dilation=rate, name=f"atrous{index}", **shared)
        branches.append(branch(x))
    x = jnp.concatenate(branches, axis=-1)
    x = ConvNorm(options.channels, size=options.projection_size, name="projection", **shared)(x, valid)
    return _drop_channels(x, options, train)


def _drop_channels(x: Array, options: DeepLabOptions, train: bool) -> Array:
    """Dropout of whole channels, in train mode."""
    return nn.Dropout(options.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)


class _SharedPyramid(nn.Module):
    """One ASPP that all heads read (`_SharingDecoder`)."""

    options: DeepLabOptions
    train: bool
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, high: Array, valid: Array | None) -> Array:
        """[B,h',w',C'] -> [B,h',w',options.channels]."""
        return _atrous_pyramid(high, valid, self.options, self.train, self.momentum, self.dtype)


class DeepLabDecoder(nn.Module):
    """One head: low- and high-level maps -> output and latent images [H,W as `size`]."""

    channels: int
    options: DeepLabOptions
    train: bool
    upsample: bool = True
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, low: Array, high: Array, size: tuple[int, int], valid: Array | None) -> tuple[Array, Array]:
        """[B,h,w,C], [B,h',w',C'] -> f32[B,H,W,channels] (or [B,h,w,channels]), [B,h,w,options.channels]."""
        shared = {"train": self.train, "momentum": self.momentum, "dtype": self.dtype}
        options = self.options
        x = self._pyramid(high, valid)
        x = self._resize(x, (low.shape[1], low.shape[2]), valid, size)
        detail = ConvNorm(options.low_level_channels, name="low_level", **shared)(low)
        x = jnp.concatenate([x, detail], axis=-1)
        for index in (1, 2):
            x = ConvNorm(options.channels, size=3, name=f"fuse{index}", **shared)(x, valid)
            x = _drop_channels(x, options, self.train)
        output = Conv(self.channels, last=True, dtype=self.dtype, name="last")(x)
        output = output.astype(jnp.float32)
        if self.upsample:
            output = self._resize(output, size, valid, size)
        return output, x

    def _pyramid(self, x: Array, valid: Array | None) -> Array:
        """The head's own ASPP."""
        return _atrous_pyramid(x, valid, self.options, self.train, self.momentum, self.dtype)

    def _resize(self, x: Array, size: tuple[int, int], valid: Array | None, image: tuple[int, int]) -> Array:
        if valid is None:
            return resize(x, size, align_corners=self.options.align_corners)
        return resize(
            x,
            size,
            align_corners=self.options.align_corners,
            extent_in=valid_extent(valid, image[0] // x.shape[1]),
            extent_out=valid_extent(valid, image[0] // size[0]),
        )


class _SharingDecoder(DeepLabDecoder):
    """A head without an ASPP of its own: the high-level map that it is given is the `_SharedPyramid`'s result."""

    def _pyramid(self, x: Array, valid: Array | None) -> Array:
        """The map as it is."""
        del valid
        return x


def build(o: DeepLabOptions, form: Form) -> Decoder:
    """DeepLabV3+'s decoder as any number of heads; with `share_aspp` they share more than the encoder."""
    kind = _SharingDecoder if o.share_aspp else DeepLabDecoder

    def head(spec: HeadSpec) -> Callable[[bool], nn.Module]:
        if spec.linear:
            return lambda train: LinearHead(spec.channels, train, form.dtype)
        return lambda train: kind(spec.channels, o, train, spec.upsample, form.momentum, form.dtype)

    def pyramid(train: bool) -> nn.Module:
        return _SharedPyramid(o, train, form.momentum, form.dtype)

    return Decoder(head, reads="low_high", shared=pyramid if o.share_aspp else None)


ENTRY = DecoderEntry("deeplab", DeepLabOptions, build)
