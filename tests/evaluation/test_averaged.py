"""Test-time augmentation against a NumPy oracle of each image alone, and on real networks of any size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.config import defaults
from forec_jax.contracts import HeadSpec
from forec_jax.data import DataError, Example
from forec_jax.evaluation import Averaged, Predictor, SlidingWindow
from forec_jax.experiment import build
from forec_jax.methods import MeanTeacher
from forec_jax.models.decoders import dpt
from forec_jax.models.encoders import dinov2
from forec_jax.models.encoders.dinov2 import DinoV2Options
from forec_jax.models.network import Form, assemble
from forec_jax.options import OptionError

SIZES = [(21, 30), (32, 32), (17, 9)]
SCALES = (0.75, 1.0, 1.3)


@dataclasses.dataclass(frozen=True)
class DependsOnTheWhole:
    """Probabilities that depend on the pixel, its column and all valid pixels: scaling and turning show."""

    networks = {}  # noqa: RUF012

    def predict(self, variables, image, valid):
        red = jnp.where(valid, image[..., 0], 0.0)
        mean = (red.sum((1, 2)) / jnp.maximum(valid.sum((1, 2)), 1))[:, None, None]
        p = jax.nn.sigmoid(6 * (red - mean) + 0.1 * jnp.arange(image.shape[2])[None, None])
        return jnp.stack([p, 1 - p], axis=-1)


def predicted(image):
    """The same for one image f64[H,W,3] alone."""
    red = image[..., 0]
    p = 1 / (1 + np.exp(-(6 * (red - red.mean()) + 0.1 * np.arange(image.shape[1]))))
    return np.stack([p, 1 - p], axis=-1)


def resized(image, size):
    """Bilinear, corners on corners, by the positions of pixels."""
    for axis, new in enumerate(size):
        at = np.arange(new) * (image.shape[axis] - 1) / max(new - 1, 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        part = (at - low).reshape([-1 if k == axis else 1 for k in range(3)])
        image = np.take(image, low, axis) * (1 - part) + np.take(image, high, axis) * part
    return image


def oracle(image, scales, flip):
    found = []
    for scale in scales:
        seen = resized(image, [max(round(scale * side), 1) for side in image.shape[:2]])
        views = [predicted(seen)] + ([predicted(seen[:, ::-1])[:, ::-1]] if flip else [])
        found += [resized(view, image.shape[:2]) for view in views]
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("scales", "flip"), [(SCALES, True), ((0.75,), False)])
def test_it_is_the_mean_of_each_image_alone_at_each_scale_and_turned(scales, flip):
    rng = np.random.default_rng(0)
    image, valid = np.full((3, 32, 32, 3), 0.7, np.float32), np.zeros((3, 32, 32), bool)
    for row, (height, width) in enumerate(SIZES):
        image[row, :height, :width], valid[row, :height, :width] = rng.random((height, width, 3)), True
    found = jax.jit(Averaged(DependsOnTheWhole(), scales, flip, 8).predict)({}, image, valid)
    for row, (height, width) in enumerate(SIZES):
        expected = oracle(image[row, :height, :width].astype(np.float64), scales, flip)
        np.testing.assert_allclose(found[row, :height, :width], expected, atol=1e-5)
        np.testing.assert_allclose(found[row, :height, :width].sum(-1), 1, atol=1e-5)


@pytest.mark.slow
def test_patches_of_a_transformer_see_each_image_as_if_it_were_alone():
    """Odd sides that are no multiple of the patch, in a tight and in a loose bucket: the same probabilities."""
    network = assemble(
        dinov2.build("dinov2_small", DinoV2Options(width=1 / 6, depth=4), Form()),
        dpt.build(dpt.DptOptions(4, (2, 2, 3, 3)), Form()),
        (HeadSpec("segmentation", 3),),
    )
    method = MeanTeacher(network=network, colour=None, mixing=None)
    variables = {"student": network.init(jax.random.key(0))}
    c = defaults()
    c.eval.scales, c.eval.flip = (0.75, 1.25), True
    example = Example("e", np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8))
    found = []
    for bucket in (network.multiple * 5, network.multiple * 6):
        c.eval.bucket = bucket
        predictor = Predictor(build.build_predicts(c, method), build.build_buckets(c, method, 1), probabilities=True)
        (one,) = predictor(variables, [example])
        found.append(one.probabilities)
    assert found[0].shape == (45, 61, 3)
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_it_is_around_the_windows_and_absent_where_there_is_one_view():
    c = defaults()
    method = DependsOnTheWhole()
    assert build.build_predicts(c, method) is method
    c.eval.mode, c.eval.flip = "sliding", True
    averaged = build.build_predicts(c, method)
    assert isinstance(averaged, Averaged)
    assert isinstance(averaged.single, SlidingWindow)
    c.eval.scales = (1.0, 0.0)
    with pytest.raises(OptionError, match=r"eval\.scales=\(1\.0, 0\.0\) must be one or more numbers above 0"):
        build.build_predicts(c, method)


def test_an_image_that_is_too_large_when_it_is_enlarged_is_named():
    """4,096 x 4,096 pixels are half of what may be seen at once; at twice the side they are two times that."""
    c, example = defaults(), Example("big", np.zeros((4096, 4096, 3), np.uint8))
    c.eval.scales = (2.0,)
    with pytest.raises(DataError, match="big: 4096x4096 pixels are too many"):
        next(build.build_buckets(c, DependsOnTheWhole(), 1).batches([example]))
