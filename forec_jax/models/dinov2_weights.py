"""Pretrained DINOv2 weights: Facebook's, timm's and transformers' names, and UniMatch V2's whole models.

Only names and shapes are other projects'. All are first read as Facebook's; what each tensor here is called there is one
table, and what is missing or left over follows from it.
"""

import logging
import re

import numpy as np

from forec_jax.contracts import Variables
from forec_jax.models.convert import nested
from forec_jax.models.encoders.dinov2 import DinoV2Options, size_of
from forec_jax.models.naming import Tensors, WeightsError, below, choose_network, shortened
from forec_jax.models.pretrained import file_of
from forec_jax.models.weightfile import read_tensors

log = logging.getLogger(__name__)

_ROOT = "blocks.0.attn.qkv.weight"
_TRANSFORMERS = {  # transformers' names, old and new, as regular expressions -> Facebook's
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.register_tokens": "register_tokens",
    r"embeddings\.mask_token": "mask_token",
    r"embeddings\.patch_embeddings\.projection\.(weight|bias)": r"patch_embed.proj.\1",
    r"encoder\.layer\.(\d+)\.norm([12])\.(weight|bias)": r"blocks.\1.norm\2.\3",
    r"encoder\.layer\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(weight|bias)": r"blocks.\1.attn.proj.\2",
    r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    r"encoder\.layer\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)": r"blocks.\1.mlp.\2.\3",
    r"encoder\.layer\.(\d+)\.mlp\.weights_in\.(weight|bias)": r"blocks.\1.mlp.w12.\2",
    r"encoder\.layer\.(\d+)\.mlp\.(?:weights_out|down_proj)\.(weight|bias)": r"blocks.\1.mlp.w3.\2",
    r"layernorm\.(weight|bias)": r"norm.\1",
}
_JOINED = {  # parts that lie one below the other in one of Facebook's tensors
    "attn.qkv": (("attention.attention.query", "attention.attention.key", "attention.attention.value"),
                 ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
    "mlp.w12": (("mlp.gate_proj", "mlp.up_proj"),),
}  # fmt: skip
_PASSED_OVER = ("mask_token", "head.scratch.refinenet4.resConfUnit1.", "classifier.", "depth_head.")


def load_dinov2(source: str, variant: str, o: DinoV2Options) -> Variables:
    """Weights of a DINOv2, and of UniMatch V2's segmentation head where a whole model was stored.

    Args:
        source: a file, or `hf:OWNER/NAME[@REVISION][#sha256=...]`.
        variant: a key of `SIZES`.
        o: the encoder's form.

    Raises:
        WeightsError: the file cannot be read or holds another network; names it and the first tensors.
    """
    tensors = dict(_in_facebooks_names(choose_network(read_tensors(file_of(source)), None), source))
    wanted = {**_encoder_names(variant, o), **(_head_names() if "head.projects.0.weight" in tensors else {})}
    if o.registers and "reg_token" in tensors:
        tensors["register_tokens"] = tensors.pop("reg_token")
    if missing := sorted(name for name in wanted.values() if name not in tensors):
        raise WeightsError(
            f"set model.encoder and model.dinov2 as the weights were trained with, or take other weights\n{source}: of a "
            f"{variant} with registers={o.registers} these are missing: {shortened(missing, 3)}"
        )
    _report_rest(tensors, set(wanted.values()), source, o)
    params = nested({tuple(ours.split("/")): _arranged(tensors[theirs], ours) for ours, theirs in wanted.items()})
    return Variables(params, {part: {} for part in params})  # a vision transformer has no running statistics


def _in_facebooks_names(tensors: Tensors, source: str) -> Tensors:
    """The tensors by Facebook's names, those of one network alone."""
    roots = {name.removesuffix(_ROOT) for name in tensors if name.endswith(_ROOT)}
    if not roots:
        ends = ("encoder.layer.0.norm1.weight",)
        roots = {name.removesuffix(end) for name in tensors for end in ends if name.endswith(end)}
        tensors = _renamed(below(tensors, min(roots)) if roots else {})
        roots = {""} if _ROOT in tensors else set()
    if len(roots) != 1:
        raise WeightsError(f"{source}: no DINOv2 is found by its names (blocks.0.attn.qkv.weight), or several are")
    (root,) = roots
    above = root.removesuffix("backbone.")
    head = {name.removeprefix(above): value for name, value in tensors.items() if name.startswith(f"{above}head.")}
    return {
        **below({name: value for name, value in tensors.items() if not name.startswith(f"{above}head.")}, root),
        **head,
    }


def _renamed(tensors: Tensors) -> dict[str, np.ndarray]:
    """Transformers' tensors by Facebook's names."""
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in _TRANSFORMERS.items():
            if re.fullmatch(pattern, name):
                found[re.sub(pattern, replacement, name)] = value
    blocks = {match[1] for name in tensors if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    for block in blocks:
        for joined, ways in _JOINED.items():
            for parts in ways:
                for ending in ("weight", "bias"):
                    names = [f"encoder.layer.{block}.{part}.{ending}" for part in parts]
                    if all(name in tensors for name in names):
                        found[f"blocks.{block}.{joined}.{ending}"] = np.concatenate([tensors[name] for name in names])
    return found


def _encoder_names(variant: str, o: DinoV2Options) -> dict[str, str]:
    """Facebook's name of each of the encoder's tensors, by our path."""
    size = size_of(variant, o)
    perceptron = ("mlp.w12", "mlp.w3") if size.swiglu else ("mlp.fc1", "mlp.fc2")
    names = {
        "encoder/class_token": "cls_token",
        "encoder/positions/kernel": "pos_embed",
        **_layer("encoder/patch", "patch_embed.proj"),
        **_norm("encoder/norm", "norm"),
    }
    if o.registers:
        names["encoder/registers"] = "register_tokens"
    for index in range(size.blocks):
        ours, theirs = f"encoder/block{index}", f"blocks.{index}"
        names |= _norm(f"{ours}/norm1", f"{theirs}.norm1") | _norm(f"{ours}/norm2", f"{theirs}.norm2")
        names |= _layer(f"{ours}/qkv", f"{theirs}.attn.qkv") | _layer(f"{ours}/attended", f"{theirs}.attn.proj")
        names |= _layer(f"{ours}/hidden", f"{theirs}.{perceptron[0]}")
        names |= _layer(f"{ours}/output", f"{theirs}.{perceptron[1]}")
        names |= {f"{ours}/scale{number}": f"{theirs}.ls{number}.gamma" for number in (1, 2)}
    return names


def _head_names() -> dict[str, str]:
    """The same of UniMatch V2's decoder, which becomes the segmentation's head."""
    ours = "segmentation"
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
        if ours.endswith("patch/kernel"):
            return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
        return value.T if ours.endswith("kernel") else value
    if ours.endswith(("resize0/kernel", "resize1/kernel")):
        return value.transpose(0, 2, 3, 1)  # a transposed convolution's: (in, out, rows, columns)
    return value.transpose(2, 3, 1, 0) if ours.endswith("kernel") else value


def _report_rest(tensors: Tensors, used: set[str], source: str, o: DinoV2Options) -> None:
    """Logs what was passed over; raises WeightsError where that means another network."""
    rest = sorted(name for name in tensors if name not in used and not name.startswith(_PASSED_OVER))
    if any(name.startswith(("register_tokens", "reg_token")) for name in rest) and not o.registers:
        raise WeightsError(f"set model.dinov2.registers=True\n{source}: these weights have register tokens")
    if any(name.startswith("blocks.") for name in rest):
        raise WeightsError(
            f"set model.encoder to the weights' size\n{source}: there are more blocks than it has: {shortened(rest, 3)}"
        )
    if rest:
        log.info("%s: passed over: %s", source, shortened(rest, 5))
