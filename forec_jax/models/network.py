"""One encoder with named DeepLabV3+ heads, as the pure functions of `contracts.Network`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadOutput, HeadSpec, Network, PyTree, Variables
from forec_jax.models.deeplab import DeepLabDecoder, DeepLabOptions, SharedPyramid, SharingDecoder
from forec_jax.models.layers import draw_variables
from forec_jax.models.linear import LinearHead
from forec_jax.models.mobilenet import MobileNetV2
from forec_jax.models.resnet import BLOCKS, STEMS, ResNet

Array = jax.Array

ENCODERS = (*BLOCKS, "mobilenet_v2")
"""The names that `deeplab_network` knows."""

PYRAMID = "pyramid"
"""The part that holds the ASPP where all heads share one."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_INIT_SIZE = 64  # of the image whose shapes lay out the parameters; nothing depends on it


@jax.tree_util.register_static
@dataclass(frozen=True)
class ImageSize:
    """Height and width of the images that were encoded: static, no leaf of the tree."""

    height: int
    width: int


class Features(NamedTuple):
    """What the encoder saw; every head reads it. Map over `low` and `high` only (`_replace`) to perturb features."""

    low: Array  # [B,h,w,C] at stride 4, in the compute dtype
    high: Array  # [B,h',w',C'] at the output stride, in the compute dtype
    size: ImageSize
    valid: Array | None  # bool[B,H,W], or None when every pixel counts


def deeplab_network(
    *,
    encoder: str,
    heads: tuple[HeadSpec, ...],
    output_stride: int = 16,
    decoder: DeepLabOptions | None = None,
    stem: str = "7x7",
    multi_grid: tuple[int, ...] = (1, 1, 1),
    width: float = 1.0,
    bn_momentum: float = 0.9,
    compute_dtype: Any = jnp.float32,
    share_aspp: bool = False,
    remat: bool = False,
) -> Network:
    """Builds DeepLabV3+ with any number of decoders that share nothing but the encoder.

    Variables are float32 dicts by part, "encoder" and each head's name; a caller may leave out heads that it does not
    decode. Every head draws its initial values and its dropout from a key of its own, made of the head's name, so that
    adding or dropping a head changes nothing else.

    Args:
      encoder: one of `ENCODERS`.
      heads: the decoders to grow; names are unique and neither "encoder" nor "pyramid".
      output_stride: 8, 16 or 32: image pixels between neighbours of the high-level map.
      decoder: form of all heads; None for the default form.
      stem: of a ResNet, one of `resnet.STEMS`: "7x7", "deep" (three 3x3) or "d" (ResNet-D).
      multi_grid: factors on the dilations of a ResNet's layer4.
      width: factor on the encoder's channels; 1.0 is the published network.
      bn_momentum: share of the old running statistics that a step keeps (flax's convention; PyTorch's 0.1 is 0.9).
      compute_dtype: of activations, float32 or bfloat16. Normalisation, resizing and outputs are float32.
      share_aspp: let all heads read one ASPP, the part `PYRAMID`, which runs in `encode`; the heads then share more than
        the encoder.
      remat: keep only what goes from one residual block of the encoder to the next, and compute the rest again in the
        backward pass: less memory, one more forward pass of the encoder, the same numbers.

    Returns:
      The network. `encode` has the defaults valid=None, train=False, rng=None; `decode` train=False, rng=None (needed
      in train mode if the decoder has dropout). `valid` is for inference: in train mode it also bounds what
      convolutions see, but BatchNorm's statistics still cover the padding.
    """
    _check(encoder, heads, output_stride, stem)
    shared = {"momentum": bn_momentum, "dtype": jnp.dtype(compute_dtype)}
    backbone: Callable[..., nn.Module]
    if encoder == "mobilenet_v2":
        mean = std = (0.5, 0.5, 0.5)
        backbone = partial(MobileNetV2, output_stride=output_stride, width=width, remat=remat, **shared)
    else:
        mean, std = _IMAGENET_MEAN, _IMAGENET_STD
        backbone = partial(
            ResNet,
            encoder,
            output_stride=output_stride,
            stem=stem,
            multi_grid=multi_grid,
            width=width,
            remat=remat,
            **shared,
        )
    options = DeepLabOptions() if decoder is None else decoder
    form = SharingDecoder if share_aspp else DeepLabDecoder
    decoders: dict[str, Callable[..., nn.Module]] = {
        head.name: partial(LinearHead, head.channels, dtype=shared["dtype"])
        if head.linear
        else partial(form, head.channels, options, upsample=head.upsample, **shared)
        for head in heads
    }
    pyramid = partial(SharedPyramid, options, **shared) if share_aspp else None

    def encode(
        variables: Variables,
        image: Array,
        *,
        valid: Array | None = None,
        train: bool = False,
        rng: Array | None = None,
    ) -> tuple[Features, PyTree]:
        check_valid(image, valid)
        normalised = (image - jnp.asarray(mean, image.dtype)) / jnp.asarray(std, image.dtype)
        (low, high), stats = _apply(backbone(train=train), variables, "encoder", (normalised, valid), train, None)
        if pyramid is not None:
            key = None if rng is None else named_key(rng, PYRAMID)  # the encoders draw nothing, its dropout does
            variables = variables._replace(batch_stats=stats)
            high, stats = _apply(pyramid(train=train), variables, PYRAMID, (high, valid), train, key)
        return Features(low, high, ImageSize(*image.shape[1:3]), valid), stats

    def decode(
        variables: Variables,
        head: str,
        features: Features,
        *,
        train: bool = False,
        rng: Array | None = None,
    ) -> tuple[HeadOutput, PyTree]:
        size = (features.size.height, features.size.width)
        inputs = (features.low, features.high, size, features.valid)
        key = None if rng is None else named_key(rng, head)
        (output, latent), stats = _apply(decoders[head](train=train), variables, head, inputs, train, key)
        return HeadOutput(output, latent), stats

    @jax.jit
    def init(key: Array) -> Variables:
        image = jax.ShapeDtypeStruct((1, _INIT_SIZE, _INIT_SIZE, 3), jnp.float32)
        encoder_module = backbone(train=False)
        parts = {"encoder": draw_variables(encoder_module, named_key(key, "encoder"), image)}
        low, high = jax.eval_shape(encoder_module.apply, parts["encoder"], image)
        if pyramid is not None:
            parts[PYRAMID] = draw_variables(pyramid(train=False), named_key(key, PYRAMID), high, None)
            high = jax.eval_shape(lambda v, x: pyramid(train=False).apply(v, x, None), parts[PYRAMID], high)
        for name, make in decoders.items():
            size = (_INIT_SIZE, _INIT_SIZE)
            parts[name] = draw_variables(make(train=False), named_key(key, name), low, high, size, None)
        return Variables(
            params={name: part["params"] for name, part in parts.items()},
            batch_stats={name: part.get("batch_stats", {}) for name, part in parts.items()},
        )

    return Network(init, encode, decode, tuple(heads))


