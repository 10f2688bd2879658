"""MobileNetV2 (Sandler et al., CVPR 2018) as a dilated encoder, in TensorFlow's form and in PyTorch's."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import IMAGENET_MEAN, IMAGENET_STD, RGB, Variables
from forec_jax.models.conv import Padding
from forec_jax.models.layers import ConvNorm, same_padding
from forec_jax.models.network import DilatedOptions, Encoder, EncoderEntry, Form
from forec_jax.options import option

Array = jax.Array

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage, as in the paper's Table 2."""

_LOW_LEVEL_STAGE = 1
_HALF = (0.5, 0.5, 0.5)


class _Convention(NamedTuple):
    """What weights take for granted and no tensor shows: it depends on where they were trained."""

    symmetric: bool  # margins at stride 2: alike on all sides, or only at the bottom and the right
    epsilon: float  # of BatchNorm
    mean: RGB  # images in [0, 1] are normalised by
    std: RGB


FORMS = {
    "slim": _Convention(symmetric=False, epsilon=1e-3, mean=_HALF, std=_HALF),
    "torch": _Convention(symmetric=True, epsilon=1e-5, mean=IMAGENET_MEAN, std=IMAGENET_STD),
}
"""TensorFlow's (TF-slim, and transformers, which took its weights), and PyTorch's (torchvision, timm)."""


@dataclass(frozen=True, kw_only=True)
class _MobileNetOptions(DilatedOptions):
    """The form of a MobileNetV2."""

    form: Literal["slim", "torch"] = option(
        "slim",
        "padding, epsilon and colours of slim (TF-slim's and transformers' weights) or torch (torchvision's, timm's)",
    )


def scaled_channels(published: int, width: float) -> int:
    """The published channels times `width`, rounded to a multiple of 8 without losing more than a tenth."""
    scaled = published * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _bottom_right(height: int, width: int) -> Padding:
    """Margins of a 3x3 convolution at stride 2: only below and to the right, output ceil(n / 2).

    Equal to TensorFlow's 'SAME' at even sizes. At odd sizes 'SAME' would add a margin above and to the left as well and
    shift the grid; this way a padded image and the image alone agree.
    """
    return (0, 1 + height % 2), (0, 1 + width % 2)


def _halving(x: Array, convention: _Convention) -> Padding:
    """The margins with which a 3x3 convolution at stride 2 halves a map, rounding up."""
    return same_padding(3) if convention.symmetric else _bottom_right(*x.shape[1:3])


class _Block(nn.Module):
    """An inverted residual block: 1x1 expansion, 3x3 depthwise, linear 1x1 projection."""

    features: int
    expansion: int
    train: bool
    convention: _Convention
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
            size=3,
            strides=self.strides,
            dilation=self.dilation,
            depthwise=True,
            padding=_halving(y, self.convention) if self.strides == 2 else None,
            activation="relu6",
            name="depthwise",
            **shared,
        )(y, valid)
        y = ConvNorm(self.features, activation="none", name="project", **shared)(y)
        return x + y if self.strides == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """Encoder: normalised images -> a low-level map at stride 4 (24 channels) and a high-level map (320 channels).

    Beyond the output stride a stage dilates instead of striding; its first block keeps the dilation before it.
    """

    train: bool
    output_stride: int = 16
    width: float = 1.0
    momentum: float = 0.9
    dtype: Any = jnp.float32
    remat: bool = False  # a block's inside is computed again in the backward pass, not kept
    form: str = "slim"  # a key of `FORMS`

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, Array]:
        """f32[B,H,W,3] -> [B,ceil(H/4),ceil(W/4),24], [B,ceil(H/os),ceil(W/os),320], channels times `width`."""
        block_type, convention = nn.remat(_Block) if self.remat else _Block, FORMS[self.form]
        x = ConvNorm(
            scaled_channels(32, self.width),
            self.train,
            size=3,
            strides=2,
            padding=_halving(x, convention),
            activation="relu6",
            epsilon=convention.epsilon,
            momentum=self.momentum,
            dtype=self.dtype,
            name="stem",
        )(x, valid)
        low, stride, dilation, index = x, 2, 1, 0
        for stage, (expansion, features, depth, strides) in enumerate(STAGES):
            first_dilation, first_strides = dilation, 1
            if strides == 2 and stride < self.output_stride:
                stride, first_strides = stride * 2, 2
            elif strides == 2:
                dilation *= 2
            for block in range(depth):
                x = block_type(
                    scaled_channels(features, self.width),
                    expansion,
                    self.train,
                    convention,
                    first_strides if block == 0 else 1,
                    first_dilation if block == 0 else dilation,
                    self.momentum,
                    self.dtype,
                    name=f"block{index}",
                )(x, valid)
                index += 1
            low = x if stage == _LOW_LEVEL_STAGE else low
        return low, x


def build(variant: str, o: _MobileNetOptions, form: Form) -> Encoder:
    """A MobileNetV2 as an encoder."""
    del variant  # there is one

    def module(train: bool) -> nn.Module:
        return MobileNetV2(train, o.output_stride, o.width, form.momentum, form.dtype, o.remat, o.form)

    return Encoder(module, FORMS[o.form].mean, FORMS[o.form].std, gives="low_high")


def weights(source: str, variant: str, o: _MobileNetOptions) -> Variables:
    """Pretrained weights; see `load_weights`."""
    from forec_jax.models.pretrained import load_weights  # lays out whole networks, of which this is a part

    return load_weights(source, variant, form=o.form, width=o.width)


ENTRY = EncoderEntry("mobilenet_v2", ("mobilenet_v2",), _MobileNetOptions, build, decoder="deeplab", weights=weights)
