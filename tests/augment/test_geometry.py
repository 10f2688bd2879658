"""The student's own geometry: every field goes the same way, padding stays padding, and a factor of 1 changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from forec_jax.augment import CutMix, InTurn, Mirror, NoMixing, Rows, StudentOptions, Zoom, with_geometry
from forec_jax.augment.geometry import _seen_through, _Window
from forec_jax.contracts import IGNORE, IMAGENET_MEAN, Labelled, Unlabelled
from forec_jax.data import Geometry
from forec_jax.methods.parts.views import taught_views

KEY = jax.random.key(3)
ROWS, SIZE = 8, 40


def row_of(values, label=None):
    """One row of one line of pixels, that shows these values; its last pixel is no ground truth and invalid."""
    values = jnp.asarray(values, jnp.float32)[None, None]
    image = jnp.broadcast_to(values[..., None], (*values.shape, 3))
    last = jnp.arange(values.shape[-1])[None, None] == values.shape[-1] - 1
    label = jnp.arange(values.shape[-1])[None, None] if label is None else label
    return Rows(image, image / 2, label.astype(jnp.int32), values, ~last, ~last, extra=10 * label)


def seen(rows, scaled, offset):
    """A window on the columns of a line; the lines are not scaled."""
    one = _Window(jnp.array([1]), jnp.array([0]))
    return _seen_through(rows, one, _Window(jnp.array([scaled]), jnp.array([offset])))


def line(field):
    return np.asarray(field)[0, 0].tolist()


def test_a_line_at_twice_its_size_by_hand():
    """Pixels 3 to 6 of eight: their middles lie at 1.25, 1.75, 2.25 and 2.75 of the line, in its pixels 1, 2, 2 and 3."""
    found = seen(row_of([0, 4, 8, 16]), scaled=8, offset=3)
    np.testing.assert_allclose(found.clean[0, 0, :, 0], [5, 7, 10, 14], rtol=1e-6)
    np.testing.assert_allclose(found.strong[0, 0, :, 2], [2.5, 3.5, 5, 7], rtol=1e-6)
    assert line(found.label) == [1, 2, 2, 3]
    assert line(found.confidence) == [4, 8, 8, 16]
    assert line(found.extra) == [10, 20, 20, 30]
    assert line(found.valid) == line(found.is_ground_truth) == [True, True, True, False]


def test_a_line_at_half_its_size_by_hand():
    """Middles at 0.5 and 2.5: pixels at a distance of 0.5 weigh 0.75, those at 1.5 a quarter. The rest is padding."""
    found = seen(row_of([0, 4, 8, 16]), scaled=2, offset=0)
    first, second = (0.75 * 0 + 0.75 * 4 + 0.25 * 8) / 1.75, (0.25 * 4 + 0.75 * 8 + 0.75 * 16) / 1.75
    np.testing.assert_allclose(found.clean[0, 0, :, 1], [first, second, *2 * [IMAGENET_MEAN[1]]], rtol=1e-6)
    np.testing.assert_allclose(found.strong[0, 0, 2:], 2 * [IMAGENET_MEAN], rtol=1e-6)
    assert line(found.label) == [1, 3, IGNORE, IGNORE]
    assert line(found.confidence) == [4, 16, 0, 0]
    assert line(found.extra) == [10, 30, 0, 0]
    assert line(found.valid) == line(found.is_ground_truth) == [True, False, False, False]


def random_rows():
    rng = np.random.default_rng(0)
    shape = (ROWS, SIZE, SIZE)
    label = rng.integers(0, 5, shape).astype(np.int32)
    valid = np.ones(shape, bool)
    valid[:, :, 30:] = False
    label[~valid] = IGNORE
    truth = np.broadcast_to((np.arange(ROWS) % 2 == 0)[:, None, None], shape)
    images = rng.uniform(size=(2, *shape, 3)).astype(np.float32)
    confidence = rng.uniform(size=shape).astype(np.float32)
    return Rows(*map(jnp.asarray, (*images, label, confidence, truth, valid)))


@functools.cache
def compiled(change):
    return jax.jit(change)


def assert_same(one, other):
    for name, a, b in zip(Rows._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_factor_of_1_gives_the_same_pixels():
    assert_same(compiled(Zoom((1.0, 1.0)))(KEY, random_rows()), random_rows())


def painted_rows():
    """Each pixel's label is its line, and its images show that and its column, in parts of 200; the last ten are padding."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    image = np.broadcast_to(np.stack([y, x, y + x], -1) / 200, (ROWS, SIZE, SIZE, 3))
    valid = np.broadcast_to((y < 30) & (x < 30), (ROWS, SIZE, SIZE))
    label = np.where(valid, np.broadcast_to(y, valid.shape), IGNORE).astype(np.int32)
    return Rows(*map(jnp.asarray, (image, image, label, np.where(valid, x, 0).astype(np.float32), valid, valid)))


