"""Pretrained MiT weights by transformers' names, of its files and in memory, and NVIDIA's; with SegFormer's head if there.

Only names and shapes are other projects'. Every layer's name is read as one of our paths; what is missing then shows when
the paths are compared with the network's own.
"""

import logging
import re
from collections.abc import Mapping

import numpy as np

from forec_jax.contracts import Variables
from forec_jax.models.convert import nested
from forec_jax.models.encoders.mit import DEPTHS, STAGES, MitOptions, depths_of, head_size_of
from forec_jax.models.naming import Tensors, WeightsError, choose_network, shortened
from forec_jax.models.pretrained import file_of
from forec_jax.models.weightfile import read_tensors

log = logging.getLogger(__name__)

LICENCE = "NVIDIA gives its MiT and SegFormer weights for non-commercial research and evaluation alone"

_FIRST = {  # the first layer, and what may stand before it where a head lies beside the encoder
    "encoder.patch_embeddings.0.proj.weight": "segformer.",
    "stages.0.patch_embeddings.proj.weight": "segformer.",
    "patch_embed1.proj.weight": "backbone.",
}
_LAYERS: tuple[tuple[int, Mapping[str, str]], ...] = (  # the number of the first stage, and layers by their names
    (0, {  # transformers' files
        r"encoder\.patch_embeddings\.(\d)\.proj": "encoder/patch{}",
        r"encoder\.patch_embeddings\.(\d)\.layer_norm": "encoder/patch{}_norm",
        r"encoder\.block\.(\d)\.(\d+)\.layer_norm_([12])": "encoder/stage{}_block{}/norm{}",
        r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.(query|key|value)": "encoder/stage{}_block{}/{}",
        r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.sr": "encoder/stage{}_block{}/shrink",
        r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.layer_norm": "encoder/stage{}_block{}/shrink_norm",
        r"encoder\.block\.(\d)\.(\d+)\.attention\.output\.dense": "encoder/stage{}_block{}/attended",
        r"encoder\.block\.(\d)\.(\d+)\.mlp\.dense1": "encoder/stage{}_block{}/hidden",
        r"encoder\.block\.(\d)\.(\d+)\.mlp\.dwconv\.dwconv": "encoder/stage{}_block{}/depthwise",
        r"encoder\.block\.(\d)\.(\d+)\.mlp\.dense2": "encoder/stage{}_block{}/output",
        r"encoder\.layer_norm\.(\d)": "encoder/norm{}",
        r"decode_head\.linear_(?:c|projections)\.(\d)\.proj": "segmentation/linear{}",
        r"decode_head\.linear_fuse": "segmentation/join",
        r"decode_head\.batch_norm": "segmentation/norm",
        r"decode_head\.classifier": "segmentation/last",
    }),
    (0, {  # transformers' models from version 5 on
        r"stages\.(\d)\.patch_embeddings\.proj": "encoder/patch{}",
        r"stages\.(\d)\.patch_embeddings\.layer_norm": "encoder/patch{}_norm",
        r"stages\.(\d)\.blocks\.(\d+)\.layernorm_before": "encoder/stage{}_block{}/norm1",
        r"stages\.(\d)\.blocks\.(\d+)\.layernorm_after": "encoder/stage{}_block{}/norm2",
        r"stages\.(\d)\.blocks\.(\d+)\.attention\.q_proj": "encoder/stage{}_block{}/query",
        r"stages\.(\d)\.blocks\.(\d+)\.attention\.k_proj": "encoder/stage{}_block{}/key",
        r"stages\.(\d)\.blocks\.(\d+)\.attention\.v_proj": "encoder/stage{}_block{}/value",
        r"stages\.(\d)\.blocks\.(\d+)\.attention\.sequence_reduction\.sequence_reduction":
            "encoder/stage{}_block{}/shrink",
        r"stages\.(\d)\.blocks\.(\d+)\.attention\.sequence_reduction\.layer_norm":
            "encoder/stage{}_block{}/shrink_norm",
        r"stages\.(\d)\.blocks\.(\d+)\.attention\.o_proj": "encoder/stage{}_block{}/attended",
        r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc1": "encoder/stage{}_block{}/hidden",
        r"stages\.(\d)\.blocks\.(\d+)\.mlp\.dwconv\.dwconv": "encoder/stage{}_block{}/depthwise",
        r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc2": "encoder/stage{}_block{}/output",
        r"stages\.(\d)\.layer_norm": "encoder/norm{}",
    }),
    (1, {  # NVIDIA's, and segmentation_models.pytorch's
        r"patch_embed(\d)\.proj": "encoder/patch{}",
        r"patch_embed(\d)\.norm": "encoder/patch{}_norm",
        r"block(\d)\.(\d+)\.norm([12])": "encoder/stage{}_block{}/norm{}",
        r"block(\d)\.(\d+)\.attn\.q": "encoder/stage{}_block{}/query",
        r"block(\d)\.(\d+)\.attn\.kv": "encoder/stage{}_block{}/key_value",
        r"block(\d)\.(\d+)\.attn\.sr": "encoder/stage{}_block{}/shrink",
        r"block(\d)\.(\d+)\.attn\.norm": "encoder/stage{}_block{}/shrink_norm",
        r"block(\d)\.(\d+)\.attn\.proj": "encoder/stage{}_block{}/attended",
        r"block(\d)\.(\d+)\.mlp\.fc1": "encoder/stage{}_block{}/hidden",
        r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv": "encoder/stage{}_block{}/depthwise",
        r"block(\d)\.(\d+)\.mlp\.fc2": "encoder/stage{}_block{}/output",
        r"norm(\d)": "encoder/norm{}",
        r"decode_head\.linear_c(\d)\.proj": "segmentation/linear{}",
        r"decode_head\.linear_fuse\.conv": "segmentation/join",
        r"decode_head\.linear_fuse\.bn": "segmentation/norm",
        r"decode_head\.linear_pred": "segmentation/last",
    }),
)  # fmt: skip
_ENDINGS = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def load_mit(source: str, variant: str, o: MitOptions) -> Variables:
    """Weights of a MiT, and of SegFormer's head where a whole model was stored.

    Args:
        source: a file, or `hf:OWNER/NAME[@REVISION][#sha256=...]`.
        variant: a key of `DEPTHS`.
        o: the encoder's form.

    Raises:
        WeightsError: the file cannot be read or holds another network; names it and what to do.
    """
    tensors = choose_network(read_tensors(file_of(source)), None)
    named, passed_over = _in_our_names(tensors, source)
    try:
        found = _arranged(named)
    except ValueError as error:
        raise WeightsError(f"take other weights\n{source}: a tensor has another shape ({error})") from error
    _check_size(found, source, variant, o)
    log.warning("%s: %s (docs/weights.md)", source, LICENCE)
    if passed_over:
        log.info("%s: passed over: %s", source, shortened(sorted(passed_over), 5))
    running = {path: value for path, value in found.items() if path.endswith(("/mean", "/var"))}
    params, stats = (
        nested({tuple(path.split("/")): value for path, value in tree.items()})
        for tree in ({path: value for path, value in found.items() if path not in running}, running)
    )
    return Variables(params, {part: stats.get(part, {}) for part in params})


