"""Soft targets: PseudoSeg's fusion by hand, and the cross-entropy against it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from forec_jax.losses import calibrated_fusion, weighted_divergence, weighted_soft_cross_entropy

DECODER = jnp.array([[[[2.0, 0.0], [0.0, 1.0]]]])
ATTENTION = jnp.array([[[[0.0, 4.0], [1.0, 3.0]]]])
STRONG = jnp.array([[[[1.0, 0.0], [0.0, 0.0]]]])
ALL = jnp.ones((1, 1, 2), bool)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [[0.425038, 0.574962], [0.320735, 0.679265]]),
        (0.5, [[0.353372, 0.646628], [0.182307, 0.817693]]),
    ],
)
def test_a_fusion_by_hand(temperature, expected):
    """The squares of all eight logits add up to 31: both predictions are divided by sqrt(31 / 8) = 1.968502."""
    found = calibrated_fusion(DECODER, ATTENTION, ALL, temperature)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


def test_pixels_that_do_not_count_change_the_others_in_nothing():
    padded = [jnp.concatenate([logits, 100.0 + logits], axis=2) for logits in (DECODER, ATTENTION)]
    found = calibrated_fusion(*padded, jnp.concatenate([ALL, ~ALL], axis=2), 0.5)
    np.testing.assert_array_equal(found[:, :, :2], calibrated_fusion(DECODER, ATTENTION, ALL, 0.5))
    assert np.isfinite(calibrated_fusion(DECODER, ATTENTION, ~ALL, 0.5)).all()


def test_no_gradient_flows_through_a_fusion():
    def first(logits):
        return calibrated_fusion(*logits, ALL, 0.5)[0, 0, 0, 0]

    for gradient in jax.grad(first)((DECODER, ATTENTION)):
        np.testing.assert_array_equal(gradient, 0)


def test_the_cross_entropy_against_the_fusion_by_hand():
    target = calibrated_fusion(DECODER, ATTENTION, ALL, 0.5)
    errors = weighted_soft_cross_entropy(STRONG, target, jnp.ones((1, 1, 2)))
    np.testing.assert_allclose(errors[0, 0], [0.959889, 0.693147], atol=1e-6)
    np.testing.assert_allclose(jnp.mean(errors), 0.826518, atol=1e-6)
    cut = weighted_soft_cross_entropy(STRONG, target, jnp.array([[[1.0, 0.0]]]))
    np.testing.assert_allclose(cut[0, 0], [0.959889, 0], atol=1e-6)


def test_it_is_the_divergence_and_the_targets_entropy():
    target, weight = calibrated_fusion(DECODER, ATTENTION, ALL, 0.5), jnp.array([[[0.5, 2.0]]])
    difference = weighted_soft_cross_entropy(STRONG, target, weight) - weighted_divergence(STRONG, target, weight)
    np.testing.assert_allclose(difference[0, 0], weight[0, 0] * scipy.stats.entropy(target[0, 0], axis=-1), rtol=1e-5)
