"""The schedule against values worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from forec_jax.training import OptimizerOptions, make_optimizer, poly_schedule

HALF = 0.5**0.9  # 0.536; 1 - 0.5^0.9 would be 0.464


@pytest.mark.parametrize("kind", [int, jnp.asarray], ids=["on the host", "on the device"])
def test_poly_decay_is_a_power_of_what_is_left(kind):
    schedule = poly_schedule(2.0, steps=8, power=0.9, warmup=0)
    assert [float(schedule(kind(n))) for n in (0, 4, 8, 9)] == pytest.approx([2, 2 * HALF, 0, 0])


@pytest.mark.parametrize("kind", [int, jnp.asarray], ids=["on the host", "on the device"])
def test_a_held_rate_decays_over_the_steps_after_it(kind):
    schedule = poly_schedule(2.0, steps=11, power=0.9, warmup=1, hold=3)
    found = [float(schedule(kind(n))) for n in (0, 1, 3, 7, 11)]
    assert found == pytest.approx([1, 2, 2, 2 * HALF, 0])
    assert float(poly_schedule(2.0, steps=3, power=0.9, warmup=0, hold=3)(kind(2))) == 2  # nothing but the hold


def test_the_optimisers_updates_are_held():
    tx = make_optimizer(OptimizerOptions(lr=0.5, weight_decay=0.0, momentum=0.0, hold=2, poly_power=0.9), steps=4)
    params = {"n": {"encoder": {"kernel": jnp.ones((1, 1))}}}
    state, updates = tx.init(params), []
    for _ in range(4):
        update, state = tx.update(params, state, params)
        updates.append(float(update["n"]["encoder"]["kernel"][0, 0]))
    assert updates == pytest.approx([-0.5, -0.5, -0.5, -0.5 * HALF])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_frozen_encoder_has_no_moments_and_is_not_moved(name):
    params = {"n": {"encoder": {"kernel": jnp.ones((5, 7))}, "segmentation": {"kernel": jnp.ones((3, 2))}}}
    tx = make_optimizer(OptimizerOptions(name=name, lr=0.5, weight_decay=0.1), steps=4, freeze="encoder")
    state = tx.init(params)
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(), (3, 2)}  # numbers of steps, and moments
    updates, _ = tx.update(params, state, params)
    assert not updates["n"]["encoder"]["kernel"].any()
    assert updates["n"]["segmentation"]["kernel"].all()
