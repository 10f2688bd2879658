"""Dilated encoders of inverted residual blocks (Sandler et al., CVPR 2018): what MobileNetV2 and EfficientNet-Lite share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import RGB
from forec_jax.models.conv import Padding
from forec_jax.models.layers import ConvNorm, same_padding

Array = jax.Array

_LOW_LEVEL_STAGE = 1


class Stage(NamedTuple):
    """Blocks of the same channels; the first of them strides."""

    expansion: int  # of a block's input, into the channels of its depthwise convolution
    size: int  # of the depthwise kernel's sides
    strides: int
    features: int
    depth: int  # blocks


class Convention(NamedTuple):
    """What weights take for granted and no tensor shows: it depends on where they were trained."""

    symmetric: bool  # margins at stride 2: alike on all sides, or fewer above and to the left
    epsilon: float  # of BatchNorm
    mean: RGB  # images in [0, 1] are normalised by
    std: RGB


def scaled_channels(published: int, width: float) -> int:
    """The published channels times `width`, rounded to a multiple of 8 without losing more than a tenth."""
    scaled = published * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def corner_padding(size: int, height: int, width: int) -> Padding:
    """Margins of a convolution of odd `size` at stride 2 with output ceil(n / 2), aligned with the image's corner.

    Equal to TensorFlow's 'SAME' at even sides: (0, 1) for 3x3, (1, 2) for 5x5. At odd sides 'SAME' would add one above and
    to the left and shift the grid; here it is added at the other end, so that a padded image and the image alone agree.
    """
    before = (size - 2) // 2
    after = size - 2 - before
    return (before, after + height % 2), (before, after + width % 2)


def _halving(x: Array, size: int, convention: Convention) -> Padding:
    """The margins with which a convolution at stride 2 halves a map, rounding up."""
    return same_padding(size) if convention.symmetric else corner_padding(size, *x.shape[1:3])


class _Block(nn.Module):
    """An inverted residual block: 1x1 expansion, depthwise convolution, linear 1x1 projection."""

    features: int
    expansion: int
    size: int
    train: bool
    convention: Convention
    strides: int = 1
    dilation: int = 1
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array | None) -> Array:
        epsilon = self.convention.epsilon
        shared = {"train": self.train, "epsilon": epsilon, "momentum": self.momentum, "dtype": self.dtype}
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = ConvNorm(hidden, activation="relu6", name="expand", **shared)(y)
        y = ConvNorm(
            hidden,
            size=self.size,
            strides=self.strides,
            dilation=self.dilation,
            depthwise=True,
            padding=_halving(y, self.size, self.convention) if self.strides == 2 else None,
            activation="relu6",
            name="depthwise",
            **shared,
        )(y, valid)
        y = ConvNorm(self.features, activation="none", name="project", **shared)(y)
        return x + y if self.strides == 1 and x.shape[-1] == self.features else y


class InvertedResiduals(nn.Module):
    """Encoder: normalised images -> a low-level map at stride 4 (the second stage's) and a high-level map (the last's).

    Beyond the output stride a stage dilates instead of striding; its first block keeps the dilation before it.
    """

    stem: int  # channels of the first convolution, 3x3 at stride 2
    stages: tuple[Stage, ...]
    convention: Convention
    train: bool
    output_stride: int = 16
    momentum: float = 0.9
    dtype: Any = jnp.float32
    remat: bool = False  # a block's inside is computed again in the backward pass, not kept

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
        """f32[B,H,W,3] -> [B,ceil(H/4),ceil(W/4),C1], [B,ceil(H/os),ceil(W/os),C2], the channels of the two stages."""
        block_type, convention = nn.remat(_Block) if self.remat else _Block, self.convention
        x = ConvNorm(
            self.stem,
            self.train,
            size=3,
            strides=2,
            padding=_halving(x, 3, convention),
            activation="relu6",
            epsilon=convention.epsilon,
            momentum=self.momentum,
            dtype=self.dtype,
            name="stem",
        )(x, valid)
        low, stride, dilation, index = x, 2, 1, 0
        for number, stage in enumerate(self.stages):
            first_dilation, first_strides = dilation, 1
            if stage.strides == 2 and stride < self.output_stride:
                stride, first_strides = stride * 2, 2
            elif stage.strides == 2:
                dilation *= 2
            for block in range(stage.depth):
                x = block_type(
                    stage.features,
                    stage.expansion,
                    stage.size,
                    self.train,
                    convention,
                    first_strides if block == 0 else 1,
                    first_dilation if block == 0 else dilation,
                    self.momentum,
                    self.dtype,
                    name=f"block{index}",
                )(x, valid)
                index += 1
            low = x if number == _LOW_LEVEL_STAGE else low
        return low, x
