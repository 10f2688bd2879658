"""Which pixels a run is surest of, class by class."""

from types import SimpleNamespace

import numpy as np
import pytest

from forec_jax.contracts import IGNORE
from forec_jax.experiment import masks
from forec_jax.experiment.masks import Found, Labelling, doubts, found_masks, most_doubt, surest_pixels


def found(label, confidence):
    shaped = np.array(label, np.uint8), np.array(confidence, np.float32)
    return Found(SimpleNamespace(id="a"), *(array.reshape(1, -1) for array in shaped))


def test_doubt_orders_what_nearly_every_pixel_is_nearly_certain_of():
    confidence = np.array([1.0000001, 1, 1 - 6e-8, 1 - 1e-6, 0.9999, 0.999, 0.9, 0.5, 0.2, 0], np.float32)
    assert (np.diff(doubts(confidence)) > 0).sum() == 8  # 1 and a little more are the same
    assert doubts(confidence)[0] == 0
    assert doubts(np.float32([0.5]))[0] < doubts(np.float32([0.48]))[0]  # 4 % apart


def test_a_share_of_each_class_by_hand():
    """Of class 0 two of five pixels, of class 1 one of two; class 2 is nowhere; void says nothing."""
    first = found([0, 0, 0, 1, IGNORE], [0.9, 0.8, 0.3, 0.4, 0.99])
    second = found([0, 0, 1], [0.7, 0.6, 0.5])
    most = most_doubt([first, second], 3, 0.4)
    np.testing.assert_array_equal(surest_pixels(first, most).label, [[0, 0, IGNORE, IGNORE, IGNORE]])
    np.testing.assert_array_equal(surest_pixels(second, most).label, [[IGNORE, IGNORE, 1]])
    assert (surest_pixels(first, most).confidence == first.confidence).all()


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_the_kept_are_those_of_an_oracle_that_sorts(share):
    """k is the confidence at the share's place; all above it are kept, and none that is clearly below."""
    rng = np.random.default_rng(0)
    images = [found(rng.integers(0, 3, 400), 1 - 10 ** -rng.uniform(0.1, 7, 400)) for _ in range(3)]
    most = most_doubt(images, 3, share)
    labels, sure = (np.concatenate([image[part].ravel() for image in images]) for part in (1, 2))
    kept = np.concatenate([surest_pixels(image, most).label.ravel() != IGNORE for image in images])
    for k in range(3):
        of_class = sure[labels == k]
        bound = np.sort(of_class)[::-1][int(np.ceil(share * len(of_class))) - 1]
        assert kept[(labels == k) & (sure >= bound)].all()
        assert not kept[(labels == k) & (1 - sure > 1.02 * (1 - bound))].any()


@pytest.mark.parametrize(("share", "looks", "label"), [(0.5, 2, [0, IGNORE, 1]), (1.0, 1, [0, 0, 1])])
def test_images_are_looked_at_a_second_time_where_a_share_is_asked_for(monkeypatch, share, looks, label):
    looked = []
    one = found([0, 0, 1], [0.9, 0.6, 0.5])
    monkeypatch.setattr(masks, "_finder", lambda run, how: lambda images: looked.append(images) or iter([one]))
    run = SimpleNamespace(labels=SimpleNamespace(classes=("background", "disc")))
    (seen,) = found_masks(run, "images", Labelling(keep_pixels=share))
    np.testing.assert_array_equal(seen.label, [label])
    assert looked == ["images"] * looks


def test_all_pixels_that_are_as_unsure_as_the_last_one_are_kept():
    one = found([0] * 4, [1, 1, 1, 0.5])
    np.testing.assert_array_equal(surest_pixels(one, most_doubt([one], 1, 0.25)).label, [[0, 0, 0, IGNORE]])
