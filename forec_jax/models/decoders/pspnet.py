"""PSPNet's decoder (Zhao et al., CVPR 2017): means over a pyramid of bins beside the last map."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders.linear import LinearHead
from forec_jax.models.layers import Conv, ConvNorm, valid_extent
from forec_jax.models.network import Decoder, DecoderEntry, Form
from forec_jax.models.resize import resize, resize_valid
from forec_jax.options import BELOW_1, at_least, must_be, option

Array = jax.Array

_BINS = must_be("whole numbers from 1 on, such as (1, 2, 3, 6)", lambda bins: len(bins) > 0 and min(bins) >= 1)


@dataclass(frozen=True)
class PspNetOptions:
    """The decoder's form; published with an encoder of output stride 8."""

    bins: tuple[int, ...] = option((1, 2, 3, 6), "rows and columns of bins of each level of the pyramid", _BINS)
    channels: int = option(512, "of the 3x3 convolution behind the pyramid", at_least(1))
    dropout: float = option(0.1, "of channels, after that convolution", BELOW_1)
    align_corners: bool = option(True, "of every bilinear resize")


class _Pyramid(nn.Module):
    """The first half of a head: the last map, and beside it the means over each level's bins, resized to its size."""

    options: PspNetOptions
    train: bool
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, *inputs: Any) -> Array:
        """(*maps, size, valid), the last map [B,h,w,C] -> [B,h,w,2C] where the number of levels divides C."""
        *_, high, _, valid = inputs
        height, width, channels = high.shape[1:]
        extent = jnp.full((high.shape[0], 2), jnp.array([height, width]))
        if valid is not None:
            extent = valid_extent(valid, valid.shape[1] // height)
        levels = [high]
        for bins in self.options.bins:
            each = ConvNorm(
                max(channels // len(self.options.bins), 1),
                self.train,
                momentum=self.momentum,
                dtype=self.dtype,
                name=f"level{bins}",
            )
            pooled = each(adaptive_mean(high, extent, bins))
            whole = jnp.full_like(extent, bins)
            levels.append(
                resize(
                    pooled,
                    (height, width),
                    align_corners=self.options.align_corners,
                    extent_in=whole,
                    extent_out=extent,
                )
            )
        return jnp.concatenate(levels, axis=-1)


class _Classifier(nn.Module):
    """The second half: a 3x3 convolution, dropout, and the last 1x1."""

    channels: int
    options: PspNetOptions
    train: bool
    upsample: bool
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], valid: Array | None) -> tuple[Array, Array]:
        """[B,h,w,C] -> f32[B,*size,channels] (or [B,h,w,channels]), [B,h,w,options.channels]."""
        join = ConvNorm(
            self.options.channels, self.train, size=3, momentum=self.momentum, dtype=self.dtype, name="join"
        )
        x = join(x, valid)
        x = nn.Dropout(self.options.dropout, broadcast_dims=(1, 2), deterministic=not self.train)(x)
        output = Conv(self.channels, last=True, dtype=self.dtype, name="last")(x).astype(jnp.float32)
        if self.upsample:
            output = resize_valid(output, size, valid, self.options.align_corners)
        return output, x


def adaptive_mean(x: Array, extent: Array, bins: int) -> Array:
    """Means over bins x bins parts of the top-left i32[B,2] of [B,h,w,C], [B,bins,bins,C]; summed in float32.

    Part i of n pixels reaches from floor(i n / bins) to ceil((i + 1) n / bins), so that parts may share pixels (PyTorch's
    adaptive pooling).
    """

    def share(size: int, number: Array) -> Array:
        """f32[B,bins,size]: what each pixel counts in each part."""
        part, pixel = jnp.arange(bins)[None, :], jnp.arange(size)[None, None]
        start = part * number[:, None] // bins
        end = -(-(part + 1) * number[:, None] // bins)
        inside = (pixel >= start[..., None]) & (pixel < end[..., None])
        return inside / (end - start)[..., None]

    rows, columns = share(x.shape[1], extent[:, 0]), share(x.shape[2], extent[:, 1])
    full = jax.lax.Precision.HIGHEST
    return jnp.einsum("bih,bhwc,bjw->bijc", rows, x.astype(jnp.float32), columns, precision=full).astype(x.dtype)


def build(o: PspNetOptions, form: Form) -> Decoder:
    """PSPNet's decoder, one a head."""

    def head(spec: HeadSpec) -> Callable[[bool], nn.Module]:
        if spec.linear:
            return lambda train: LinearHead(spec.channels, train, form.dtype)
        return lambda train: _Classifier(spec.channels, o, train, spec.upsample, form.momentum, form.dtype)

    def pyramid(train: bool) -> nn.Module:
        return _Pyramid(o, train, form.momentum, form.dtype)

    return Decoder(head, reads="low_high", fuse=pyramid)


ENTRY = DecoderEntry("pspnet", PspNetOptions, build)
