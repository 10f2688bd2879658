"""PSPNet's decoder (Zhao et al., CVPR 2017): means of the last map over grids of a few cells, beside the map itself."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders.classifier import Classifier
from forec_jax.models.decoders.linear import or_linear
from forec_jax.models.layers import ConvNorm, keep_valid, valid_extent
from forec_jax.models.network import Decoder, DecoderEntry, Form
from forec_jax.models.resize import resize
from forec_jax.options import BELOW_1, at_least, option, whole_numbers

Array = jax.Array


@dataclass(frozen=True)
class PSPNetOptions:
    """The decoder's form: CCT's and PS-MT's as well; published with an encoder of output stride 8."""

    bins: tuple[int, ...] = option(
        (1, 2, 3, 6),
        "cells along a side of each grid of means",
        whole_numbers(1, 2, 3, 6),
    )
    channels: int = option(512, "of the 3x3 convolution that joins the levels", at_least(1))
    dropout: float = option(0.1, "of channels, before the last convolution", BELOW_1)
    align_corners: bool = option(True, "of every bilinear resize")


class _Fusion(nn.Module):
    """The first half of a head: pyramid pooling, and a 3x3 convolution of all levels beside the map."""

    options: PSPNetOptions
    train: bool
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Any) -> Array:
        """(*maps, size, valid), the last map [B,h,w,C] -> [B,h,w,options.channels]; a level has C / len(bins) channels."""
        *_, x, _, valid = inputs
        options = self.options
        shared: dict[str, Any] = {"train": self.train, "momentum": self.momentum, "dtype": self.dtype}
        channels = max(x.shape[-1] // len(options.bins), 1)
        levels = [keep_valid(x, valid)]
        for index, bins in enumerate(options.bins, start=1):
            means = ConvNorm(channels, name=f"level{index}", **shared)(_cell_means(x, bins, valid))
            levels.append(_spread(means, x, valid, options.align_corners))
        return ConvNorm(options.channels, size=3, name="bottleneck", **shared)(jnp.concatenate(levels, -1), valid)


def _cell_means(x: Array, bins: int, valid: Array | None) -> Array:
    """Means of the (valid) pixels of [B,h,w,C] over a grid of bins x bins cells -> [B,bins,bins,C], summed in float32."""
    rows, columns = (_cells(bins, x.shape[axis], _extent(x, valid)[:, axis - 1]) for axis in (1, 2))
    exact = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    across = jnp.einsum("bhwc,bjw->bhjc", x.astype(jnp.float32), columns, **exact)
    return jnp.einsum("bhjc,bih->bijc", across, rows, **exact).astype(x.dtype)


def _cells(bins: int, length: int, extent: Array) -> Array:
    """f32[B,bins,length]: what each pixel gives to a cell's mean; cell i holds those from floor(i n / bins) to below
    ceil((i + 1) n / bins) of an image's n = extent, as PyTorch's adaptive pooling. Neighbours may share a pixel.
    """
    cell, extent = jnp.arange(bins)[None], extent[:, None]
    start, end = cell * extent // bins, -(-(cell + 1) * extent // bins)
    pixel = jnp.arange(length)[None, None]
    inside = (pixel >= start[..., None]) & (pixel < end[..., None])
    return inside / (end - start)[..., None].astype(jnp.float32)


def _spread(means: Array, like: Array, valid: Array | None, align_corners: bool) -> Array:
    """Means [B,n,n,C] as a map of the size of `like`, over each image's valid area."""
    size, bins = (like.shape[1], like.shape[2]), means.shape[1]
    if valid is None:
        return resize(means, size, align_corners=align_corners)
    before = jnp.full((means.shape[0], 2), bins, jnp.int32)
    return resize(means, size, align_corners=align_corners, extent_in=before, extent_out=_extent(like, valid))


def _extent(x: Array, valid: Array | None) -> Array:
    """i32[B,2]: the valid rows and columns of [B,h,w,C]."""
    if valid is None:
        return jnp.broadcast_to(jnp.asarray(x.shape[1:3], jnp.int32)[None], (x.shape[0], 2))
    return valid_extent(valid, valid.shape[1] // x.shape[1])


def build(o: PSPNetOptions, form: Form) -> Decoder:
    """PSPNet's decoder as any number of heads, each with a pyramid of its own unless it reads another's.

    What is fused is the 3x3 convolution's map, which PS-MT and CCT perturb; the latent image of a head, what enters its
    last convolution, is that map after dropout.
    """

    def head(spec: HeadSpec, train: bool) -> nn.Module:
        return Classifier(spec, form, o.channels, o.dropout, o.align_corners, train)

    def fusion(train: bool) -> nn.Module:
        return _Fusion(o, train, form.momentum, form.dtype)

    return Decoder(or_linear(head, form.dtype), reads="low_high", fuse=fusion)


ENTRY = DecoderEntry("pspnet", PSPNetOptions, build)
