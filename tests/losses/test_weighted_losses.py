"""Focal loss, Dice loss and class weights: by hand, against NumPy, on 1 and 8 devices, and taken in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import IGNORE, Mean
from forec_jax.losses import (
    balanced_cross_entropy,
    dice_cross_entropy,
    dice_loss,
    focal_loss,
    mean_cross_entropy,
)
from forec_jax.parallel import batch_sharding, make_mesh

WEIGHTS = (1.0, 0.5, 2.0, 0.0)


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def balanced_oracle(logits, label, included, weights):
    p, total, number = softmax(logits), 0.0, 0.0
    for where in map(tuple, np.argwhere(included)):
        total -= weights[label[where]] * np.log(p[where][label[where]])
        number += weights[label[where]]
    return total, number


def focal_oracle(logits, label, included, weights):
    p, total, number = softmax(logits), 0.0, 0.0
    for where in map(tuple, np.argwhere(included)):
        true = p[where][label[where]]
        total -= weights[label[where]] * (1 - true) ** 2 * np.log(true)
        number += weights[label[where]]
    return total, number


def dice_oracle(logits, label, included, weights):
    """Image by image and class by class."""
    losses = []
    for p, y, inside in zip(softmax(logits), label, included, strict=True):
        overlaps = {
            k: 2 * p[inside & (y == k), k].sum() / (p[inside, k].sum() + (inside & (y == k)).sum())
            for k in np.unique(y[inside])
            if weights[k]
        }
        if overlaps:
            weighed = sum(weights[k] * overlap for k, overlap in overlaps.items())
            losses.append(1 - weighed / sum(weights[k] for k in overlaps))
    return sum(losses), len(losses)


def dice_cross_entropy_oracle(logits, label, included, weights):
    total, number = dice_oracle(logits, label, included, weights)
    for image in range(len(label)):
        part = slice(image, image + 1)
        error, weight = balanced_oracle(logits[part], label[part], included[part], weights)
        total += error / weight if weight else 0.0
    return total, number


LOSSES = {
    "balanced": (balanced_cross_entropy, balanced_oracle),
    "focal": (functools.partial(focal_loss, gamma=2.0), focal_oracle),
    "dice": (dice_loss, dice_oracle),
    "dice_cross_entropy": (dice_cross_entropy, dice_cross_entropy_oracle),
}


def case():
    """Eight rows: one without an included pixel, one that shows only the class that weighs nothing, void in all."""
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(8, 5, 6, 4)).astype(np.float32), rng.integers(0, 4, (8, 5, 6)).astype(np.int32)
    included = rng.random((8, 5, 6)) < 0.8
    included[3], label[5] = False, 3
    label[~included] = IGNORE
    return logits, label, included


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_oracles_on_1_and_8_devices_and_in_parts(name):
    loss, oracle = LOSSES[name]
    logits, label, included = case()
    total, number = oracle(logits.astype(np.float64), label, included, WEIGHTS)

    def value(logits, label, included):
        return loss(logits, label, included, class_weights=WEIGHTS)

    whole = jax.jit(value)(logits, label, included)
    rows = batch_sharding(make_mesh())
    spread = jax.jit(value, in_shardings=(rows, rows, rows))(*jax.device_put((logits, label, included), rows))
    halves = [value(logits[k::2], label[k::2], included[k::2]) for k in (0, 1)]
    in_parts = Mean(*(sum(parts) for parts in zip(*halves, strict=True)))
    for found in (whole, spread, in_parts):
        np.testing.assert_allclose((found.total, found.number), (total, number), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_pixel_that_is_left_out_has_no_gradient_and_no_say(name):
    loss, _ = LOSSES[name]
    logits, label, included = case()

    @jax.jit
    def found(logits, label):
        return jax.value_and_grad(lambda x: loss(x, label, included, class_weights=WEIGHTS).value())(logits)

    value, gradient = found(logits, label)
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    assert (gradient[~included] == 0).all()
    counts = included & (label != 3) if name in ("balanced", "focal") else included & (np.arange(8) != 5)[:, None, None]
    assert (np.abs(gradient[counts]).sum(-1) > 0).all()
    other = np.where(included[..., None], logits, -50 * logits)
    np.testing.assert_allclose(found(other, np.where(included, label, 0))[0], value, rtol=1e-6)


def test_nothing_included_is_no_loss_and_no_gradient():
    logits, label, _ = case()
    nothing = np.zeros(label.shape, bool)
    for loss, _ in LOSSES.values():
        value, gradient = jax.value_and_grad(lambda x, f=loss: f(x, label, nothing, class_weights=WEIGHTS).value())(
            jnp.asarray(logits)
        )
        assert float(value) == 0
        assert not np.asarray(gradient).any()


def says(*rows):
    """Logits of one image by the probabilities of its pixels, one a row."""
    return jnp.log(jnp.asarray([[list(rows)]], jnp.float32))


def test_focal_by_hand():
    """p = .8 and .5: (.2)^2 (-ln .8) + (.5)^2 (-ln .5), weights 1 and 3."""
    mean = focal_loss(
        says((0.8, 0.2), (0.5, 0.5)),
        jnp.array([[[0, 1]]]),
        jnp.array([[[True, True]]]),
        class_weights=(1.0, 3.0),
        gamma=2.0,
    )
    np.testing.assert_allclose(mean.total, 0.04 * -np.log(0.8) + 3 * 0.25 * -np.log(0.5), rtol=1e-5)
    assert float(mean.number) == 4


def test_without_gamma_and_weights_focal_is_cross_entropy():
    logits, label, included = case()
    plain = mean_cross_entropy(logits, label, included)
    for found in (
        focal_loss(logits, label, included, class_weights=(1.0,) * 4, gamma=0.0),
        balanced_cross_entropy(logits, label, included, class_weights=(1.0,) * 4),
    ):
        np.testing.assert_allclose((found.total, found.number), plain, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_sure_pixel_has_a_finite_gradient(gamma):
    logits = jnp.array([[[[200.0, 0.0], [0.0, 200.0]]]])
    gradient = jax.grad(
        lambda x: (
            focal_loss(
                x, jnp.zeros((1, 1, 2), int), jnp.ones((1, 1, 2), bool), class_weights=(1.0, 1.0), gamma=gamma
            ).total
        )
    )(logits)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0, 0, 1]).max() > 0.1  # wrong, and sure of it


def test_dice_by_hand():
    """Truth 0, 0, 1 and void. Class 0: 2(.9 + .6) / (.9 + .6 + .2 + 2); class 1: 2(.8) / (.1 + .4 + .8 + 1)."""
    logits = says((0.9, 0.1), (0.6, 0.4), (0.2, 0.8), (0.3, 0.7))
    label, included = jnp.array([[[0, 0, 1, IGNORE]]]), jnp.array([[[True, True, True, False]]])
    mean = dice_loss(logits, label, included, class_weights=(1.0, 1.0))
    np.testing.assert_allclose(mean.total, 1 - (3.0 / 3.7 + 1.6 / 2.3) / 2, rtol=1e-5)
    assert float(mean.number) == 1
    both = dice_cross_entropy(logits, label, included, class_weights=(1.0, 1.0))
    np.testing.assert_allclose(both.total - mean.total, -np.log([0.9, 0.6, 0.8]).mean(), rtol=1e-5)


def test_regions_that_overlap_wholly_have_no_dice_loss():
    label = jnp.array([[[0, 1, 1]]])
    mean = dice_loss(50 * jax.nn.one_hot(label, 3), label, jnp.ones((1, 1, 3), bool), class_weights=(1.0, 1.0, 1.0))
    assert float(mean.value()) == pytest.approx(0, abs=1e-6)
