"""Networks from parts: one encoder and named heads, as the pure functions of `contracts.Network`.

An encoder gives maps, the coarsest last; a decoder makes a head of them. `assemble` joins any two that fit together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import RGB, HeadOutput, HeadSpec, Network, PyTree, Variables
from forec_jax.models.layers import channelwise, draw_kernels, draw_variables
from forec_jax.options import ABOVE_0, SHARE, one_of, option

Array = jax.Array

ENCODER = "encoder"
PYRAMID = "pyramid"
"""The part that holds the ASPP where all heads share one."""

_INIT_SIZE = 64  # of the image whose shapes lay out the parameters, or the next larger of whole patches


class Form(NamedTuple):
    """What all modules of a network have in common."""

    momentum: float = 0.9  # of BatchNorm's running statistics: the share of the old ones that a step keeps
    dtype: Any = jnp.float32  # of activations; normalisation, resizing and outputs are float32


@dataclass(frozen=True, kw_only=True)
class DilatedOptions:
    """The form of an encoder that dilates beyond its output stride."""

    width: float = option(1.0, "multiplies the channels; 1 is the published network", ABOVE_0)
    output_stride: int = option(16, "image pixels between neighbours of the last map", one_of(8, 16, 32))
    remat: bool = option(False, "keep less for the backward pass and compute it again (docs/scaling.md)")


class Encoder(NamedTuple):
    """An encoder, ready to be assembled."""

    module: Callable[[bool], nn.Module]  # train -> module: (normalised image, valid) -> maps, the coarsest last
    mean: RGB  # what its weights expect: (image - mean) / std of images in [0, 1]
    std: RGB
    gives: str  # the kind of its maps, which a decoder must read: "low_high", "levels"
    multiple: int = 32  # image sides that `valid` goes with (contracts.Network)
    patch: int = 1  # what divides the sides of every image


class Decoder(NamedTuple):
    """A kind of head, ready to be assembled."""

    head: Callable[[HeadSpec], Callable[[bool], nn.Module]]  # head -> train -> module: (*maps, size, valid) -> two maps
    reads: str  # the kind of maps
    fuse: Callable[[bool], nn.Module] | None = None
    """train -> module: (*maps, size, valid) -> the map that a head's module gets in place of them."""
    shared: Callable[[bool], nn.Module] | None = None
    """train -> module that all heads read: (last map, valid) -> its map."""


class EncoderEntry(NamedTuple):
    """All that the library must know of an encoder."""

    name: str  # of its options, model.NAME
    variants: tuple[str, ...]  # what model.encoder may be
    options: type  # frozen dataclass of `option` fields
    build: Callable[[str, Any, Form], Encoder]  # variant, options, form
    decoder: str  # the one it is published with
    weights: Callable[[str, str, Any], Variables] | None = None  # source, variant, options; None where none exist


class DecoderEntry(NamedTuple):
    """All that the library must know of a decoder."""

    name: str  # what model.decoder may be, and of its options, model.NAME
    options: type
    build: Callable[[Any, Form], Decoder]


@dataclass(frozen=True)
class ModelOptions:
    """Which network, and where its weights come from."""

    encoder: str = option(
        "resnet50",
        "resnet18, 26, 34, 50, 101 or 152, mobilenet_v2, efficientnet_lite0, 1 or 2, dinov2_small, _base, _large or _giant, "
        "dinov3_small, _small_plus, _base or _large (Meta's licence), mit_b0 to mit_b5 (NVIDIA's weights: not for "
        "commercial use), or unet; its options are model.resnet.*, ...",
    )
    decoder: str = option(
        "",
        "deeplab, deeplab_v2, pspnet, dpt, segformer or unet; empty: the one that the encoder is published with",
    )
    weights: str = option(
        "",
        "a file, the work directory of a run, efficientnet_lite0, 1 or 2 (of an installed package, docs/weights.md), or "
        "hf:OWNER/NAME[@REVISION][#sha256=...]; empty: random",
    )
    weights_network: Literal["teacher", "student"] = option(
        "teacher", 'of a run that model.weights names: its "teacher" (the student where it has none), or its "student"'
    )
    weights_checkpoint: Literal["last", "best"] = option(
        "last", 'of a run that model.weights names: its "last" state, or its "best" on the validation images'
    )
    bn_momentum: float = option(
        0.9, "of BatchNorm's running statistics: new = momentum * old + (1 - momentum) * batch", SHARE
    )
    encoder_statistics: Literal["batch", "weights"] = option(
        "batch", 'of BatchNorm in the encoder: "batch", or "weights": those of model.weights, for few rows a step'
    )
    freeze: Literal["", "encoder"] = option(
        "", '"encoder": it keeps its weights and runs as in inference, the heads alone learn (docs/weights.md)'
    )


