"""PyTorch's tensors, in other projects' naming, arranged as this library's variables.

A naming says what each of our tensors is called elsewhere; everything else (what is missing, unknown or of the wrong
shape) follows from comparing the names with the network's own layout. Only the names and shapes are other projects'.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from forec_jax.contracts import HeadSpec, Variables
from forec_jax.models.decoders.deeplab import U2PL, DeepLabOptions
from forec_jax.models.encoders.resnet import BLOCKS
from forec_jax.models.naming import SOURCES, Tensors, WeightsError, below, depth, locate, shortened
from forec_jax.models.zoo import deeplab_network

log = logging.getLogger(__name__)

Path = tuple[str, ...]  # e.g. ("params", "encoder", "layer1_block0", "conv2", "norm", "scale")

SEGMENTATION = "segmentation"  # the head that a full model's decoder becomes

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Converted(NamedTuple):
    """Another project's tensors in this library's layout, and which network they fill."""

    variables: Variables  # dicts by part: "encoder", and SEGMENTATION for a full model; NumPy, float32
    stem: str


class _Layer(NamedTuple):
    """What a convolution and the BatchNorm behind it are called; a last layer has no BatchNorm."""

    conv: str
    norm: str = ""


@dataclass(frozen=True)
class _Model:
    """A full model's naming."""

    encoder: str  # prefix of the encoder's tensors
    layers: Mapping[str, _Layer]  # of the decoder, by our layers' names
    options: DeepLabOptions
    pooling_last: bool  # where the pooled branch stands among the joined ones; here it is the first
    passed_over: tuple[str, ...]  # prefixes of what this library's model does not have


_MODELS = {
    "u2pl": _Model(
        encoder="encoder.",
        layers={
            "pooling": _Layer("decoder.aspp.conv1.1", "decoder.aspp.conv1.2"),
            "point": _Layer("decoder.aspp.conv2.0", "decoder.aspp.conv2.1"),
            **{f"atrous{i}": _Layer(f"decoder.aspp.conv{i + 2}.0", f"decoder.aspp.conv{i + 2}.1") for i in (1, 2, 3)},
            "projection": _Layer("decoder.head.0", "decoder.head.1"),
            "low_level": _Layer("decoder.low_conv.0", "decoder.low_conv.1"),
            "fuse1": _Layer("decoder.classifier.0", "decoder.classifier.1"),
            "fuse2": _Layer("decoder.classifier.4", "decoder.classifier.5"),
            "last": _Layer("decoder.classifier.8"),
        },
        options=U2PL,
        pooling_last=False,
        passed_over=("decoder.representation.", "auxor."),
    ),
    "unimatch": _Model(
        encoder="backbone.",
        layers={
            "pooling": _Layer("head.b4.gap.1", "head.b4.gap.2"),
            "point": _Layer("head.b0.0", "head.b0.1"),
            **{f"atrous{i}": _Layer(f"head.b{i}.0", f"head.b{i}.1") for i in (1, 2, 3)},
            "projection": _Layer("head.project.0", "head.project.1"),
            "low_level": _Layer("reduce.0", "reduce.1"),
            "fuse1": _Layer("fuse.0", "fuse.1"),
            "fuse2": _Layer("fuse.3", "fuse.4"),
            "last": _Layer("classifier"),
        },
        options=DeepLabOptions(),
        pooling_last=True,
        passed_over=(),
    ),
}


