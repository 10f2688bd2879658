"""Colour changes and blur against hand values, NumPy oracles and the standard library's HSV."""

import colorsys
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from forec_jax.augment import (
    Photometric,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grayscale,
    photometric,
)

LUMA = np.array([0.299, 0.587, 0.114])


blur = jax.jit(gaussian_blur)
hue = jax.jit(adjust_hue)


@functools.cache
def compiled(options: Photometric) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return jax.jit(lambda key, image: photometric(key, image, options))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(4, 12, 15, 3)).astype(np.float32)


def test_grayscale_is_the_luma_and_keeps_grey(image):
    np.testing.assert_allclose(grayscale(image)[..., 1], image @ LUMA, atol=1e-6)
    np.testing.assert_allclose(grayscale(jnp.full((1, 2, 2, 3), 0.7)), 0.7, atol=1e-6)


def test_brightness(image):
    factor = np.array([0.0, 0.5, 1.0, 1.5], np.float32)
    expected = np.clip(image * factor[:, None, None, None], 0, 1)
    np.testing.assert_allclose(adjust_brightness(image, factor), expected, atol=1e-6)


def test_contrast_turns_on_the_mean_grey(image):
    factor = np.array([0.0, 0.5, 1.0, 1.5], np.float32)[:, None, None, None]
    mean = (image @ LUMA).mean((1, 2))[:, None, None, None]
    expected = np.clip(factor * image + (1 - factor) * mean, 0, 1)
    np.testing.assert_allclose(adjust_contrast(image, factor.reshape(-1)), expected, atol=1e-6)


def test_contrast_of_a_padded_image_is_that_of_the_image_alone(image):
    factor = jnp.array([0.5, 0.7, 1.2, 1.5])
    padded = np.pad(image, ((0, 0), (0, 4), (0, 1), (0, 0)))
    valid = np.pad(np.ones(image.shape[:3], bool), ((0, 0), (0, 4), (0, 1)))
    result = adjust_contrast(padded, factor, valid)[:, :12, :15]
    np.testing.assert_allclose(result, adjust_contrast(image, factor), atol=1e-6)
    assert np.isfinite(adjust_contrast(padded, factor, np.zeros_like(valid))).all()


def test_padding_has_no_part_in_the_contrast_of_a_drawn_change(image):
    """Whatever the padding shows, the rest comes out the same."""
    options = Photometric(0.0, 0.5, 0.0, 0.0, jitter_probability=1.0, grayscale_probability=0.0, blur_probability=0.0)
    valid = jnp.zeros(image.shape[:3], bool).at[:, :8].set(True)
    dark, bright = (
        photometric(jax.random.key(0), jnp.where(valid[..., None], image, filling), options, valid)
        for filling in (0.0, 1.0)
    )
    np.testing.assert_array_equal(dark[:, :8], bright[:, :8])
    assert np.abs(dark[:, :8] - image[:, :8]).max() > 0.01


def test_saturation_blends_with_gray(image):
    factor = np.array([0.0, 0.5, 1.0, 1.5], np.float32)[:, None, None, None]
    expected = np.clip(factor * image + (1 - factor) * (image @ LUMA)[..., None], 0, 1)
    np.testing.assert_allclose(adjust_saturation(image, factor.reshape(-1)), expected, atol=1e-6)


def test_hue_against_colorsys(image):
    shift = np.array([-0.25, 0.1, 1 / 3, 0.25], np.float32)

    def turned(pixel: np.ndarray, by: float) -> tuple[float, float, float]:
        h, s, v = colorsys.rgb_to_hsv(*map(float, pixel))
        return colorsys.hsv_to_rgb((h + by) % 1.0, s, v)

    expected = np.array(
        [[[turned(p, by) for p in row] for row in rows] for rows, by in zip(image, shift.tolist(), strict=True)]
    )
    np.testing.assert_allclose(hue(image, shift), expected, atol=1e-5)


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_a_full_turn_of_hue_is_the_identity(image, shift):
    np.testing.assert_allclose(hue(image, jnp.full(4, shift)), image, atol=1e-5)


