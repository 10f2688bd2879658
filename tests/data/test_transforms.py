import numpy as np
import pytest
from PIL import Image

from forec_jax.data import DataError, Geometry
from forec_jax.data.transforms import PAD_COLOUR


def rng(seed=0):
    return np.random.default_rng(seed)


def coded(height, width):
    """An image whose red channel repeats the label."""
    label = np.add.outer(np.arange(height) // 8, np.arange(width) // 8).astype(np.uint8) % 21
    return np.stack([label * 10, label, label], -1), label


def test_identity():
    image, label = coded(64, 64)
    out = Geometry(64, (1.0, 1.0), flip=False)(image, label, rng())
    np.testing.assert_array_equal(out.image, image)
    np.testing.assert_array_equal(out.label, label)
    assert out.valid.all()


@pytest.mark.parametrize("seed", range(6))
def test_image_and_mask_share_the_geometry(seed):
    image, label = coded(120, 90)
    out = Geometry(65, (0.5, 2.0))(image, label, rng(seed))
    assert (out.image.shape, out.label.shape, out.valid.shape) == ((65, 65, 3), (65, 65), (65, 65))
    # Away from the edges of the blocks, bilinear and nearest agree.
    difference = np.abs(out.image[..., 0].astype(int) - 10 * out.label.astype(int))[out.valid]
    assert (difference <= 2).mean() > 0.5


def test_crops_are_drawn_from_border_to_border_along_both_axes():
    """Of an image as tall as the crop and twice as wide: all 34 columns may come first; of one on its side, all lines."""
    wide = np.broadcast_to(np.arange(66, dtype=np.uint8)[None, :, None], (33, 66, 3))
    geometry, draws = Geometry(33, (1.0, 1.0), flip=False), rng()
    first = {int(geometry(np.ascontiguousarray(wide), None, draws).image[0, 0, 0]) for _ in range(400)}
    tall = np.ascontiguousarray(wide.swapaxes(0, 1))
    top = {int(geometry(tall, None, draws).image[0, 0, 0]) for _ in range(400)}
    assert first == top == set(range(34))


def test_a_crop_of_a_scaled_image_equals_scaling_then_cropping():
    image = rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    geometry = Geometry(48, (1.3, 1.3), flip=False)
    whole = np.asarray(Image.fromarray(image).resize((round(70 * 1.3), round(90 * 1.3)), Image.Resampling.BILINEAR))
    view = geometry(image, None, rng(2)).image
    distances = [
        np.abs(whole[y : y + 48, x : x + 48].astype(int) - view).max()
        for y in range(whole.shape[0] - 47)
        for x in range(whole.shape[1] - 47)
    ]
    assert min(distances) <= 2  # rounding


def test_padding_is_at_the_right_and_bottom_and_marked():
    image, label = coded(40, 60)
    for seed in range(4):  # flipped and not
        out = Geometry(64, (1.0, 1.0))(image, label, rng(seed))
        assert out.valid[:40, :60].all()
        assert out.valid.sum() == 40 * 60
        assert (out.label[~out.valid] == 255).all()
        assert (out.image[~out.valid] == PAD_COLOUR).all()
        assert (out.label[out.valid] != 255).all()


def test_the_label_of_padding_is_an_option():
    image, label = coded(40, 60)
    out = Geometry(64, (1.0, 1.0), pad_label=0)(image, label, rng())
    assert (out.label[~out.valid] == 0).all()


def test_half_of_the_draws_are_flipped():
    image, label = coded(64, 64)
    image[:, :32] = 0
    image[:, 32:] = 200
    flipped = [Geometry(64, (1.0, 1.0))(image, label, rng(seed)).image[0, 0, 0] == 200 for seed in range(200)]
    assert 70 < sum(flipped) < 130


def test_scales_cover_the_range_and_can_be_halved_at_one():
    def widths(**options):
        image = np.zeros((100, 100, 3), np.uint8)
        geometry, numbers = Geometry(201, (0.5, 2.0), **options), rng()
        return np.array([geometry(image, None, numbers).valid[0].sum() for _ in range(500)])

    uniform, halved = widths(), widths(half_below_one=True)
    assert uniform.min() < 60
    assert uniform.max() > 190
    assert (uniform < 100).mean() == pytest.approx(1 / 3, abs=0.08)
    assert (halved < 100).mean() == pytest.approx(1 / 2, abs=0.08)


def test_the_same_numbers_give_the_same_view():
    image, label = coded(80, 80)
    first, second = (Geometry(50)(image, label, rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.label, second.label)


def test_an_image_without_a_mask():
    out = Geometry(40)(np.zeros((50, 50, 3), np.uint8), None, rng())
    assert out.label is None


def test_a_sliver_of_an_image():
    out = Geometry(33, (0.01, 0.01))(np.zeros((3, 200, 3), np.uint8), np.zeros((3, 200), np.uint8), rng())
    assert out.valid.sum() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 32}, "at least 33"),
        ({"crop": 64, "scale": (0.0, 2.0)}, "scale range"),
        ({"crop": 64, "scale": (2.0, 1.0)}, "scale range"),
        ({"crop": 64, "scale": (1.0, 2.0), "half_below_one": True}, "half_below_one"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        Geometry(**options)


@pytest.mark.parametrize("seed", range(4))
def test_a_labels_confidence_goes_the_same_way_and_is_0_in_the_padding(seed):
    image, label = coded(50, 40)
    out = Geometry(65, (0.5, 1.5))(image, label, rng(seed), confidence=label * 7)
    assert 0 < out.valid.sum() < out.valid.size
    np.testing.assert_array_equal(out.confidence, np.where(out.valid, out.label * 7, 0))
