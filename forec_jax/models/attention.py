"""Self-attention that refines class activation maps by how alike features are (PseudoSeg: Zou et al., ICLR 2021)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadOutput, HeadSpec, Network, Variables
from forec_jax.models.dot_product_attention import attend
from forec_jax.models.layers import ConvNorm, draw_variables
from forec_jax.models.network import named_key

Array = jax.Array

REFINED = "refined"
"""The only head of an attention network, and its only part."""


class Seen(NamedTuple):
    """What the attention sees of images."""

    features: Array  # [B,h,w,D]
    maps: Array  # f32[B,h,w,C] in [0, 1], class activation maps
    inside: Array  # bool[B,h,w]; False in the padding, which no cell looks at


class _Projection(nn.Module):
    """A linear function of each cell, without bias."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B,n,D] -> [B,n,features]."""
        inputs = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.constant(inputs**-0.5), (inputs, self.features), jnp.float32)
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


class _Attention(nn.Module):
    """Adds to each cell's activations those of all cells, by likeness; then a 1x1 convolution and BatchNorm make logits."""

    classes: int
    channels: int
    rest: bool
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, seen: Seen) -> Array:
        """-> f32[B,h,w,classes]."""
        batch, height, width, depth = seen.features.shape
        features = seen.features.reshape(batch, height * width, depth)
        maps = seen.maps.reshape(batch, height * width, -1)
        query, key = (_Projection(self.channels, self.dtype, name=name)(features) for name in ("query", "key"))
        inside = seen.inside.reshape(batch, height * width)
        refined = attend(query[:, :, None], key[:, :, None], maps[:, :, None], inside)[:, :, 0] + maps  # one head
        if self.rest:  # of activations up to 2
            refined = jnp.concatenate([2.0 - jnp.max(refined, axis=-1, keepdims=True), refined], axis=-1)
        refined = refined.reshape(batch, height, width, -1)
        logits: Array = ConvNorm(self.classes, self.train, activation="none", name="logits")(refined)
        return logits


def attention_network(
    depth: int, maps: int, classes: int, *, channels: int = 128, rest: bool = True, compute_dtype: Any = jnp.float32
) -> Network:
    """Refines class activation maps to logits of all classes.

    `encode` takes `Seen` and gives it back, the head "refined" makes f32[B,h,w,classes] of it. With queries q and keys k of
    the features, a = softmax(q k' / sqrt(channels)) maps + maps; the logits are BatchNorm(1x1 convolution [2 - max a, a]).

    Args:
      depth: channels of the features.
      maps: how many activation maps there are.
      classes: of the segmentation.
      channels: of queries and keys.
      rest: whether 2 - max a is a map as well, for what shows none of the maps' classes.
      compute_dtype: of queries and keys, float32 or bfloat16. All else is float32.
    """
    dtype = jnp.dtype(compute_dtype)

    def attention(train: bool) -> _Attention:
        return _Attention(classes, channels, rest, train, dtype)

    def encode(
        variables: Variables, image: Seen, *, valid: Array | None = None, train: bool = False, rng: Array | None = None
    ) -> tuple[Seen, Any]:
        del valid, train, rng
        return image, variables.batch_stats

    def classify(
        variables: Variables, head: str, features: Seen, *, train: bool = False, rng: Array | None = None
    ) -> tuple[HeadOutput, Any]:
        del rng
        own = {"params": variables.params[head], "batch_stats": variables.batch_stats[head]}
        logits: Any
        if not train:
            logits = attention(train).apply(own, features)
            return HeadOutput(logits, features.maps), variables.batch_stats
        logits, moved = attention(train).apply(own, features, mutable=["batch_stats"])
        return HeadOutput(logits, features.maps), {**variables.batch_stats, head: moved["batch_stats"]}

    @jax.jit
    def init(key: Array) -> Variables:
        cell = (1, 1, 1)
        seen = Seen(
            jax.ShapeDtypeStruct((*cell, depth), jnp.float32),  # type: ignore[arg-type]
            jax.ShapeDtypeStruct((*cell, maps), jnp.float32),  # type: ignore[arg-type]
            jax.ShapeDtypeStruct(cell, jnp.bool_),  # type: ignore[arg-type]
        )
        drawn = draw_variables(attention(False), named_key(key, REFINED), seen)
        return Variables({REFINED: drawn["params"]}, {REFINED: drawn["batch_stats"]})

    return Network(init, encode, classify, (HeadSpec(REFINED, classes, upsample=False),), multiple=1)
