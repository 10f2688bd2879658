"""Mixing: every field gets the same boxes, padding never becomes a label, the draws follow the published rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from forec_jax.augment import (
    AreaBox,
    BetaBox,
    Box,
    ClassMix,
    ClippedBox,
    CutMix,
    CutOut,
    HalfAreaBox,
    Mixing,
    NoMixing,
    Rows,
    SeveralCutMix,
    ShareBox,
    ShuffledCutMix,
    SquareBox,
    ToggledCutMix,
)
from forec_jax.contracts import IGNORE

K = 5
KEY = jax.random.key(0)
MIXINGS = [
    NoMixing(),
    CutOut(1.0),
    CutOut.half_area(),
    CutOut(1.0, SquareBox()),
    CutMix(1.0),
    CutMix.half_area(),
    ClassMix(K),
    ShuffledCutMix(),
    SeveralCutMix(),
    ToggledCutMix(),
]


def numbered(rows: int = 8, height: int = 16, width: int = 20) -> Rows:
    """Row i holds i / 10 in the images, i in the label and the confidence i / 10; even rows are ground truth."""
    i = jnp.arange(rows)[:, None, None]
    shape = (rows, height, width)
    value = jnp.broadcast_to(i / 10, shape).astype(jnp.float32)
    image = jnp.broadcast_to(value[..., None], (*shape, 3))
    truth = jnp.broadcast_to(i % 2 == 0, shape)
    return Rows(image, image + 0.05, jnp.broadcast_to(i, shape).astype(jnp.int32), value, truth, jnp.ones(shape, bool))


def random_rows() -> Rows:
    rng = np.random.default_rng(0)
    shape = (8, 16, 20)
    label = rng.integers(0, K, shape).astype(np.int32)
    label[rng.uniform(size=shape) < 0.05] = IGNORE
    valid = np.ones(shape, bool)
    valid[:, :, 17:] = False
    truth = np.broadcast_to((np.arange(8) % 2 == 0)[:, None, None], shape)
    images = rng.uniform(size=(2, *shape, 3)).astype(np.float32)
    confidence = rng.uniform(size=shape).astype(np.float32)
    return Rows(*map(jnp.asarray, (*images, label, confidence, truth, valid)))


@functools.cache
def compiled(mixing: Mixing) -> Mixing:
    """Compiled once for all tests: operation by operation they would take minutes."""
    return jax.jit(mixing)


def draw(box: Box, *shape: int) -> np.ndarray:
    return np.asarray(jax.jit(box, static_argnums=(1, 2, 3))(KEY, *shape))


def assert_same(one: Rows, other: Rows) -> None:
    for name, a, b in zip(Rows._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("mixing", MIXINGS, ids=str)
def test_shapes_dtypes_and_repeatability(mixing):
    rows = random_rows()
    mixed = compiled(mixing)(KEY, rows)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), mixed) == jax.tree.map(lambda x: (x.shape, x.dtype), rows)
    assert_same(mixed, compiled(mixing)(KEY, rows))


@pytest.mark.parametrize(
    "mixing", [NoMixing(), CutMix(0.0), ShuffledCutMix(0.0), SeveralCutMix(0.0), ToggledCutMix(0.0)], ids=str
)
def test_probability_zero_changes_valid_rows_in_nothing(mixing):
    assert_same(compiled(mixing)(KEY, numbered()), numbered())


@pytest.mark.parametrize("mixing", [CutMix(1.0), ClassMix(K)], ids=str)
def test_what_a_method_adds_to_the_rows_is_mixed_with_the_same_boxes(mixing):
    rows = random_rows()
    extra = {"teacher": rows.clean[..., 0], "scores": jnp.stack([rows.strong[..., 0]] * 5, -1)}
    mixed = compiled(mixing)(KEY, rows._replace(extra=extra))
    assert (mixed.clean != rows.clean).any()
    np.testing.assert_array_equal(mixed.extra["teacher"], mixed.clean[..., 0])
    np.testing.assert_array_equal(mixed.extra["scores"][..., 4], mixed.strong[..., 0])


@pytest.mark.parametrize("mixing", MIXINGS, ids=str)
def test_padding_never_becomes_a_pseudo_label(mixing):
    mixed = jax.tree.map(np.asarray, compiled(mixing)(KEY, random_rows()))
    silent = ~mixed.valid & ~mixed.is_ground_truth
    assert silent.any()
    assert (mixed.label[silent] == IGNORE).all()
    assert (mixed.confidence[silent] == 0).all()


def test_padding_of_ground_truth_keeps_the_label_it_was_given():
    rows = random_rows()
    rows = rows._replace(label=jnp.where(rows.valid, rows.label, 0))
    mixed = compiled(NoMixing())(KEY, rows)
    np.testing.assert_array_equal(mixed.label[0], rows.label[0])
    np.testing.assert_array_equal(mixed.label[1], jnp.where(rows.valid[1], rows.label[1], IGNORE))


@pytest.mark.parametrize("mixing", [CutMix(1.0), CutMix.half_area()], ids=str)
def test_cutmix_pastes_one_box_of_the_next_row_in_every_field(mixing):
    rows = numbered()
    mixed = jax.tree.map(np.asarray, compiled(mixing)(KEY, rows))
    for i in range(8):
        box = mixed.label[i] == (i + 1) % 8
        assert (mixed.label[i][~box] == i).all()
        ys, xs = np.nonzero(box)
        assert box.sum() == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)  # a full rectangle
        partner = np.where(box, (i + 1) % 8, i)
        np.testing.assert_allclose(mixed.clean[i], np.repeat(partner[..., None] / 10, 3, -1), atol=1e-6)
        np.testing.assert_allclose(mixed.strong[i], mixed.clean[i] + 0.05, atol=1e-6)
        np.testing.assert_allclose(mixed.confidence[i], partner / 10, atol=1e-6)
        np.testing.assert_array_equal(mixed.is_ground_truth[i], partner % 2 == 0)


def test_cutmix_brings_the_partners_padding_along():
    rows = numbered()
    rows = rows._replace(valid=rows.valid.at[1].set(False))
    mixed = compiled(CutMix(1.0))(KEY, rows)
    box = np.asarray(~mixed.valid[0])
    assert box.any()
    assert (np.asarray(mixed.label[0])[box] == IGNORE).all()


def test_a_single_row_is_its_own_partner():
    assert_same(compiled(CutMix(1.0))(KEY, numbered(1)), numbered(1))


def test_probability_is_per_row():
    rows = numbered(256, 8, 8)
    mixed = compiled(CutMix(0.5))(KEY, rows)
    changed = np.asarray(mixed.label != rows.label).any((1, 2))
    assert 0.4 < changed.mean() < 0.6


def test_cutout_pixels_are_grey_and_say_nothing():
    rows = numbered()
    cut = jax.tree.map(np.asarray, compiled(CutOut(1.0))(KEY, rows))
    box = ~cut.valid
    assert box.any((1, 2)).all()
    assert (cut.label[box] == IGNORE).all()
    assert (cut.confidence[box] == 0).all()
    for image in (cut.clean, cut.strong):
        np.testing.assert_allclose(image[box], np.broadcast_to([0.485, 0.456, 0.406], (box.sum(), 3)), atol=1e-6)
    np.testing.assert_array_equal(cut.clean[~box], np.asarray(rows.clean)[~box])
    np.testing.assert_array_equal(cut.label[~box], np.asarray(rows.label)[~box])
    np.testing.assert_array_equal(cut.is_ground_truth, rows.is_ground_truth)


def extents(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Top, left, height and width of each of bool[n,H,W], which must be full rectangles."""
    rows, columns = boxes.any(2), boxes.any(1)
    height, width = rows.sum(1), columns.sum(1)
    np.testing.assert_array_equal(boxes.sum((1, 2)), height * width)
    return rows.argmax(1), columns.argmax(1), height, width