@pytest.mark.parametrize("scale", [(0.4, 0.9), (1.0, 2.5)])
def test_everything_goes_the_same_way_and_padding_is_never_valid(scale):
    """The label is the line of a pixel, the confidence its column; the image shows both, to half a pixel of the larger."""
    found = compiled(InTurn((Zoom(scale), Mirror())))(KEY, painted_rows())
    for field in found[2:6]:
        assert field.shape == (ROWS, SIZE, SIZE)
    inner = np.asarray(found.valid & (found.label > 2) & (found.label < 37))  # at a border images lean on one side
    inner = inner & np.asarray((found.confidence > 2) & (found.confidence < 37))
    assert inner.sum() > 500
    shown = np.asarray(found.clean) * 200
    assert np.abs(shown[..., 0] - found.label)[inner].max() <= 0.501
    assert np.abs(shown[..., 1] - found.confidence)[inner].max() <= 0.501
    np.testing.assert_array_equal(found.clean, found.strong)
    np.testing.assert_array_equal(found.valid, found.is_ground_truth)
    np.testing.assert_array_equal(found.valid, found.label != IGNORE)
    assert np.asarray(found.label)[np.asarray(found.valid)].max() < 30


def test_a_pixels_way_through_both_geometries():
    """Scaled and mirrored for both views on the host, then for the student's alone: the label still is the pixel's line."""
    y, x = np.mgrid[:60, :60].astype(np.uint8)
    rng = np.random.default_rng(1)
    views = [Geometry(SIZE, (0.5, 2.0))(np.stack([4 * y, 4 * x, 4 * y], -1), y, rng) for _ in range(ROWS)]
    image, label, valid, _ = (np.stack(field) if field[0] is not None else None for field in zip(*views, strict=True))
    image = jnp.asarray(image, jnp.float32) / 255
    label, valid = jnp.asarray(label, jnp.int32), jnp.asarray(valid)
    rows = Rows(image, image, label, valid.astype(jnp.float32), valid, valid)
    found = compiled(InTurn((Zoom((0.5, 1.5)), Mirror())))(KEY, rows)
    inner = np.asarray(found.valid & (found.label > 4) & (found.label < 50))
    assert inner.sum() > 500
    error = np.abs(np.asarray(found.clean)[..., 0] * 255 / 4 - found.label)[inner]
    # At half the size twice a pixel is as wide as four of the image: two to either side of the pixel whose label it has.
    assert np.quantile(error, 0.99) <= 2.5
    assert error.mean() < 0.75


