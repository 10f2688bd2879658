"""MobileNetV2 (Sandler et al., CVPR 2018) as a dilated encoder, in TensorFlow's form and in PyTorch's."""

from dataclasses import dataclass
from typing import Literal

from flax import linen as nn

from forec_jax.contracts import IMAGENET_MEAN, IMAGENET_STD, Variables
from forec_jax.models.encoders.inverted import Convention, InvertedResiduals, Stage, scaled_channels
from forec_jax.models.network import DilatedOptions, Encoder, EncoderEntry, Form
from forec_jax.options import option

STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 3, 2, 32, 3),
    Stage(6, 3, 2, 64, 4),
    Stage(6, 3, 1, 96, 3),
    Stage(6, 3, 2, 160, 3),
    Stage(6, 3, 1, 320, 1),
)
"""As in the paper's Table 2."""

_STEM = 32
_HALF = (0.5, 0.5, 0.5)

FORMS = {
    "slim": Convention(symmetric=False, epsilon=1e-3, mean=_HALF, std=_HALF),
    "torch": Convention(symmetric=True, epsilon=1e-5, mean=IMAGENET_MEAN, std=IMAGENET_STD),
}
"""TensorFlow's (TF-slim, and transformers, which took its weights), and PyTorch's (torchvision, timm)."""


@dataclass(frozen=True, kw_only=True)
class _MobileNetOptions(DilatedOptions):
    """The form of a MobileNetV2."""

    form: Literal["slim", "torch"] = option(
        "slim",
        "padding, epsilon and colours of slim (TF-slim's and transformers' weights) or torch (torchvision's, timm's)",
    )


def build(variant: str, o: _MobileNetOptions, form: Form) -> Encoder:
    """A MobileNetV2 as an encoder: 24 and 320 channels, times the width."""
    del variant  # there is one
    stem, convention = scaled_channels(_STEM, o.width), FORMS[o.form]
    stages = tuple(stage._replace(features=scaled_channels(stage.features, o.width)) for stage in STAGES)

    def module(train: bool) -> nn.Module:
        return InvertedResiduals(stem, stages, convention, train, o.output_stride, form.momentum, form.dtype, o.remat)

    return Encoder(module, convention.mean, convention.std, gives="low_high")


def weights(source: str, variant: str, o: _MobileNetOptions) -> Variables:
    """Pretrained weights; see `load_weights`."""
    from forec_jax.models.pretrained import load_weights  # lays out whole networks, of which this is a part

    return load_weights(source, variant, form=o.form, width=o.width)


ENTRY = EncoderEntry("mobilenet_v2", ("mobilenet_v2",), _MobileNetOptions, build, decoder="deeplab", weights=weights)
