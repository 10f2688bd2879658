"""The decoder of dense prediction transformers (Ranftl et al., ICCV 2021), in the form of Depth Anything and UniMatch V2."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders.linear import or_linear
from forec_jax.models.layers import Conv, channelwise, patch_extent, valid_extent, within
from forec_jax.models.network import Decoder, DecoderEntry, Form
from forec_jax.models.resize import resize
from forec_jax.options import at_least, must_be, option

Array = jax.Array

_FOUR = must_be("four whole numbers from 1 on, such as (48, 96, 192, 384)", lambda n: len(n) == 4 and min(n) >= 1)


@dataclass(frozen=True)
class DptOptions:
    """The decoder's form. The defaults go with dinov2_small."""

    channels: int = option(64, "of the fused maps: small 64, base 128, large 256, giant 384", at_least(1))
    projections: tuple[int, ...] = option(
        (48, 96, 192, 384),
        "channels of the four maps before fusion: base (96, 192, 384, 768), large (256, 512, 1024, 1024), giant 1536 each",
        _FOUR,
    )


class _Map(NamedTuple):
    """A map [B,h,w,C] and the valid rows and columns i32[B,2] of each of its images; None where all are."""

    values: Array
    extent: Array | None

    def valid(self) -> Array | None:
        """bool[B,h,w]."""
        if self.extent is None:
            return None
        return within(self.extent, (self.values.shape[1], self.values.shape[2]))

    def at(self, size: tuple[int, int], extent: Array | None) -> "_Map":
        """Resized, corners on corners."""
        return _Map(resize(self.values, size, align_corners=True, extent_in=self.extent, extent_out=extent), extent)


class _Fusion(nn.Module):
    """The first half of a head: four maps of tokens at 4, 2, 1 and a half times their size, joined from the deepest on."""

    options: DptOptions
    dtype: Any

    @nn.compact
    def __call__(self, *inputs: Any) -> Array:
        """(four maps [B,h,w,C], size, valid) -> [B,8h,8w,options.channels]."""
        *tokens, size, valid = inputs
        extent = None if valid is None else patch_extent(valid, size[0] // tokens[0].shape[1])
        levels = [self._level(index, x, extent) for index, x in enumerate(tokens)]
        joined = levels[-1]
        for index in (3, 2, 1, 0):
            x = joined.values
            if index < 3:
                x = x + self._residual(f"fuse{index}_skip", levels[index])
            x = self._residual(f"fuse{index}", _Map(x, joined.extent))
            # The 1x1 convolution and the resize commute, as the weights of a resize add up to 1: first is cheaper.
            x = Conv(self.options.channels, last=True, dtype=self.dtype, name=f"fuse{index}_out")(x)
            height, width, extent = _size_after(index, levels)
            joined = _Map(x, joined.extent).at((height, width), extent)
        return joined.values

    def _level(self, index: int, x: Array, extent: Array | None) -> _Map:
        """A map of tokens at its level's stride, with the channels that are fused."""
        channels = self.options.projections[index]
        x = Conv(channels, last=True, dtype=self.dtype, name=f"project{index}")(x)
        if index < 2:
            factor = 4 >> index
            x, extent = _Enlarge(factor, self.dtype, name=f"resize{index}")(x), _times(extent, factor)
        elif index == 3:
            halve = Conv(channels, size=3, strides=2, last=True, dtype=self.dtype, name="resize3")
            x, extent = halve(x, _Map(x, extent).valid()), None if extent is None else (extent + 1) // 2
        level = _Map(x, extent)
        x = Conv(self.options.channels, size=3, dtype=self.dtype, name=f"level{index}")(x, level.valid())
        return _Map(x, extent)

    def _residual(self, name: str, x: _Map) -> Array:
        """x + conv(relu(conv(relu(x))))."""
        y, valid = x.values, x.valid()
        for number in (1, 2):
            convolution = Conv(self.options.channels, size=3, last=True, dtype=self.dtype, name=f"{name}_conv{number}")
            y = convolution(nn.relu(y), valid)
        return x.values + y


def _size_after(index: int, levels: list[_Map]) -> tuple[int, int, Array | None]:
    """Rows, columns and extents that a fusion ends with: those of the level above it, or twice the first's."""
    above, factor = levels[max(index - 1, 0)], 1 if index else 2
    _, height, width, _ = above.values.shape
    return factor * height, factor * width, _times(above.extent, factor)


class _Enlarge(nn.Module):
    """A transposed convolution whose kernel is as large as its stride: every pixel becomes factor x factor pixels."""

    factor: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B,h,w,C] -> [B,h*factor,w*factor,C]."""
        rows, height, width, channels = x.shape
        shape, deviation = (channels, self.factor, self.factor, channels), channels**-0.5
        kernel = self.param("kernel", nn.initializers.constant(deviation), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        y = jnp.einsum("bhwc,cuvd->bhuwvd", x.astype(self.dtype), kernel.astype(self.dtype))
        y = y.reshape(rows, height * self.factor, width * self.factor, channels)
        return y + channelwise(bias).astype(y.dtype)


class _Classifier(nn.Module):
    """The second half of a head: a 3x3 and a 1x1 convolution, then the image's size."""

    channels: int
    options: DptOptions
    upsample: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], valid: Array | None) -> tuple[Array, Array]:
        """[B,8h,8w,C] -> f32[B,*size,channels] (or [B,8h,8w,channels]), [B,8h,8w,options.channels]."""
        patch = 8 * size[0] // x.shape[1]
        patches = None if valid is None else patch_extent(valid, patch)
        fused = _Map(x, _times(patches, 8))
        latent = Conv(self.options.channels, size=3, last=True, dtype=self.dtype, name="fuse")(x, fused.valid())
        latent = nn.relu(latent)
        output = Conv(self.channels, last=True, dtype=self.dtype, name="last")(latent).astype(jnp.float32)
        if self.upsample:
            whole = _Map(output, fused.extent).at(size, _times(patches, patch))
            output = whole.at(size, None if valid is None else valid_extent(valid, 1)).values
        return output, latent


def _times(extent: Array | None, factor: int) -> Array | None:
    return None if extent is None else extent * factor


def build(o: DptOptions, form: Form) -> Decoder:
    """DPT's decoder, one a head."""

    def head(spec: HeadSpec, train: bool) -> nn.Module:
        del train  # nothing here behaves otherwise in training
        return _Classifier(spec.channels, o, spec.upsample, form.dtype)

    def fusion(train: bool) -> nn.Module:
        del train
        return _Fusion(o, form.dtype)

    return Decoder(or_linear(head, form.dtype), reads="tokens", fuse=fusion)


ENTRY = DecoderEntry("dpt", DptOptions, build)
