import numpy as np
import pytest

from forec_jax.contracts import IGNORE
from forec_jax.visualize import best_channels, channel_correlation, class_correlations, latent_image, top_channels
from forec_jax.visualize.latents import of_image


def test_correlation_against_numpy():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(7, 9, 5)).astype(np.float32)
    mask = rng.uniform(size=(7, 9)) < 0.4
    expected = [np.corrcoef(latent[..., c].ravel(), mask.ravel())[0, 1] for c in range(5)]
    np.testing.assert_allclose(channel_correlation(latent, mask), expected, atol=1e-6)


def test_correlation_of_copies_opposites_and_constants():
    mask = np.arange(12).reshape(3, 4) % 3 == 0
    latent = np.stack([2.0 * mask + 1, -5.0 * mask, np.full(mask.shape, 0.1)], axis=-1)
    np.testing.assert_allclose(channel_correlation(latent, mask), [1, -1, 0], atol=1e-12)
    np.testing.assert_array_equal(channel_correlation(latent, np.ones_like(mask)), 0)


def test_class_correlations_leave_void_out_and_read_the_label_at_the_cells_centres():
    """A 2x3 latent under a 4x6 label: cell (i, j) has its centre at pixel (2i + 1, 2j + 1)."""
    label = np.full((4, 6), 9, np.uint8)  # what no centre reads
    label[1::2, 1::2] = [[0, 1, IGNORE], [1, 0, IGNORE]]
    latent = np.array([[0.0, 1.0, 50.0], [1.0, 0.0, -50.0]])[..., None]
    found = class_correlations(latent, label)
    assert found.keys() == {0, 1}
    np.testing.assert_allclose([found[0][0], found[1][0]], [-1, 1])
    label[1::2, 1::2] = [[1, 1, IGNORE], [1, 1, IGNORE]]
    assert class_correlations(latent, label) == {}


def test_best_channels_are_scored_on_the_images_that_did_not_choose_them():
    """Even images choose channel 0 (mean -0.8), odd ones channel 1 (mean 0.7): each is scored on the other half."""
    rows = np.array([[-0.9, 0.2], [-0.2, 0.6], [-0.7, 0.4], [0.4, 0.8]])
    images = [{1: row, 2: row} for row in rows[:1]] + [{1: row} for row in rows[1:]]
    best = best_channels(images)
    assert best.keys() == {1}  # one image of class 2 is not enough
    expected = (-1 * (-0.2 + 0.4) / 2 + (0.2 + 0.4) / 2) / 2
    assert best[1].correlation == pytest.approx(expected)
    assert (best[1].channels, best[1].images) == ((0, 1), 4)


def test_channels_that_know_nothing_score_about_nothing():
    rng = np.random.default_rng(0)
    images = [{1: rng.uniform(-1, 1, 64)} for _ in range(200)]
    with_hindsight = np.abs(np.mean([image[1] for image in images], axis=0)).max()
    assert with_hindsight > 0.08
    assert abs(best_channels(images)[1].correlation) < 0.08


def test_top_channels_by_strength_and_then_by_index():
    np.testing.assert_array_equal(top_channels(np.array([0.1, -0.9, 0.5, 0.9]), 3), [1, 3, 2])
    assert len(top_channels(np.array([0.1]), 3)) == 1


def test_latent_image_spans_black_to_white():
    picture = latent_image(np.array([[-1.0, 0.0], [1.0, 3.0]]), 4, 6)
    np.testing.assert_array_equal(picture[::2, ::3, 0], [[0, 64], [128, 255]])
    assert picture.shape == (4, 6, 3)
    np.testing.assert_array_equal(latent_image(np.ones((2, 2)), 2, 2), 0)


@pytest.mark.parametrize(("rows", "covered"), [(63, (33, 50)), (144, (75, 115))])
def test_of_a_padded_images_map_the_part_that_the_image_covers_is_kept(rows, covered):
    """252 x 252 pixels, 130 x 200 of them the image; at stride 4, and at 1.75, where a patch of 14 becomes 8 pixels."""
    assert of_image(np.zeros((rows, rows, 2)), (130, 200), 252).shape == (*covered, 2)