def test_area_boxes_keep_to_area_and_aspect():
    boxes = draw(AreaBox(), 500, 64, 64)
    _, _, height, width = extents(boxes)
    share = height * width / 64**2
    assert share.max() <= 0.4
    assert share.min() > 0.01  # sides are rounded down
    assert abs(share.mean() - 0.2) < 0.03  # uniform on 0.02 ... 0.4, less rounding
    large = np.minimum(height, width) > 20
    aspect = height[large] / width[large]
    assert aspect.min() > 0.25
    assert aspect.max() < 3.7


def test_beta_boxes_have_the_images_shape_and_a_beta_share_of_it():
    boxes = draw(BetaBox(), 1000, 48, 96)
    top, left, height, width = extents(boxes)
    np.testing.assert_allclose(width, 2 * height, atol=1)
    share = height * width / (48 * 96)
    assert scipy.stats.kstest(share, scipy.stats.beta(4, 4).cdf).statistic < 0.06  # the 1 % point is 0.05, and rounding
    assert (top.min(), left.min()) == (0, 0)
    assert (top + height).max() == 48
    assert (left + width).max() == 96


def clipped(rng: np.random.Generator, rows: int, height: int, width: int) -> np.ndarray:
    """PS-MT's procedure for a batch of VOC, by number: top, left, height and width of each box."""
    share, boxes = rng.beta(4, 4), []
    for _ in range(rows):
        edges = []
        for size in (height, width):
            half, centre = int(size * share**0.5) // 2, rng.integers(size // 8, size)
            edges.append((max(centre - half, 0), min(centre + half, size)))
        (top, bottom), (left, right) = edges
        boxes.append((top, left, bottom - top, right - left))
    return np.array(boxes)


