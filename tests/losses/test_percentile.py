"""The percentile of some values against np.percentile, and the entropies it is taken of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.losses import entropy, masked_percentile


@pytest.mark.parametrize("percent", [0.0, 12.5, 50.0, 80.0, 99.0, 100.0])
@pytest.mark.parametrize("share", [0.05, 0.7, 1.0])
def test_it_is_numpys_percentile_of_the_included_values(percent, share):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 7, 11)).astype(np.float32)
    included = rng.random(values.shape) < share
    assert included.any()
    found = jax.jit(masked_percentile)(values, included, percent)
    np.testing.assert_allclose(found, np.percentile(values[included], percent), rtol=1e-5, atol=1e-6)


def test_of_one_value_it_is_that_value_and_of_none_it_is_infinite():
    values = jnp.array([3.0, 1.0, 2.0])
    assert masked_percentile(values, jnp.array([False, True, False]), 70.0) == 1
    assert masked_percentile(values, jnp.zeros(3, bool), 70.0) == jnp.inf


def test_the_worked_example():
    """Of U2PL: logits [4,0], [2,0], [1,0], [0,0]."""
    unsure = entropy(jax.nn.softmax(jnp.array([[4.0, 0], [2, 0], [1, 0], [0, 0]])))
    np.testing.assert_allclose(unsure, [0.090095, 0.365334, 0.582203, 0.693147], atol=1e-6)
    for percent, wanted in ((80, 0.626581), (90, 0.659864), (20, 0.255238)):
        np.testing.assert_allclose(masked_percentile(unsure, jnp.ones(4, bool), percent), wanted, atol=1e-6)


def test_a_sure_prediction_has_no_entropy_and_no_nan():
    np.testing.assert_allclose(entropy(jnp.array([1.0, 0.0, 0.0])), 0, atol=1e-6)
