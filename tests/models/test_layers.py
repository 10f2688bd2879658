import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.models.layers import batch_normalise, normalise

EPSILON = 1e-5


def plain(x, scale, bias):
    """The definition, for JAX to differentiate."""
    wide = x.astype(jnp.float32)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    return normalise(x, mean, var, scale, bias, EPSILON), mean, var


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 2e-2)])
def test_the_written_gradient_of_batch_norm_is_the_definitions(dtype, tolerance):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3.0, 2.0, (3, 5, 4, 6)), dtype)
    scale, bias = (jnp.asarray(rng.normal(size=6), jnp.float32) for _ in range(2))
    dy = jnp.asarray(rng.normal(size=x.shape), dtype)

    def pulled(function):
        (y, mean, var), pull = jax.vjp(function, x, scale, bias)
        return y, mean, var, *pull((dy, jnp.zeros(6), jnp.zeros(6)))

    ours, theirs = pulled(lambda *a: batch_normalise(*a, EPSILON)), pulled(plain)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(other, np.float32), rtol=tolerance, atol=tolerance
        )


def test_the_backward_pass_of_batch_norm_sums_twice():
    """Over the batch: the gradient, and the gradient times the distance from the mean; nothing else is needed."""
    x, channel = jnp.zeros((2, 3, 3, 4)), jnp.zeros(4)
    _, pull = jax.vjp(lambda *a: batch_normalise(*a, EPSILON), x, channel, channel)
    backward = str(jax.make_jaxpr(pull)((x, channel, channel)))
    assert backward.count("reduce_sum") == 2
