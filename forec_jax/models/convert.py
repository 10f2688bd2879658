"""PyTorch's tensors, in other projects' naming, arranged as this library's variables.

A naming says what each of our tensors is called elsewhere; everything else (what is missing, unknown or of the wrong
shape) follows from comparing the names with the network's own layout. Only the names and shapes are other projects'.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from forec_jax.contracts import HeadSpec, Variables
from forec_jax.models.decoders.deeplab import U2PL, DeepLabOptions
from forec_jax.models.encoders.efficientnet_lite import VARIANTS
from forec_jax.models.encoders.resnet import BLOCKS
from forec_jax.models.inverted_names import FORMS, PASSED_OVER, layer_of, variant_of, width_of
from forec_jax.models.naming import (
    LITE,
    MOBILENET,
    RESNET,
    SOURCES,
    Layer,
    Path,
    Place,
    Tensors,
    WeightsError,
    below,
    depth,
    locate,
    shortened,
)
from forec_jax.models.zoo import deeplab_network

log = logging.getLogger(__name__)

ARCHS = (*BLOCKS, MOBILENET, *VARIANTS)

SEGMENTATION = "segmentation"  # the head that a full model's decoder becomes

_ENDINGS = {"kernel": ".weight", "scale": ".weight", "bias": ".bias", "mean": ".running_mean", "var": ".running_var"}
_SLIM = {"kernel": "_weights", "scale": "_gamma", "bias": "_beta", "mean": "_moving_mean", "var": "_moving_variance"}


class _Converted(NamedTuple):
    """Another project's tensors in this library's layout, and which network they fill."""

    variables: Variables  # dicts by part: "encoder", and SEGMENTATION for a full model; NumPy, float32
    stem: str  # of a ResNet; of a MobileNetV2 its form; empty of others


class _Naming(NamedTuple):
    """How a source's tensors stand for this library's."""

    layer: Callable[[Path], Layer]  # what the layer of one of our paths is called
    arrange: Callable[[np.ndarray, Path], np.ndarray]  # a tensor as it stands at one of our paths
    endings: Mapping[str, str]  # of the names, by the last step of our paths
    passed_over: tuple[str, ...]  # prefixes of what this library's network does not have


@dataclass(frozen=True)
class _Model:
    """A full model's naming."""

    encoder: str  # prefix of the encoder's tensors
    layers: Mapping[str, Layer]  # of the decoder, by our layers' names
    options: DeepLabOptions
    pooling_last: bool  # where the pooled branch stands among the joined ones; here it is the first
    passed_over: tuple[str, ...]  # prefixes of what this library's model does not have


_MODELS = {
    "u2pl": _Model(
        encoder="encoder.",
        layers={
            "pooling": Layer("decoder.aspp.conv1.1", "decoder.aspp.conv1.2"),
            "point": Layer("decoder.aspp.conv2.0", "decoder.aspp.conv2.1"),
            **{f"atrous{i}": Layer(f"decoder.aspp.conv{i + 2}.0", f"decoder.aspp.conv{i + 2}.1") for i in (1, 2, 3)},
            "projection": Layer("decoder.head.0", "decoder.head.1"),
            "low_level": Layer("decoder.low_conv.0", "decoder.low_conv.1"),
            "fuse1": Layer("decoder.classifier.0", "decoder.classifier.1"),
            "fuse2": Layer("decoder.classifier.4", "decoder.classifier.5"),
            "last": Layer("decoder.classifier.8"),
        },
        options=U2PL,
        pooling_last=False,
        passed_over=("decoder.representation.", "auxor."),
    ),
    "unimatch": _Model(
        encoder="backbone.",
        layers={
            "pooling": Layer("head.b4.gap.1", "head.b4.gap.2"),
            "point": Layer("head.b0.0", "head.b0.1"),
            **{f"atrous{i}": Layer(f"head.b{i}.0", f"head.b{i}.1") for i in (1, 2, 3)},
            "projection": Layer("head.project.0", "head.project.1"),
            "low_level": Layer("reduce.0", "reduce.1"),
            "fuse1": Layer("fuse.0", "fuse.1"),
            "fuse2": Layer("fuse.3", "fuse.4"),
            "last": Layer("classifier"),
        },
        options=DeepLabOptions(),
        pooling_last=True,
        passed_over=(),
    ),
}


