"""DINOv2's vision transformers (Oquab et al., TMLR 2024; registers: Darcet et al., ICLR 2024) as encoders."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from forec_jax.contracts import IMAGENET_MEAN, IMAGENET_STD, Variables
from forec_jax.models.layers import valid_extent, within
from forec_jax.models.network import Encoder, EncoderEntry, Form
from forec_jax.models.resize import resize
from forec_jax.options import ABOVE_0, at_least, option

Array = jax.Array

PATCH = 14
TABLE = 37  # rows and columns of the position table: an image of 518 x 518
_HEAD_SIZE = 64  # channels of an attention head
_REGISTERS = 4
_EPSILON = 1e-6  # of LayerNorm
_FULL = jax.lax.Precision.HIGHEST  # of products with coordinates
_OFFSET = 0.1  # that DINOv2 adds to a size before it divides by the table's

Positions = Literal["published", "offset", "size", "antialias"]


class Size(NamedTuple):
    """A published model."""

    heads: int
    blocks: int
    taps: tuple[int, ...]  # the blocks whose results a decoder reads, as in UniMatch V2 and Depth Anything V2
    swiglu: bool = False


SIZES = {
    "dinov2_small": Size(6, 12, (2, 5, 8, 11)),
    "dinov2_base": Size(12, 12, (2, 5, 8, 11)),
    "dinov2_large": Size(16, 24, (4, 11, 17, 23)),
    "dinov2_giant": Size(24, 40, (9, 19, 29, 39), swiglu=True),
}


@dataclass(frozen=True, kw_only=True)
class DinoV2Options:
    """The form of a DINOv2."""

    registers: bool = option(False, "four tokens more, of weights whose name ends in reg4 or with_registers")
    positions: Positions = option(
        "published",
        "how the position table meets another image size: offset (DINOv2, UniMatch V2, Depth Anything), antialias (with "
        "registers; timm), size (transformers), or published: antialias with registers, otherwise offset",
    )
    width: float = option(1.0, "multiplies the attention heads; 1 is the published network", ABOVE_0)
    depth: int = option(0, "blocks; 0: as published", at_least(0))
    remat: bool = option(False, "keep less for the backward pass and compute it again (docs/scaling.md)")


def size_of(variant: str, o: DinoV2Options) -> Size:
    """Heads, blocks and taps of a variant, scaled as the options ask; with other blocks the taps end its quarters."""
    size = SIZES[variant]
    size = size._replace(heads=max(1, round(size.heads * o.width)))
    if o.depth:
        quarters = tuple(-(-o.depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4))
        size = size._replace(blocks=o.depth, taps=quarters)
    return size


def channels_of(variant: str, o: DinoV2Options) -> int:
    """The channels of every token."""
    return size_of(variant, o).heads * _HEAD_SIZE


def token_extent(valid: Array) -> Array:
    """i32[B,2]: rows and columns of patches that the valid part of bool[B,H,W] is resized to: the nearest, 1 at least.

    UniMatch V2 evaluates so: an image of H x W is resized to round(H / 14) * 14 x round(W / 14) * 14.
    """
    pixels = valid_extent(valid, 1)
    return jnp.maximum((2 * pixels + PATCH) // (2 * PATCH), 1)


class DinoV2(nn.Module):
    """Encoder: normalised images -> four maps of tokens at stride 14, shallow to deep, each after the last LayerNorm."""

    size: Size
    registers: bool
    positions: str
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, ...]:
        """f32[B,H,W,3] with sides that 14 divides -> [B,H/14,W/14,C] four times.

        With `valid` the valid part is first resized to whole patches (`token_extent`), and tokens beyond them are not seen.
        """
        extent = None if valid is None else token_extent(valid)
        if valid is not None and extent is not None:
            whole = extent * PATCH
            x = resize(
                x, (x.shape[1], x.shape[2]), align_corners=True, extent_in=valid_extent(valid, 1), extent_out=whole
            )
        tokens, grid = self._tokens(x, extent)
        seen = None if extent is None else _seen(extent, grid, tokens.shape[1] - grid[0] * grid[1])
        block, norm = nn.remat(_Block) if self.remat else _Block, _norm("norm")
        maps = []
        for index in range(self.size.blocks):
            tokens = block(self.size.heads, self.size.swiglu, self.dtype, name=f"block{index}")(tokens, seen)
            if index in self.size.taps:
                patches = norm(tokens)[:, -grid[0] * grid[1] :]
                maps.append(patches.reshape(x.shape[0], *grid, -1).astype(self.dtype))
        return tuple(maps)

    def _tokens(self, x: Array, extent: Array | None) -> tuple[Array, tuple[int, int]]:
        """[B,1+registers+h*w,C]: the class token, the registers, the patches row by row; and (h, w)."""
        channels = self.size.heads * _HEAD_SIZE
        rows, grid = x.shape[0], (x.shape[1] // PATCH, x.shape[2] // PATCH)
        patches = x.reshape(rows, grid[0], PATCH, grid[1], PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        embedded = _Dense(channels, self.dtype, name="patch")(patches.reshape(rows, *grid, -1))
        table = _Positions(channels, name="positions")()
        mode = self.positions
        if mode == "published":
            mode = "antialias" if self.registers else "offset"
        embedded = embedded + _at_size(table[1:].reshape(TABLE, TABLE, channels), grid, extent, mode).astype(self.dtype)
        first = [self.param("class_token", nn.initializers.zeros, (1, channels)) + table[:1]]
        if self.registers:
            first.append(self.param("registers", nn.initializers.zeros, (_REGISTERS, channels)))
        prefix = jnp.concatenate(first).astype(self.dtype)
        prefix = jnp.broadcast_to(prefix[None], (rows, *prefix.shape))
        return jnp.concatenate([prefix, embedded.reshape(rows, -1, channels)], axis=1), grid


class _Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm, scaled by channel and added."""

    heads: int
    swiglu: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, seen: Array | None) -> Array:
        """[B,T,C], bool[B,T] -> [B,T,C]."""
        x = x + self._scaled("scale1", self._attention(_norm("norm1")(x).astype(self.dtype), seen))
        return x + self._scaled("scale2", self._perceptron(_norm("norm2")(x).astype(self.dtype)))

    def _attention(self, x: Array, seen: Array | None) -> Array:
        channels = x.shape[-1]
        qkv = _Dense(3 * channels, self.dtype, name="qkv")(x)
        query, key, value = jnp.split(qkv.reshape(*x.shape[:2], 3 * self.heads, _HEAD_SIZE), 3, axis=2)
        mask = None if seen is None else seen[:, None, None, :]
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask)
        return _Dense(channels, self.dtype, name="attended")(mixed.reshape(x.shape))

    def _perceptron(self, x: Array) -> Array:
        channels = x.shape[-1]
        if self.swiglu:
            width = -(-(4 * channels * 2 // 3) // 8) * 8
            gate, value = jnp.split(_Dense(2 * width, self.dtype, name="hidden")(x), 2, axis=-1)
            return _Dense(channels, self.dtype, name="output")(nn.silu(gate) * value)
        hidden = nn.gelu(_Dense(4 * channels, self.dtype, name="hidden")(x), approximate=False)
        return _Dense(channels, self.dtype, name="output")(hidden)

    def _scaled(self, name: str, x: Array) -> Array:
        scale = self.param(name, nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return x * scale[None, None].astype(x.dtype)


class _Dense(nn.Module):
    """A matrix and a bias; the first values of the matrix have the deviation 0.02."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[...,C] -> [...,features] in `dtype`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.constant(0.02), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,)).astype(y.dtype)


class _Positions(nn.Module):
    """The position of the class token, then of each patch of the table."""

    channels: int

    @nn.compact
    def __call__(self) -> Array:
        """f32[1+37*37,C]."""
        table: Array = self.param(
            "kernel", nn.initializers.constant(0.02), (1 + TABLE * TABLE, self.channels), jnp.float32
        )
        return table


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=_EPSILON, dtype=jnp.float32, name=name)


def _seen(extent: Array, grid: tuple[int, int], before: int) -> Array:
    """bool[B,T]: the tokens that stand before the patches, and the patches within the extent."""
    patches = within(extent, grid).reshape(extent.shape[0], -1)
    return jnp.concatenate([jnp.ones((extent.shape[0], before), bool), patches], axis=1)


def _at_size(table: Array, grid: tuple[int, int], extent: Array | None, mode: str) -> Array:
    """The position table f32[37,37,C] for a grid of patches, f32[1,h,w,C]; with i32[B,2] extents for each, f32[B,h,w,C].

    Bicubic, by one matrix an axis. An image of exactly 37 x 37 patches has the table as it is.
    """
    if extent is None:
        if grid == (TABLE, TABLE):
            return table[None]
        rows, columns = (jnp.asarray(position_weights(number, mode)) for number in grid)
        return jnp.einsum("hp,pqd,wq->hwd", rows, table, columns, precision=_FULL)[None]
    same = jnp.all(extent == TABLE, axis=1)[:, None, None]
    rows, columns = (
        jnp.where(same, jnp.asarray(_whole(number)), jnp.asarray(_for_each_extent(number, mode))[extent[:, axis]])
        for axis, number in enumerate(grid)
    )
    return jnp.einsum("bhp,pqd,bwq->bhwd", rows, table, columns, precision=_FULL)


def position_weights(number: int, mode: str) -> np.ndarray:
    """f32[number,37]: what each row of the table gives to each row of patches.

    "offset" and "size": Keys's cubic with a = -0.75 on four neighbours, the border repeated, at (d + 0.5) / s - 0.5 with
    s = (number + 0.1) / 37 or number / 37. "antialias": a = -0.5, as wide as the table is finer, within the table.
    """
    new = np.arange(number, dtype=np.float64) + 0.5
    old = np.arange(TABLE, dtype=np.float64)
    if mode == "antialias":
        ratio = TABLE / number
        wide = max(ratio, 1.0)
        weights = _cubic((old[None] + 0.5 - new[:, None] * ratio) / wide, -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    scale = (number + (_OFFSET if mode == "offset" else 0.0)) / TABLE
    at = new / scale - 0.5
    weights = np.zeros((number, TABLE))
    for tap in range(-1, 3):
        place = np.floor(at) + tap
        np.add.at(weights, (np.arange(number), np.clip(place, 0, TABLE - 1).astype(int)), _cubic(at - place, -0.75))
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys's kernel (IEEE TASSP 1981)."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _whole(number: int) -> np.ndarray:
    """f32[number,37]: each row of the table as it is."""
    return np.eye(number, TABLE, dtype=np.float32)


def _for_each_extent(number: int, mode: str) -> np.ndarray:
    """f32[number+1,number,37]: `position_weights` of every extent, zero beyond it."""
    weights = np.zeros((number + 1, number, TABLE), np.float32)
    for extent in range(1, number + 1):
        weights[extent, :extent] = position_weights(extent, mode)
    return weights


def build(variant: str, o: DinoV2Options, form: Form) -> Encoder:
    """A DINOv2 as an encoder."""
    size = size_of(variant, o)

    def module(train: bool) -> nn.Module:
        del train  # nothing here behaves otherwise in training
        return DinoV2(size, o.registers, o.positions, o.remat, form.dtype)

    return Encoder(module, IMAGENET_MEAN, IMAGENET_STD, gives="tokens", multiple=PATCH, patch=PATCH)


def weights(source: str, variant: str, o: DinoV2Options) -> Variables:
    """Pretrained weights; see `load_dinov2`."""
    from forec_jax.models.dinov2_weights import load_dinov2  # it needs the sizes that stand here

    return load_dinov2(source, variant, o)


ENTRY = EncoderEntry("dinov2", tuple(SIZES), DinoV2Options, build, decoder="dpt", weights=weights)
