"""Pretrained weights for a network: where they come from, and whether they fit it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import Variables
from forec_jax.files import sha256_of
from forec_jax.models import hub
from forec_jax.models.convert import SEGMENTATION, convert, leaves, nested
from forec_jax.models.encoders.mobilenet_v2 import MobileNetV2
from forec_jax.models.naming import WeightsError, choose_network, locate, shortened
from forec_jax.models.weightfile import Origin, read_origin, read_tensors, read_variables, write_variables

log = logging.getLogger(__name__)

_CLASSIFIER = ("Conv_1_", "Logits_")  # what follows the encoder in the published classifier
_NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def load_weights(source: str | PathLike[str], encoder: str, *, stem: str = "7x7", width: float = 1.0) -> Variables:
    """Reads pretrained weights, as dicts by part: "encoder", and "segmentation" where a full model was stored.

    Args:
      source: a file, or `hf:OWNER/NAME[@REVISION][#sha256=...]` for a model.safetensors on the Hugging Face hub. For
        mobilenet_v2 an .npz of TF-slim's MobileNetV2, keys like `expanded_conv_3_expand_weights`. For a ResNet what
        `forec-jax convert` wrote, or tensors whose names tell whose they are.
      encoder: one of `ENCODERS`.
      stem: of a ResNet, as `deeplab_network` takes it.
      width: factor on the encoder's channels.

    Returns:
      params and batch_stats, float32.

    Raises:
      WeightsError: the weights cannot be read, or are another network's; names the file and the first misfitting tensors.
    """
    text = fspath(source)
    path = hub.fetch(text) if text.startswith(hub.PREFIX) else Path(text)
    with _naming(text):
        return _read_weights(text, path, encoder, stem, width)


def _read_weights(text: str, path: Path, encoder: str, stem: str, width: float) -> Variables:
    if encoder == "mobilenet_v2":
        if path.suffix != ".npz":
            raise WeightsError(f"{text}: mobilenet_v2 takes TF-slim's weights, an .npz")
        weights = mobilenet_v2_from_slim(read_tensors(path), width)
        return Variables({"encoder": weights.params}, {"encoder": weights.batch_stats})
    origin = read_origin(path) if path.suffix == ".safetensors" and path.is_file() else None
    if origin is None:
        hub.check_computes_alike(path)
        tensors = choose_network(read_tensors(path), None)
        converted = convert(tensors, locate(tensors).source, encoder, width=width)
        _check_stem(text, (encoder, converted.stem), (encoder, stem))
        return converted.variables
    _check_stem(text, (origin.arch, origin.stem), (encoder, stem))
    return read_variables(path)


@contextmanager
def _naming(text: str) -> Iterator[None]:
    """Puts the name of a file's weights before what is wrong with them."""
    try:
        yield
    except WeightsError as error:
        if text in str(error):
            raise
        raise WeightsError(f"{text}: {error}") from error


def convert_file(path: Path, out: Path, source: str, arch: str, network: str | None) -> tuple[Variables, Origin]:
    """Converts a file of another project's tensors into one of this library's; returns what it wrote.

    Args:
      path: what `read_tensors` reads.
      out: the .safetensors to write.
      source: one of `naming.SOURCES`.
      arch: a ResNet's name.
      network: of a checkpoint, "student", "teacher", or None for the teacher where there is one.

    Raises:
      WeightsError: as `read_tensors`, `choose_network` and `convert`.
    """
    with _naming(str(path)):
        hub.check_computes_alike(path)
        converted = convert(choose_network(read_tensors(path), network), source, arch)
    origin = Origin(arch, converted.stem, source, sha256_of(path))
    write_variables(out, converted.variables, origin)
    return converted.variables, origin


