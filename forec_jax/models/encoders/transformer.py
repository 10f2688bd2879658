"""What vision transformers share: patches, the block (Vaswani et al., NeurIPS 2017), and the maps that a decoder reads."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.models.dot_product_attention import attend
from forec_jax.models.layers import patch_extent, valid_extent, within
from forec_jax.models.resize import resize

Array = jax.Array

HEAD_SIZE = 64  # channels of an attention head


class Size(NamedTuple):
    """How large a transformer is."""

    heads: int
    blocks: int
    taps: tuple[int, ...]  # the blocks whose results a decoder reads, as in UniMatch V2 and Depth Anything V2
    swiglu: bool = False
    ratio: int = 4  # channels within a perceptron to those of a token; two thirds of them with SwiGLU

    @property
    def channels(self) -> int:
        """Of every token."""
        return self.heads * HEAD_SIZE

    @property
    def hidden(self) -> int:
        """Channels within a perceptron; with SwiGLU a multiple of 8."""
        wide = self.ratio * self.channels
        return -(-(2 * wide // 3) // 8) * 8 if self.swiglu else wide

    def scaled(self, width: float, depth: int) -> "Size":
        """With `width` times the heads and, where it is above 0, `depth` blocks, whose quarters the taps end."""
        size = self._replace(heads=max(1, round(self.heads * width)))
        if not depth:
            return size
        return size._replace(blocks=depth, taps=tuple(-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4)))


@dataclass(frozen=True)
class BlockForm:
    """What the blocks of a transformer have in common."""

    size: Size
    epsilon: float  # of LayerNorm
    key_bias: bool = True  # whether keys have one as queries and values do
    remat: bool = False  # a block's inside is computed again in the backward pass, not kept
    dtype: Any = jnp.float32


class Rotation(NamedTuple):
    """Rotary position embedding (Su et al., RoFormer, 2021): turns the queries and keys by where their tokens are."""

    cos: Array  # f32[B or 1,T,1,HEAD_SIZE]
    sin: Array

    def turned(self, x: Array) -> Array:
        """[B,T,heads,HEAD_SIZE], channel i turned together with channel i + HEAD_SIZE / 2; in the dtype of `x`."""
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        across = jnp.concatenate([-second, first], axis=-1)
        return (x.astype(jnp.float32) * self.cos + across * self.sin).astype(x.dtype)


class Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm, scaled by channel and added."""

    form: BlockForm

    @nn.compact
    def __call__(self, x: Array, seen: Array | None, rotation: Rotation | None) -> Array:
        """[B,T,C], bool[B,T] -> [B,T,C]."""
        dtype = self.form.dtype
        x = x + self._scaled("scale1", self._attention(self._norm("norm1")(x).astype(dtype), seen, rotation))
        return x + self._scaled("scale2", self._perceptron(self._norm("norm2")(x).astype(dtype)))

    def _attention(self, x: Array, seen: Array | None, rotation: Rotation | None) -> Array:
        heads = self._projected(x).reshape(*x.shape[:2], 3 * self.form.size.heads, HEAD_SIZE)
        query, key, value = jnp.split(heads, 3, axis=2)
        if rotation is not None:
            query, key = rotation.turned(query), rotation.turned(key)
        mixed = attend(query, key, value, seen)
        return Dense(x.shape[-1], self.form.dtype, name="attended")(mixed.reshape(x.shape))

    def _projected(self, x: Array) -> Array:
        """Queries, keys and values side by side, [B,T,3C]."""
        channels = x.shape[-1]
        joined: Array = Dense(3 * channels, self.form.dtype, self.form.key_bias, name="qkv")(x)
        if self.form.key_bias:
            return joined
        query, value = self.param("query_value_bias", nn.initializers.zeros, (2, channels), jnp.float32)
        return joined + jnp.concatenate([query, jnp.zeros_like(query), value])[None, None].astype(joined.dtype)

    def _perceptron(self, x: Array) -> Array:
        size, dtype = self.form.size, self.form.dtype
        if size.swiglu:
            gate, value = jnp.split(Dense(2 * size.hidden, dtype, name="hidden")(x), 2, axis=-1)
            return Dense(x.shape[-1], dtype, name="output")(nn.silu(gate) * value)
        hidden = nn.gelu(Dense(size.hidden, dtype, name="hidden")(x), approximate=False)
        return Dense(x.shape[-1], dtype, name="output")(hidden)

    def _scaled(self, name: str, x: Array) -> Array:
        scale = self.param(name, nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return x * scale[None, None].astype(x.dtype)

    def _norm(self, name: str) -> nn.LayerNorm:
        return norm(name, self.form.epsilon)


class Dense(nn.Module):
    """A matrix and a bias; the first values of the matrix have the deviation 0.02."""

    features: int
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[...,C] -> [...,features] in `dtype`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.constant(0.02), shape, jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,)).astype(y.dtype)


def norm(name: str, epsilon: float) -> nn.LayerNorm:
    """LayerNorm (Ba et al., 2016), in float32."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, name=name)


def whole_patches(x: Array, valid: Array | None, patch: int) -> tuple[Array, Array | None]:
    """Images whose valid parts are resized to whole patches, and the rows and columns of patches, i32[B,2], that those are.

    Without `valid`, the images as they are and None.
    """
    if valid is None:
        return x, None
    extent = patch_extent(valid, patch)
    before, size = valid_extent(valid, 1), (x.shape[1], x.shape[2])
    return resize(x, size, align_corners=True, extent_in=before, extent_out=extent * patch), extent


def embedded(x: Array, patch: int, channels: int, dtype: Any, name: str = "patch") -> Array:
    """The tokens [B,H/patch,W/patch,channels] of the patches of [B,H,W,C], by a layer of the module that calls this."""
    rows, height, width, colours = x.shape
    patches = x.reshape(rows, height // patch, patch, width // patch, patch, colours).transpose(0, 1, 3, 2, 4, 5)
    tokens: Array = Dense(channels, dtype, name=name)(patches.reshape(*patches.shape[:3], -1))
    return tokens


def tapped(
    prefix: Array, patches: Array, extent: Array | None, form: BlockForm, rotation: Rotation | None = None
) -> tuple[Array, ...]:
    """The maps [B,h,w,C] of the form's taps, by the layers "block0", ... and "norm" of the module that calls this.

    Args:
        prefix: f32[P,C], the tokens that stand before an image's patches.
        patches: [B,h,w,C].
        extent: i32[B,2], the rows and columns of patches that are seen; None for all.
        form: of the blocks.
        rotation: of all tokens.
    """
    rows, height, width, channels = patches.shape
    first = jnp.broadcast_to(prefix[None].astype(form.dtype), (rows, *prefix.shape))
    tokens = jnp.concatenate([first, patches.reshape(rows, -1, channels)], axis=1)
    seen = None if extent is None else _seen(extent, (height, width), len(prefix))
    block, last = nn.remat(Block) if form.remat else Block, norm("norm", form.epsilon)
    maps = {}
    for index in range(form.size.blocks):
        tokens = block(form, name=f"block{index}")(tokens, seen, rotation)
        if index in form.size.taps:
            maps[index] = last(tokens)[:, len(prefix) :].reshape(patches.shape).astype(form.dtype)
    return tuple(maps[index] for index in form.size.taps)


def _seen(extent: Array, grid: tuple[int, int], before: int) -> Array:
    """bool[B,T]: the tokens that stand before the patches, and the patches within the extent."""
    patches = within(extent, grid).reshape(extent.shape[0], -1)
    return jnp.concatenate([jnp.ones((extent.shape[0], before), bool), patches], axis=1)
