"""What the layers of a MobileNetV2 and an EfficientNet-Lite are called by those who publish their weights."""

from collections.abc import Callable, Mapping

import numpy as np

from forec_jax.models.encoders.efficientnet_lite import VARIANTS, stages_of
from forec_jax.models.encoders.inverted import Stage
from forec_jax.models.encoders.mobilenet_v2 import STAGES
from forec_jax.models.naming import Layer, Path, Tensors

PASSED_OVER = {  # prefixes of the classifier, and of the last 1x1 convolution before it
    "torchvision": ("features.18.", "classifier."),
    "timm": ("conv_head.", "bn2.", "classifier."),
    "transformers": ("conv_1x1.", "classifier."),
    "slim": ("Conv_1_", "Logits_"),
    "efficientnet_pytorch": ("_conv_head.", "_bn1.", "_fc."),
}
FORMS = {"torchvision": "torch", "timm": "torch", "transformers": "slim", "slim": "slim"}
"""The form of a MobileNetV2 (model.mobilenet_v2.form) that a source's weights were trained in."""

_WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.4)  # of MobileNetV2 that are published


def layer_of(source: str, arch: str) -> Callable[[Path], Layer]:
    """What the layer of one of our paths is called: (params, encoder, block3, expand, conv, kernel) -> its names."""
    place = _places(source, _stages(arch))
    return lambda path: place(0, "stem") if path[2] == "stem" else place(int(path[2].removeprefix("block")), path[3])


def width_of(tensors: Tensors, source: str) -> float | None:
    """The published width of a MobileNetV2, told by its last channels; None where it is none of them."""
    found = _last_channels(tensors, source, STAGES)
    return next((width for width in _WIDTHS if found == round(STAGES[-1].features * width)), None)


def variant_of(tensors: Tensors, source: str) -> str | None:
    """Which EfficientNet-Lite of its published width it is, told by the blocks and the last channels; or None."""
    blocks = sum(name.endswith(("_depthwise_conv.weight", ".conv_dw.weight")) for name in tensors)
    for variant in VARIANTS:
        stages = _stages(variant)
        if blocks == _blocks(stages) and _last_channels(tensors, source, stages) == stages[-1].features:
            return variant
    return None


def _stages(arch: str) -> tuple[Stage, ...]:
    return stages_of(arch, 1.0) if arch in VARIANTS else STAGES


def _blocks(stages: tuple[Stage, ...]) -> int:
    return sum(stage.depth for stage in stages)


def _last_channels(tensors: Tensors, source: str, stages: tuple[Stage, ...]) -> int:
    """The channels of a network's last block; 0 where it has no such block."""
    layer = _places(source, stages)(_blocks(stages) - 1, "project")
    return tensors.get(f"{layer.norm}_gamma" if source == "slim" else f"{layer.norm}.weight", np.zeros(0)).size


def _places(source: str, stages: tuple[Stage, ...]) -> Callable[[int, str], Layer]:
    """What a source calls the layer of a block: (3, "expand") -> its names."""
    if source == "timm":
        of_block = [(stage, inner) for stage, row in enumerate(stages) for inner in range(row.depth)]
        return lambda block, part: _timm(*of_block[block], part)
    return _PLACES[source]


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


def _timm(stage: int, inner: int, part: str) -> Layer:
    if part == "stem":
        return Layer("conv_stem", "bn1")
    if stage == 0:
        conv, norm = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}[part]
    else:
        conv, norm = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}[
            part
        ]
    return Layer(f"blocks.{stage}.{inner}.{conv}", f"blocks.{stage}.{inner}.{norm}")


def _transformers(block: int, part: str) -> Layer:
    names = {"stem": "first_conv", "expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
    place = f"layer.{block - 1}" if block else "conv_stem"
    return Layer(f"{place}.{names[part]}.convolution", f"{place}.{names[part]}.normalization")


def _slim(block: int, part: str) -> Layer:
    name = "Conv" if part == "stem" else f"expanded_conv_{block}_{part}" if block else f"expanded_conv_{part}"
    return Layer(f"{name}_depthwise" if part == "depthwise" else name, f"{name}_BatchNorm")


def _efficientnet_pytorch(block: int, part: str) -> Layer:
    if part == "stem":
        return Layer("_conv_stem", "_bn0")
    norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
    return Layer(f"_blocks.{block}._{part}_conv", f"_blocks.{block}.{norm}")


_PLACES: Mapping[str, Callable[[int, str], Layer]] = {
    "torchvision": _torchvision,
    "transformers": _transformers,
    "slim": _slim,
    "efficientnet_pytorch": _efficientnet_pytorch,
}
