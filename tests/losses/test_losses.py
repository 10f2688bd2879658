import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import IGNORE
from forec_jax.losses import cross_entropy, mean_cross_entropy, ohem_cross_entropy, squared_error
from forec_jax.parallel import batch_sharding, make_mesh


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[[0.2, 0.8], [0.5, 0.5]]]]))
    label = jnp.array([[[1, 0]]])
    np.testing.assert_allclose(cross_entropy(logits, label), [[[-np.log(0.8), -np.log(0.5)]]], rtol=1e-6)


def test_cross_entropy_matches_a_numpy_oracle():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(2, 5, 4, 7)).astype(np.float32), rng.integers(0, 7, (2, 5, 4))
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, label[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(label)), expected, rtol=1e-5, atol=1e-6)


def test_an_ignored_pixel_has_no_loss_and_no_gradient():
    logits = jnp.ones((1, 1, 3, 1)) * jnp.array([[[[1.0, 2.0]]]])
    label = jnp.array([[[0, IGNORE, 1]]])
    gradient = jax.grad(lambda x: cross_entropy(x, label).sum())(logits)
    assert float(cross_entropy(logits, label)[0, 0, 1]) == 0
    assert (np.asarray(gradient)[0, 0, 1] == 0).all()
    assert (np.asarray(gradient)[0, 0, [0, 2]] != 0).all()


def test_a_label_beyond_the_classes_has_no_loss():
    """The number of classes, or one below 0, is no class."""
    np.testing.assert_array_equal(cross_entropy(jnp.ones((1, 1, 2, 3)), jnp.array([[[3, -1]]])), [[[0, 0]]])


def test_squared_error_by_hand():
    prediction = jnp.array([[[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]]])
    target = jnp.array([[[[1.0, 0.0, 0.0], [9.0, 9.0, 9.0]]]])
    mean = squared_error(prediction, target, jnp.array([[[True, False]]]))
    assert (float(mean.total), float(mean.number)) == (13.0, 3.0)
    assert float(mean.value()) == np.float32(13 / 3)


def test_squared_error_of_nothing_is_zero_with_zero_gradient_whatever_is_excluded():
    target = jnp.full((1, 2, 2, 3), jnp.nan)
    nothing = jnp.zeros((1, 2, 2), bool)
    value, gradient = jax.value_and_grad(lambda x: squared_error(x, target, nothing).value())(jnp.ones((1, 2, 2, 3)))
    assert float(value) == 0
    assert (np.asarray(gradient) == 0).all()


def test_mean_cross_entropy_counts_included_pixels_alone():
    logits = jnp.log(jnp.array([[[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]]]))
    mean = mean_cross_entropy(logits, jnp.array([[[1, 0, IGNORE]]]), jnp.array([[[True, True, False]]]))
    np.testing.assert_allclose(mean.total, -np.log(0.8) - np.log(0.5), rtol=1e-6)
    assert float(mean.number) == 2


def two_class_logits(true_probability):
    """Logits of two classes that give class 0 the probabilities f64[H,W], one row."""
    p = jnp.asarray(true_probability, jnp.float32)[None]
    return jnp.log(jnp.stack([p, 1 - p], axis=-1))


def ohem_of(true_probability, included=None, *, threshold, min_kept):
    logits = two_class_logits(true_probability)
    label = jnp.zeros(logits.shape[:3], jnp.int32)
    included = jnp.ones(label.shape, bool) if included is None else jnp.asarray(included)[None]
    return ohem_cross_entropy(logits, label, included, threshold=threshold, min_kept=min_kept)


PROBABILITIES = np.array([[0.1, 0.6, 0.8], [0.9, 0.95, 0.5]])


@pytest.mark.parametrize(
    ("threshold", "min_kept", "kept"),
    [
        (0.7, 1, [0.1, 0.6, 0.5]),  # the threshold decides
        (0.7, 4, [0.1, 0.6, 0.5, 0.8]),  # too few below it: the fourth hardest is kept too
        (0.05, 2, [0.1, 0.5]),
        (0.7, 100, [0.1, 0.6, 0.8, 0.9, 0.95, 0.5]),  # more than there are: all
        (0.7, 2**31, [0.1, 0.6, 0.8, 0.9, 0.95, 0.5]),
    ],
)
def test_ohem_by_hand(threshold, min_kept, kept):
    mean = ohem_of(PROBABILITIES, threshold=threshold, min_kept=min_kept)
    assert float(mean.number) == len(kept)
    np.testing.assert_allclose(mean.total, -np.log(kept).sum(), rtol=1e-5)


def test_ohem_keeps_all_pixels_tied_at_the_bound():
    mean = ohem_of(np.full((2, 3), 0.9), threshold=0.7, min_kept=2)
    assert float(mean.number) == 6


def test_ohem_without_included_pixels_is_zero_with_zero_gradient():
    logits, nothing = two_class_logits(PROBABILITIES), jnp.zeros((1, 2, 3), bool)
    label = jnp.full((1, 2, 3), IGNORE)

    def loss(x):
        return ohem_cross_entropy(x, label, nothing, threshold=0.7, min_kept=2).value()

    value, gradient = jax.value_and_grad(loss)(logits)
    assert float(value) == 0
    assert (np.asarray(gradient) == 0).all()


def ohem_oracle(logits, label, included, threshold, min_kept):
    """Pixel by pixel in float64: (sum, number, which pixels)."""
    hardness = []
    for where in np.argwhere(included):
        scores = logits[tuple(where)].astype(np.float64)
        hardness.append((np.exp(scores[label[tuple(where)]]) / np.exp(scores).sum(), tuple(where)))
    hardness.sort()
    number = min_kept * sum(row.any() for row in included)
    bound = max(threshold, hardness[min(number, len(hardness)) - 1][0])
    kept = [(p, where) for p, where in hardness if p <= bound]
    return sum(-np.log(p) for p, _ in kept), len(kept), {where for _, where in kept}


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 1), (0.2, 9), (0.01, 20)])
@pytest.mark.parametrize("devices", [1, 8])
def test_ohem_matches_a_slow_oracle_over_the_global_batch(threshold, min_kept, devices):
    """Rows differ in hardness, so that a choice made row by row or device by device would be another one."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 5, (8, 6, 7))
    sure = np.eye(5)[label] * np.arange(8)[:, None, None, None]
    logits = (rng.normal(size=(8, 6, 7, 5)) + sure).astype(np.float32)
    included = rng.random((8, 6, 7)) < 0.8
    included[3] = False
    label[~included] = IGNORE
    total, number, kept = ohem_oracle(logits, label, included, threshold, min_kept)

    def loss(x, label, included):
        mean = ohem_cross_entropy(x, label, included, threshold=threshold, min_kept=min_kept)
        return mean.total, mean

    rows = batch_sharding(make_mesh(devices=jax.devices()[:devices]))
    arguments = jax.device_put((logits, label, included), rows)
    gradient, mean = jax.jit(jax.grad(loss, has_aux=True))(*arguments)
    assert int(mean.number) == number
    np.testing.assert_allclose(mean.total, total, rtol=1e-5)
    moved = {tuple(where) for where in np.argwhere(np.abs(np.asarray(gradient)).sum(-1) > 0)}
    assert moved == kept
