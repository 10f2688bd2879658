import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.config import defaults
from forec_jax.contracts import HeadSpec
from forec_jax.data import Example, Labels
from forec_jax.evaluation import Evaluator, SlidingWindow
from forec_jax.experiment import build
from forec_jax.methods import MeanTeacher
from forec_jax.models import DeepLabOptions, deeplab_network
from forec_jax.options import OptionError
from forec_jax.parallel import make_mesh


@dataclasses.dataclass(frozen=True)
class DependsOnTheWindow:
    """Probabilities that depend on the pixel, its place in the window and all valid pixels of the window."""

    networks = {}  # noqa: RUF012

    def predict(self, variables, image, valid):
        red = jnp.where(valid, image[..., 0], 0.0)
        mean = (red.sum((1, 2)) / jnp.maximum(valid.sum((1, 2)), 1))[:, None, None]
        place = (jnp.arange(image.shape[1])[:, None] + 2.0 * jnp.arange(image.shape[2])[None])[None]
        p = jax.nn.sigmoid(6 * (red - mean) + 0.05 * (place % 17 - 8))
        return jnp.stack([p, 1 - p], axis=-1)


def numpy_predict(image):
    """The same for one unpadded image f64[H,W,3]."""
    red = image[..., 0]
    place = np.arange(image.shape[0])[:, None] + 2.0 * np.arange(image.shape[1])
    p = 1 / (1 + np.exp(-(6 * (red - red.mean()) + 0.05 * (place % 17 - 8))))
    return np.stack([p, 1 - p], axis=-1)


def starts(size, window, stride):
    """Written out as a loop: on until a window reaches the border, the last one moved back onto it."""
    if size <= window:
        return [0]
    found, start = [], 0
    while start + window < size:
        found.append(start)
        start += stride
    return [*found, size - window]


def sliding_oracle(image, window, stride):
    total, number = np.zeros((*image.shape[:2], 2)), np.zeros((*image.shape[:2], 1))
    for top in starts(image.shape[0], window, stride):
        for left in starts(image.shape[1], window, stride):
            part = slice(top, top + window), slice(left, left + window)
            total[part] += numpy_predict(image[part])
            number[part] += 1
    return total / number


SIZES = [(50, 70), (70, 50), (20, 64), (64, 64), (33, 61), (24, 24), (10, 9)]


def padded(sizes, side, seed=0):
    rng = np.random.default_rng(seed)
    image, valid = np.full((len(sizes), side, side, 3), 0.7, np.float32), np.zeros((len(sizes), side, side), bool)
    for row, (height, width) in enumerate(sizes):
        image[row, :height, :width] = rng.random((height, width, 3))
        valid[row, :height, :width] = True
    return image, valid


@pytest.mark.parametrize(("window", "stride"), [(24, 16), (33, 22), (32, 32), (25, 7)])
def test_sliding_equals_a_loop_over_the_windows_of_each_image_alone(window, stride):
    """Images of many sizes in one bucket: borders are each image's own, and the padding never shows."""
    image, valid = padded(SIZES, 96)
    probabilities = jax.jit(SlidingWindow(DependsOnTheWindow(), window, stride).predict)({}, image, valid)
    assert probabilities.shape == (len(SIZES), 96, 96, 2)
    for row, (height, width) in enumerate(SIZES):
        expected = sliding_oracle(image[row, :height, :width].astype(np.float64), window, stride)
        np.testing.assert_allclose(
            probabilities[row, :height, :width], expected, atol=1e-5, err_msg=f"{height}x{width}"
        )
        np.testing.assert_allclose(probabilities[row][valid[row]].sum(-1), 1, atol=1e-5)


def test_without_valid_the_whole_array_is_the_image():
    image, _ = padded([(40, 40)], 40)
    probabilities = SlidingWindow(DependsOnTheWindow(), 24, 16).predict({}, image, None)
    np.testing.assert_allclose(probabilities[0], sliding_oracle(image[0].astype(np.float64), 24, 16), atol=1e-5)