@jax.tree_util.register_static
@dataclass(frozen=True)
class ImageSize:
    """Height and width of the images that were encoded: static, no leaf of the tree."""

    height: int
    width: int


class Features(NamedTuple):
    """What the encoder saw; every head reads it. Map over `maps` only (`_replace`) to perturb features."""

    maps: tuple[PyTree, ...]  # [B,h,w,C], in the compute dtype; the coarsest last
    size: ImageSize
    valid: Array | None  # bool[B,H,W], or None when every pixel counts

    @property
    def high(self) -> Array:
        """The coarsest map, [B,h,w,C]: what is most abstract."""
        last: Array = self.maps[-1]
        return last


def with_statistics_of_weights(encoder: Encoder) -> Encoder:
    """The encoder, in training as in inference: BatchNorm normalises by the statistics it was given, and keeps them.

    Its scales, biases and kernels are trained. For pretrained weights and small batches, whose own statistics are noise
    (Chen et al., DeepLab, fine-tune so).
    """
    return encoder._replace(module=lambda train: encoder.module(False))


def with_frozen_encoder(network: Network) -> Network:
    """The network, whose encoder's parameters are constants: no gradient reaches them, and none is computed.

    One does reach the image, through the encoder. The encoder's statistics must stand still by themselves
    (`with_statistics_of_weights`).
    """

    def encode(variables: Variables, image: Array, **how: Any) -> tuple[PyTree, PyTree]:
        params = {**variables.params, ENCODER: jax.lax.stop_gradient(variables.params[ENCODER])}
        return network.encode(variables._replace(params=params), image, **how)

    return network._replace(encode=encode, frozen=(*network.frozen, ENCODER))


def assemble(encoder: Encoder, decoder: Decoder, heads: tuple[HeadSpec, ...]) -> Network:
    """A network of any number of heads that share the encoder, what the decoder shares, and what one reads of another.

    Variables are float32 dicts by part, "encoder" and each head's name; a caller may leave out heads that it does not
    decode. Every head draws its initial values and its dropout from a key of its own, made of the head's name, so that
    adding or dropping a head changes nothing else.

    Args:
      encoder: gives the maps.
      decoder: reads them.
      heads: the heads to grow; names are unique and neither "encoder" nor "pyramid".

    Returns:
      The network. `encode` has the defaults valid=None, train=False, rng=None; `fuse`, `classify` and `decode` train=False,
      rng=None (needed in train mode if a part has dropout). Fused features are `Features`. `valid` is for inference:
      in train mode it also bounds what convolutions see, but BatchNorm's statistics still cover the padding.

    Raises:
      ValueError: two heads of one name, a head that reads none with fused features of its own, or a decoder that cannot
        read the encoder's maps.
    """
    names = [head.name for head in heads]
    if {ENCODER, PYRAMID} & set(names) or len(set(names)) < len(names):
        raise ValueError(f"heads need names of their own, none of them '{ENCODER}' or '{PYRAMID}': {names}")
    if encoder.gives != decoder.reads:
        raise ValueError(f"the decoder reads {decoder.reads!r} maps, and the encoder gives {encoder.gives!r}")
    owners = {head.name for head in heads if not head.reads and not head.linear}
    for head in heads:
        if head.reads and head.reads not in owners:
            raise ValueError(f"the head {head.name!r} cannot read {head.reads!r}: choose one of {sorted(owners)}")
    fusing = () if decoder.fuse is None else tuple(head for head in heads if head.reads or not head.linear)
    fused = {head.name: head.reads or head.name for head in fusing}
    parts = _Parts(encoder, {head.name: decoder.head(head) for head in heads}, decoder.fuse, fused, decoder.shared)
    functions = jax.jit(parts.init), parts.encode, parts.classify
    return Network(*functions, tuple(heads), encoder.multiple, parts.fuse, std=encoder.std, mean=encoder.mean)


