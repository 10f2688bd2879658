"""DeepLabV3+'s decoder (Chen et al., ECCV 2018): atrous spatial pyramid pooling, fused with low-level features."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders.linear import or_linear
from forec_jax.models.layers import Conv, ConvNorm, keep_valid, mean_pixel, resize_valid
from forec_jax.models.network import Decoder, DecoderEntry, Form
from forec_jax.options import BELOW_1, at_least, one_of, option, whole_numbers

Array = jax.Array

RATES = whole_numbers(6, 12, 18)


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
    share_aspp: bool = option(False, "all heads read one ASPP: less to compute, not FOrec's (docs/performance.md)")


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
    return _drop_channels(x, options, train, 0)


def _drop_channels(x: Array, options: DeepLabOptions, train: bool, number: int) -> Array:
    """Dropout of whole channels, in train mode. What it draws depends on its number among those of a head."""
    drop = nn.Dropout(options.dropout, broadcast_dims=(1, 2), deterministic=not train, name=f"Dropout_{number}")
    dropped: Array = drop(x)
    return dropped


class _SharedPyramid(nn.Module):
    """One ASPP that all heads read."""

    options: DeepLabOptions
    train: bool
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, high: Array, valid: Array | None) -> Array:
        """[B,h',w',C'] -> [B,h',w',options.channels]."""
        return _atrous_pyramid(high, valid, self.options, self.train, self.momentum, self.dtype)


class _Fusion(nn.Module):
    """The first half of a head: the ASPP of the high-level map, or that map itself, beside projected low-level features."""

    options: DeepLabOptions
    train: bool
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, low: Array, high: Array, size: tuple[int, int], valid: Array | None) -> Array:
        """[B,h,w,C], [B,h',w',C'] -> [B,h,w,options.channels + options.low_level_channels]."""
        options = self.options
        x = high
        if not options.share_aspp:
            x = _atrous_pyramid(x, valid, options, self.train, self.momentum, self.dtype)
        x = resize_valid(x, (low.shape[1], low.shape[2]), valid, options.align_corners)
        projection = ConvNorm(
            options.low_level_channels, train=self.train, momentum=self.momentum, dtype=self.dtype, name="low_level"
        )
        return jnp.concatenate([x, projection(low)], axis=-1)


class _Classifier(nn.Module):
    """The second half of a head: 3x3 convolutions of the fused map and the last 1x1."""

    channels: int
    convolutions: int
    options: DeepLabOptions
    train: bool
    upsample: bool = True
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], valid: Array | None) -> tuple[Array, Array]:
        """[B,h,w,C] -> f32[B,*size,channels] (or [B,h,w,channels]), [B,h,w,options.channels]."""
        options = self.options
        for index in range(1, self.convolutions + 1):
            convolution = ConvNorm(
                options.channels,
                size=3,
                train=self.train,
                momentum=self.momentum,
                dtype=self.dtype,
                name=f"fuse{index}",
            )
            x = convolution(x, valid)
            x = _drop_channels(x, options, self.train, index - 1 if options.share_aspp else index)
        output = Conv(self.channels, last=True, dtype=self.dtype, name="last")(x)
        output = output.astype(jnp.float32)
        if self.upsample:
            output = resize_valid(output, size, valid, options.align_corners)
        return output, x


def build(o: DeepLabOptions, form: Form) -> Decoder:
    """DeepLabV3+'s decoder as any number of heads; with `share_aspp` they share more than the encoder.

    A head that reads another's fused features has one 3x3 convolution, as ReCo's representation head.
    """

    def head(spec: HeadSpec, train: bool) -> nn.Module:
        convolutions = 1 if spec.reads else 2
        return _Classifier(spec.channels, convolutions, o, train, spec.upsample, form.momentum, form.dtype)

    def fusion(train: bool) -> nn.Module:
        return _Fusion(o, train, form.momentum, form.dtype)

    def pyramid(train: bool) -> nn.Module:
        return _SharedPyramid(o, train, form.momentum, form.dtype)

    shared = pyramid if o.share_aspp else None
    return Decoder(or_linear(head, form.dtype), reads="low_high", fuse=fusion, shared=shared)


ENTRY = DecoderEntry("deeplab", DeepLabOptions, build)
