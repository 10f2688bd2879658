"""Networks that judge class maps, as the pure functions of `contracts.Network`: an image at a time, or pixel by pixel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from forec_jax.contracts import HeadOutput, HeadSpec, Network, PyTree, Variables
from forec_jax.models.conv import Padding
from forec_jax.models.layers import BatchNorm, Conv, draw_variables
from forec_jax.models.network import ENCODER, Features, ImageSize, named_key
from forec_jax.models.resize import resize

Array = jax.Array

SCORE = "score"
"""A critic's only head."""

Layers = tuple[tuple[int, int], ...]
"""Channels and stride of each convolution."""

_ANY_SIZE = 32  # of the image whose shapes lay out the parameters


class Convolutions(nn.Module):
    """4x4 convolutions with LeakyReLU 0.2; channel dropout between them, or half batch and half instance normalisation."""

    layers: Layers
    train: bool
    dropout: float = 0.0
    normalise: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B,H,W,C] -> [B,h,w,channels of the last layer]."""
        for number, (channels, strides) in enumerate(self.layers, start=1):
            if number > 1:
                x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not self.train)(x)
            x = _conv(channels, strides, x, f"conv{number}", self.dtype, bias=not self.normalise)
            if self.normalise:
                x = _HalfBatchNorm(self.train, name=f"norm{number}")(x)
            x = nn.leaky_relu(x, 0.2)
        return x


class _HalfBatchNorm(nn.Module):
    """BatchNorm of the first half of the channels, normalisation of each image by itself of the others (GCT's IBNorm)."""

    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B,H,W,C] -> the same shape and dtype."""
        half = (x.shape[-1] + 1) // 2
        return jnp.concatenate([BatchNorm(self.train, name="batch")(x[..., :half]), _of_each(x[..., half:])], axis=-1)


class _Map(nn.Module):
    """A last convolution, resized to the image."""

    channels: int
    strides: int

    @nn.compact
    def __call__(self, features: Features) -> Array:
        """f32[B,H,W,channels]."""
        score = _conv(self.channels, self.strides, features.high.astype(jnp.float32), "last", jnp.float32)
        return resize(score, (features.size.height, features.size.width), align_corners=True)


def pixel_discriminator(
    classes: int, *, channels: int = 64, halvings: int = 5, compute_dtype: Any = jnp.float32
) -> Network:
    """Tells truth from prediction, pixel by pixel (AdvSemSeg: Hung et al., BMVC 2018).

    `encode` takes class maps [B,H,W,classes], one-hot truth or predicted probabilities, of any size. The head "score" gives
    the logit f32[B,H,W,1] that a pixel is ground truth. There is no BatchNorm: batch_stats are empty.

    Args:
      classes: of the segmentation.
      channels: of the first convolution; the next three double them, and a last one makes the score.
      halvings: how many of the five, from the first on, have stride 2.
      compute_dtype: of activations, float32 or bfloat16. Scores are float32.
    """
    layers = _halved([(channels * width, 2) for width in (1, 2, 4, 8)] + [(1, 2)], halvings)
    return dense_critic(classes, layers, compute_dtype=compute_dtype)


def flaw_detector(classes: int, *, channels: int = 64, halvings: int = 5, compute_dtype: Any = jnp.float32) -> Network:
    """Says where a prediction is wrong (GCT: Ke et al., ECCV 2020).

    `encode` takes [B,H,W,3+classes]: the image in [0, 1] with the predicted probabilities behind it, of any size. The head
    "score" gives the flaw f32[B,H,W,1], without an activation.

    Args:
      classes: of the segmentation.
      channels: of the first convolution; there are eight, with up to eight times as many.
      halvings: how many of the five of stride 2, from the first on, keep it.
      compute_dtype: of activations, float32 or bfloat16. Normalisation and flaws are float32.
    """
    return dense_critic(3 + classes, _of_detector(channels, 1, halvings), normalise=True, compute_dtype=compute_dtype)


def corrector(classes: int, *, channels: int = 64, halvings: int = 5, compute_dtype: Any = jnp.float32) -> Network:
    """Says that a prediction is right, or which class is (ECS: Mendel et al., ECCV 2020). Its form is GCT's detector's.

    `encode` takes what the flaw detector takes. The head "score" gives logits f32[B,H,W,classes+1]: of each class, and last
    of the prediction being right.

    Args:
      classes: of the segmentation.
      channels: as the flaw detector's.
      halvings: as the flaw detector's.
      compute_dtype: of activations, float32 or bfloat16. Normalisation and logits are float32.
    """
    layers = _of_detector(channels, classes + 1, halvings)
    return dense_critic(3 + classes, layers, normalise=True, compute_dtype=compute_dtype)


def _of_detector(channels: int, outputs: int, halvings: int) -> Layers:
    """GCT's eight convolutions, the last with so many outputs."""
    published = (1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)
    return _halved([(channels * width, strides) for width, strides in published] + [(outputs, 2)], halvings)


