"""Colour changes and blur on the device: the photometric half of the student's strong view."""

from dataclasses import dataclass

import dm_pix
import jax
import jax.numpy as jnp

from forec_jax.contracts import Array
from forec_jax.options import ASCENDING, SHARE, at_least, from_to, option

LUMA = (0.299, 0.587, 0.114)
"""Rec. 601. Own weights and not dm_pix's: those sum to 0.9999, so that a grey image would lose brightness."""


@dataclass(frozen=True)
class Photometric:
    """Strengths of the photometric changes; the defaults are those of UniMatch, ST++ and PS-MT.

    A jitter strength s draws a factor from [max(0, 1 - s), 1 + s]; `hue` draws a shift from [-hue, hue] full turns.
    Probabilities are per image. `blur_sigma` is the range of the Gaussian's standard deviation in pixels.
    """

    brightness: float = option(0.5, "strength of the change of brightness", at_least(0))
    contrast: float = option(0.5, "strength of the change of contrast", at_least(0))
    saturation: float = option(0.5, "strength of the change of saturation", at_least(0))
    hue: float = option(0.25, "strength of the change of hue, in full turns", from_to(0, 0.5))
    jitter_probability: float = option(0.8, "of the four changes above, in an image", SHARE)
    grayscale_probability: float = option(0.2, "of a grey image", SHARE)
    blur_probability: float = option(0.5, "of a blurred image", SHARE)
    blur_sigma: tuple[float, float] = option((0.1, 2.0), "range of the blur's standard deviation, in pixels", ASCENDING)

    @classmethod
    def reco(cls) -> "Photometric":
        """The strengths of ReCo's and ClassMix's code: half the jitter, no grayscale, a weaker blur."""
        return cls(0.25, 0.25, 0.25, 0.25, grayscale_probability=0.0, blur_sigma=(0.15, 1.15))

    @classmethod
    def none(cls) -> "Photometric":
        """No change at all (U2PL)."""
        return cls(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0)


@dataclass(frozen=True)
class ColourOptions:
    """Whose colours change."""

    colour_labelled: bool = option(True, "of labelled rows as well; False: of the others alone (UniMatch, ST++)")


def photometric(key: Array, image: Array, options: Photometric, valid: Array | None = None) -> Array:
    """Colour jitter, then grayscale, then blur, each drawn per image.

    `image` is f32[B,H,W,3] in [0, 1] and so is the result. `valid` (bool[B,H,W]) keeps padding out of the mean that the
    contrast turns on; colours in the padding itself change like everywhere else, since no loss looks there.
    """
    jitter_key, grey_key, blur_key = jax.random.split(key, 3)
    # The probabilities are static: what can never happen is not compiled, and 0 is exactly the identity.
    if options.jitter_probability > 0:
        image = _random_jitter(jitter_key, image, options, valid)
    if options.grayscale_probability > 0:
        chosen = _coin(grey_key, options.grayscale_probability, image.shape[:1])
        image = jnp.where(_per_image(chosen), grayscale(image), image)
    if options.blur_probability > 0:
        image = _random_blur(blur_key, image, options)
    return image


def grayscale(image: Array) -> Array:
    """The luma (Rec. 601) of f32[...,3], repeated to three channels."""
    # Written out and not as a dot product, which accelerators may compute in a lower precision.
    luma = LUMA[0] * image[..., 0:1] + LUMA[1] * image[..., 1:2] + LUMA[2] * image[..., 2:3]
    return jnp.broadcast_to(luma, image.shape)


# Brightness, contrast and saturation follow torchvision, with which the published strengths were chosen: a blend with
# black, with the mean grey, with the grey image. dm_pix's namesakes follow TensorFlow (brightness is added, contrast
# turns on each channel's mean, saturation scales S of HSV), and the same strength means another thing there.


def adjust_brightness(image: Array, factor: Array) -> Array:
    """Scale f32[B,H,W,3] in [0, 1] by `factor` (f32[B]); 1 changes nothing, 0 is black."""
    return jnp.clip(image * _per_image(factor), 0.0, 1.0)


def adjust_contrast(image: Array, factor: Array, valid: Array | None = None) -> Array:
    """Scale the distance from each image's mean luma by `factor` (f32[B]); 1 changes nothing, 0 is that grey.

    `image` is f32[B,H,W,3] in [0, 1]; with `valid` (bool[B,H,W]) the mean is over the valid pixels.
    """
    luma = grayscale(image)[..., 0]
    weight = jnp.ones_like(luma) if valid is None else valid.astype(luma.dtype)
    mean = jnp.sum(luma * weight, (1, 2)) / jnp.maximum(jnp.sum(weight, (1, 2)), 1.0)
    return _blend(_per_image(mean), image, factor)


def adjust_saturation(image: Array, factor: Array) -> Array:
    """Scale each pixel's distance from its own luma by `factor` (f32[B]); 1 changes nothing, 0 is grayscale."""
    return _blend(grayscale(image), image, factor)