def convert(
    tensors: Tensors, source: str, arch: str, *, width: float = 1.0, decoder: DeepLabOptions | None = None
) -> Converted:
    """Arranges a ResNet's tensors, or a full DeepLabV3+'s, as this library's variables.

    Kernels OIHW become HWIO; the bias of a convolution before BatchNorm goes into the running mean, which changes
    nothing, not even in training; where branches are joined in another order, the kernel behind them is reordered.
    ImageNet's classifier and step counters are passed over, as are U2PL's representation and auxiliary heads; the log
    says so.

    Args:
      tensors: by name, any floating dtype.
      source: one of `SOURCES`. With "u2pl" and "unimatch" either a full model, or the encoder alone as they start from.
      arch: "resnet18", "resnet34", "resnet50" or "resnet101".
      width: factor on the encoder's channels.
      decoder: a full model's form; None for the source's own.

    Raises:
      WeightsError: what to do, and the first of the tensors that are missing, unknown or of the wrong shape.
    """
    if source not in SOURCES or arch not in BLOCKS:
        raise WeightsError(f"{arch} of {source}: there are {', '.join(BLOCKS)} of {', '.join(SOURCES)}")
    place = locate(tensors, source)
    tensors, model = below(tensors, place.root), _MODELS.get(place.source)
    stem = "7x7" if place.source == "transformers" else _stem(tensors, model.encoder if model else "")
    options = decoder or (model.options if model else DeepLabOptions())
    layout = _layout(arch, stem, width, options, _classes(tensors, model))
    filled, used, problems = _fill(layout, tensors, _naming(place.source, model, stem), model, options)
    rest = sorted(set(tensors) - used)
    dropped = [name for name in rest if _is_dropped(name, model)]
    problems += [f"{name} is unknown" for name in sorted(set(rest) - set(dropped))]
    if problems:
        raise WeightsError(
            f"{_remedy(tensors, arch)}\n"
            f"the tensors do not make a {arch} of {source} ({stem} stem): {shortened(sorted(problems), 3)}"
        )
    _report(dropped)
    variables = nested(filled)
    return Converted(Variables(variables["params"], variables["batch_stats"]), stem)


def _fill(
    layout: Mapping[Path, tuple[int, ...]],
    tensors: Tensors,
    name_layer: Callable[[Path], _Layer],
    model: _Model | None,
    options: DeepLabOptions,
) -> tuple[dict[Path, np.ndarray], set[str], list[str]]:
    """The layout's values, the names of the tensors that they came from, and in words what is missing or does not fit."""
    values, used, problems = {}, set(), []
    for path, shape in layout.items():
        layer = name_layer(path)
        name, bias = _tensor_name(layer, path), f"{layer.conv}.bias" if path[-1] == "mean" else ""
        used |= {name, bias}
        if name not in tensors:
            problems.append(f"{name} is missing")
            continue
        value = _arranged(tensors[name], path, model, options)
        if value.shape != shape:
            problems.append(f"{name} has shape {tensors[name].shape}, as HWIO {value.shape}, the network wants {shape}")
        elif bias in tensors and tensors[bias].shape != shape:
            problems.append(f"{bias} has shape {tensors[bias].shape}, the network wants {shape}")
        else:
            value = value.astype(np.float32)
            values[path] = value - np.asarray(tensors[bias], np.float32) if bias in tensors else value
    return values, used, problems


def _remedy(tensors: Tensors, arch: str) -> str:
    """What to do about tensors that do not make a ResNet, told by its depth."""
    name = depth(tensors)
    if name == arch:
        return f"take weights of a plain {arch}, as wide as model.width says: no wide one, no ResNeXt, no other layers"
    if name in BLOCKS:
        return f"set --arch={name} (model.encoder={name} in a training): the tensors are a {name}'s"
    return f"take weights of {', '.join(BLOCKS)}: the tensors are a {name}'s, which is not among the encoders here"


def leaves(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves of nested dicts with their paths."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The nested dicts that `leaves` came from."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = value
    return tree


def _layout(arch: str, stem: str, width: float, options: DeepLabOptions, classes: int) -> dict[Path, tuple[int, ...]]:
    """The shapes of the network to fill, by path; without classes, the encoder's alone."""
    heads = (HeadSpec(SEGMENTATION, classes),) if classes else ()
    network = deeplab_network(encoder=arch, stem=stem, width=width, heads=heads, decoder=options)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in leaves(variables._asdict())}