def test_clipped_boxes_are_distributed_as_published():
    height, width = 64, 96
    boxes = jax.jit(jax.vmap(lambda key: ClippedBox()(key, 4, height, width)))(jax.random.split(KEY, 1500))
    drawn = np.stack(extents(np.asarray(boxes).reshape(-1, height, width)), axis=1)
    rng = np.random.default_rng(0)
    expected = np.concatenate([clipped(rng, 4, height, width) for _ in range(1500)])
    np.testing.assert_allclose(drawn.mean(0), expected.mean(0), atol=1.2)
    np.testing.assert_allclose(drawn.std(0), expected.std(0), atol=1.0)


def test_clipped_boxes_cover_as_much_as_published():
    """In a crop of 512 pixels: 0.5 of it before the cut at the borders, 0.358 after, with a deviation of 0.134."""
    one_batch = jax.jit(lambda keys: jax.lax.map(lambda key: ClippedBox()(key, 2, 512, 512).mean((1, 2)), keys))
    share = np.asarray(one_batch(jax.random.split(KEY, 1000)))
    assert share.mean() == pytest.approx(0.358, abs=0.012)  # three standard errors
    assert share.std() == pytest.approx(0.134, abs=0.008)


def test_clipped_boxes_of_a_batch_have_one_size():
    height, width = 64, 96
    for seed in range(4):
        boxes = np.asarray(jax.jit(ClippedBox(), static_argnums=(1, 2, 3))(jax.random.key(seed), 64, height, width))
        top, left, tall, wide = extents(boxes)
        inside = (top > 0) & (top + tall < height)
        assert len(set(tall[inside])) == 1
        inside = (left > 0) & (left + wide < width)
        assert len(set(wide[inside])) == 1
        assert len(set(top)) > 4 < len(set(left))


def test_a_square_box_is_a_fifth_of_the_sides_cut_off_at_the_borders():
    """A centre anywhere in 51 x 77 pixels, 5 pixels to either side: a tenth of the centres lie nearer to the border."""
    top, left, height, width = extents(draw(SquareBox(), 3000, 51, 77))
    for first, length, size in ((top, height, 51), (left, width, 77)):
        assert (length.min(), length.max()) == (5, 10)
        assert (first.min(), (first + length).max()) == (0, size)
        centres = np.arange(size)
        expected = np.mean(np.minimum(centres + 5, size) - np.maximum(centres - 5, 0))
        assert length.mean() == pytest.approx(expected, abs=0.1)


