"""DINOv2's vision transformers (Oquab et al., TMLR 2024; registers: Darcet et al., ICLR 2024) as encoders."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from forec_jax.contracts import IMAGENET_MEAN, IMAGENET_STD, Variables
from forec_jax.models.encoders.transformer import BlockForm, Size, embedded, tapped, whole_patches
from forec_jax.models.network import Encoder, EncoderEntry, Form
from forec_jax.options import ABOVE_0, at_least, option

Array = jax.Array

PATCH = 14
TABLE = 37  # rows and columns of the position table: an image of 518 x 518
_REGISTERS = 4
_EPSILON = 1e-6  # of LayerNorm
_FULL = jax.lax.Precision.HIGHEST  # of products with coordinates
_OFFSET = 0.1  # that DINOv2 adds to a size before it divides by the table's

Positions = Literal["published", "offset", "size", "antialias"]

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
    """A variant's size, scaled as the options ask."""
    return SIZES[variant].scaled(o.width, o.depth)


class DinoV2(nn.Module):
    """Encoder: normalised images -> four maps of tokens at stride 14, shallow to deep, each after the last LayerNorm."""

    form: BlockForm
    registers: bool
    positions: str

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, ...]:
        """f32[B,H,W,3] with sides that 14 divides -> [B,H/14,W/14,C] four times.

        With `valid` the valid part is first resized to whole patches (`patch_extent`), and tokens beyond them are not seen.
        """
        channels, dtype = self.form.size.channels, self.form.dtype
        x, extent = whole_patches(x, valid, PATCH)
        patches = embedded(x, PATCH, channels, dtype)
        table = _Positions(channels, name="positions")()
        mode = self.positions
        if mode == "published":
            mode = "antialias" if self.registers else "offset"
        grid = (patches.shape[1], patches.shape[2])
        patches = patches + _at_size(table[1:].reshape(TABLE, TABLE, channels), grid, extent, mode).astype(dtype)
        prefix = self.param("class_token", nn.initializers.zeros, (1, channels)) + table[:1]
        if self.registers:
            registers = self.param("registers", nn.initializers.zeros, (_REGISTERS, channels))
            prefix = jnp.concatenate([prefix, registers])
        return tapped(prefix, patches, extent, self.form)


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
    blocks = BlockForm(size_of(variant, o), _EPSILON, remat=o.remat, dtype=form.dtype)

    def module(train: bool) -> nn.Module:
        del train  # nothing here behaves otherwise in training
        return DinoV2(blocks, o.registers, o.positions)

    return Encoder(module, IMAGENET_MEAN, IMAGENET_STD, gives="tokens", multiple=PATCH, patch=PATCH)


def weights(source: str, variant: str, o: DinoV2Options) -> Variables:
    """Pretrained weights; see `load_dinov2`."""
    from forec_jax.models.dino_weights import load_dinov2  # it needs the sizes that stand here

    return load_dinov2(source, variant, o)


ENTRY = EncoderEntry("dinov2", tuple(SIZES), DinoV2Options, build, decoder="dpt", weights=weights)
