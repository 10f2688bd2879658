"""AEL's copy-paste and CutMix: odds as in the worked example, components as SciPy finds them, boxes drawn by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from forec_jax.augment import AdaptiveCutMix, CopyPaste, Rows, from_either
from forec_jax.augment.adaptive import component, surrounded
from forec_jax.contracts import IGNORE

KEY = jax.random.key(0)
CONFIDENCE = jnp.array([0.5, 0.9, 0.2])
EIGHT = np.ones((3, 3))


def rows_of(label, valid=None):
    """Row i holds i / 10 in its images and as its confidence; ground truth."""
    label = np.asarray(label, np.int32)
    value = np.broadcast_to(np.arange(len(label))[:, None, None] / np.float32(10), label.shape)
    image = np.broadcast_to(value[..., None], (*label.shape, 3))
    truth = np.ones(label.shape, bool)
    return Rows(
        *map(jnp.asarray, (image, image + np.float32(0.05), label, value, truth, truth)), extra=jnp.asarray(value)
    )


def shares(drawn, classes=3):
    return np.bincount(np.asarray(drawn).ravel(), minlength=classes) / drawn.size


def test_badly_known_classes_are_pasted_more_often():
    """Softmax of (1 - b)^0.5: .346924, .234681, .418395; without class 2 it is .346924 and .234681 of .581605."""
    draw = jax.jit(jax.vmap(CopyPaste().drawn, (0, None)))
    drawn = np.asarray(draw(jax.random.split(KEY, 20_000), CONFIDENCE))
    assert (drawn.sum(1) == 1).all()
    np.testing.assert_allclose(drawn.mean(0), [0.346924, 0.234681, 0.418395], atol=0.01)
    draw = jax.jit(jax.vmap(CopyPaste(left_out=(2,)).drawn, (0, None)))
    drawn = np.asarray(draw(jax.random.split(KEY, 20_000), CONFIDENCE))
    np.testing.assert_allclose(drawn.mean(0), [0.596483, 0.403517, 0], atol=0.01)


def test_several_classes_are_drawn_with_replacement_and_none_where_all_are_left_out():
    drawn = np.asarray(jax.vmap(CopyPaste(3).drawn, (0, None))(jax.random.split(KEY, 200), jnp.full(3, 0.5)))
    assert set(drawn.sum(1)) == {1, 2, 3}
    assert not CopyPaste(3, left_out=(0, 1, 2)).drawn(KEY, CONFIDENCE).any()


def test_the_drawn_classs_pixels_come_with_all_that_is_known_of_them():
    """At a scale of 1 a pasted pixel is where it was, or mirrored: each column has one class."""
    label = np.tile(np.array([1, 1, 2, 0, 2, 1, 1], np.int32), (2, 5, 1))
    label[0] = 0
    rows = rows_of(label)
    rows = rows._replace(is_ground_truth=rows.is_ground_truth.at[1, 0].set(False))  # nothing that a teacher said
    rows = rows._replace(valid=rows.valid.at[1, 1].set(False))  # and no padding
    sure = jnp.array([1.0, 1.0, -1e4])  # class 2 for certain
    paste = CopyPaste(probability=1.0, scale=(1.0, 1.0), left_out=(0, 1))
    pasted = jax.jit(paste)(KEY, rows, sure)
    expected = (label[1] == 2) & (np.arange(5)[:, None] > 1)
    np.testing.assert_array_equal(np.asarray(pasted.label[0]) == 2, expected)
    for field, value in (("clean", 0.1), ("strong", 0.15)):
        np.testing.assert_allclose(getattr(pasted, field)[0, ..., 0], np.where(expected, value, value - 0.1), rtol=1e-6)
    np.testing.assert_allclose(pasted.extra[0], np.where(expected, 0.1, 0), rtol=1e-6)
    np.testing.assert_array_equal(pasted.label[1], label[1])  # the other's class 2 is nowhere


def test_the_row_pasted_from_has_a_scale_of_its_own_and_half_of_the_rows_get_a_paste():
    label = np.full((8, 20, 20), 1, np.int32)
    paste = CopyPaste(scale=(0.5, 0.5), left_out=(0,))
    pasted = jax.jit(paste)(KEY, rows_of(label), jnp.zeros(2))
    changed = np.asarray(pasted.clean != rows_of(label).clean).any(-1)
    assert set(changed.sum((1, 2))) == {0, 100}
    many = jax.jit(jax.vmap(paste, (0, None, None)))(jax.random.split(KEY, 200), rows_of(label), jnp.zeros(2))
    assert np.mean(np.any(many.clean != rows_of(label).clean[None], axis=(2, 3, 4))) == pytest.approx(0.5, abs=0.05)


def test_a_row_to_paste_from_is_a_labelled_one_in_turn_or_the_next():
    rows, labelled = rows_of(np.zeros((5, 2, 2))), rows_of(np.ones((2, 2, 2)))
    for share, label, value in ((1.0, 1, [0, 0.1, 0, 0.1, 0]), (0.0, 0, [0.1, 0.2, 0.3, 0.4, 0])):
        found = from_either(KEY, rows, labelled, share)
        np.testing.assert_array_equal(found.label, label)
        np.testing.assert_allclose(found.clean[:, 0, 0, 0], value, rtol=1e-6)
        np.testing.assert_allclose(found.extra[:, 1, 1], value, rtol=1e-6)


def test_a_partner_is_another_row_that_shows_the_class():
    """Rows 0 and 3 show class 2 on a quarter, row 1 on too little, and class 1 is in no row: .446947 of .778053."""
    label = np.zeros((4, 8, 8), np.int32)
    label[[0, 3], :4, :4] = 2
    label[1, 0, 0] = 2
    mixing = AdaptiveCutMix(row_area=0.03)
    keys = jax.random.split(KEY, 10_000)
    found = jax.jit(jax.vmap(mixing.partners, (0, None, None)))(keys, jnp.asarray(label), CONFIDENCE)
    row, drawn = np.asarray(found.row), np.asarray(found.label)
    np.testing.assert_allclose(shares(drawn), [0.425558, 0, 0.574442], atol=0.01)
    of_2 = [set(row[drawn[:, i] == 2, i]) for i in range(4)]
    assert of_2 == [{3}, {0, 3}, {0, 3}, {0}]
    of_0 = [shares(row[drawn[:, i] == 0, i], 4) for i in range(4)]
    np.testing.assert_allclose(of_0, (1 - np.eye(4)) / 3, atol=0.03)


def test_where_no_row_shows_anything_the_partner_is_any_other_and_one_row_has_itself():
    nothing = jnp.full((3, 4, 4), IGNORE)
    keys = jax.random.split(KEY, 3000)
    found = jax.vmap(AdaptiveCutMix().partners, (0, None, None))(keys, nothing, CONFIDENCE)
    rows = np.asarray(found.row)
    np.testing.assert_allclose([shares(rows[:, i]) for i in range(3)], (1 - np.eye(3)) / 2, atol=0.03)
    assert AdaptiveCutMix().partners(KEY, nothing[:1], CONFIDENCE).row == 0


def test_a_component_is_what_scipy_finds_around_one_of_its_places():
    inside = np.random.default_rng(0).uniform(size=(64, 9, 11)) < 0.35
    inside[0] = False
    found = np.asarray(jax.jit(component)(KEY, jnp.asarray(inside)))
    assert not found[0].any()
    sizes = set()
    for one, whole in zip(found[1:], inside[1:], strict=True):
        numbered, _ = scipy.ndimage.label(whole, EIGHT)
        number = numbered[one][0]
        np.testing.assert_array_equal(one, numbered == number)
        sizes.add(number)
    assert len(sizes) > 3  # not always the first


def test_a_winding_component_is_found_whole():
    inside = np.zeros((1, 9, 9), bool)
    inside[0, ::2] = True
    inside[0, [1, 5], -1] = inside[0, [3, 7], 0] = True
    np.testing.assert_array_equal(jax.jit(component)(KEY, jnp.asarray(inside)), inside)


def test_a_box_surrounds_the_cells():
    inside = np.zeros((2, 4, 5), bool)
    inside[0, 1, 3] = inside[0, 2, 1] = True
    box = np.zeros((2, 8, 10), bool)
    box[0, 2:6, 2:8] = True
    np.testing.assert_array_equal(surrounded(jnp.asarray(inside), 2), box)


@functools.cache
def scene():
    """Four rows of 21 x 18; class 2 is in row 1 alone, once large and once small."""
    label = np.zeros((4, 21, 18), np.int32)
    label[1, 3:14, 4:9] = 2
    label[1, 18:20, 14:16] = 2
    return rows_of(label)


def test_the_box_of_a_large_component_is_pasted_with_all_that_is_known_of_it():
    """Cells of 3: the rows of cells 1 to 4, the columns of cells 1 and 2, as their middles are 4, 7, 10, 13 and 4, 7."""
    mixed = jax.jit(AdaptiveCutMix(cell=3, row_area=0.0, box_area=0.05))(KEY, scene(), jnp.array([1.0, 1.0, -1e4]))
    box = np.zeros((21, 18), bool)
    box[3:15, 3:9] = True
    for i in (0, 2, 3):
        np.testing.assert_allclose(mixed.confidence[i], np.where(box, 0.1, i / 10), rtol=1e-6)
        np.testing.assert_array_equal(mixed.label[i], np.where(box, scene().label[1], 0))
        np.testing.assert_allclose(mixed.clean[i, ..., 1], np.where(box, 0.1, i / 10), rtol=1e-6)
        np.testing.assert_allclose(mixed.extra[i], np.where(box, 0.1, i / 10), rtol=1e-6)


def test_where_the_component_is_small_the_box_is_half_of_the_area():
    """And no probability leaves the rows as they are."""
    mixed = jax.jit(AdaptiveCutMix(cell=3, box_area=0.5))(KEY, scene(), jnp.array([1.0, 1.0, -1e4]))
    share = np.mean(np.asarray(mixed.confidence) != np.asarray(scene().confidence), axis=(1, 2))
    np.testing.assert_allclose(share, [0.5, 1, 0.5, 0.5], atol=0.06)  # row 1 has another's background, which is large
    same = jax.jit(AdaptiveCutMix(probability=0.0))(KEY, scene(), CONFIDENCE)
    jax.tree.map(np.testing.assert_array_equal, same, scene())
