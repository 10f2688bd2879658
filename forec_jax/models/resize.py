"""Bilinear resizing by two small matrices, which compiles fast and gives `align_corners=True` exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


def resize(
    x: Array,
    size: tuple[int, int],
    *,
    align_corners: bool,
    extent_in: Array | None = None,
    extent_out: Array | None = None,
) -> Array:
    """Resizes images bilinearly, without antialiasing.

    With extents, the top-left `extent_in[b]` pixels of image b are resized onto the top-left `extent_out[b]` pixels of
    its result, as they would be on their own; the rest of the result is zero.

    Args:
      x: [B,h,w,C], floating.
      size: (H, W) of the result.
      align_corners: whether the centres of the corner pixels coincide (else their outer corners do).
      extent_in: i32[B,2] in 1..(h, w): valid rows and columns before, or None for all.
      extent_out: i32[B,2] in 1..(H, W): valid rows and columns after, or None for all. Both or neither.

    Returns:
      [B,H,W,C] in the dtype of `x`.
    """
    if (extent_in is None) != (extent_out is None):
        raise ValueError("resize takes both extents or neither")
    if extent_in is None and x.shape[1:3] == tuple(size):
        return x
    matrices = []
    for axis in (0, 1):
        if extent_in is None or extent_out is None:
            matrix = jnp.asarray(_static_weights(x.shape[1 + axis], size[axis], align_corners))
            matrices.append(jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape)))
        else:
            matrices.append(
                _weights(x.shape[1 + axis], size[axis], extent_in[:, axis], extent_out[:, axis], align_corners)
            )
    return _apply(x, matrices[0], matrices[1])


def _static_weights(old: int, new: int, align_corners: bool) -> np.ndarray:
    """f32[new,old]: row i holds what each old pixel gives to new pixel i."""
    index = np.arange(new, dtype=np.float64)
    aligned = index * ((old - 1) / max(new - 1, 1))
    at = np.clip(aligned if align_corners else (index + 0.5) * (old / new) - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old))).astype(np.float32)


def _weights(old: int, new: int, old_extent: Array, new_extent: Array, align_corners: bool) -> Array:
    """f32[B,new,old]: as `_static_weights` for the valid part of each image, zero outside of it."""
    index = jnp.arange(new, dtype=jnp.float32)[None]
    n_old = old_extent.astype(jnp.float32)[:, None]
    n_new = new_extent.astype(jnp.float32)[:, None]
    aligned = index * (n_old - 1) / jnp.maximum(n_new - 1, 1)
    at = jnp.clip(aligned if align_corners else (index + 0.5) * n_old / n_new - 0.5, 0, n_old - 1)
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(at[..., None] - jnp.arange(old)[None, None]))
    return jnp.where((index < n_new)[..., None], weights, 0.0)


def _apply(x: Array, rows: Array, columns: Array) -> Array:
    """Products with f32[B,H,h] and f32[B,W,w], batched so that the large result has its axes in place.

    The product along the columns leaves its axes in another order than images have; taken first, what has to be moved is
    the image of h rows, not that of H.
    """
    b, h, _, c = x.shape
    high, wide = rows.shape[1], columns.shape[1]
    # Full float32 products: an interpolation in TF32 or bfloat16 would round coordinates, and these are cheap.
    batched = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    broad = jnp.einsum("bhwc,bWw->bhWc", x.astype(jnp.float32), columns, **batched)
    full = lax.dot_general(rows, broad.reshape(b, h, wide * c), (((2,), (1,)), ((0,), (0,))), **batched)
    return full.reshape(b, high, wide, c).astype(x.dtype)


def nearest(pixels: Array, size: tuple[int, int]) -> Array:
    """[B,H,W,...] at [B,*size,...]: the nearest pixels, corners on corners as in the decoder's resizes."""
    rows, columns = (
        np.rint(np.linspace(0, old - 1, new)).astype(np.int32) for old, new in zip(pixels.shape[1:3], size, strict=True)
    )
    return pixels[:, rows[:, None], columns[None, :]]
