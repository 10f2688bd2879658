"""Strong augmentation on the device: pure functions of a key and a batch, inside the compiled train step."""

from forec_jax.augment.mixing import (
    AreaBox,
    BetaBox,
    Box,
    ClassMix,
    CutMix,
    CutOut,
    HalfAreaBox,
    Mixing,
    MixingOptions,
    NoMixing,
    Rows,
    mixing_of,
)
from forec_jax.augment.photometric import (
    Photometric,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grayscale,
    photometric,
)

__all__ = [
    "AreaBox",
    "BetaBox",
    "Box",
    "ClassMix",
    "CutMix",
    "CutOut",
    "HalfAreaBox",
    "Mixing",
    "MixingOptions",
    "NoMixing",
    "Photometric",
    "Rows",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "gaussian_blur",
    "grayscale",
    "mixing_of",
    "photometric",
]
