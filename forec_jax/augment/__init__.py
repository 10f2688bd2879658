"""Strong augmentation on the device: pure functions of a key and a batch, inside the compiled train step."""

from forec_jax.augment.adaptive import AdaptiveCutMix, CopyPaste
from forec_jax.augment.boxes import AreaBox, BetaBox, Box, ClippedBox, HalfAreaBox, ShareBox, SquareBox
from forec_jax.augment.geometry import InTurn, Mirror, StudentOptions, Zoom, with_geometry
from forec_jax.augment.masking import hide_patches, mean_colour
from forec_jax.augment.mixing import (
    ClassMix,
    CutMix,
    CutOut,
    Mixing,
    MixingOptions,
    NoMixing,
    Rows,
    SeveralCutMix,
    ShuffledCutMix,
    ToggledCutMix,
    mixing_of,
)
from forec_jax.augment.photometric import (
    ColourOptions,
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
    "AdaptiveCutMix",
    "AreaBox",
    "BetaBox",
    "Box",
    "ClassMix",
    "ClippedBox",
    "ColourOptions",
    "CopyPaste",
    "CutMix",
    "CutOut",
    "HalfAreaBox",
    "InTurn",
    "Mirror",
    "Mixing",
    "MixingOptions",
    "NoMixing",
    "Photometric",
    "Rows",
    "SeveralCutMix",
    "ShareBox",
    "ShuffledCutMix",
    "SquareBox",
    "StudentOptions",
    "ToggledCutMix",
    "Zoom",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "gaussian_blur",
    "grayscale",
    "hide_patches",
    "mean_colour",
    "mixing_of",
    "photometric",
    "with_geometry",
]
