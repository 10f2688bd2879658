import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.models import resize


def bilinear(image, size, align_corners):
    """One image [h,w,C], pixel by pixel."""
    old, result = image.shape[:2], np.zeros((*size, image.shape[2]))
    for y in range(size[0]):
        for x in range(size[1]):
            at = []
            for i, n, m in ((y, old[0], size[0]), (x, old[1], size[1])):
                at.append(i * (n - 1) / max(m - 1, 1) if align_corners else min(max((i + 0.5) * n / m - 0.5, 0), n - 1))
            y0, x0 = int(at[0]), int(at[1])
            y1, x1 = min(y0 + 1, old[0] - 1), min(x0 + 1, old[1] - 1)
            fy, fx = at[0] - y0, at[1] - x0
            top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
            bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
            result[y, x] = top * (1 - fy) + bottom * fy
    return result


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("old", "new"), [((3, 4), (9, 13)), ((5, 5), (8, 8)), ((1, 1), (4, 3)), ((6, 7), (3, 1))])
def test_equals_bilinear_interpolation(old, new, align_corners):
    x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype(np.float32)
    ours = resize(jnp.asarray(x), new, align_corners=align_corners)
    assert ours.shape == (2, *new, 3)
    np.testing.assert_allclose(ours, [bilinear(i, new, align_corners) for i in x], atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_extents_resize_the_valid_part_as_if_alone(align_corners):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6, 8, 2)).astype(np.float32)
    before, after = np.array([[6, 8], [4, 5], [1, 3]]), np.array([[24, 32], [15, 17], [4, 9]])
    ours = jax.jit(lambda *a: resize(a[0], (24, 32), align_corners=align_corners, extent_in=a[1], extent_out=a[2]))(
        x, before, after
    )
    for image, result, (h, w), (high, wide) in zip(x, ours, before, after, strict=True):
        alone = resize(jnp.asarray(image[None, :h, :w]), (int(high), int(wide)), align_corners=align_corners)[0]
        np.testing.assert_allclose(result[:high, :wide], alone, atol=1e-5)
        assert not result[high:].any()
        assert not result[:, wide:].any()


def test_garbage_outside_the_extent_has_no_effect():
    x = jnp.ones((1, 4, 4, 1)).at[:, 2:].set(1e6)
    extents = {"extent_in": jnp.array([[2, 4]]), "extent_out": jnp.array([[8, 16]])}
    result = resize(x, (16, 16), align_corners=False, **extents)
    np.testing.assert_allclose(result[0, :8], 1.0, rtol=1e-6)


def test_keeps_the_dtype_and_passes_gradients():
    x = jnp.ones((1, 3, 3, 2), jnp.bfloat16)
    assert resize(x, (5, 5), align_corners=True).dtype == jnp.bfloat16
    gradient = jax.grad(lambda v: resize(v, (7, 5), align_corners=True).sum())(jnp.ones((1, 3, 3, 2)))
    np.testing.assert_allclose(gradient.sum(), 70.0, rtol=1e-5)


def test_wants_both_extents():
    with pytest.raises(ValueError, match="both extents"):
        resize(jnp.ones((1, 2, 2, 1)), (4, 4), align_corners=True, extent_in=jnp.array([[2, 2]]))
