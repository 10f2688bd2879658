import jax.numpy as jnp
import numpy as np

from forec_jax.methods.parts.ramp import ramp_up


def test_the_weight_rises_by_a_cosine():
    steps = np.array([-3, 0, 25, 50, 75, 100, 1000])
    expected = [0, 0, (1 - np.sqrt(0.5)) / 2, 0.5, (1 + np.sqrt(0.5)) / 2, 1, 1]
    np.testing.assert_allclose(ramp_up(jnp.asarray(steps), 100), expected, atol=1e-6)


def test_no_ramp_is_constant_from_step_0_on():
    np.testing.assert_array_equal(ramp_up(jnp.array([-1, 0, 7]), 0), [0, 1, 1])
