"""DeepLabV2's decoder (Chen et al., TPAMI 2018): four dilated convolutions of the last map, added up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders.deeplab import RATES
from forec_jax.models.decoders.linear import LinearHead
from forec_jax.models.layers import Conv
from forec_jax.models.network import Decoder, DecoderEntry, Form
from forec_jax.models.resize import resize_valid
from forec_jax.options import option

Array = jax.Array


@dataclass(frozen=True)
class DeepLabV2Options:
    """The decoder's form; published with an encoder of output stride 8."""

    rates: tuple[int, ...] = option((6, 12, 18, 24), "dilations of the 3x3 convolutions that are added up", RATES)
    align_corners: bool = option(True, "of the bilinear resize to the image")


class _Decoder(nn.Module):
    """A 3x3 convolution with bias for each rate, straight to the output's channels; their sum."""

    channels: int
    options: DeepLabV2Options
    upsample: bool
    dtype: Any

    @nn.compact
    def __call__(self, *inputs: Any) -> tuple[Array, Array]:
        """(*maps, size, valid), the last map [B,h,w,C] -> f32[B,*size,channels] (or at the map's size), the last map."""
        *_, high, size, valid = inputs
        output = jnp.zeros(())
        for index, rate in enumerate(self.options.rates, start=1):
            branch = Conv(self.channels, size=3, dilation=rate, last=True, dtype=self.dtype, name=f"atrous{index}")
            output = output + branch(high, valid).astype(jnp.float32)
        if self.upsample:
            output = resize_valid(output, size, valid, self.options.align_corners)
        return output, high


def build(o: DeepLabV2Options, form: Form) -> Decoder:
    """DeepLabV2's decoder, one a head. What enters the last convolutions is the encoder's last map."""

    def head(spec: HeadSpec) -> Callable[[bool], nn.Module]:
        if spec.linear:
            return lambda train: LinearHead(spec.channels, train, form.dtype)
        return lambda train: _Decoder(spec.channels, o, spec.upsample, form.dtype)

    return Decoder(head, reads="low_high")


ENTRY = DecoderEntry("deeplab_v2", DeepLabV2Options, build)
