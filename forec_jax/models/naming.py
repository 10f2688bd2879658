"""Whose tensors a file holds, by their names alone, and where in the file its network is.

People have encoders as training scripts leave them: in dicts of dicts, behind the prefixes of the modules that held them.
An encoder is found wherever the names of its first layers stand together; what stands before them is its root.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

log = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]
Path = tuple[str, ...]  # e.g. ("params", "encoder", "layer1_block0", "conv2", "norm", "scale")

SOURCES = ("torchvision", "timm", "transformers", "u2pl", "unimatch", "slim", "efficientnet_pytorch")
UNIMATCH_V2 = "unimatch_v2"
"""Whose whole models, DINOv2 with DPT, `dino_weights.convert_unimatch_v2` converts."""

RESNET, MOBILENET, LITE = "resnet", "mobilenet_v2", "efficientnet_lite"
"""Families of encoders; the second has one member of that name."""

_NETWORKS = {
    "student": ("model_state", "model", "state_dict", "model_state_dict", "student"),
    "teacher": ("teacher_state", "model_ema", "state_dict_ema", "teacher"),
}
_FIRST = {  # a first convolution, and what begins the names of a block
    (RESNET, "torchvision"): (("conv1.weight", "conv1.0.weight"), "layer1.0."),
    (RESNET, "transformers"): (("embedder.embedder.convolution.weight",), "encoder.stages.0.layers.0."),
    (MOBILENET, "torchvision"): (("features.0.0.weight",), "features.1.conv.0.0."),
    (MOBILENET, "timm"): (("conv_stem.weight",), "blocks.0.0.conv_dw."),
    (MOBILENET, "transformers"): (("conv_stem.first_conv.convolution.weight",), "layer.0.expand_1x1."),
    (MOBILENET, "slim"): (("Conv_weights",), "expanded_conv_1_expand_"),
    (LITE, "efficientnet_pytorch"): (("_conv_stem.weight",), "_blocks.0._depthwise_conv."),
}
_FULL = {
    "u2pl": ("encoder.", "decoder.aspp.conv"),
    "unimatch": ("backbone.", "head.b0."),
}  # encoder's and decoder's prefixes
_COPIES = ("encoder_k.", "momentum", "target", "ema.")  # in the root of an encoder that follows another one
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(?:conv|bn)(\d)\.|encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.")
_DEPTHS: dict[tuple[int, tuple[int, ...]], str] = {  # by convolutions a block and blocks a stage
    (2, (1, 1, 1, 1)): "resnet10",
    (2, (2, 2, 2, 2)): "resnet18",
    (2, (3, 4, 6, 3)): "resnet34",
    (3, (1, 1, 1, 1)): "resnet14",
    (3, (2, 2, 2, 2)): "resnet26",
    (3, (3, 4, 6, 3)): "resnet50",
    (3, (3, 4, 23, 3)): "resnet101",
    (3, (3, 8, 36, 3)): "resnet152",
    (3, (3, 24, 36, 3)): "resnet200",
}


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file or the tensors, and what to do."""


class Layer(NamedTuple):
    """What a convolution and the BatchNorm behind it are called; a last layer has no BatchNorm."""

    conv: str
    norm: str = ""


class Place(NamedTuple):
    """Where a file's network is."""

    source: (
        str  # of the names: of a ResNet "torchvision" (timm's are the same), "transformers", or a full model's project
    )
    root: str  # what stands before each of its tensors' names
    family: str = RESNET


def choose_network(checkpoint: Mapping[str, Any], network: str | None) -> Tensors:
    """The tensors of one network of a training checkpoint, by the names of the dicts that they lie in, joined by dots.

    Args:
      checkpoint: a state dict, or dicts of them as U2PL (`model_state`, `teacher_state`), UniMatch (`model`, `model_ema`),
        timm (`state_dict`, `state_dict_ema`) and others save them, in any nesting. What is no array is passed over.
      network: "student", "teacher", or None for the teacher where there is one.

    Raises:
      WeightsError: the network is not there.
    """
    stored = {n: key for n, keys in _NETWORKS.items() for key in keys if isinstance(checkpoint.get(key), Mapping)}
    chosen = network or ("teacher" if "teacher" in stored else "student")
    if chosen not in stored and (stored or network == "teacher"):
        names = ", ".join(f"{name} ({key})" for name, key in stored.items()) or "one network, not marked as a teacher"
        raise WeightsError(f"the checkpoint has no {chosen}; it holds {names}: choose by --network")
    if stored:
        log.info("taking the %s (%s)", chosen, stored[chosen])
        return choose_network(checkpoint[stored[chosen]], None)
    return {name.removeprefix("module."): value for name, value in _joined(checkpoint)}


