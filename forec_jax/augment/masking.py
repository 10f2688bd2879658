"""Images of which some patches are hidden (masked image modelling)."""

import jax
import jax.numpy as jnp

from forec_jax.contracts import IMAGENET_MEAN, Array


def hide_patches(key: Array, image: Array, patch: int, visible: float) -> Array:
    """The images f32[B,H,W,3] with all but a share `visible` of their square patches in the mean colour.

    The grid of patches of `patch` pixels starts at the top left; those at the other ends may be cut. Of each image the
    same number of patches stays, `visible` times all of them, rounded, and one at least; they are drawn uniformly.
    """
    rows, height, width = image.shape[:3]
    grid = -(-height // patch), -(-width // patch)
    patches = grid[0] * grid[1]
    draw = jax.random.uniform(key, (rows, patches))
    rank = jnp.argsort(jnp.argsort(draw, axis=-1), axis=-1)
    shown = (rank < max(round(visible * patches), 1)).reshape(rows, *grid)
    shown = jnp.repeat(jnp.repeat(shown, patch, axis=1), patch, axis=2)[:, :height, :width]
    return jnp.where(shown[..., None], image, mean_colour())


def mean_colour() -> Array:
    """What normalisation turns into zeros, and padding has: f32[1,1,1,3]."""
    return jnp.asarray(IMAGENET_MEAN, jnp.float32)[None, None, None]