def test_hue_turns_red_into_green_and_leaves_grey():
    image = jnp.array([[[[1.0, 0.0, 0.0], [0.4, 0.4, 0.4]]]])
    np.testing.assert_allclose(hue(image, jnp.array([1 / 3]))[0, 0], [[0, 1, 0], [0.4] * 3], atol=1e-5)


def blurred_by_numpy(image: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """Pad by mirroring, then convolve along either axis."""
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        padded = np.pad(image.astype(np.float64), pad, mode="reflect")
        image = np.apply_along_axis(np.convolve, axis, padded, taps, "valid")
    return image


def test_blur_against_numpy(image):
    sigma = [0.1, 0.6, 1.3, 2.0]
    expected = [blurred_by_numpy(x, s, 8) for x, s in zip(image, sigma, strict=True)]
    np.testing.assert_allclose(blur(image, jnp.array(sigma)), expected, atol=1e-5)


def test_blur_of_tiny_images():
    image = np.random.default_rng(1).uniform(size=(1, 5, 1, 3)).astype(np.float32)
    result = blur(image, jnp.array([2.0]))
    taps = np.exp(-0.5 * (np.arange(-4, 5) / 2.0) ** 2)
    padded = np.pad(image[0, :, 0], ((4, 4), (0, 0)), mode="reflect")
    expected = np.apply_along_axis(np.convolve, 0, padded, taps / taps.sum(), "valid")
    np.testing.assert_allclose(result[0, :, 0], expected, atol=1e-5)


def test_blur_keeps_constants_and_sigma_zero_is_the_identity(image):
    np.testing.assert_allclose(blur(jnp.full_like(image, 0.3), jnp.full(4, 1.7)), 0.3, atol=1e-6)
    np.testing.assert_array_equal(blur(image, jnp.zeros(4)), image)


def test_no_change_is_exactly_the_identity(image):
    result = photometric(jax.random.key(0), jnp.asarray(image), Photometric.none())
    np.testing.assert_array_equal(result, image)


def test_rows_that_are_not_drawn_stay_exactly_as_they_are():
    image = np.random.default_rng(2).uniform(size=(64, 4, 4, 3)).astype(np.float32)
    options = Photometric(jitter_probability=0.4, grayscale_probability=0.0, blur_probability=0.3)
    result = np.asarray(compiled(options)(jax.random.key(3), image))
    same = (result == image).all((1, 2, 3)).mean()
    assert 0.2 < same < 0.65  # expected: 0.6 x 0.7


def test_probabilities_and_strengths_of_the_draws():
    image = jnp.full((512, 1, 2, 3), 0.4)
    options = Photometric(0.5, 0, 0, 0, jitter_probability=0.8, grayscale_probability=0, blur_probability=0)
    factor = np.asarray(compiled(options)(jax.random.key(0), image))[:, 0, 0, 0] / 0.4
    changed = factor[factor != 1]
    assert 0.72 < len(changed) / len(factor) < 0.88
    assert 0.5 <= changed.min() < 0.55
    assert 1.45 < changed.max() <= 1.5
    assert abs(changed.mean() - 1) < 0.06


@pytest.mark.parametrize("options", [Photometric(), Photometric(2, 2, 2, 0.5, 1, 0, 1)])
def test_range_and_repeatability(image, options):
    first, again, other = (np.asarray(compiled(options)(jax.random.key(seed), image)) for seed in (0, 0, 1))
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_one_and_eight_devices_agree():
    image = np.random.default_rng(0).uniform(size=(16, 16, 16, 3)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(image, NamedSharding(mesh, PartitionSpec("data")))
    options = Photometric(jitter_probability=1)
    eight = compiled(options)(jax.random.key(0), sharded)
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(eight, compiled(options)(jax.random.key(0), image), atol=1e-6)