def _stem(tensors: Tensors, prefix: str) -> str:
    if f"{prefix}conv1.0.weight" not in tensors:
        return "7x7"
    shortcut = tensors.get(f"{prefix}layer2.0.downsample.0.weight")
    return "d" if shortcut is None else "deep"


def _classes(tensors: Tensors, model: _Model | None) -> int:
    if model is None:
        return 0
    last = f"{model.layers['last'].conv}.weight"
    if last not in tensors:
        raise WeightsError(f"the tensors do not make a full model: {last} is missing")
    return tensors[last].shape[0]


def _naming(source: str, model: _Model | None, stem: str) -> Callable[[Path], _Layer]:
    """What the layer of one of our paths is called in the source."""
    if source == "transformers":
        return _transformers_layer
    if model is None:
        return lambda path: _torchvision_layer(path, "", stem)
    return lambda path: _torchvision_layer(path, model.encoder, stem) if path[1] == "encoder" else model.layers[path[2]]


def _torchvision_layer(path: Path, prefix: str, stem: str) -> _Layer:
    """E.g. (params, encoder, layer3_block2, conv1, conv, kernel) -> layer3.2.conv1, layer3.2.bn1."""
    stems = {
        "stem": _Layer("conv1", "bn1"),
        "stem1": _Layer("conv1.0", "conv1.1"),
        "stem2": _Layer("conv1.3", "conv1.4"),
        "stem3": _Layer("conv1.6", "bn1"),
    }
    if path[2] in stems:
        conv, norm = stems[path[2]]
    else:
        block = path[2].replace("_block", ".")
        if path[3] == "downsample":
            first = 1 if stem == "d" else 0  # ResNet-D's averaging stands before the convolution
            conv, norm = f"{block}.downsample.{first}", f"{block}.downsample.{first + 1}"
        else:
            conv, norm = f"{block}.{path[3]}", f"{block}.{path[3].replace('conv', 'bn')}"
    return _Layer(prefix + conv, prefix + norm)


def _transformers_layer(path: Path) -> _Layer:
    """E.g. (params, encoder, layer3_block2, conv1, conv, kernel) -> encoder.stages.2.layers.2.layer.0.convolution."""
    if path[2] == "stem":
        place = "embedder.embedder"
    else:
        layer, block = path[2].removeprefix("layer").split("_block")
        inner = "shortcut" if path[3] == "downsample" else f"layer.{int(path[3].removeprefix('conv')) - 1}"
        place = f"encoder.stages.{int(layer) - 1}.layers.{block}.{inner}"
    return _Layer(f"{place}.convolution", f"{place}.normalization")


def _tensor_name(layer: _Layer, path: Path) -> str:
    if path[-2] in ("conv", "last"):
        return f"{layer.conv}.{'weight' if path[-1] == 'kernel' else 'bias'}"
    return f"{layer.norm}.{_NORM[path[-1]]}"


def _arranged(value: np.ndarray, path: Path, model: _Model | None, options: DeepLabOptions) -> np.ndarray:
    if path[-1] != "kernel" or value.ndim != 4:
        return value
    kernel = value.transpose(2, 3, 1, 0)
    if model and path[2] == "fuse1":  # both join (low level, pyramid), this library (pyramid, low level)
        return np.roll(kernel, -options.low_level_channels, axis=2)
    if model and path[2] == "projection" and model.pooling_last:
        return np.roll(kernel, options.channels, axis=2)
    return kernel


def _is_dropped(name: str, model: _Model | None) -> bool:
    if name.endswith(".num_batches_tracked"):
        return True
    prefixes = model.passed_over if model else ("fc.", "classifier.")
    return name.startswith(prefixes)


def _report(dropped: list[str]) -> None:
    counters = [name for name in dropped if name.endswith(".num_batches_tracked")]
    others = [name for name in dropped if name not in counters]
    if counters:
        log.info("passed over: %d num_batches_tracked", len(counters))
    if others:
        log.info("passed over: %s", shortened(others))
