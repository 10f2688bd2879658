import numpy as np
import pytest

from forec_jax.visualize import captioned, fit, heatmap, sheet


def plain(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_heatmap_grows_lighter_and_clips():
    ramp = heatmap(np.linspace(0, 1, 200)[None])[0].astype(int)
    luma = ramp @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) >= -0.5).all()
    assert luma[-1] - luma[0] > 180
    low, high, missing = heatmap(np.array([[-3.0, 4.0, np.nan]]))[0]
    np.testing.assert_array_equal(low, ramp[0])
    np.testing.assert_array_equal(high, ramp[-1])
    np.testing.assert_array_equal(missing, ramp[0])


def test_sheet_places_every_image_under_its_title():
    pictures = [[plain(40, 60, 10), plain(40, 60, 20)], [plain(40, 60, 30), plain(20, 30, 40)]]
    result = sheet(pictures, ["input", "prediction"])
    assert result.dtype == np.uint8
    assert result.shape[1] == 2 * 60 + 3 * 4
    for value, count in ((10, 2400), (20, 2400), (30, 2400), (40, 600)):
        ys, xs = np.nonzero((result[18:] == value).all(-1))
        block = (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
        assert block == count
        assert (xs.min() >= 64) == (value in (20, 40))
        assert (ys.min() >= 42) == (value in (30, 40))
    head = result[:18]
    assert (head[:, :64] < 128).any()  # both titles are drawn
    assert (head[:, 68:] < 128).any()


def test_sheet_takes_short_rows_and_long_titles():
    result = sheet([[plain(8, 8, 0)], [plain(8, 8, 0), plain(8, 8, 0)]], ["a title far too long for its cell", "b"])
    assert (result[:18, 12:16] == 255).all()  # nothing runs into the gap between the columns


def test_sheet_refuses_columns_without_titles():
    with pytest.raises(ValueError, match="a title for every column"):
        sheet([[plain(4, 4, 0), plain(4, 4, 0)]], ["one"])
    with pytest.raises(ValueError, match="at least one row"):
        sheet([], ["one"])


def test_fit_keeps_the_proportions_and_enlarges_without_smoothing():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    enlarged = fit(picture, 9)
    np.testing.assert_array_equal(enlarged, picture.repeat(3, axis=0).repeat(3, axis=1))
    assert fit(enlarged, 3).shape == (2, 3, 3)
    assert fit(plain(1, 500, 7), 10).shape == (1, 10, 3)


def test_captioned_adds_a_line_below():
    result = captioned(plain(20, 60, 10), "channel 3")
    assert result.shape == (38, 60, 3)
    np.testing.assert_array_equal(result[:20], 10)
    assert (result[20:] < 128).any()