def _halved(layers: list[tuple[int, int]], halvings: int) -> Layers:
    """The layers, of which the first so many of stride 2 keep it."""
    strides = [stride for _, stride in layers]
    kept = (stride if strides[:n].count(2) < halvings else 1 for n, stride in enumerate(strides))
    return tuple((channels, stride) for (channels, _), stride in zip(layers, kept, strict=True))


def dense_critic(inputs: int, layers: Layers, *, normalise: bool = False, compute_dtype: Any = jnp.float32) -> Network:
    """A critic that gives each pixel scores, f32[B,H,W,channels of the last layer].

    Where a map is smaller than a kernel there is a margin around it, so that images of any size are judged.

    Args:
      inputs: channels of what it judges.
      layers: of the convolutions; the last makes the scores and is resized to the image.
      normalise: whether the others are normalised, half of their channels by the batch.
      compute_dtype: of activations. Scores are float32.
    """
    *before, (outputs, stride) = layers
    how = {"outputs": outputs, "normalise": normalise, "compute_dtype": compute_dtype}
    return critic(inputs, tuple(before), _with_size, _Map(outputs, stride), **how)


def _with_size(maps: Array, image: Array) -> Features:
    """The last map, and the size of what was judged."""
    return Features((maps,), ImageSize(*image.shape[1:3]), None)


def critic(
    inputs: int,
    layers: Layers,
    gather: Callable[[Array, Array], PyTree],
    judge: nn.Module,
    *,
    outputs: int = 1,
    dropout: float = 0.0,
    normalise: bool = False,
    smallest: int = 1,
    compute_dtype: Any = jnp.float32,
) -> Network:
    """A network of convolutions and the head "score".

    Args:
      inputs: channels of what it judges.
      layers: of the convolutions.
      gather: (last map, what was judged) -> the features.
      judge: module that makes the score of the features.
      outputs: channels of the score.
      dropout: probability to drop a channel between two convolutions, in train mode.
      normalise: whether the convolutions are normalised, half by the batch.
      smallest: side of an image that can be judged.
      compute_dtype: of activations.
    """
    dtype = jnp.dtype(compute_dtype)

    def convolutions(train: bool) -> Convolutions:
        return Convolutions(layers, train, dropout, normalise, dtype)

    def encode(
        variables: Variables, image: Array, *, valid: Array | None = None, train: bool = False, rng: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        del valid  # training crops are not masked
        if min(image.shape[1:3]) < smallest:
            raise ValueError(f"the discriminator needs images of {smallest} pixels a side, not {image.shape[1:3]}")
        rngs = {"dropout": named_key(rng, ENCODER)} if train and rng is not None else None
        own = {"params": variables.params[ENCODER]}
        maps: Any
        if not normalise:
            maps = convolutions(train).apply(own, image, rngs=rngs)
            return gather(maps, image), variables.batch_stats
        own["batch_stats"] = variables.batch_stats[ENCODER]
        maps, moved = convolutions(train).apply(own, image, rngs=rngs, mutable=["batch_stats"])
        return gather(maps, image), {**variables.batch_stats, ENCODER: moved["batch_stats"]}

    def classify(
        variables: Variables, head: str, features: PyTree, *, train: bool = False, rng: Array | None = None
    ) -> tuple[HeadOutput, PyTree]:
        del train, rng
        score: Any = judge.apply({"params": variables.params[head]}, features)
        return HeadOutput(score, features), variables.batch_stats

    @jax.jit
    def init(key: Array) -> Variables:
        image = jax.ShapeDtypeStruct((1, _ANY_SIZE, _ANY_SIZE, inputs), jnp.float32)
        encoder = draw_variables(convolutions(False), named_key(key, ENCODER), image)
        maps: Any = jax.eval_shape(convolutions(False).apply, encoder, image)
        features = jax.eval_shape(gather, maps, image)
        score = draw_variables(judge, named_key(key, SCORE), features)
        return Variables(
            {ENCODER: encoder["params"], SCORE: score["params"]},
            {ENCODER: encoder.get("batch_stats", {}), SCORE: {}},
        )

    return Network(init, encode, classify, (HeadSpec(SCORE, outputs),))


def _conv(channels: int, strides: int, x: Array, name: str, dtype: Any, bias: bool = True) -> Array:
    """A 4x4 convolution with a margin of 1, or as much more as a tiny map needs to fill the kernel.

    Before a normalisation a bias would do nothing.
    """
    padding: Padding = tuple((1, max(1, 3 - side)) for side in x.shape[1:3])  # type: ignore[assignment]
    # `last` is how a Conv gets a bias and a fan-in scale.
    return Conv(channels, size=4, strides=strides, padding=padding, last=bias, dtype=dtype, name=name)(x)


def _of_each(x: Array, epsilon: float = 1e-5) -> Array:
    """[B,H,W,C] by the mean and the variance of each image's own channels, in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean((1, 2), keepdims=True)
    return (centred * lax.rsqrt(jnp.square(centred).mean((1, 2), keepdims=True) + epsilon)).astype(x.dtype)
