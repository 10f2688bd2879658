"""EfficientNet-Lite (Tan & Le, ICML 2019, in Google's form for mobile devices) as a dilated encoder.

MobileNetV2's blocks, with 5x5 kernels in some stages; neither squeeze-and-excitation nor swish. ImageNet weights can be
installed as packages (docs/weights.md).
"""

import math
from typing import NamedTuple

from flax import linen as nn

from forec_jax.contracts import Variables
from forec_jax.models.encoders.inverted import Convention, InvertedResiduals, Stage, scaled_channels
from forec_jax.models.network import DilatedOptions, Encoder, EncoderEntry, Form

_STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
"""EfficientNet-B0's (Table 1 of the paper), which the variants make wider and deeper."""

_STEM = 32
_CONVENTION = Convention(symmetric=False, epsilon=1e-3, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


class _Scale(NamedTuple):
    """What a variant multiplies the channels and the blocks of the stages by; the first and the last keep one block."""

    width: float
    depth: float


VARIANTS = {
    "efficientnet_lite0": _Scale(1.0, 1.0),
    "efficientnet_lite1": _Scale(1.0, 1.1),
    "efficientnet_lite2": _Scale(1.1, 1.2),
}


def stages_of(variant: str, width: float) -> tuple[Stage, ...]:
    """A variant's stages, with `width` times its own channels: less than 1 makes a small network, for tests."""
    scale, ends = VARIANTS[variant], (0, len(_STAGES) - 1)
    return tuple(
        stage._replace(
            features=scaled_channels(stage.features, scale.width * width),
            depth=stage.depth if number in ends else math.ceil(scale.depth * stage.depth),
        )
        for number, stage in enumerate(_STAGES)
    )


def build(variant: str, o: DilatedOptions, form: Form) -> Encoder:
    """An EfficientNet-Lite as an encoder: 24 channels, and 320 or 352, times the width."""
    stem, stages = scaled_channels(_STEM, o.width), stages_of(variant, o.width)  # no variant widens the stem

    def module(train: bool) -> nn.Module:
        return InvertedResiduals(stem, stages, _CONVENTION, train, o.output_stride, form.momentum, form.dtype, o.remat)

    return Encoder(module, _CONVENTION.mean, _CONVENTION.std, gives="low_high")


def weights(source: str, variant: str, o: DilatedOptions) -> Variables:
    """Pretrained weights; see `load_weights`."""
    from forec_jax.models.pretrained import load_weights  # lays out whole networks, of which this is a part

    return load_weights(source, variant, width=o.width)


ENTRY = EncoderEntry("efficientnet_lite", tuple(VARIANTS), DilatedOptions, build, decoder="deeplab", weights=weights)
