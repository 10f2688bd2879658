"""What the layers of a MobileNetV2 are called by those who publish its weights."""

from collections.abc import Callable, Mapping

import numpy as np

from forec_jax.models.encoders.mobilenet_v2 import STAGES
from forec_jax.models.naming import Layer, Path, Tensors

PASSED_OVER = {  # prefixes of the classifier, and of the last 1x1 convolution before it
    "torchvision": ("features.18.", "classifier."),
    "timm": ("conv_head.", "bn2.", "classifier."),
    "transformers": ("conv_1x1.", "classifier."),
    "slim": ("Conv_1_", "Logits_"),
}
FORMS = {"torchvision": "torch", "timm": "torch", "transformers": "slim", "slim": "slim"}
"""The form of the encoder (model.mobilenet_v2.form) that a source's weights were trained in."""

_WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.4)  # that are published
_LAST = 320  # channels at width 1


def layer_of(source: str) -> Callable[[Path], Layer]:
    """What the layer of one of our paths is called: (params, encoder, block3, expand, conv, kernel) -> its names."""
    place = _PLACES[source]
    return lambda path: place(0, "stem") if path[2] == "stem" else place(int(path[2].removeprefix("block")), path[3])


def width_of(tensors: Tensors, source: str) -> float | None:
    """The published width of a network, told by its last channels; None where it is none of them."""
    layer = _PLACES[source](sum(stage[2] for stage in STAGES) - 1, "project")
    scale = tensors.get(f"{layer.norm}_gamma" if source == "slim" else f"{layer.norm}.weight", np.zeros(0))
    return next((width for width in _WIDTHS if scale.size == round(_LAST * width)), None)


def _torchvision(block: int, part: str) -> Layer:
    if part == "stem":
        return Layer("features.0.0", "features.0.1")
    at, index = (
        f"features.{block + 1}.conv",
        ("depthwise", "project") if block == 0 else ("expand", "depthwise", "project"),
    )
    number = index.index(part)
    if part == "project":  # a linear one: convolution and norm stand beside the others, without an activation
        return Layer(f"{at}.{number}", f"{at}.{number + 1}")
    return Layer(f"{at}.{number}.0", f"{at}.{number}.1")


def _timm(block: int, part: str) -> Layer:
    if part == "stem":
        return Layer("conv_stem", "bn1")
    if block == 0:
        conv, norm = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}[part]
    else:
        conv, norm = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}[
            part
        ]
    stage, inner = _STAGE_OF[block]
    return Layer(f"blocks.{stage}.{inner}.{conv}", f"blocks.{stage}.{inner}.{norm}")


_STAGE_OF = [(stage, inner) for stage, (_, _, depth, _) in enumerate(STAGES) for inner in range(depth)]


def _transformers(block: int, part: str) -> Layer:
    names = {"stem": "first_conv", "expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
    place = f"layer.{block - 1}" if block else "conv_stem"
    return Layer(f"{place}.{names[part]}.convolution", f"{place}.{names[part]}.normalization")


def _slim(block: int, part: str) -> Layer:
    name = "Conv" if part == "stem" else f"expanded_conv_{block}_{part}" if block else f"expanded_conv_{part}"
    return Layer(f"{name}_depthwise" if part == "depthwise" else name, f"{name}_BatchNorm")


_PLACES: Mapping[str, Callable[[int, str], Layer]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "slim": _slim,
}
