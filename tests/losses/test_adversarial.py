import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.losses import discrimination, feature_matching, weighted_cross_entropy

REAL = jnp.array([True, False, True, False, False])


def test_discrimination_by_hand():
    score = np.array([2.0, -1.0, -0.5, 3.0, 0.0])
    p = 1 / (1 + np.exp(-score))
    real, fake = discrimination(jnp.asarray(score), REAL, ~REAL)
    assert float(real.value()) == pytest.approx(-np.log(p[[0, 2]]).mean(), rel=1e-6)
    assert float(fake.value()) == pytest.approx(-np.log(1 - p[[1, 3, 4]]).mean(), rel=1e-6)


def test_discrimination_is_finite_where_the_sigmoid_is_not():
    real, fake = discrimination(jnp.array([-200.0, 200.0]), jnp.array([True, False]), jnp.array([False, True]))
    assert (float(real.value()), float(fake.value())) == (200.0, 200.0)


def test_feature_matching_matches_a_numpy_oracle_and_moves_predictions_alone():
    features = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    difference = features[[0, 2]].mean(0) - features[[1, 3, 4]].mean(0)
    value, gradient = jax.value_and_grad(lambda x: feature_matching(x, REAL, ~REAL).value())(jnp.asarray(features))
    assert float(value) == pytest.approx(np.abs(difference).mean(), rel=1e-6)
    np.testing.assert_array_equal(gradient[jnp.array([0, 2])], 0)
    np.testing.assert_allclose(gradient[jnp.array([1, 3, 4])], np.tile(-np.sign(difference) / 3 / 7, (3, 1)), rtol=1e-6)


def test_a_row_that_is_neither_real_nor_fake_does_not_count():
    rows = jnp.array([1.0, -1.0, 9.0])
    real, fake = jnp.array([True, False, False]), jnp.array([False, True, False])
    without = [m.value() for m in discrimination(rows[:2], real[:2], fake[:2])]
    assert [m.value() for m in discrimination(rows, real, fake)] == without
    features = rows[:, None]
    assert feature_matching(features, real, fake).value() == feature_matching(features[:2], real[:2], fake[:2]).value()
    np.testing.assert_array_equal(jax.grad(lambda x: feature_matching(x, real, fake).value())(features)[2], 0)


@pytest.mark.parametrize("real", [True, False])
def test_feature_matching_without_one_side_is_zero(real):
    mean = feature_matching(jnp.ones((2, 3)), jnp.full(2, real), jnp.full(2, not real))
    assert (float(mean.value()), float(mean.number)) == (0.0, 0.0)


def test_a_weighted_cross_entropy_has_no_gradient_by_its_weights():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.25, 0.75])), (1, 1, 3, 2))
    label, weight = jnp.array([[[0, 1, 255]]]), jnp.array([[[0.5, 0.9, 0.0]]])
    error = weighted_cross_entropy(logits, label, weight)
    np.testing.assert_allclose(error, [[[-0.5 * np.log(0.25), -0.9 * np.log(0.75), 0.0]]], rtol=1e-6)
    gradient = jax.grad(lambda w: weighted_cross_entropy(logits, label, w).sum())(weight)
    np.testing.assert_array_equal(gradient, 0)
