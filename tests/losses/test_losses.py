import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import IGNORE
from forec_jax.losses import cross_entropy, squared_error


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
    logits = jnp.ones((1, 1, 3, 2)) * jnp.array([1.0, 2.0])
    label = jnp.array([[[0, IGNORE, 1]]])
    gradient = jax.grad(lambda x: cross_entropy(x, label).sum())(logits)
    assert float(cross_entropy(logits, label)[0, 0, 1]) == 0
    assert (np.asarray(gradient)[0, 0, 1] == 0).all()
    assert (np.asarray(gradient)[0, 0, [0, 2]] != 0).all()


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
