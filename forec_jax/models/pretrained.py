"""ImageNet weights for the encoders, from files."""

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import Variables
from forec_jax.models.mobilenet import MobileNetV2

_CLASSIFIER = ("Conv_1_", "Logits_")  # what follows the encoder in the published classifier
_NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def load_weights(path: str | PathLike[str], encoder: str) -> Variables:
    """Reads an encoder's pretrained weights; put them in `params["encoder"]` and `batch_stats["encoder"]`.

    Args:
      path: for mobilenet_v2 an .npz of TF-slim's MobileNetV2 1.0, keys like `expanded_conv_3_expand_weights`; the
        classifier's own tensors (Conv_1_*, Logits_*) may be there and are passed over.
      encoder: "mobilenet_v2" is the one with a reader today.

    Returns:
      The encoder's own params and batch_stats, float32.

    Raises:
      ValueError: names every tensor that is missing, unknown or of the wrong shape.
    """
    if encoder != "mobilenet_v2":
        raise ValueError(f"no pretrained weights can be read for {encoder!r}; mobilenet_v2 only")
    with np.load(path) as file:
        return mobilenet_v2_from_slim({name: file[name] for name in file.files})


def mobilenet_v2_from_slim(tensors: Mapping[str, np.ndarray], width: float = 1.0) -> Variables:
    """Arranges TF-slim's tensors as MobileNetV2's variables; errors as in `load_weights`."""
    module = MobileNetV2(train=False, width=width)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    layout = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    wanted = {path: _slim_name(path) for path, _ in _leaves(layout)}
    problems = [f"{name} is missing" for name in wanted.values() if name not in tensors]
    known = set(wanted.values())
    problems += [f"{name} is unknown" for name in tensors if name not in known and not name.startswith(_CLASSIFIER)]
    for path, leaf in _leaves(layout):
        value = tensors.get(wanted[path])
        if value is not None and _arranged(path, value).shape != leaf.shape:
            problems.append(f"{wanted[path]} has shape {value.shape}, the network wants {leaf.shape}")
    if problems:
        raise ValueError("weights do not fit mobilenet_v2: " + "; ".join(sorted(problems)))
    filled: dict[str, Any] = {}
    for path, name in wanted.items():
        node = filled
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = jnp.asarray(_arranged(path, tensors[name]), jnp.float32)
    return Variables(filled["params"], filled["batch_stats"])


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


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