def _joined(stored: Mapping[Any, Any]) -> Iterable[tuple[str, np.ndarray]]:
    for name, value in stored.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", array) for inner, array in _joined(value))
        elif isinstance(value, np.ndarray) and isinstance(name, str):
            yield name, value


def locate(tensors: Tensors, source: str | None = None) -> Place:
    """Finds the encoder, or the full model, among a file's tensors.

    Of an encoder and its slowly moving copy (MoCo's `encoder_q`, `encoder_k`) the first is taken.

    Args:
      tensors: by name.
      source: one of `SOURCES`, whose they are said to be; None where the names are to tell.

    Raises:
      WeightsError: there is none, or several, or it is another project's than was said.
    """
    places = _places(tensors)
    if len(places) > 1:
        places = [place for place in places if not any(copy in place.root for copy in _COPIES)] or places
    if not places:
        raise WeightsError(
            "save an encoder under torchvision's names (conv1.weight, layer1.0.conv1.weight, ...), or another project's: "
            f"{', '.join(SOURCES)}\nthe tensors' naming cannot be told: {', '.join(sorted(tensors)[:3])}, ..."
        )
    if len(places) > 1:
        raise WeightsError(
            "save one network's state_dict alone\n"
            f"the file holds {len(places)}, at {', '.join(place.root or 'its top' for place in places[:5])}"
        )
    (place,) = places
    if source and not _is_of(place, source):
        raise WeightsError(f"--from={place.source} is right: these are {place.source}'s names, not {source}'s")
    return place


def _is_of(place: Place, source: str) -> bool:
    """Whether a place is what one expects of a source; U2PL and UniMatch start from encoders in torchvision's names."""
    if place.family == RESNET and place.source == "torchvision":
        return source not in ("transformers", "slim")
    return place.source == source


def _places(tensors: Tensors) -> list[Place]:
    found = []
    for (family, source), (firsts, block) in _FIRST.items():
        ends = {(name, first) for name in tensors for first in firsts if f".{name}".endswith(f".{first}")}
        roots = {name.removesuffix(first) for name, first in ends}
        roots = {root for root in roots if any(name.startswith(root + block) for name in tensors)}
        found += [_of_timm(_whole(Place(source, root, family), tensors), tensors) for root in sorted(roots)]
    return found


def _of_timm(place: Place, tensors: Tensors) -> Place:
    """timm has the same names for MobileNetV2 and EfficientNet-Lite, whose third stage has kernels of 5x5."""
    kernel = tensors.get(f"{place.root}blocks.2.0.conv_dw.weight") if place.source == "timm" else None
    return place if kernel is None or kernel.shape[-1] != 5 else place._replace(family=LITE)


def _whole(place: Place, tensors: Tensors) -> Place:
    """The full model that a ResNet is part of, where there is one."""
    for source, (encoder, decoder) in _FULL.items() if place.family == RESNET else ():
        above = place.root.removesuffix(encoder)
        if above != place.root and any(name.startswith(above + decoder) for name in tensors):
            return Place(source, above)
    return place


def below(tensors: Tensors, root: str) -> Tensors:
    """The tensors of a root, by the rest of their names; the log tells of the others."""
    if others := sorted(name for name in tensors if not name.startswith(root)):
        log.info("taking what is at %s; passed over: %s", root, shortened(others, 5))
    return {name.removeprefix(root): value for name, value in tensors.items() if name.startswith(root)}


def depth(names: Iterable[str]) -> str:
    """What a ResNet is called by its blocks, or these themselves where no ResNet has them."""
    blocks: dict[int, set[str]] = {}
    convolutions = set()
    for match in filter(None, map(_BLOCK.search, names)):
        layer, block, conv, stage, inner, number = match.groups()
        blocks.setdefault(int(layer or int(stage or 0) + 1), set()).add(block or inner)
        convolutions.add(int(conv or int(number or 0) + 1))
    stages = tuple(len(blocks[layer]) for layer in sorted(blocks))
    known = _DEPTHS.get((max(convolutions, default=0), stages))
    return known or f"network of {'+'.join(map(str, stages))} blocks"


def shortened(items: list[str], most: int = 20) -> str:
    """A list in words that stays readable when everything is wrong."""
    rest = f", and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + rest
