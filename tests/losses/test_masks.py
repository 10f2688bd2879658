import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.losses import area_loss, mask_area, size_penalty_loss

# Two rows of three pixels, of which the last of row 1 is padding; background and two classes.
LOGITS = np.array(
    [[[[0.0, 1.0, -1.0], [2.0, 0.0, 0.0], [0.5, 0.5, 3.0]]], [[[0.0, 0.0, 0.0], [1.0, -2.0, 0.3], [9.0] * 3]]]
)
VALID = np.array([[[True, True, True]], [[True, True, False]]])
TAGS = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def areas():
    masks = softmax(LOGITS)
    return np.stack([masks[0, 0].mean(0), masks[1, 0, :2].mean(0)])


def test_areas_are_means_over_the_valid_pixels():
    np.testing.assert_allclose(mask_area(jnp.asarray(softmax(LOGITS)), jnp.asarray(VALID)), areas(), rtol=1e-5)


def test_area_loss_by_hand():
    area = areas()
    expected = -(TAGS * np.log(area) + (1 - TAGS) * np.log(1 - area)).mean()
    found = area_loss(jnp.asarray(softmax(LOGITS)), jnp.asarray(VALID), jnp.asarray(TAGS))
    np.testing.assert_allclose(found.value(), expected, rtol=1e-5)
    assert float(found.number) == 6


def test_an_empty_and_a_full_mask_cost_much_but_not_infinitely():
    masks = jnp.broadcast_to(jnp.array([1.0, 0.0]), (1, 2, 2, 2))
    value, gradient = jax.value_and_grad(lambda m: area_loss(m, jnp.ones((1, 2, 2), bool), jnp.ones((1, 2))).value())(
        masks
    )
    np.testing.assert_allclose(value, -np.log(1e-6) / 2, rtol=1e-3)
    assert np.isfinite(gradient).all()


def test_size_penalty_by_hand():
    masks, area = softmax(LOGITS), areas()
    scores = np.empty((2, 3))
    for row, pixels in ((0, slice(3)), (1, slice(2))):
        m, y = masks[row, 0, pixels], LOGITS[row, 0, pixels]
        scores[row] = (m * y).sum(0) / (1 + m.sum(0)) + (1 - area[row]) ** 3 * np.log(0.01 + area[row])
    p = 1 / (1 + np.exp(-scores))
    expected = -(TAGS * np.log(p) + (1 - TAGS) * np.log(1 - p))[:, 1:].mean()
    arguments = (jnp.asarray(LOGITS), jnp.asarray(VALID), jnp.asarray(TAGS), jnp.array([1, 2]))
    np.testing.assert_allclose(size_penalty_loss(*arguments).value(), expected, rtol=1e-5)


def test_padding_has_no_gradient():
    def loss(logits):
        rows = (jnp.asarray(VALID), jnp.asarray(TAGS))
        return (
            area_loss(jax.nn.softmax(logits), *rows).value()
            + size_penalty_loss(logits, *rows, jnp.array([1, 2])).value()
        )

    gradient = np.abs(np.asarray(jax.grad(loss)(jnp.asarray(LOGITS)))).sum(-1)[:, 0] > 0
    np.testing.assert_array_equal(gradient, VALID[:, 0])