def convert(
    tensors: Tensors, source: str, arch: str, *, width: float = 1.0, decoder: DeepLabOptions | None = None
) -> _Converted:
    """Arranges an encoder's tensors, or a full DeepLabV3+'s, as this library's variables.

    Kernels OIHW become HWIO; the bias of a convolution before BatchNorm goes into the running mean, which changes
    nothing, not even in training; where branches are joined in another order, the kernel behind them is reordered.
    ImageNet's classifier and step counters are passed over, as are U2PL's representation and auxiliary heads; the log
    says so.

    Args:
      tensors: by name, any floating dtype.
      source: one of `SOURCES`. With "u2pl" and "unimatch" either a full model, or the encoder alone as they start from.
      arch: one of `ARCHS`.
      width: factor on the encoder's channels.
      decoder: a full model's form; None for the source's own.

    Raises:
      WeightsError: what to do, and the first of the tensors that are missing, unknown or of the wrong shape.
    """
    if source not in SOURCES or arch not in ARCHS:
        raise WeightsError(f"{arch} of {source}: there are {', '.join(ARCHS)} of {', '.join(SOURCES)}")
    place = locate(tensors, source)
    _check_family(tensors, place, arch)
    tensors, model = below(tensors, place.root), _MODELS.get(place.source)
    stem = _form(tensors, place, model)
    options = decoder or (model.options if model else DeepLabOptions())
    layout = _layout(arch, stem, width, options, _classes(tensors, model))
    naming = _naming(place, model, arch, stem, options)
    filled, used, problems = _fill(layout, tensors, naming)
    rest = sorted(set(tensors) - used)
    dropped = [name for name in rest if name.endswith(".num_batches_tracked") or name.startswith(naming.passed_over)]
    problems += [f"{name} is unknown" for name in sorted(set(rest) - set(dropped))]
    if problems:
        raise WeightsError(
            f"{_remedy(tensors, place, arch, width)}\n"
            f"the tensors do not make {arch} of {source}{stem and f' ({stem})'}: {shortened(sorted(problems), 3)}"
        )
    _report(dropped)
    variables = nested(filled)
    return _Converted(Variables(variables["params"], variables["batch_stats"]), stem)


def _fill(
    layout: Mapping[Path, tuple[int, ...]],
    tensors: Tensors,
    naming: _Naming,
) -> tuple[dict[Path, np.ndarray], set[str], list[str]]:
    """The layout's values, the names of the tensors that they came from, and in words what is missing or does not fit."""
    values, used, problems = {}, set(), []
    for path, shape in layout.items():
        layer = naming.layer(path)
        name = (layer.conv if path[-2] in ("conv", "last") else layer.norm) + naming.endings[path[-1]]
        bias = f"{layer.conv}.bias" if path[-1] == "mean" else ""
        used |= {name, bias}
        if name not in tensors:
            problems.append(f"{name} is missing")
            continue
        value = naming.arrange(tensors[name], path)
        if value.shape != shape:
            problems.append(f"{name} has shape {tensors[name].shape}, as HWIO {value.shape}, the network wants {shape}")
        elif bias in tensors and tensors[bias].shape != shape:
            problems.append(f"{bias} has shape {tensors[bias].shape}, the network wants {shape}")
        else:
            value = value.astype(np.float32)
            values[path] = value - np.asarray(tensors[bias], np.float32) if bias in tensors else value
    return values, used, problems


def family_of(arch: str) -> str:
    """The family that one of `ARCHS` belongs to."""
    return LITE if arch in VARIANTS else MOBILENET if arch == MOBILENET else RESNET


def _check_family(tensors: Tensors, place: Place, arch: str) -> None:
    """Raises WeightsError where the file holds another kind of encoder than is wanted."""
    if place.family != family_of(arch):
        held = _held(tensors, place)
        raise WeightsError(
            f"set --arch={held} (model.encoder={held} in a training), or take weights of {arch}\n"
            f"the tensors are those of {held}, not of {arch}"
        )


def _held(tensors: Tensors, place: Place) -> str:
    """What the encoder in a file is called, as far as it can be told."""
    if place.family == LITE:
        return variant_of(below(tensors, place.root), place.source) or LITE
    return MOBILENET if place.family == MOBILENET else depth(tensors)


