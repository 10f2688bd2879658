"""SegFormer's decoder (Xie et al., NeurIPS 2021): linear layers of all stages, joined at stride 4."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders.classifier import Classifier
from forec_jax.models.decoders.linear import or_linear
from forec_jax.models.layers import BatchNorm, Conv, resize_valid
from forec_jax.models.network import Decoder, DecoderEntry, Form
from forec_jax.options import BELOW_1, at_least, option

Array = jax.Array


@dataclass(frozen=True)
class SegFormerOptions:
    """The decoder's form. The defaults go with mit_b0 and mit_b1."""

    channels: int = option(256, "of the joined map: mit_b0 and mit_b1 256, the larger ones 768", at_least(1))
    dropout: float = option(0.1, "of channels, before the last convolution", BELOW_1)


class _Fusion(nn.Module):
    """The first half of a head: a linear layer of each stage, resized to the first's size, and a 1x1 convolution of all."""

    options: SegFormerOptions
    train: bool
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, *inputs: Any) -> Array:
        """(four maps [B,h,w,C], size, valid) -> [B,h,w,options.channels] of the first map's h and w."""
        *stages, _, valid = inputs
        channels, size = self.options.channels, (stages[0].shape[1], stages[0].shape[2])
        joined = jnp.zeros((), self.dtype)
        for index, x in enumerate(stages):
            x = Conv(channels, last=True, dtype=self.dtype, name=f"linear{index}")(x)
            # A 1x1 convolution of joined maps is a sum of one of each, and commutes with the resize, as the weights of a
            # resize add up to 1: at the stage's own size it is cheaper.
            x = Conv(channels, dtype=self.dtype, name=f"join{index}")(x)
            joined = joined + resize_valid(x, size, valid, align_corners=False)
        return nn.relu(BatchNorm(self.train, momentum=self.momentum, name="norm")(joined))


def build(o: SegFormerOptions, form: Form) -> Decoder:
    """SegFormer's decoder, one a head."""

    def head(spec: HeadSpec, train: bool) -> nn.Module:
        return Classifier(spec, form, o.channels, o.dropout, False, train)

    def fusion(train: bool) -> nn.Module:
        return _Fusion(o, train, form.momentum, form.dtype)

    return Decoder(or_linear(head, form.dtype), reads="stages", fuse=fusion)


ENTRY = DecoderEntry("segformer", SegFormerOptions, build)
