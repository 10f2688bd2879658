import numpy as np

from forec_jax.visualize import channel_correlation, latent_image, latent_sheet, top_channels


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


def test_top_channels_by_strength_and_then_by_index():
    np.testing.assert_array_equal(top_channels(np.array([0.1, -0.9, 0.5, 0.9]), 3), [1, 3, 2])
    assert len(top_channels(np.array([0.1]), 3)) == 1


def test_latent_image_spans_black_to_white():
    picture = latent_image(np.array([[-1.0, 0.0], [1.0, 3.0]]), 4, 6)
    np.testing.assert_array_equal(picture[::2, ::3, 0], [[0, 64], [128, 255]])
    assert picture.shape == (4, 6, 3)
    np.testing.assert_array_equal(latent_image(np.ones((2, 2)), 2, 2), 0)


def test_latent_sheet_shows_the_mask_and_its_best_channels():
    rng = np.random.default_rng(0)
    mask = np.zeros((8, 16), bool)
    mask[2:6, 4:12] = True
    latent = rng.normal(size=(8, 16, 6))
    latent[..., 3] = mask
    result = latent_sheet(latent, mask, count=2, size=64)
    cells = [result[18:50, 4 + 68 * i : 68 + 68 * i] for i in range(3)]
    np.testing.assert_array_equal(cells[0], cells[1])  # channel 3 is the mask itself
    assert (cells[2] != cells[0]).any()
