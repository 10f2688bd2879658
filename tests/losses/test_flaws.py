import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import IGNORE
from forec_jax.losses import flaw_target, handled, keeps_own
from forec_jax.losses.flaws import raw_flaw, stretched


def blurred(maps, part):
    """By a Gaussian of an odd number of pixels, a `part` of the side; the border reflects without being repeated."""
    for axis in (1, 2):
        size = maps.shape[axis] // part
        size += size % 2 == 0
        deviation = 0.3 * ((size - 1) / 2 - 1) + 0.8
        kernel = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * deviation**2))
        kernel /= kernel.sum()
        margins = [(size // 2,) * 2 if axis == a else (0, 0) for a in range(3)]
        padded = np.pad(maps, margins, mode="reflect")
        side = maps.shape[axis]
        maps = sum(weight * np.take(padded, np.arange(side) + i, axis) for i, weight in enumerate(kernel))
    return maps


def grown(maps):
    padded = np.pad(maps, [(0, 0), (1, 1), (1, 1)], mode="reflect")
    height, width = maps.shape[1:]
    return np.max([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)


def stretch(maps, counts):
    for row, where in zip(maps, counts, strict=True):
        low, high = row[where].min(), row[where].max()
        row[:] = np.where(where, (row - low) / (high - low), 0)
    return maps


def some_maps(size=(40, 48)):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(2, *size, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    label = rng.integers(0, 3, (2, *size))
    label[:, :3] = IGNORE
    counts = np.ones((2, *size), bool)
    counts[:, :, 30:] = False
    return p.astype(np.float32), label.astype(np.int32), counts


def test_raw_flaws_by_hand():
    p = jnp.array([[[[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]]]])
    np.testing.assert_allclose(raw_flaw(p, jnp.array([[[0, 1, IGNORE]]])), [[[0.1, 0.8, 0.5]]], rtol=1e-6)


def test_the_target_equals_a_numpy_oracle():
    """Void counts as half a flaw, and where nothing counts there is none."""
    p, label, counts = some_maps()
    one_hot = np.where((label < 3)[..., None], np.eye(3)[np.where(label < 3, label, 0)], 0)
    raw = np.where(counts, 0.5 * np.abs(one_hot - p).sum(-1), 0)
    expected = stretch(blurred(grown(blurred(raw, 8)), 4), counts)
    np.testing.assert_allclose(flaw_target(p, label, counts), expected, atol=1e-5)


def test_a_handled_map_equals_a_numpy_oracle():
    flaw = np.random.default_rng(0).normal(size=(3, 40, 48)).astype(np.float32)
    flaw[2] = 0.09  # nothing of it is a flaw
    counts = np.ones(flaw.shape, bool)
    counts[:, :, 30:] = False
    smooth = blurred(np.where(counts, np.maximum(flaw, 0), 0), 16)
    expected = np.concatenate([stretch(smooth[:2], counts[:2]), 0 * smooth[2:]])
    np.testing.assert_allclose(handled(flaw, counts), expected, atol=1e-5)
    assert expected.max() == 1


def test_a_map_is_stretched_over_what_counts():
    maps, counts = jnp.array([[[1.0, 3.0, 9.0]], [[2.0, 2.0, 2.0]]]), jnp.array([[[True, True, False]]] * 2)
    np.testing.assert_array_equal(stretched(maps, counts), [[[0, 1, 0]], [[0, 0, 0]]])
    np.testing.assert_array_equal(stretched(maps, jnp.zeros_like(counts)), np.zeros((2, 1, 3)))


def test_who_keeps_its_own_by_hand():
    left, right = jnp.array([0.1, 0.7, 0.9, 0.5]), jnp.array([0.3, 0.2, 0.8, 0.65])
    assert keeps_own(left, right, 0.6).tolist() == [True, False, True, True]
    assert keeps_own(right, left, 0.6).tolist() == [False, True, True, False]


@pytest.mark.parametrize("size", [(1, 1), (5, 9)])
def test_small_maps(size):
    p, label, counts = (x[:, : size[0], : size[1]] for x in some_maps())
    assert np.isfinite(flaw_target(p, label, counts)).all()
    assert np.isfinite(handled(jnp.asarray(p[..., 0]), counts)).all()


def test_neither_map_has_a_gradient():
    p, label, counts = some_maps((8, 8))
    for slope in (
        jax.grad(lambda x: flaw_target(x, label, counts).sum())(p),
        jax.grad(lambda x: handled(x, counts).sum())(p[..., 0]),
    ):
        np.testing.assert_array_equal(slope, 0)