def adjust_hue(image: Array, shift: Array) -> Array:
    """Turn the hue of f32[B,H,W,3] in [0, 1] by `shift` (f32[B]) full turns."""
    return jnp.clip(dm_pix.adjust_hue(image, shift[:, None, None]), 0.0, 1.0)


def gaussian_blur(image: Array, sigma: Array, radius: int = 8) -> Array:
    """Blur each of f32[B,H,W,C] by a Gaussian of standard deviation `sigma` (f32[B], pixels); 0 changes nothing.

    The kernel is cut off after `radius` pixels (four deviations of the strongest published blur) and sums to 1. Borders
    are mirrored without repeating the edge, as torchvision does; in an image of n <= radius pixels the kernel is cut
    off after n - 1, as far as a mirror reaches.
    """
    # A matrix for either axis: matrix products are what every device does well, whereas a convolution that has one
    # kernel per row of the batch and channel is slow on most. "highest", because images would show bfloat16's steps.
    rows = _blur_matrix(sigma, image.shape[1], radius)
    columns = _blur_matrix(sigma, image.shape[2], radius)
    image = jnp.einsum("bij,bjwc->biwc", rows, image, precision="highest")
    return jnp.einsum("bij,bhjc->bhic", columns, image, precision="highest")


def _random_jitter(key: Array, image: Array, options: Photometric, valid: Array | None) -> Array:
    """Brightness, contrast, saturation, hue, in this order (torchvision draws the order anew each time).

    A fixed order keeps the step one straight program: as a choice among 24 orders, every row would pay for all of them.
    """
    apply_key, brightness_key, contrast_key, saturation_key, hue_key = jax.random.split(key, 5)
    rows = image.shape[:1]
    jittered = image
    if options.brightness > 0:
        jittered = adjust_brightness(jittered, _factor(brightness_key, rows, options.brightness))
    if options.contrast > 0:
        jittered = adjust_contrast(jittered, _factor(contrast_key, rows, options.contrast), valid)
    if options.saturation > 0:
        jittered = adjust_saturation(jittered, _factor(saturation_key, rows, options.saturation))
    if options.hue > 0:
        jittered = adjust_hue(jittered, jax.random.uniform(hue_key, rows, minval=-options.hue, maxval=options.hue))
    chosen = _coin(apply_key, options.jitter_probability, rows)
    return jnp.where(_per_image(chosen), jittered, image)


def _random_blur(key: Array, image: Array, options: Photometric) -> Array:
    apply_key, sigma_key = jax.random.split(key)
    rows = image.shape[:1]
    low, high = options.blur_sigma
    sigma = jax.random.uniform(sigma_key, rows, minval=low, maxval=high)
    chosen = _coin(apply_key, options.blur_probability, rows)
    radius = max(1, round(4 * high))
    blurred = gaussian_blur(image, jnp.where(chosen, sigma, 0.0), radius)
    return jnp.where(_per_image(chosen), jnp.clip(blurred, 0.0, 1.0), image)


def _blur_matrix(sigma: Array, size: int, radius: int) -> Array:
    """f32[B,size,size]: row i holds the kernel around pixel i, its overhang folded back at the borders."""
    radius = min(radius, size - 1)
    i, j = jnp.arange(size)[None, :, None], jnp.arange(size)[None, None, :]
    # exp(-d^2 / 2 sigma^2); the floor makes sigma = 0 the identity without 0 / 0.
    exponent = -0.5 / jnp.square(jnp.maximum(sigma, 1e-3))[:, None, None]

    def kernel(distance: Array) -> Array:
        return jnp.where(jnp.abs(distance) <= radius, jnp.exp(exponent * jnp.square(distance)), 0.0)

    # Seen through the mirrors, pixel j also lies at -j and at 2 (size - 1) - j, unless it is the mirror's edge itself.
    first = jnp.where(j > 0, kernel(i + j), 0.0)
    last = jnp.where(j < size - 1, kernel(2 * (size - 1) - i - j), 0.0)
    matrix = kernel(i - j) + first + last
    return matrix / jnp.sum(matrix, axis=-1, keepdims=True)


def _coin(key: Array, probability: float, shape: tuple[int, ...]) -> Array:
    return jax.random.bernoulli(key, float(probability), shape)  # float: a config may say 1


def _factor(key: Array, shape: tuple[int, ...], strength: float) -> Array:
    return jax.random.uniform(key, shape, minval=max(0.0, 1.0 - strength), maxval=1.0 + strength)


def _blend(base: Array, image: Array, factor: Array) -> Array:
    """From `base` (factor 0) over `image` (factor 1) to beyond it, clipped to [0, 1]."""
    return jnp.clip(base + _per_image(factor) * (image - base), 0.0, 1.0)


def _per_image(value: Array) -> Array:
    return value[:, None, None, None]
