"""ResNet (He et al., CVPR 2016) as a dilated encoder, with torchvision's structure."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import IMAGENET_MEAN, IMAGENET_STD, Variables
from forec_jax.models.layers import ConvNorm, average_pool, keep_valid, max_pool
from forec_jax.models.network import DilatedOptions, Encoder, EncoderEntry, Form
from forec_jax.options import must_be, option

Array = jax.Array

BLOCKS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet26": ("bottleneck", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Kind of block, and blocks in each of the four layers."""

STEMS = {"7x7": (64,), "deep": (64, 64, 128), "d": (32, 32, 64)}
"""Channels of the stem's convolutions: one 7x7, or three 3x3 of which the first strides.

"deep" is the one of U2PL and UniMatch; "d" is ResNet-D (He et al., CVPR 2019), timm's resnet50d and its like, which also
averages 2x2 pixels in the shortcuts instead of striding there.
"""

_EXPANSION = {"basic": 1, "bottleneck": 4}

THREE_RATES = must_be("three whole numbers, such as (1, 2, 4)", lambda rates: len(rates) == 3 and min(rates) >= 1)


@dataclass(frozen=True, kw_only=True)
class ResNetOptions(DilatedOptions):
    """The form of a ResNet."""

    stem: Literal["7x7", "deep", "d"] = option("7x7", "7x7, deep (three 3x3), or d (ResNet-D, timm's resnet50d)")
    multi_grid: tuple[int, ...] = option((1, 1, 1), "dilation factors of the last stage's blocks", THREE_RATES)


class _Block(nn.Module):
    """A residual block; a bottleneck strides in its 3x3 convolution, the shortcut in its 1x1 or by averaging."""

    kind: str
    planes: int
    train: bool
    shortcut: str  # "strided" or "averaged"
    strides: int = 1
    dilation: int = 1
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array | None) -> Array:
        shared = {"train": self.train, "momentum": self.momentum, "dtype": self.dtype}
        spatial = {"size": 3, "dilation": self.dilation, **shared}
        features = self.planes * _EXPANSION[self.kind]
        if self.kind == "basic":
            y = ConvNorm(self.planes, strides=self.strides, name="conv1", **spatial)(x, valid)
            y = ConvNorm(features, activation="none", name="conv2", **spatial)(y, valid)
        else:
            y = ConvNorm(self.planes, name="conv1", **shared)(x)
            y = ConvNorm(self.planes, strides=self.strides, name="conv2", **spatial)(y, valid)
            y = ConvNorm(features, activation="none", name="conv3", **shared)(y)
        if self.strides > 1 or x.shape[-1] != features:
            strides = self.strides
            if self.shortcut == "averaged":
                x, strides = average_pool(x, strides, valid), 1
            x = ConvNorm(features, strides=strides, activation="none", name="downsample", **shared)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Encoder: normalised images -> a low-level map at stride 4 and a high-level map at `output_stride`.

    Beyond the output stride a layer dilates instead of striding: its first block keeps the dilation before it, as in
    torchvision. `multi_grid` multiplies the dilations of layer4's blocks (Chen et al., 2017): U2PL's encoder is output
    stride 8 with (2, 2, 4), which gives 4, 8, 16; UniMatch's is 16 with (1, 1, 1), which gives 1, 2, 2. In a dilated
    basic block, which torchvision does not have, both convolutions share the dilation.
    """

    name_of_variant: str
    train: bool
    output_stride: int = 16
    stem: str = "7x7"
    multi_grid: tuple[int, ...] = (1, 1, 1)
    width: float = 1.0
    momentum: float = 0.9
    dtype: Any = jnp.float32
    remat: bool = False  # a block's inside is computed again in the backward pass, not kept

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
        """f32[B,H,W,3] -> [B,ceil(H/4),ceil(W/4),64k], [B,ceil(H/os),ceil(W/os),512k]; k = 1 or 4, times `width`."""
        kind, depths = BLOCKS[self.name_of_variant]
        block_type = nn.remat(_Block) if self.remat else _Block
        x = max_pool(keep_valid(self._stem(x, valid), valid))
        low, stride, dilation = x, 4, 1
        for layer, depth in enumerate(depths, start=1):
            first_dilation, first_strides = dilation, 1
            if layer > 1 and stride < self.output_stride:
                stride, first_strides = stride * 2, 2
            elif layer > 1:
                dilation *= 2
            for block in range(depth):
                grid = self.multi_grid[block] if layer == 4 else 1
                x = block_type(
                    kind,
                    self._channels(32 * 2**layer),
                    self.train,
                    "averaged" if self.stem == "d" and layer > 1 else "strided",
                    first_strides if block == 0 else 1,
                    grid * (first_dilation if block == 0 else dilation),
                    self.momentum,
                    self.dtype,
                    name=f"layer{layer}_block{block}",
                )(x, valid)
            low = x if layer == 1 else low
        return low, x

    def _stem(self, x: Array, valid: Array | None) -> Array:
        shared = {"train": self.train, "momentum": self.momentum, "dtype": self.dtype}
        channels = STEMS[self.stem]
        if len(channels) == 1:
            return ConvNorm(self._channels(*channels), size=7, strides=2, name="stem", **shared)(x, valid)
        for index, (features, strides) in enumerate(zip(channels, (2, 1, 1), strict=True), start=1):
            x = ConvNorm(self._channels(features), size=3, strides=strides, name=f"stem{index}", **shared)(x, valid)
        return x

    def _channels(self, published: int) -> int:
        return max(1, round(published * self.width))


def build(variant: str, o: ResNetOptions, form: Form) -> Encoder:
    """A ResNet as an encoder."""

    def module(train: bool) -> nn.Module:
        return ResNet(
            variant,
            train,
            output_stride=o.output_stride,
            stem=o.stem,
            multi_grid=o.multi_grid,
            width=o.width,
            momentum=form.momentum,
            dtype=form.dtype,
            remat=o.remat,
        )

    return Encoder(module, IMAGENET_MEAN, IMAGENET_STD, gives="low_high")


def weights(source: str, variant: str, o: ResNetOptions) -> Variables:
    """Pretrained weights; see `load_weights`."""
    from forec_jax.models.pretrained import load_weights  # lays out whole networks, of which this is a part

    return load_weights(source, variant, stem=o.stem, width=o.width)


ENTRY = EncoderEntry("resnet", tuple(BLOCKS), ResNetOptions, build, decoder="deeplab", weights=weights)