def test_places_are_drawn_from_border_to_border_and_factors_from_the_whole_range():
    columns = jnp.broadcast_to(jnp.arange(8)[None, None], (4000, 1, 8))
    empty = jnp.zeros((4000, 1, 8, 3))
    rows = Rows(empty, empty, columns, columns.astype(jnp.float32), columns >= 0, columns >= 0)
    twice = np.asarray(jax.jit(Zoom((2.0, 2.0)))(KEY, rows).label)[:, 0]
    starts, counts = np.unique(twice[:, 0] * 2 + (twice[:, 1] > twice[:, 0]), return_counts=True)
    assert starts.tolist() == list(range(9))  # sixteen pixels, eight of them seen: nine places
    assert np.abs(counts - 4000 / 9).max() < 5 * (4000 / 9) ** 0.5
    shrunk = np.asarray(jax.jit(Zoom((0.5, 1.0)))(KEY, rows).valid).sum((1, 2))
    assert set(shrunk) == {4, 5, 6, 7, 8}
    turned = np.asarray(jax.jit(Mirror())(KEY, rows).label)[:, 0, 0]
    assert set(turned) == {0, 7}
    assert abs((turned == 7).mean() - 0.5) < 0.05


def test_one_and_eight_devices_agree():
    change, rows = InTurn((Zoom((0.5, 1.5)), Mirror())), random_rows()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    eight = compiled(change)(KEY, jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data"))))
    one = compiled(change)(KEY, rows)
    assert len(eight.label.sharding.device_set) == 8
    assert_same(eight._replace(clean=one.clean, strong=one.strong), one)
    np.testing.assert_allclose(eight.clean, one.clean, atol=1e-6)  # sums of two products, in another order
    assert np.any(np.asarray(one.label) != np.asarray(rows.label))


def test_the_order_of_mixing_scale_and_flip():
    zoom, mixing = (0.5, 1.5), CutMix(1.0)
    assert with_geometry(mixing, StudentOptions()) is mixing
    assert with_geometry(mixing, StudentOptions(student_flip=True)) == InTurn((mixing, Mirror()))
    whole = StudentOptions(student_scale=zoom, student_flip=True)
    assert with_geometry(mixing, whole) == InTurn((mixing, Zoom(zoom), Mirror()))
    before = StudentOptions(student_scale=zoom, student_order="before", student_flip=True)
    assert with_geometry(mixing, before) == InTurn((Zoom(zoom), mixing, Mirror()))


def test_changes_in_turn_have_keys_of_their_own():
    def adding(key, rows):
        return rows._replace(confidence=rows.confidence + jax.random.uniform(key))

    first, both = (InTurn(changes)(KEY, random_rows()).confidence for changes in ((adding,), (adding, adding)))
    drawn = [float(jax.random.uniform(key)) for key in jax.random.split(KEY)]
    np.testing.assert_allclose(both - random_rows().confidence, sum(drawn), rtol=1e-5)
    assert drawn[0] != drawn[1]
    assert not np.allclose(first, both)


def test_the_teacher_sees_nothing_of_it_and_the_clean_target_moves_with_the_strong_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 4, SIZE, SIZE, 3), dtype=np.uint8)
    valid, none = np.ones((4, SIZE, SIZE), bool), np.zeros(4, np.int32)
    labelled = Labelled(image[0], rng.integers(0, 3, valid.shape).astype(np.int32), valid, none)
    shown = []

    def teach(weak):
        shown.append(weak)
        return jax.nn.one_hot((weak[..., 0] * 255).astype(jnp.int32) % 3, 3)

    def darker(key, image, valid):
        return image / 2

    def view(unlabelled):
        return taught_views(
            teach,
            labelled,
            unlabelled,
            KEY,
            colour=darker,
            labelled_colour=darker,
            mixing=InTurn((NoMixing(), Zoom((0.5, 0.5)), Mirror())),
            labelled_mixing=NoMixing(),
            partial_labels=False,
        )

    strong, views = view(Unlabelled(image[1], valid, none))
    np.testing.assert_array_equal(shown[0], image[1] / np.float32(255))
    seen = np.asarray(views.valid)[..., None]
    np.testing.assert_allclose(np.where(seen, strong, 0), np.where(seen, views.image, 0) / 2, atol=1e-6)
    assert seen[::2].all()  # labelled rows
    assert seen[1::2].sum() == 4 * (SIZE // 2) ** 2
