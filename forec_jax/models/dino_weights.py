"""Pretrained DINOv2 and DINOv3 weights: Facebook's, timm's and transformers' names, and UniMatch V2's whole models.

Only names and shapes are other projects'. All are first read by one set of names, which is nearly Facebook's; what each
tensor here is called there is one table, and what is missing or left over follows from it.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forec_jax.contracts import Variables
from forec_jax.files import sha256_of
from forec_jax.models.convert import SEGMENTATION, nested
from forec_jax.models.encoders import dinov2, dinov3
from forec_jax.models.encoders.dinov2 import DinoV2Options
from forec_jax.models.encoders.dinov3 import DinoV3Options
from forec_jax.models.encoders.transformer import Size
from forec_jax.models.naming import UNIMATCH_V2, Tensors, WeightsError, below, choose_network, shortened
from forec_jax.models.pretrained import file_of
from forec_jax.models.weightfile import Origin, read_origin, read_tensors, read_variables, write_variables

log = logging.getLogger(__name__)

_FIRST = (  # what the name of a network's first layer ends in
    "blocks.0.attn.qkv.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
)
_LAYER = r"(?:encoder\.|model\.)?layer\.(\d+)\."  # of transformers
_OF_BLOCK = re.compile(rf"{_LAYER}|blocks\.(\d+)\.")
_NAMES = {  # other names, as regular expressions -> the one here; those that are not listed are as here
    r"storage_tokens|reg_token|embeddings\.register_tokens": "register_tokens",
    r"blocks\.(\d+)\.mlp\.w12\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"blocks\.(\d+)\.mlp\.w3\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"embeddings\.(cls_token|mask_token)": r"\1",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.(?:projection\.)?(\w+)": r"patch_embed.proj.\1",
    _LAYER + r"(norm[12]\.\w+|mlp\.fc[12]\.\w+)": r"blocks.\1.\2",
    _LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)": r"blocks.\1.attn.proj.\2",
    _LAYER + r"layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    _LAYER + r"mlp\.(?:weights_in|up_proj)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    _LAYER + r"mlp\.(?:weights_out|down_proj)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"layernorm\.(\w+)": r"norm.\1",
}
_PARTS = (  # of a layer here, from the top on; a key's bias may be missing, and is zero then
    ("attn.qkv", ("attention.attention.query", "attention.attention.key", "attention.attention.value")),
    ("attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
    ("mlp.fc1", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.fc1", ("mlp.w1", "mlp.w2")),
)
_PASSED_OVER = (
    "mask_token",
    "head.scratch.refinenet4.resConfUnit1.",
    "classifier.",
    "depth_head.",
    "rope",
    "local_cls_norm.",
)


class _Layout(NamedTuple):
    """What the names of an encoder's tensors follow from."""

    variant: str
    size: Size
    registers: bool
    positions: bool  # whether it has a table of them
    key_bias: bool


def load_dinov2(source: str, variant: str, o: DinoV2Options) -> Variables:
    """Weights of a DINOv2, and of UniMatch V2's segmentation head where a whole model was stored.

    Args:
        source: a file, or `hf:OWNER/NAME[@REVISION][#sha256=...]`.
        variant: a key of `dinov2.SIZES`.
        o: the encoder's form.

    Raises:
        WeightsError: the file cannot be read or holds another network; names it and the first tensors.
    """
    path = file_of(source)
    origin = read_origin(path) if path.suffix == ".safetensors" and path.is_file() else None
    if origin is None:
        return _variables(choose_network(read_tensors(path), None), source, _layout(variant, o))
    if origin.arch != variant or o.registers:
        remedy = "model.dinov2.registers=False" if origin.arch == variant else f"model.encoder={origin.arch}"
        raise WeightsError(f"set {remedy}, or take other weights\n{source}: these weights are of {origin.arch} alone")
    return read_variables(path, statistics=False)


def load_dinov3(source: str, variant: str, o: DinoV3Options) -> Variables:
    """The same of a DINOv3; raises WeightsError as well where its licence was not accepted."""
    if not o.licence_accepted:
        raise WeightsError(
            "set model.dinov3.licence_accepted=True if you accept Meta's DINOv3 licence (docs/weights.md)\n"
            f"{source}: it binds these weights and every network trained from them"
        )
    layout = _Layout(variant, dinov3.size_of(variant, o), registers=True, positions=False, key_bias=False)
    return _variables(choose_network(read_tensors(file_of(source)), None), source, layout)