@dataclass(frozen=True)
class _Parts:
    """A network's functions over its parts."""

    encoder: Encoder
    heads: Mapping[str, Callable[[bool], nn.Module]]
    fusion: Callable[[bool], nn.Module] | None
    fused: Mapping[str, str]  # head -> the head whose fused features it classifies; without those that fuse nothing
    shared: Callable[[bool], nn.Module] | None

    def encode(
        self,
        variables: Variables,
        image: Array,
        *,
        valid: Array | None = None,
        train: bool = False,
        rng: Array | None = None,
    ) -> tuple[Features, PyTree]:
        """The maps of images f32[B,H,W,3] in [0, 1], and the batch_stats after them."""
        _check_patch(image, self.encoder.patch)
        _check_valid(image, valid, self.encoder.multiple)
        mean, std = (channelwise(jnp.asarray(colour, image.dtype)) for colour in (self.encoder.mean, self.encoder.std))
        key = None if rng is None else named_key(rng, ENCODER)
        maps, stats = _apply(self.encoder.module(train), variables, ENCODER, ((image - mean) / std, valid), train, key)
        if self.shared is not None:
            key = None if rng is None else named_key(rng, PYRAMID)
            variables = variables._replace(batch_stats=stats)
            last, stats = _apply(self.shared(train), variables, PYRAMID, (maps[-1], valid), train, key)
            maps = (*maps[:-1], last)
        return Features(maps, ImageSize(*image.shape[1:3]), valid), stats

    def fuse(
        self, variables: Variables, head: str, features: Features, *, train: bool = False, rng: Array | None = None
    ) -> tuple[Features, PyTree]:
        """The features with one map in place of all, which the head classifies, and the batch_stats after it."""
        if self.fusion is None or head not in self.fused:
            return features, variables.batch_stats
        owner = self.fused[head]
        key = None if rng is None else named_key(rng, owner)
        fused, stats = _apply(self.fusion(train), variables, owner, _inputs(features), train, key)
        return features._replace(maps=(fused,)), stats

    def classify(
        self, variables: Variables, head: str, fused: Features, *, train: bool = False, rng: Array | None = None
    ) -> tuple[HeadOutput, PyTree]:
        """What a head makes of fused features, and the batch_stats after it."""
        key = None if rng is None else named_key(rng, head)
        (output, latent), stats = _apply(self.heads[head](train), variables, head, _inputs(fused), train, key)
        return HeadOutput(output, latent), stats

    @property
    def init_size(self) -> tuple[int, int]:
        """Of the image whose shapes lay out the parameters."""
        side = -(-_INIT_SIZE // self.encoder.patch) * self.encoder.patch
        return side, side

    def init(self, key: Array) -> Variables:
        """The first variables of all parts."""
        image = jax.ShapeDtypeStruct((1, *self.init_size, 3), jnp.float32)
        encoder = self.encoder.module(False)
        parts = {ENCODER: draw_variables(encoder, named_key(key, ENCODER), image, None)}
        maps = jax.eval_shape(lambda v, x: encoder.apply(v, x, None), parts[ENCODER], image)
        if self.shared is not None:
            shared = self.shared(False)
            parts[PYRAMID] = draw_variables(shared, named_key(key, PYRAMID), maps[-1], None)
            last = jax.eval_shape(lambda v, x: shared.apply(v, x, None), parts[PYRAMID], maps[-1])
            maps = (*maps[:-1], last)
        for name in self.heads:
            parts[name] = draw_kernels(named_key(key, name), self._head_variables(name, maps))
        return Variables(
            params={name: part["params"] for name, part in parts.items()},
            batch_stats={name: part.get("batch_stats", {}) for name, part in parts.items()},
        )

    def _head_variables(self, name: str, maps: tuple[PyTree, ...]) -> dict[str, PyTree]:
        """A head's first variables, kernels not yet drawn: of its own fusion, if any, and its classifier, together."""
        key = jax.random.key(0)  # of no effect: nothing is drawn here
        size = self.init_size
        head = self.heads[name](False)
        fusing: Mapping[str, PyTree] = {}
        if self.fusion is not None and name in self.fused:
            fusion = self.fusion(False)
            variables = fusion.lazy_init(key, *maps, size, None)
            maps = (jax.eval_shape(lambda v, *m: fusion.apply(v, *m, size, None), variables, *maps),)
            fusing = variables if self.fused[name] == name else {}
        classifying = head.lazy_init(key, *maps, size, None)
        return {kind: {**fusing.get(kind, {}), **classifying.get(kind, {})} for kind in {**fusing, **classifying}}


def _inputs(features: Features) -> tuple[Any, ...]:
    """What a decoder's module is called with."""
    return (*features.maps, (features.size.height, features.size.width), features.valid)


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


def _check_patch(image: Array, patch: int) -> None:
    """Raises ValueError where `patch` does not divide the images' sides."""
    if image.shape[1] % patch or image.shape[2] % patch:
        raise ValueError(f"image sides are multiples of the encoder's patch of {patch} pixels, not {image.shape[1:3]}")


def _check_valid(image: Array, valid: Array | None, multiple: int) -> None:
    """Raises ValueError where `valid` has not the images' shape, or `multiple` does not divide their sides."""
    if valid is None:
        return
    if valid.shape != image.shape[:3]:
        raise ValueError(f"valid has shape {valid.shape}, the images {image.shape[:3]}")
    if image.shape[1] % multiple or image.shape[2] % multiple:
        raise ValueError(f"with `valid`, image sides are multiples of {multiple}, not {image.shape[1:3]}")


def count_parameters(params: Mapping[str, PyTree]) -> dict[str, int]:
    """The number of trained values in each part."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
