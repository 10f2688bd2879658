import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from forec_jax.config import defaults
from forec_jax.contracts import IGNORE, HeadSpec, Stopped
from forec_jax.data import DataError, Example
from forec_jax.evaluation import Buckets, Evaluator, Predictor, image_files, read_image
from forec_jax.evaluation.evaluate import center_crop
from forec_jax.experiment import build
from forec_jax.methods import MeanTeacher
from forec_jax.models import DeepLabOptions, deeplab_network
from forec_jax.parallel import make_mesh

SIZES = [(40, 70), (64, 64), (70, 40), (33, 33), (64, 33)]


@dataclasses.dataclass(frozen=True)
class BrightIsClassOne:
    """Predicts class 1 where the red channel is above a half."""

    networks = {}  # noqa: RUF012

    def predict(self, variables, image, valid):
        bright = image[..., 0] > 0.5
        return jnp.stack([~bright, bright, jnp.zeros_like(bright)], axis=-1).astype(jnp.float32)


class Examples(list):
    @property
    def ids(self):
        return [example.id for example in self]


def examples(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    made = Examples()
    for number, size in enumerate(sizes):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        label = rng.integers(0, 3, size).astype(np.uint8)
        label[0] = IGNORE
        made.append(Example(f"e{number}", image, label))
    return made


def numpy_confusion(made):
    total = np.zeros((3, 3), np.int64)
    for example in made:
        prediction = (example.image[..., 0] / 255 > 0.5).astype(int)
        known = example.label != IGNORE
        np.add.at(total, (example.label[known], prediction[known]), 1)
    return total


def test_buckets_keep_every_pixel_and_add_none():
    buckets = Buckets(64, batch=2)
    seen = []
    for rows, padded in buckets.batches(examples()):
        assert padded.image.shape[0] == 2
        assert padded.image.shape[1] % 64 == 0
        assert padded.image.shape[2] % 64 == 0
        assert padded.valid.sum() == sum(row.image.shape[0] * row.image.shape[1] for row in rows)
        assert (padded.label[~padded.valid] == IGNORE).all()
        for row, example in enumerate(rows):
            height, width = example.image.shape[:2]
            np.testing.assert_array_equal(padded.image[row, :height, :width], example.image)
            seen.append(example.id)
    assert sorted(seen) == ["e0", "e1", "e2", "e3", "e4"]


@pytest.mark.parametrize("devices", [1, 8])
def test_the_confusion_matrix_is_that_of_numpy(devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    evaluator = Evaluator(BrightIsClassOne(), 3, mesh, Buckets(64, batch=8), "whole", 0)
    np.testing.assert_array_equal(evaluator({}, examples()).confusion, numpy_confusion(examples()))


def test_an_evaluation_that_is_told_to_stop_scores_nothing():
    evaluator = Evaluator(BrightIsClassOne(), 3, make_mesh(devices=jax.devices()[:1]), Buckets(64, batch=1), "whole", 0)
    answers = iter([False, True])
    with pytest.raises(Stopped):
        evaluator({}, examples(), lambda: next(answers))
    assert list(answers) == []


def test_center_crop_cuts_image_and_label_alike():
    example = examples([(50, 41)])[0]
    cropped = center_crop(example, 40)
    np.testing.assert_array_equal(cropped.image, example.image[5:45, 0:40])
    np.testing.assert_array_equal(cropped.label, example.label[5:45, 0:40])
    assert center_crop(example, 100).image.shape == (50, 41, 3)


def test_center_crop_is_what_the_evaluator_scores():
    evaluator = Evaluator(
        BrightIsClassOne(), 3, make_mesh(devices=jax.devices()[:1]), Buckets(32, 2), "center_crop", 32
    )
    expected = numpy_confusion([center_crop(example, 32) for example in examples()])
    np.testing.assert_array_equal(evaluator({}, examples()).confusion, expected)


@pytest.fixture(scope="module")
def small_network():
    heads = (HeadSpec("segmentation", 3),)
    return deeplab_network(
        encoder="resnet18", heads=heads, width=0.125, decoder=DeepLabOptions(channels=8, low_level_channels=4)
    )


def test_a_padded_prediction_equals_that_of_the_image_alone(small_network):
    """The network masks the padding: whatever the bucket, the same probabilities."""
    method = MeanTeacher(network=small_network, colour=None, mixing=None)
    variables = {"student": small_network.init(jax.random.key(0))}
    example = examples([(40, 70)])[0]
    tight, loose = (next(iter(Predictor(method, Buckets(step, 1))(variables, [example]))) for step in (32, 128))
    np.testing.assert_allclose(tight.confidence, loose.confidence, atol=1e-4)
    assert tight.label.shape == (40, 70)
    assert (tight.label == loose.label).mean() > 0.999
    alone = jax.jit(method.predict)(variables, jnp.asarray(example.image[None]) / 255.0, None)
    np.testing.assert_allclose(loose.confidence, alone.max(-1)[0], atol=1e-4)


def test_a_bucket_that_is_no_multiple_of_32_is_an_error(make_toy_network):
    c = defaults()
    c.eval.bucket = 40
    method = MeanTeacher(network=make_toy_network(), colour=None, mixing=None)
    with pytest.raises(ValueError, match=r"eval\.bucket=40 must be a multiple of 32"):
        build.build_buckets(c, method, 1)


def test_image_files_finds_images_and_says_when_there_are_none(tmp_path, caplog):
    with pytest.raises(DataError, match="does not exist"):
        image_files(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no image"):
        image_files(tmp_path)
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING, "forec_jax"):
        assert [file.name for file in image_files(tmp_path)] == ["a.jpg", "b.PNG"]
    assert "1 files do not end like an image and are passed over (notes.txt)" in caplog.text


def test_an_image_too_large_to_see_at_once_is_named():
    """12,000 pixels in one direction are no trouble; 33 million in all are."""
    wide, large = (
        Example(name, np.zeros((*size, 3), np.uint8)) for name, size in (("w", (1, 12_000)), ("l", (5800, 5800)))
    )
    buckets = Buckets(32, 1)
    assert next(buckets.batches([wide]))[1].image.shape == (1, 32, 12_000, 3)
    with pytest.raises(DataError, match=r"l: 5800x5800 pixels are too many .*data\.longest_side"):
        next(buckets.batches([large]))


def test_an_unreadable_image_is_named(tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"broken\.png: cannot be decoded"):
        read_image(file)


def test_a_video_is_told_how_to_become_images(tmp_path):
    video = tmp_path / "a clip.MP4"
    video.write_bytes(b"frames")
    extract = r"^extract its frames: mkdir frames; ffmpeg -i '.*a clip\.MP4' frames/%06d\.png; then --images=frames\n.*"
    with pytest.raises(DataError, match=extract + "is a video"):
        image_files(video)
    with pytest.raises(DataError, match=extract + "holds no image, but a video"):
        image_files(tmp_path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert [file.name for file in image_files(tmp_path)] == ["a.png"]