def _in_our_names(tensors: Tensors, source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of the one MiT in a file by our paths, and the names of the others."""
    places = [
        (name.removesuffix(first), beside)
        for first, beside in _FIRST.items()
        for name in tensors
        if f".{name}".endswith(f".{first}")
    ]
    if len(places) != 1:
        count = "several are" if places else "none is"
        raise WeightsError(
            f"{source}: one MiT is sought by the name encoder.patch_embeddings.0.proj.weight, {count} there"
        )
    ((root, beside),) = places
    head = f"{root.removesuffix(beside)}decode_head."
    found, rest = {}, []
    for name, value in tensors.items():
        inner = name.removeprefix(root) if name.startswith(root) and not name.startswith(head) else ""
        path = _path_of(f"decode_head.{name.removeprefix(head)}" if name.startswith(head) else inner)
        if path:
            found[path] = np.asarray(value, np.float32)
        else:
            rest.append(name)
    return found, rest


def _path_of(name: str) -> str:
    """Our path of a tensor by another project's name; empty for an unknown one."""
    layer, _, ending = name.rpartition(".")
    for first, names in _LAYERS:
        for pattern, path in names.items():
            if (match := re.fullmatch(pattern, layer)) and ending in _ENDINGS:
                stage, rest = match.groups()[:1], match.groups()[1:]
                ours = path.format(*(int(number) - first for number in stage), *rest)
                of_norm = ending == "weight" and re.search(r"norm\d?$", ours)
                return f"{ours}/{'scale' if of_norm else _ENDINGS[ending]}"
    return ""


def _arranged(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our tensors: keys and values joined, the head's joint kernel by stages, kernels as they stand here."""
    found: dict[str, np.ndarray] = {}
    for path, value in named.items():
        layer, _, name = path.rpartition("/")
        if layer == "segmentation/join":
            parts = np.split(value.transpose(2, 3, 1, 0), len(STAGES), axis=2)
            found |= {
                f"{layer}{index}/{name}": part for index, part in enumerate(reversed(parts))
            }  # the deepest is first
        elif layer.endswith("/key"):
            values = named.get(f"{layer.removesuffix('key')}value/{name}", np.zeros_like(value[:0]))
            found[f"{layer}_value/{name}"] = np.concatenate([value, values]).T
        elif not layer.endswith("/value"):
            found[path] = _kernel(value, layer) if name == "kernel" else value
    return found


def _kernel(value: np.ndarray, layer: str) -> np.ndarray:
    """A kernel as it stands at one of our layers."""
    if value.ndim == 2:
        return value.T[None, None] if layer.startswith("segmentation") else value.T
    value = value.transpose(2, 3, 1, 0)
    return value.reshape(-1, value.shape[-1]) if layer.endswith("shrink") else value


def _check_size(found: Mapping[str, np.ndarray], source: str, variant: str, o: MitOptions) -> None:
    """Raises WeightsError where the tensors are of another variant, told by its blocks and its channels."""
    blocks = [re.match(r"encoder/stage(\d)_block\d+/norm1/scale", path) for path in found]
    stored = tuple(sum(match[1] == str(stage) for match in blocks if match) for stage in range(len(STAGES)))
    channels = found["encoder/patch0/kernel"].shape[-1]
    if (stored, channels) == (depths_of(variant, o), head_size_of(variant, o)):
        return
    published = MitOptions()
    fits = [name for name, depths in DEPTHS.items() if (depths, head_size_of(name, published)) == (stored, channels)]
    remedy = f"set model.encoder={fits[0]}" if fits else "set model.mit as the weights were trained with"
    raise WeightsError(
        f"{remedy}, or take weights of {variant}\n{source}: these weights are of {'+'.join(map(str, stored))} blocks and "
        f"{channels} channels at stride 4"
    )