def convert_unimatch_v2(path: Path, out: Path, arch: str, network: str | None) -> tuple[Variables, Origin]:
    """Converts a checkpoint of UniMatch V2, encoder and head, into a file of this library's; returns what it wrote.

    Args:
        path: what `read_tensors` reads.
        out: the .safetensors to write.
        arch: a key of `dinov2.SIZES`.
        network: of a checkpoint, "student", "teacher", or None for the teacher where there is one.

    Raises:
        WeightsError: the checkpoint cannot be read, is of another encoder, or holds no head.
    """
    if arch not in dinov2.SIZES:
        raise WeightsError(f"--arch={arch}: UniMatch V2 has {', '.join(dinov2.SIZES)}")
    tensors = choose_network(read_tensors(path), network)
    variables = _variables(tensors, str(path), _layout(arch, DinoV2Options()))
    if SEGMENTATION not in variables.params:
        raise WeightsError(
            f"{path}: there is no decoder (head.projects.0.weight); set model.weights to the file itself"
        )
    origin = Origin(arch, "", UNIMATCH_V2, sha256_of(path))
    write_variables(out, variables, origin)
    return variables, origin


def _layout(variant: str, o: DinoV2Options) -> _Layout:
    return _Layout(variant, dinov2.size_of(variant, o), o.registers, positions=True, key_bias=True)


def _variables(stored: Tensors, source: str, layout: _Layout) -> Variables:
    """A network's tensors, arranged as this library's variables."""
    tensors = _in_our_names(stored, source)
    _check_family(tensors, source, layout)
    head = _head_names() if "head.projects.0.weight" in tensors else {}
    wanted = _encoder_names(layout) | head
    if missing := sorted(name for name in wanted.values() if name not in tensors):
        raise WeightsError(
            "set model.encoder and its options as the weights were trained with, or take other weights\n"
            f"{source}: of a {layout.variant} these are missing: {shortened(missing, 3)}"
        )
    _report_rest(tensors, set(wanted.values()), source)
    try:
        params = nested({tuple(ours.split("/")): _arranged(tensors[theirs], ours) for ours, theirs in wanted.items()})
    except ValueError as error:
        raise WeightsError(f"take other weights\n{source}: a tensor has another shape ({error})") from error
    return Variables(params, {part: {} for part in params})  # a vision transformer has no running statistics


def _in_our_names(stored: Tensors, source: str) -> dict[str, np.ndarray]:
    """The tensors of the one network in a file, by the names used here."""
    roots = {name.removesuffix(first) for name in stored for first in _FIRST if f".{name}".endswith(f".{first}")}
    if len(roots) != 1:
        raise WeightsError(f"{source}: no DINO is found by its names (blocks.0.attn.qkv.weight), or several are")
    (root,) = roots
    above = root.removesuffix("backbone.")
    head = {name: value for name, value in stored.items() if name.startswith(f"{above}head.")}
    inner = below({name: value for name, value in stored.items() if name not in head}, root)
    named = {_name_of(name): value for name, value in inner.items()}
    return named | _joined(inner) | {name.removeprefix(above): value for name, value in head.items()}


def _name_of(theirs: str) -> str:
    """The name here of a tensor of another project's."""
    for pattern, ours in _NAMES.items():
        if match := re.fullmatch(pattern, theirs):
            return match.expand(ours)
    return theirs


def _joined(tensors: Tensors) -> dict[str, np.ndarray]:
    """What other projects store in parts."""
    found: dict[str, np.ndarray] = {}
    blocks = {match[0]: match[1] or match[2] for name in tensors if (match := _OF_BLOCK.match(name))}
    for block, index in blocks.items():
        for layer, parts in _PARTS:
            for ending in ("weight", "bias"):
                values = [tensors.get(f"{block}{part}.{ending}") for part in parts]
                if layer == "attn.qkv" and ending == "bias" and values[0] is not None and values[1] is None:
                    values[1] = np.zeros_like(values[0])
                whole = [value for value in values if value is not None]
                if len(whole) == len(parts):
                    found[f"blocks.{index}.{layer}.{ending}"] = np.concatenate(whole)
    return found