@pytest.mark.slow
def test_a_real_network_sees_each_window_as_if_it_were_an_image():
    """The window's padding up to a multiple of 32 is masked; an image within one window is predicted as a whole."""
    network = deeplab_network(
        encoder="resnet18",
        heads=(HeadSpec("segmentation", 3),),
        width=0.125,
        decoder=DeepLabOptions(channels=8, low_level_channels=4),
    )
    method = MeanTeacher(network=network, colour=None, mixing=None)
    variables = {"student": jax.jit(network.init)(jax.random.key(0))}
    whole, sliding = jax.jit(method.predict), jax.jit(SlidingWindow(method, 40, 20).predict)
    image, valid = padded([(40, 60), (40, 40), (40, 40), (33, 20)], 64)
    image[1, :40, :40], image[2, :40, :40] = image[0, :40, :40], image[0, :40, 20:60]
    windowed, whole = sliding(variables, image, valid), whole(variables, image, valid)
    both = np.asarray(whole[1, :40, 20:40] + whole[2, :40, :20]) / 2
    np.testing.assert_allclose(windowed[0, :40, :20], whole[1, :40, :20], atol=1e-4)
    np.testing.assert_allclose(windowed[0, :40, 20:40], both, atol=1e-4)
    np.testing.assert_allclose(windowed[0, :40, 40:60], whole[2, :40, 20:40], atol=1e-4)
    np.testing.assert_allclose(windowed[3][valid[3]], whole[3][valid[3]], atol=1e-4)
    assert np.abs(windowed[0][valid[0]] - whole[0][valid[0]]).max() > 1e-3  # the windows do make a difference


class Examples(list):
    @property
    def ids(self):
        return [example.id for example in self]


@pytest.mark.parametrize("devices", [1, 8])
def test_the_evaluator_scores_sliding_predictions(devices):
    """By way of the config; the score is that of the oracle on any number of devices."""
    rng = np.random.default_rng(3)
    made = Examples(
        Example(f"e{k}", rng.integers(0, 256, (*size, 3), dtype=np.uint8), rng.integers(0, 2, size).astype(np.uint8))
        for k, size in enumerate(SIZES)
    )
    expected = np.zeros((2, 2), np.int64)
    for example in made:
        prediction = sliding_oracle(example.image / 255.0, 24, 16).argmax(-1)
        np.add.at(expected, (example.label, prediction), 1)
    c = defaults()
    c.eval.mode, c.eval.crop, c.eval.bucket = "sliding", 24, 32
    labels = Labels(("a", "b"), ((0, 0, 0), (1, 1, 1)), (0,))
    evaluator = build.build_evaluator(c, DependsOnTheWindow(), labels, make_mesh(devices=jax.devices()[:devices]))
    assert isinstance(evaluator, Evaluator)
    confusion = evaluator({}, made).confusion
    assert confusion.sum() == expected.sum()
    assert np.abs(confusion - expected).max() <= 1  # a rounding difference at probability one half


@pytest.mark.parametrize(("window", "stride"), [(32, 0), (32, 33)])
def test_a_stride_that_leaves_gaps_is_an_error(window, stride):
    with pytest.raises(ValueError, match=f"a stride of {stride} pixels"):
        SlidingWindow(DependsOnTheWindow(), window, stride)


@pytest.mark.parametrize(("key", "value"), [("stride_fraction", 1.5), ("stride_fraction", 0.0), ("crop", 0)])
def test_bad_options_name_the_key(key, value):
    c = defaults()
    c.eval.mode = "sliding"
    c.eval[key] = value
    with pytest.raises(OptionError, match=rf"eval\.{key}={value} must be"):
        build.build_predicts(c, DependsOnTheWindow())


def test_the_published_stride():
    c = defaults()
    c.eval.mode, c.eval.crop = "sliding", 801
    assert build.build_predicts(c, DependsOnTheWindow()).stride == 534