def fitting_weights(weights: Variables, layout: Variables) -> Variables:
    """What of `weights` a network takes: the whole encoder, and the segmentation head if its form is the same.

    A head for another number of classes gives all but its last layer; the log says what was left out.

    Args:
      weights: as `load_weights` returns them.
      layout: the network's variables, or their shapes.

    Raises:
      WeightsError: the encoder does not fit; names the tensors.
    """
    if problems := _misfits(weights, layout, "encoder"):
        raise WeightsError(
            "set model.encoder, model.stem and model.width as the weights were trained with, or take other weights\n"
            f"the weights do not fit the encoder: {shortened(list(problems.values()), 3)}"
        )
    parts = ["encoder"]
    if SEGMENTATION in weights.params and SEGMENTATION in layout.params:
        problems = _misfits(weights, layout, SEGMENTATION)
        body = [text for path, text in problems.items() if path[2] != "last"]
        if body:
            log.warning("the segmentation head starts from random values, its form is another: %s", shortened(body, 5))
        else:
            parts.append(SEGMENTATION)
        if problems and not body:
            log.warning("the last layer starts from random values: %s", "; ".join(problems.values()))
            head = {name: layer for name, layer in weights.params[SEGMENTATION].items() if name != "last"}
            weights = weights._replace(params={**weights.params, SEGMENTATION: head})
    return Variables(*({part: tree[part] for part in parts} for tree in weights))


def filled(variables: Variables, weights: Variables) -> Variables:
    """The variables of a network with the `fitting_weights` in their places."""
    return Variables(
        *(
            {**tree, **{part: {**tree[part], **jax.tree.map(jnp.asarray, layers)} for part, layers in given.items()}}
            for tree, given in zip(variables, weights, strict=True)
        )
    )


def _misfits(weights: Variables, layout: Variables, part: str) -> dict[tuple[str, ...], str]:
    """What differs between a part's tensors and its layout, by path."""
    given, wanted = (
        {path: leaf.shape for path, leaf in leaves(tree._asdict()) if path[1] == part} for tree in (weights, layout)
    )
    return {
        path: f"{'/'.join(path)} is {given.get(path, 'missing')}, the network wants {wanted.get(path, 'no such tensor')}"
        for path in sorted(given.keys() | wanted.keys())
        if given.get(path) != wanted.get(path)
    }


def _check_stem(text: str, stored: tuple[str, str], wanted: tuple[str, str]) -> None:
    if stored != wanted:
        raise WeightsError(
            f"{text} holds a {stored[0]} with the {stored[1]!r} stem, the network is a {wanted[0]} with the "
            f"{wanted[1]!r} stem; set model.encoder={stored[0]} and model.resnet.stem={stored[1]}, or choose other weights"
        )


def mobilenet_v2_from_slim(tensors: Mapping[str, np.ndarray], width: float = 1.0) -> Variables:
    """Arranges TF-slim's tensors as MobileNetV2's variables; errors as in `load_weights`."""
    module = MobileNetV2(train=False, width=width)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    layout = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    wanted = {path: _slim_name(path) for path, _ in leaves(layout)}
    problems = [f"{name} is missing" for name in wanted.values() if name not in tensors]
    known = set(wanted.values())
    problems += [f"{name} is unknown" for name in tensors if name not in known and not name.startswith(_CLASSIFIER)]
    for path, leaf in leaves(layout):
        value = tensors.get(wanted[path])
        if value is not None and _arranged(path, value).shape != leaf.shape:
            problems.append(f"{wanted[path]} has shape {value.shape}, the network wants {leaf.shape}")
    if problems:
        raise WeightsError("weights do not fit mobilenet_v2: " + "; ".join(sorted(problems)))
    tree = nested({path: np.asarray(_arranged(path, tensors[name]), np.float32) for path, name in wanted.items()})
    return Variables(tree["params"], tree["batch_stats"])


def _slim_name(path: tuple[str, ...]) -> str:
    """E.g. (params, block3, expand, conv, kernel) -> expanded_conv_3_expand_weights."""
    _, block, *inner, kind, leaf = path
    if block == "stem":
        layer = "Conv"
    else:
        index = int(block.removeprefix("block"))
        layer = f"expanded_conv_{index}_{inner[0]}" if index else f"expanded_conv_{inner[0]}"
    if kind == "norm":
        return f"{layer}_BatchNorm_{_NORM[leaf]}"
    return f"{layer}_depthwise_weights" if inner == ["depthwise"] else f"{layer}_weights"


def _arranged(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """TF keeps depthwise kernels as (h, w, C, 1), JAX as (h, w, 1, C)."""
    return value.swapaxes(2, 3) if "depthwise" in path and value.ndim == 4 else value