def _remedy(tensors: Tensors, place: Place, arch: str, width: float) -> str:
    """What to do about tensors that do not make the encoder, told by its depth or its width."""
    if place.family == LITE:
        variant = variant_of(tensors, place.source)
        if variant not in (None, arch):
            return f"set --arch={variant} (model.encoder={variant} in a training): the tensors are those of {variant}"
        return f"take weights of a plain {arch}, and set model.efficientnet_lite.width=1"
    if place.family == MOBILENET:
        stored = width_of(tensors, place.source)
        if stored not in (None, width):
            return (
                f"set model.mobilenet_v2.width={stored:g} and model.weights to this file: it is a {arch} of that width"
            )
        return f"take weights of a plain {arch} of width {width:g}, as model.mobilenet_v2.width says"
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
    form: dict[str, Any] = {RESNET: {"stem": stem}, MOBILENET: {"form": stem}}.get(family_of(arch), {})
    network = deeplab_network(encoder=arch, width=width, heads=heads, decoder=options, **form)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in leaves(variables._asdict())}


def _form(tensors: Tensors, place: Place, model: _Model | None) -> str:
    """The stem of a ResNet, by its tensors; the form of a MobileNetV2, by whose they are; other families have one."""
    if place.family != RESNET:
        return FORMS[place.source] if place.family == MOBILENET else ""
    prefix = model.encoder if model else ""
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


def _naming(place: Place, model: _Model | None, arch: str, stem: str, options: DeepLabOptions) -> _Naming:
    """How the tensors at a place stand for those of a network."""
    if place.source == "slim":
        return _Naming(layer_of("slim", arch), _from_tensorflow, _SLIM, PASSED_OVER["slim"])
    if place.family != RESNET:
        return _Naming(layer_of(place.source, arch), _from_pytorch, _ENDINGS, PASSED_OVER[place.source])
    if model is None:
        named = _transformers_layer if place.source == "transformers" else partial(_torchvision_layer, stem=stem)
        return _Naming(named, _from_pytorch, _ENDINGS, ("fc.", "classifier."))
    whole = partial(_layer_of_model, model=model, stem=stem)
    return _Naming(whole, partial(_from_model, model=model, options=options), _ENDINGS, model.passed_over)


def _layer_of_model(path: Path, model: _Model, stem: str) -> Layer:
    return _torchvision_layer(path, stem, model.encoder) if path[1] == "encoder" else model.layers[path[2]]


def _torchvision_layer(path: Path, stem: str, prefix: str = "") -> Layer:
    """E.g. (params, encoder, layer3_block2, conv1, conv, kernel) -> layer3.2.conv1, layer3.2.bn1."""
    stems = {
        "stem": Layer("conv1", "bn1"),
        "stem1": Layer("conv1.0", "conv1.1"),
        "stem2": Layer("conv1.3", "conv1.4"),
        "stem3": Layer("conv1.6", "bn1"),
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
    return Layer(prefix + conv, prefix + norm)


def _transformers_layer(path: Path) -> Layer:
    """E.g. (params, encoder, layer3_block2, conv1, conv, kernel) -> encoder.stages.2.layers.2.layer.0.convolution."""
    if path[2] == "stem":
        place = "embedder.embedder"
    else:
        layer, block = path[2].removeprefix("layer").split("_block")
        inner = "shortcut" if path[3] == "downsample" else f"layer.{int(path[3].removeprefix('conv')) - 1}"
        place = f"encoder.stages.{int(layer) - 1}.layers.{block}.{inner}"
    return Layer(f"{place}.convolution", f"{place}.normalization")


def _from_pytorch(value: np.ndarray, path: Path) -> np.ndarray:
    """Kernels are OIHW there, and HWIO here."""
    return value.transpose(2, 3, 1, 0) if path[-1] == "kernel" and value.ndim == 4 else value


def _from_tensorflow(value: np.ndarray, path: Path) -> np.ndarray:
    """Depthwise kernels are (h, w, C, 1) there, and (h, w, 1, C) here."""
    return value.swapaxes(2, 3) if "depthwise" in path and value.ndim == 4 else value


def _from_model(value: np.ndarray, path: Path, model: _Model, options: DeepLabOptions) -> np.ndarray:
    kernel = _from_pytorch(value, path)
    if path[-1] != "kernel" or value.ndim != 4:
        return kernel
    if path[2] == "fuse1":  # both join (low level, pyramid), this library (pyramid, low level)
        return np.roll(kernel, -options.low_level_channels, axis=2)
    if path[2] == "projection" and model.pooling_last:
        return np.roll(kernel, options.channels, axis=2)
    return kernel


def _report(dropped: list[str]) -> None:
    counters = [name for name in dropped if name.endswith(".num_batches_tracked")]
    others = [name for name in dropped if name not in counters]
    if counters:
        log.info("passed over: %d num_batches_tracked", len(counters))
    if others:
        log.info("passed over: %s", shortened(others))