def shared(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """PS-MT's procedure for one of Cityscapes' three boxes: top, left, height and width."""
    share = rng.uniform(0.25, 0.5)
    tall = np.exp(rng.uniform() * np.log(share))
    size = np.round(np.array([tall, share / tall]) * (1 / 3) ** 0.5 * (height, width)).astype(int)
    top, left = np.round(((height, width) - size) * rng.uniform(size=2)).astype(int)
    return top, left, *size


def test_share_boxes_are_distributed_as_published():
    drawn = np.stack(extents(draw(ShareBox(), 3000, 64, 96)), axis=1)
    rng = np.random.default_rng(0)
    expected = np.array([shared(rng, 64, 96) for _ in range(3000)])
    np.testing.assert_allclose(drawn.mean(0), expected.mean(0), atol=1.2)  # about three standard errors
    np.testing.assert_allclose(drawn.std(0), expected.std(0), atol=0.8)
    share = drawn[:, 2] * drawn[:, 3] / (64 * 96)
    assert share.mean() == pytest.approx(0.125, abs=0.002)  # a third of 0.375


def test_a_shuffled_cutmix_pastes_one_box_of_a_row_that_no_other_takes():
    rows, orders = numbered(), set()
    for seed in range(6):
        mixed = jax.tree.map(np.asarray, compiled(ShuffledCutMix())(jax.random.key(seed), rows))
        partners = []
        for i in range(8):
            (partner,) = set(np.unique(mixed.label[i])) - {i} or {i}
            ys, xs = np.nonzero(mixed.label[i] == partner)
            assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
            np.testing.assert_allclose(mixed.clean[i, ..., 0], mixed.label[i] / 10, atol=1e-6)
            np.testing.assert_allclose(mixed.confidence[i], mixed.label[i] / 10, atol=1e-6)
            np.testing.assert_array_equal(mixed.is_ground_truth[i], mixed.label[i] % 2 == 0)
            partners.append(int(partner))
        assert sorted(partners) == list(range(8))
        orders.add(tuple(partners))
    assert len(orders) == 6


def test_several_cutmix_pastes_boxes_of_several_rows():
    rows = numbered(8, 32, 40)
    mixed = jax.tree.map(np.asarray, compiled(SeveralCutMix())(KEY, rows))
    np.testing.assert_allclose(mixed.clean[..., 0], mixed.label / 10, atol=1e-6)
    np.testing.assert_array_equal(mixed.is_ground_truth, mixed.label % 2 == 0)
    found = [set(np.unique(mixed.label[i])) for i in range(8)]
    assert max(map(len, found)) == 4  # three others and itself
    assert all(i in found[i] for i in range(8))
    assert 0.15 < (mixed.label != rows.label).mean() < 0.375  # three boxes of 0.125, less their overlaps, some its own


def test_toggled_cutmix_leaves_a_row_as_it_is_where_two_boxes_meet():
    """Boxes of the left half, the upper half and everything: pasted is what lies in an odd number of them."""
    height, width = 4, 6
    halves = [np.arange(width)[None] < width // 2, np.arange(height)[:, None] < height // 2, np.ones((1, 1), bool)]
    boxes = iter(halves)

    class Drawn:
        parts = 3

        def __call__(self, key, rows, height, width):
            return jnp.broadcast_to(next(boxes), (rows, height, width))

    rows = numbered(3, height, width)
    mixed = ToggledCutMix(1.0, Drawn())(KEY, rows)
    left, upper, _ = (np.broadcast_to(half, (height, width)) for half in halves)
    pasted = left ^ upper ^ True
    assert 0 < pasted.mean() < 1
    for i in range(3):
        np.testing.assert_array_equal(mixed.label[i], np.where(pasted, (i + 1) % 3, i))
    np.testing.assert_allclose(mixed.clean[..., 0], mixed.label / 10, atol=1e-6)


def test_toggled_cutmix_of_pairs_takes_the_other_row_of_the_pair():
    rows = numbered(6, 32, 40)
    mixed = jax.tree.map(np.asarray, compiled(ToggledCutMix(pairs=True))(KEY, rows))
    np.testing.assert_allclose(mixed.clean[..., 0], mixed.label / 10, atol=1e-6)
    assert [set(np.unique(mixed.label[i])) for i in range(6)] == [{0, 1}, {0, 1}, {2, 3}, {2, 3}, {4, 5}, {4, 5}]


def rejection(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """The published procedure, a loop: top, left, height, width of each box."""
    boxes = []
    for _ in range(count):
        area = rng.uniform(0.02, 0.4) * size * size
        while True:
            ratio = rng.uniform(0.3, 1 / 0.3)
            width, height = int(np.sqrt(area / ratio)), int(np.sqrt(area * ratio))
            left, top = rng.integers(0, size), rng.integers(0, size)
            if left + width <= size and top + height <= size:
                boxes.append((top, left, height, width))
                break
    return np.array(boxes)


def test_area_boxes_are_distributed_as_by_rejection():
    drawn = np.stack(extents(draw(AreaBox(), 2000, 32, 32)), axis=1)
    expected = rejection(np.random.default_rng(0), 32, 2000)
    np.testing.assert_allclose(drawn.mean(0), expected.mean(0), atol=0.7)  # about three standard errors
    np.testing.assert_allclose(drawn.std(0), expected.std(0), atol=0.7)


def test_half_area_boxes_take_half_of_the_image():
    boxes = draw(HalfAreaBox(), 300, 40, 60)
    top, left, height, width = extents(boxes)
    assert width.min() >= 31
    assert width.max() <= 59
    np.testing.assert_array_equal(height, np.round(1200 / width))
    assert top.min() == 0
    assert left.min() == 0
    assert (top + height).max() == 40
    assert (left + width).max() == 60


@pytest.mark.parametrize("box", [AreaBox(), AreaBox((0.9, 1.0), (3.0, 4.0)), HalfAreaBox()], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (64, 8)])
def test_boxes_of_odd_images_lie_inside(box, shape):
    _, _, height, width = extents(draw(box, 20, *shape))
    assert height.min() >= 1
    assert width.min() >= 1


@pytest.mark.parametrize("present", [1, 2, 3, 4, 5])
def test_classmix_pastes_half_of_the_classes(present):
    rows = numbered()
    label = jnp.arange(16 * 20).reshape(16, 20) % present
    rows = rows._replace(label=rows.label.at[1].set(label).at[0].set(IGNORE))
    mixed = compiled(ClassMix(K))(KEY, rows)
    pasted = set(np.unique(mixed.label[0]).tolist()) - {IGNORE}
    assert len(pasted) == present // 2
    mask = np.isin(label, sorted(pasted))  # every pixel of those classes and no other
    np.testing.assert_array_equal(mixed.label[0], np.where(mask, label, IGNORE))
    np.testing.assert_allclose(mixed.clean[0, ..., 0], np.where(mask, 0.1, 0.0), atol=1e-6)
    np.testing.assert_array_equal(mixed.is_ground_truth[0], ~mask)


def test_classmix_never_pastes_void_or_padding():
    rows = numbered()
    label = jnp.where(jnp.arange(20)[None] < 10, IGNORE, 2) + jnp.zeros((16, 1), jnp.int32)
    label = label.at[0].set(3).at[1].set(4)
    valid = rows.valid.at[1, 1].set(False)  # class 4 lies in the padding of row 1 only
    rows = rows._replace(label=rows.label.at[1].set(label).at[0].set(0), valid=valid)
    for seed in range(8):
        mixed = compiled(ClassMix(K))(jax.random.key(seed), rows)
        assert set(np.unique(mixed.label[0]).tolist()) <= {0, 2, 3}
        assert bool(mixed.valid[0].all())


def test_classmix_draws_classes_evenly():
    rows = numbered()
    rows = rows._replace(label=jnp.broadcast_to(jnp.arange(20) % 4, rows.label.shape).astype(jnp.int32))
    draws = [compiled(ClassMix(K))(jax.random.key(seed), rows) for seed in range(40)]
    pasted = np.concatenate([np.asarray(mixed.clean != rows.clean)[:, 0, :4, 0] for mixed in draws])
    assert (pasted.sum(1) == 2).all()
    np.testing.assert_allclose(pasted.mean(0), 0.5, atol=0.1)


def test_padding_with_a_label_is_no_class_of_classmix():
    """Ground truth may call its padding class 0 (data.pad_label): rows that show class 1 alone still give nothing."""
    rows = numbered(4)
    padding = jnp.zeros(rows.label.shape, bool).at[:, :, 15:].set(True)
    rows = rows._replace(
        label=jnp.where(padding, 0, 1), is_ground_truth=jnp.ones_like(padding), valid=rows.valid & ~padding
    )
    assert_same(compiled(ClassMix(K))(KEY, rows), rows)


@pytest.mark.parametrize(
    "mixing",
    [CutOut(1.0), CutMix.half_area(), ClassMix(K), ShuffledCutMix(), SeveralCutMix(), ToggledCutMix()],
    ids=str,
)
def test_one_and_eight_devices_agree(mixing):
    rows = random_rows()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))
    eight = compiled(mixing)(KEY, sharded)
    assert len(eight.label.sharding.device_set) == 8
    assert_same(eight, compiled(mixing)(KEY, rows))
