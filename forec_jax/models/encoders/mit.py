"""MiT, SegFormer's encoder (Xie et al., NeurIPS 2021): a transformer of four stages at strides 4, 8, 16 and 32."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from forec_jax.contracts import IMAGENET_MEAN, IMAGENET_STD, Variables
from forec_jax.models.dot_product_attention import attend
from forec_jax.models.encoders.transformer import Dense, embedded, norm
from forec_jax.models.layers import Conv, keep_valid, valid_extent, within
from forec_jax.models.network import Encoder, EncoderEntry, Form
from forec_jax.options import ABOVE_0, BELOW_1, at_least, one_of, option

Array = jax.Array

RATIO = 4  # channels within a perceptron to those of its stage
_EPSILON = 1e-5  # of LayerNorm behind patches and before keys and values, whoever wrote the network


class Stage(NamedTuple):
    """What the stages of all variants have in common."""

    size: int  # of the convolution that makes its patches
    strides: int
    heads: int
    shrinking: int  # keys and values are made of a map that is so many times smaller


STAGES = (Stage(7, 4, 1, 8), Stage(3, 2, 2, 4), Stage(3, 2, 5, 2), Stage(3, 2, 8, 1))

DEPTHS = {
    "mit_b0": (2, 2, 2, 2),
    "mit_b1": (2, 2, 2, 2),
    "mit_b2": (3, 4, 6, 3),
    "mit_b3": (3, 4, 18, 3),
    "mit_b4": (3, 8, 27, 3),
    "mit_b5": (3, 6, 40, 3),
}


@dataclass(frozen=True, kw_only=True)
class MitOptions:
    """The form of a MiT."""

    epsilon: float = option(
        1e-6,
        "of LayerNorm in and behind the blocks: 1e-6 (NVIDIA, segmentation_models.pytorch) or 1e-5 (transformers)",
        one_of(1e-6, 1e-5),
    )
    width: float = option(1.0, "multiplies the channels; 1 is the published network", ABOVE_0)
    depth: int = option(0, "blocks of every stage; 0: as published", at_least(0))
    drop_path: float = option(
        0.1, "share of images that the last block is left out for in training; from 0 at the first block on", BELOW_1
    )
    remat: bool = option(False, "keep less for the backward pass and compute it again (docs/scaling.md)")


def depths_of(variant: str, o: MitOptions) -> tuple[int, ...]:
    """The blocks of each stage."""
    return (o.depth,) * len(STAGES) if o.depth else DEPTHS[variant]


def head_size_of(variant: str, o: MitOptions) -> int:
    """The channels of an attention head."""
    return max(1, round((32 if variant == "mit_b0" else 64) * o.width))


class Mit(nn.Module):
    """Encoder: normalised images -> a map a stage, each after a LayerNorm."""

    depths: tuple[int, ...]
    head_size: int
    epsilon: float
    drop_path: float = 0.0  # stochastic depth (Huang et al., ECCV 2016) of the last block; 0 out of training
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, ...]:
        """f32[B,H,W,3] -> [B,ceil(H/s),ceil(W/s),C] for s = 4, 8, 16, 32 and C = 1, 2, 5, 8 heads."""
        block = nn.remat(_Block) if self.remat else _Block
        dropped = iter(np.linspace(0.0, self.drop_path, sum(self.depths)).tolist())
        maps, stride = [], 1
        for index, (stage, depth) in enumerate(zip(STAGES, self.depths, strict=True)):
            stride *= stage.strides
            extent = None if valid is None else valid_extent(valid, stride)
            channels = stage.heads * self.head_size
            convolution = Conv(channels, stage.size, stage.strides, last=True, dtype=self.dtype, name=f"patch{index}")
            x = norm(f"patch{index}_norm", _EPSILON)(convolution(x, valid)).astype(self.dtype)
            for number in range(depth):
                x = block(stage, self.epsilon, next(dropped), self.dtype, name=f"stage{index}_block{number}")(
                    x, valid, extent
                )
            x = norm(f"norm{index}", self.epsilon)(x).astype(self.dtype)
            maps.append(x)
        return tuple(maps)


class _Block(nn.Module):
    """Attention to a smaller map, and a perceptron with a 3x3 convolution inside; each behind a LayerNorm, and added."""

    stage: Stage
    epsilon: float
    dropped: float  # share of images that each of the two is left out for
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array | None, extent: Array | None) -> Array:
        """[B,h,w,C], the image's bool[B,H,W], and i32[B,2], what of [h,w] is valid -> [B,h,w,C]."""
        x = x + self._kept(self._attention(norm("norm1", self.epsilon)(x).astype(self.dtype), valid, extent))
        return x + self._kept(self._perceptron(norm("norm2", self.epsilon)(x).astype(self.dtype), valid))

    def _kept(self, branch: Array) -> Array:
        """The branch [B,h,w,C] by 1 / (1 - dropped) for the images that keep it, 0 for the others."""
        return nn.Dropout(self.dropped, broadcast_dims=(1, 2, 3), deterministic=self.dropped == 0)(branch)

    def _attention(self, x: Array, valid: Array | None, extent: Array | None) -> Array:
        rows, height, width, channels = x.shape
        heads, size = self.stage.heads, channels // self.stage.heads
        small, seen = self._shrunk(x, valid, extent)
        query = Dense(channels, self.dtype, name="query")(x).reshape(rows, height * width, heads, size)
        pairs = Dense(2 * channels, self.dtype, name="key_value")(small).reshape(rows, -1, 2 * heads, size)
        key, value = jnp.split(pairs, 2, axis=2)
        mixed = attend(query, key, value, None if seen is None else seen.reshape(rows, -1))
        return Dense(channels, self.dtype, name="attended")(mixed.reshape(x.shape))

    def _shrunk(self, x: Array, valid: Array | None, extent: Array | None) -> tuple[Array, Array | None]:
        """The map that keys and values are made of, and where it is seen, bool[B,h',w'].

        As in the published network, what is left over of whole cells at the bottom and the right is not seen. A map smaller
        than one cell, which that network cannot take, is a cell that is zero beyond the map.
        """
        factor = self.stage.shrinking
        if factor > 1:
            x = keep_valid(x, valid)
            missing = [max(factor - side, 0) for side in x.shape[1:3]]
            x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
            x = x[:, : x.shape[1] // factor * factor, : x.shape[2] // factor * factor]
            x = embedded(x, factor, x.shape[-1], self.dtype, name="shrink")
            x = norm("shrink_norm", _EPSILON)(x).astype(self.dtype)
        if extent is None:
            return x, None
        return x, within(jnp.maximum(extent // factor, 1), (x.shape[1], x.shape[2]))

    def _perceptron(self, x: Array, valid: Array | None) -> Array:
        channels = x.shape[-1]
        hidden = Dense(RATIO * channels, self.dtype, name="hidden")(x)
        depthwise = Conv(RATIO * channels, 3, depthwise=True, last=True, dtype=self.dtype, name="depthwise")
        return Dense(channels, self.dtype, name="output")(nn.gelu(depthwise(hidden, valid), approximate=False))


def build(variant: str, o: MitOptions, form: Form) -> Encoder:
    """A MiT as an encoder."""

    def module(train: bool) -> nn.Module:
        dropped = o.drop_path if train else 0.0
        return Mit(depths_of(variant, o), head_size_of(variant, o), o.epsilon, dropped, o.remat, form.dtype)

    return Encoder(module, IMAGENET_MEAN, IMAGENET_STD, gives="stages")


def weights(source: str, variant: str, o: MitOptions) -> Variables:
    """Pretrained weights; see `load_mit`."""
    from forec_jax.models.mit_weights import load_mit  # it needs the sizes that stand here

    return load_mit(source, variant, o)


ENTRY = EncoderEntry("mit", tuple(DEPTHS), MitOptions, build, decoder="segformer", weights=weights)
