"""DeepLabV2's decoder (Chen et al., TPAMI 2018): classes straight from the last map, by parallel dilated convolutions."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders.linear import or_linear
from forec_jax.models.layers import Conv, resize_valid
from forec_jax.models.network import Decoder, DecoderEntry, Form
from forec_jax.options import option, whole_numbers

Array = jax.Array


@dataclass(frozen=True)
class DeepLabV2Options:
    """The decoder's form; published with an encoder of output stride 8."""

    rates: tuple[int, ...] = option(
        (6, 12, 18, 24),
        "dilations of the parallel 3x3 convolutions, whose results are added up",
        whole_numbers(6, 12, 18, 24),
    )
    align_corners: bool = option(True, "of the bilinear resize to the image's size")


class _Head(nn.Module):
    """Dilated 3x3 convolutions with a bias, from the last map to the outputs, added up (ASPP-L)."""

    channels: int
    options: DeepLabV2Options
    upsample: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Any) -> tuple[Array, Array]:
        """(*maps, size, valid), the last map [B,h,w,C] -> f32[B,*size,channels] (or [B,h,w,channels]), [B,h,w,C]."""
        *_, x, size, valid = inputs
        branches = [
            Conv(self.channels, size=3, dilation=rate, last=True, dtype=self.dtype, name=f"atrous{index}")(x, valid)
            for index, rate in enumerate(self.options.rates, start=1)
        ]
        output = sum((branch.astype(jnp.float32) for branch in branches), start=jnp.zeros((), jnp.float32))
        if self.upsample:
            output = resize_valid(output, size, valid, self.options.align_corners)
        return output, x


def build(o: DeepLabV2Options, form: Form) -> Decoder:
    """DeepLabV2's decoder as any number of heads. Nothing is fused: each reads the encoder's last map itself.

    The latent image of a head, what enters its last convolution, is that map.
    """

    def head(spec: HeadSpec, train: bool) -> nn.Module:
        del train  # nothing here behaves otherwise in training
        return _Head(spec.channels, o, spec.upsample, form.dtype)

    return Decoder(or_linear(head, form.dtype), reads="low_high")


ENTRY = DecoderEntry("deeplab_v2", DeepLabV2Options, build)