def _encoder_names(layout: _Layout) -> dict[str, str]:
    """The name of each of the encoder's tensors, by our path."""
    names = {
        "encoder/class_token": "cls_token",
        **_layer("encoder/patch", "patch_embed.proj"),
        **_norm("encoder/norm", "norm"),
    }
    if layout.positions:
        names["encoder/positions/kernel"] = "pos_embed"
    if layout.registers:
        names["encoder/registers"] = "register_tokens"
    for index in range(layout.size.blocks):
        ours, theirs = f"encoder/block{index}", f"blocks.{index}"
        names |= _norm(f"{ours}/norm1", f"{theirs}.norm1") | _norm(f"{ours}/norm2", f"{theirs}.norm2")
        names |= _layer(f"{ours}/qkv", f"{theirs}.attn.qkv") | _layer(f"{ours}/attended", f"{theirs}.attn.proj")
        names |= _layer(f"{ours}/hidden", f"{theirs}.mlp.fc1") | _layer(f"{ours}/output", f"{theirs}.mlp.fc2")
        names |= {f"{ours}/scale{number}": f"{theirs}.ls{number}.gamma" for number in (1, 2)}
        if not layout.key_bias:
            names[f"{ours}/query_value_bias"] = names.pop(f"{ours}/qkv/bias")
    return names


def _head_names() -> dict[str, str]:
    """The same of UniMatch V2's decoder, which becomes the segmentation's head."""
    ours = SEGMENTATION
    names: dict[str, str] = {}
    for index in range(4):
        names |= _layer(f"{ours}/project{index}", f"head.projects.{index}")
        names[f"{ours}/level{index}/kernel"] = f"head.scratch.layer{index + 1}_rn.weight"
        theirs = f"head.scratch.refinenet{index + 1}"
        names |= _layer(f"{ours}/fuse{index}_out", f"{theirs}.out_conv")
        for number in (1, 2):
            names |= _layer(f"{ours}/fuse{index}_conv{number}", f"{theirs}.resConfUnit2.conv{number}")
            if index < 3:
                names |= _layer(f"{ours}/fuse{index}_skip_conv{number}", f"{theirs}.resConfUnit1.conv{number}")
        if index != 2:  # there the map keeps its size
            names |= _layer(f"{ours}/resize{index}", f"head.resize_layers.{index}")
    names |= _layer(f"{ours}/fuse", "head.scratch.output_conv.0") | _layer(f"{ours}/last", "head.scratch.output_conv.2")
    return names


def _layer(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/kernel": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _arranged(value: np.ndarray, ours: str) -> np.ndarray:
    """A tensor as it stands at one of our paths, float32."""
    value = np.asarray(value, np.float32)
    if ours.startswith("encoder"):
        if ours.endswith("positions/kernel"):
            table = value.reshape(-1, value.shape[-1])
            # timm adds the class token's position to the token where there are registers.
            return table if len(table) % 2 == 0 else np.concatenate([np.zeros((1, table.shape[1]), np.float32), table])
        if ours.endswith(("class_token", "registers")):
            return value.reshape(-1, value.shape[-1])
        if ours.endswith("query_value_bias"):
            return value.reshape(3, -1)[[0, 2]]
        if ours.endswith("patch/kernel"):
            return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
        return value.T if ours.endswith("kernel") else value
    if ours.endswith(("resize0/kernel", "resize1/kernel")):
        return value.transpose(0, 2, 3, 1)  # a transposed convolution's: (in, out, rows, columns)
    return value.transpose(2, 3, 1, 0) if ours.endswith("kernel") else value


def _check_family(tensors: Tensors, source: str, layout: _Layout) -> None:
    """Raises WeightsError where the tensors are of another family, or have registers and the network none."""
    if ("pos_embed" in tensors) != layout.positions:
        held, wanted = ("dinov2", "dinov3") if "pos_embed" in tensors else ("dinov3", "dinov2")
        raise WeightsError(
            f"set model.encoder to a {held}_..., or take weights of {layout.variant}\n{source}: these weights are no "
            f"{wanted}'s: they have {'a' if held == 'dinov2' else 'no'} table of positions"
        )
    if "register_tokens" in tensors and not layout.registers:
        raise WeightsError(f"set model.dinov2.registers=True\n{source}: these weights have register tokens")


def _report_rest(tensors: Tensors, used: set[str], source: str) -> None:
    """Logs what was passed over; raises WeightsError where that means another network."""
    rest = sorted(
        name
        for name in tensors
        if name not in used and not name.startswith(_PASSED_OVER) and not name.endswith(".attn.qkv.bias_mask")
    )
    if blocks := [name for name in rest if re.match(r"blocks\.\d+\.norm1\.", name)]:
        raise WeightsError(
            f"set model.encoder to the weights' size\n{source}: there are more blocks than it has: {shortened(blocks, 3)}"
        )
    if rest:
        log.info("%s: passed over: %s", source, shortened(rest, 5))