def _apply(
    module: nn.Module, variables: Variables, part: str, inputs: tuple[Any, ...], train: bool, key: Array | None
) -> tuple[Any, PyTree]:
    """Runs a part of the network; returns its result and all batch_stats, with this part's moved in train mode."""
    if part not in variables.params:
        raise KeyError(f"the variables have no part {part!r}, only {sorted(variables.params)}")
    own = {"params": variables.params[part], "batch_stats": variables.batch_stats[part]}
    if not train:
        return module.apply(own, *inputs), variables.batch_stats
    rngs = None if key is None else {"dropout": key}
    result, moved = module.apply(own, *inputs, mutable=["batch_stats"], rngs=rngs)
    return result, {**variables.batch_stats, part: moved.get("batch_stats", {})}


def named_key(key: Array, name: str) -> Array:
    """The key of a part: of its name and not of its place, so that parts do not change each other's draws."""
    return jax.random.fold_in(key, crc32(name.encode()))


def _check(encoder: str, heads: tuple[HeadSpec, ...], output_stride: int, stem: str) -> None:
    names = [head.name for head in heads]
    if encoder not in ENCODERS:
        raise ValueError(f"unknown encoder {encoder!r}; one of {', '.join(ENCODERS)}")
    if {"encoder", PYRAMID} & set(names) or len(set(names)) < len(names):
        raise ValueError(f"heads need names of their own, none of them 'encoder' or '{PYRAMID}': {names}")
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is 8, 16 or 32, not {output_stride}")
    if stem not in STEMS:
        raise ValueError(f"stem is one of {', '.join(map(repr, STEMS))}, not {stem!r}")


def check_valid(image: Array, valid: Array | None) -> None:
    """Raises ValueError where `valid` is given with a shape that is not the images', or sides not multiples of 32."""
    if valid is None:
        return
    if valid.shape != image.shape[:3]:
        raise ValueError(f"valid has shape {valid.shape}, the images {image.shape[:3]}")
    if image.shape[1] % 32 or image.shape[2] % 32:
        raise ValueError(f"with `valid`, image sides are multiples of 32, not {image.shape[1:3]}")


def count_parameters(params: Mapping[str, PyTree]) -> dict[str, int]:
    """The number of trained values in each part."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
