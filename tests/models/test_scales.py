"""Several scales: whose mean it is, and that padding is no part of an image."""

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.models.scales import mean_over_scales, mirrored

KEY = jax.random.key(0)


def squared(image, valid):
    """A prediction that is not linear, so that a scale shows."""
    del valid
    return image[..., :2] ** 2


def bilinear(old, new):
    """f64[new,old]: what each old pixel gives to each new one, corners on corners."""
    return np.maximum(0, 1 - np.abs((np.arange(new) * (old - 1) / (new - 1))[:, None] - np.arange(old)))


def resized(image, size):
    rows, columns = (bilinear(old, new) for old, new in zip(image.shape[:2], size, strict=True))
    return np.einsum("ih,jw,hwc->ijc", rows, columns, image)


def test_it_is_the_mean_of_what_is_said_at_each_scale():
    """8 x 6 at 1, and at 0.6, whose sides 4.8 and 3.6 become 8 and 4, multiples of 4."""
    image = jax.random.uniform(KEY, (1, 8, 6, 3))
    found = mean_over_scales(squared, image, None, (1.0, 0.6), 4)[0]
    image = np.asarray(image[0])
    expected = (image[..., :2] ** 2 + resized(resized(image, (8, 4))[..., :2] ** 2, (8, 6))) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_padded_image_is_scaled_as_it_would_be_alone():
    """5 x 6 of 8 x 8 pixels are valid: at 1.5 they are 8 x 9 (7.5 rounded to even), whatever lies around them."""
    image, seen = jax.random.uniform(KEY, (1, 8, 8, 3)), []
    valid = jnp.zeros((1, 8, 8), bool).at[:, :5, :6].set(True)

    def noting(image, valid):
        seen.append(valid)
        return squared(image, valid)

    found = mean_over_scales(noting, image, valid, (1.5,), 4)[0, :5, :6]
    alone = np.asarray(image[0, :5, :6])
    np.testing.assert_allclose(found, resized(resized(alone, (8, 9))[..., :2] ** 2, (5, 6)), rtol=1e-4)
    assert seen[0].shape == (1, 12, 12)
    np.testing.assert_array_equal(seen[0][0], np.pad(np.ones((8, 9), bool), ((0, 4), (0, 3))))


def test_a_padded_row_is_mirrored_inside_its_own_image():
    rows = jnp.arange(8.0).reshape(2, 1, 4, 1)
    valid = jnp.array([[[True, True, True, False]], [[True, True, True, True]]])
    expected = [[2, 1, 0, 3], [7, 6, 5, 4]]
    np.testing.assert_array_equal(mirrored(rows, valid)[:, 0, :, 0], expected)
