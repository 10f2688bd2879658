"""Pretrained weights for a network: where they come from, and whether they fit it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path

import jax
import jax.numpy as jnp

from forec_jax.contracts import Variables
from forec_jax.files import sha256_of
from forec_jax.models import hub, packaged
from forec_jax.models.convert import SEGMENTATION, convert, family_of, leaves
from forec_jax.models.naming import LITE, MOBILENET, RESNET, WeightsError, choose_network, locate, shortened
from forec_jax.models.weightfile import Origin, read_origin, read_tensors, read_variables, write_variables

log = logging.getLogger(__name__)

_DEEP = ("resnet50", "resnet101", "resnet152")  # whose weights with the deep stem are on the hub, of ImageNet


def load_weights(
    source: str | PathLike[str], encoder: str, *, stem: str = "7x7", form: str = "slim", width: float = 1.0
) -> Variables:
    """Reads pretrained weights, as dicts by part: "encoder", and "segmentation" where a full model was stored.

    Args:
      source: a file, or `hf:OWNER/NAME[@REVISION][#sha256=...]` for a model.safetensors on the Hugging Face hub:
        what `forec-jax convert` wrote, or tensors whose names tell whose they are; or one of `packaged.PACKAGES`.
      encoder: one of `ENCODERS`.
      stem: of a ResNet, as `deeplab_network` takes it.
      form: of a MobileNetV2, as `deeplab_network` takes it.
      width: factor on the encoder's channels.

    Returns:
      params and batch_stats, float32.

    Raises:
      WeightsError: the weights cannot be read, or are another network's; names the file and the first misfitting tensors.
    """
    text = fspath(source)
    chosen = {RESNET: stem, MOBILENET: form, LITE: ""}[family_of(encoder)]
    with _naming(text):
        return _read_weights(file_of(text), encoder, chosen, width)


def file_of(source: str) -> Path:
    """The file that a source of weights names."""
    if source in packaged.PACKAGES:
        return packaged.find(source)
    return hub.fetch(source) if source.startswith(hub.PREFIX) else Path(source)


def _read_weights(path: Path, encoder: str, form: str, width: float) -> Variables:
    origin = read_origin(path) if path.suffix == ".safetensors" and path.is_file() else None
    if origin is None:
        hub.check_computes_alike(path)
        tensors = choose_network(read_tensors(path), None)
        converted = convert(tensors, locate(tensors).source, encoder, width=width)
        _check_form((encoder, converted.stem), (encoder, form))
        return converted.variables
    _check_form((origin.arch, origin.stem), (encoder, form))
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
      arch: one of `convert.ARCHS`.
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
    """What of `weights` a network takes: the whole encoder, and every other part that has the same form in both.

    A segmentation head for another number of classes gives all but its last layer; the log says what of it was left out.

    Args:
      weights: as `load_weights` returns them.
      layout: the network's variables, or their shapes.

    Raises:
      WeightsError: the encoder does not fit; names the tensors.
    """
    if problems := _misfits(weights, layout, "encoder"):
        raise WeightsError(
            "set model.encoder, its stem or form and its width as the weights were trained with, or take other weights\n"
            f"the weights do not fit the encoder: {shortened(list(problems.values()), 3)}"
        )
    others = (weights.params.keys() & layout.params.keys()) - {"encoder", SEGMENTATION}
    parts = ["encoder", *(part for part in sorted(others) if not _misfits(weights, layout, part))]
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
    return Variables(*({part: tree[part] for part in parts if part in tree} for tree in weights))


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


def _check_form(stored: tuple[str, str], wanted: tuple[str, str]) -> None:
    """Raises WeightsError where an encoder is another one than the network's, or in another form."""
    if stored != wanted:
        arch, form = stored
        key = {RESNET: f"model.resnet.stem={form}", MOBILENET: f"model.mobilenet_v2.form={form}"}.get(family_of(arch))
        options = " and ".join(filter(None, (f"model.encoder={arch}", key)))
        held, needed = (name + (f" in the form {of!r}" if of else "") for name, of in (stored, wanted))
        raise WeightsError(
            f"set {options}, or {_weights_for(*wanted)}\nthese weights are of {held}, the network is {needed}"
        )


def _weights_for(encoder: str, form: str) -> str:
    """Where weights for an encoder in a form are to be had, in words."""
    if form == "deep" and encoder in _DEEP:
        return f"for the deep stem model.weights=hf:timm/{encoder}s.gluon_in1k"
    if encoder in packaged.PACKAGES:
        return f"model.weights={encoder}"
    return "take other weights (docs/weights.md)"
