"""DINOv3's vision transformers (Siméoni et al., arXiv 2508.10104) as encoders; Meta's weights have its own licence."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import IMAGENET_MEAN, IMAGENET_STD, Variables
from forec_jax.models.encoders.transformer import (
    HEAD_SIZE,
    BlockForm,
    Rotation,
    Size,
    embedded,
    tapped,
    whole_patches,
)
from forec_jax.models.network import Encoder, EncoderEntry, Form
from forec_jax.options import ABOVE_0, at_least, option

Array = jax.Array

PATCH = 16
_REGISTERS = 4  # "storage tokens"
_EPSILON = 1e-5  # of LayerNorm
_BASE = 100.0  # the longest period of the rotation to the shortest

SIZES = {
    "dinov3_small": Size(6, 12, (2, 5, 8, 11)),
    "dinov3_small_plus": Size(6, 12, (2, 5, 8, 11), swiglu=True, ratio=6),
    "dinov3_base": Size(12, 12, (2, 5, 8, 11)),
    "dinov3_large": Size(16, 24, (4, 11, 17, 23)),
}


@dataclass(frozen=True, kw_only=True)
class DinoV3Options:
    """The form of a DINOv3, and what its weights ask of their user."""

    licence_accepted: bool = option(
        False,
        "True: you have accepted Meta's DINOv3 licence, which binds its weights and every network trained from them "
        "(docs/weights.md); without it no published weights are read",
    )
    width: float = option(1.0, "multiplies the attention heads; 1 is the published network", ABOVE_0)
    depth: int = option(0, "blocks; 0: as published", at_least(0))
    remat: bool = option(False, "keep less for the backward pass and compute it again (docs/scaling.md)")


def size_of(variant: str, o: DinoV3Options) -> Size:
    """A variant's size, scaled as the options ask."""
    return SIZES[variant].scaled(o.width, o.depth)


class DinoV3(nn.Module):
    """Encoder: normalised images -> four maps of tokens at stride 16, shallow to deep, each after the last LayerNorm."""

    form: BlockForm

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> tuple[Array, ...]:
        """f32[B,H,W,3] with sides that 16 divides -> [B,H/16,W/16,C] four times.

        With `valid` the valid part is first resized to whole patches (`patch_extent`), and tokens beyond them are not seen.
        """
        channels = self.form.size.channels
        x, extent = whole_patches(x, valid, PATCH)
        patches = embedded(x, PATCH, channels, self.form.dtype)
        first = self.param("class_token", nn.initializers.zeros, (1, channels), jnp.float32)
        registers = self.param("registers", nn.initializers.zeros, (_REGISTERS, channels), jnp.float32)
        prefix = jnp.concatenate([first, registers])
        rotation = rotation_of((patches.shape[1], patches.shape[2]), extent, len(prefix))
        return tapped(prefix, patches, extent, self.form, rotation)


def rotation_of(grid: tuple[int, int], extent: Array | None, before: int) -> Rotation:
    """How the tokens of a grid of patches (h, w) are turned, after `before` others, which are not.

    A patch's row and column are coordinates from -1 to 1 over its image, whose rows and columns of patches are
    i32[B,2] `extent` (None: the grid). Half of the 32 angles are of the row and half of the column: 2 pi times the
    coordinate by a period, from 1 on to below 100.
    """
    if extent is None:
        extent = jnp.asarray([grid])
    number = HEAD_SIZE // 4
    periods = _BASE ** (jnp.arange(number) / number)
    angles = []
    for axis, length in enumerate(grid):
        place = (jnp.arange(length)[None] + 0.5) / extent[:, axis, None]
        angles.append(2 * jnp.pi * (2 * place - 1)[..., None] / periods[None, None])
    rows, columns = angles
    shape = (extent.shape[0], *grid, number)
    both = jnp.concatenate(
        [jnp.broadcast_to(rows[:, :, None], shape), jnp.broadcast_to(columns[:, None], shape)], axis=-1
    )
    turned = jnp.concatenate(
        [jnp.zeros((extent.shape[0], before, 2 * number)), both.reshape(extent.shape[0], -1, 2 * number)], 1
    )
    twice = jnp.concatenate([turned, turned], axis=-1)[:, :, None]
    return Rotation(jnp.cos(twice), jnp.sin(twice))


def build(variant: str, o: DinoV3Options, form: Form) -> Encoder:
    """A DINOv3 as an encoder."""
    blocks = BlockForm(size_of(variant, o), _EPSILON, key_bias=False, remat=o.remat, dtype=form.dtype)

    def module(train: bool) -> nn.Module:
        del train  # the published training stretches the coordinates at random, fine-tuning as done here does not
        return DinoV3(blocks)

    return Encoder(module, IMAGENET_MEAN, IMAGENET_STD, gives="tokens", multiple=PATCH, patch=PATCH)


def weights(source: str, variant: str, o: DinoV3Options) -> Variables:
    """Pretrained weights; see `load_dinov3`."""
    from forec_jax.models.dino_weights import load_dinov3  # it needs the sizes that stand here

    return load_dinov3(source, variant, o)


ENTRY = EncoderEntry("dinov3", tuple(SIZES), DinoV3Options, build, decoder="dpt", weights=weights)
