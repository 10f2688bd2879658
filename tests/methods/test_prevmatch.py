"""PrevMatch: which snapshots are kept and drawn, what they say, and what their terms weigh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, Batch, Labelled, Unlabelled, Variables, Views
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods.parts.snapshots import (
    Snapshots,
    draw_snapshots,
    no_snapshots,
    snapshot_probabilities,
    with_snapshot,
)
from forec_jax.methods.parts.views import unchanged
from forec_jax.methods.prevmatch import SNAPSHOTS, PrevMatch
from forec_jax.models.network import with_frozen_encoder
from forec_jax.options import OptionError
from forec_jax.training import first_state
from forec_jax.training.step import objective

TX = optax.sgd(0.1)
KEY = jax.random.key(5)


def moved(student, by):
    return jax.tree.map(lambda leaf: leaf + by, student)


def test_the_latest_snapshots_are_kept_one_every_n_steps(make_toy_network):
    """Three places, every 2 steps: step 0 is none, and of 2, 4, 6, 8 the last three stay. The student is 'step' larger."""
    student = make_toy_network().init(KEY)
    push = jax.jit(lambda snapshots, step: with_snapshot(snapshots, moved(student, step), step, 2))
    snapshots, held = no_snapshots(student, 3), []
    for step in range(9):
        snapshots = push(snapshots, jnp.asarray(step))
        held.append(sorted(int(taken) for taken in snapshots.step if taken >= 0))
    assert held == [[], [], [2], [2], [2, 4], [2, 4], [2, 4, 6], [2, 4, 6], [4, 6, 8]]
    for place, step in enumerate(np.asarray(snapshots.step)):
        kept = jax.tree.map(lambda leaf, i=place: leaf[i], snapshots.variables)
        jax.tree.map(np.testing.assert_array_equal, kept, moved(student, step))


def test_parts_of_a_batch_see_the_snapshot_that_the_first_has_taken(make_toy_network):
    student = make_toy_network().init(KEY)
    first = with_snapshot(no_snapshots(student, 3), student, jnp.asarray(4), 2)
    again = with_snapshot(first, moved(student, 1.0), jnp.asarray(4), 2)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_what_training_leaves_as_it_is_is_not_kept_and_is_the_students(make_toy_network):
    network = with_frozen_encoder(make_toy_network())
    student = network.init(KEY)
    snapshots = with_snapshot(no_snapshots(student, 2, network.frozen), student, jnp.asarray(1), 1, network.frozen)
    assert set(snapshots.variables.params) == set(snapshots.variables.batch_stats) == {"segmentation"}
    drawn, image = draw_snapshots(KEY, snapshots, 2), jax.random.uniform(KEY, (1, 2, 2, 3))
    found = snapshot_probabilities(network, snapshots, drawn, student, image)
    np.testing.assert_allclose(found, softmax(said(student, image)), rtol=1e-5)


@pytest.mark.parametrize("there", [1, 2, 5])
def test_one_to_three_snapshots_are_drawn_with_weights_from_dirichlet(there):
    """Of `there` in 5 places: each as often, k = 1, 2, 3 as often but no more than there are; a pair's weight has 1/12."""
    step = jnp.where(jnp.arange(5) < there, 7, -1)
    drawn = jax.vmap(lambda key: draw_snapshots(key, Snapshots((), step), 3))(jax.random.split(KEY, 6000))
    place, weight = np.asarray(drawn.place), np.asarray(drawn.weight)
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-5)
    number = (weight > 0).sum(1)
    expected = {1: [1, 0, 0], 2: [1 / 3, 2 / 3, 0], 5: [1 / 3] * 3}[there]
    np.testing.assert_allclose([np.mean(number == k) for k in (1, 2, 3)], expected, atol=0.02)
    assert (place[weight > 0] < there).all()
    assert all(len(set(row)) == 3 for row in place)
    np.testing.assert_allclose(np.bincount(place[:, 0], minlength=5)[:there] / 6000, 1 / there, atol=0.02)
    if there > 1:
        assert np.var(weight[number == 2, 0]) == pytest.approx(1 / 12, abs=0.01)


def test_without_a_snapshot_nothing_is_drawn():
    drawn = draw_snapshots(KEY, Snapshots((), jnp.full(4, -1)), 3)
    np.testing.assert_array_equal(drawn.weight, np.zeros(3))


def batch(rows=2):
    rng = np.random.default_rng(0)
    shape, none = (rows, 4, 4), np.zeros(rows, np.int32)
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    label, valid = rng.integers(0, 3, shape).astype(np.int32), np.ones(shape, bool)
    valid[:, 0, 0] = False
    return jax.tree.map(jnp.asarray, Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none)))


def softmax(logits):
    return np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1))


def said(variables, image):
    """What a toy network says."""
    return np.tanh(np.asarray(image) @ variables.params["encoder"]["w"]) @ np.asarray(
        variables.params["segmentation"]["w"]
    )


def from_the_next_row(key, rows):
    """A mixing in which each row becomes the next one altogether."""
    return jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), rows)


def make_method(toy, **options):
    options = {"dropout": 0.0, "threshold": 0.4, "steps": 8, "every": 2, "snapshots": 3, **options}
    weights = {"supervised_weight": 0.5, "unsupervised_weight": 0.5}
    return PrevMatch(toy(normalise=False), unchanged, from_the_next_row, **weights, **options)


def state_with_snapshots(method, step=3):
    """A state with two other networks as snapshots, in the first two places."""
    state = first_state(method, TX, seed=0)
    others = [method.network.init(jax.random.key(seed)) for seed in (11, 12)]
    room = jax.tree.map(lambda *leaves: jnp.stack([*leaves, jnp.zeros_like(leaves[0])]), *others)
    memory = {SNAPSHOTS: Snapshots(room, jnp.array([0, 1, -1], jnp.int32))}
    return state._replace(step=jnp.int32(step), memory=memory), others


def test_the_guided_terms_are_the_cross_entropy_against_what_the_snapshots_say(make_toy_network):
    """An oracle in NumPy: logits add up with the drawn weights; labels follow the mixing; weights at lambda 3/4."""
    method = make_method(make_toy_network, guided_threshold=0.45)
    state, others = state_with_snapshots(method)
    given = batch()
    terms, aux = jax.jit(method.loss)(state.params, state, given, KEY)

    drawn = draw_snapshots(jax.random.split(KEY)[1], state.memory[SNAPSHOTS], 3)
    image = np.asarray(given.unlabelled.image, np.float32) / 255
    logits = sum(w * said(others[p], image) for p, w in zip(drawn.place, drawn.weight, strict=True) if w > 0)
    p = softmax(logits)
    valid = np.asarray(given.unlabelled.valid)
    student = Variables(state.params["student"], state.batch_stats["student"])
    error = -np.log(np.take_along_axis(softmax(said(student, image)), p.argmax(-1)[..., None], -1)[..., 0])
    kept = (p.max(-1) > 0.45) & valid
    assert 0 < kept.sum() < valid.sum()
    expected = error[kept].sum() / valid.sum()
    names = ("unsupervised1_loss", "unsupervised2_loss", "perturbed_loss")
    for name in names:
        np.testing.assert_allclose(terms[f"guided_{name}"].mean.value(), expected, rtol=1e-5)
    assert float(aux.metrics["guided_kept"].value()) == pytest.approx(kept.sum() / valid.sum())

    share = 2 / (2 + 0.75)  # step 3 of 8: three quarters of the way to the peak
    weights = {"supervised_loss": 0.5 * share}
    for name, weight in zip(names, (0.125, 0.125, 0.25), strict=True):
        weights |= {name: weight * share, f"guided_{name}": 0.75 * weight * share}
    assert {name: float(term.weight) for name, term in terms.items()} == pytest.approx(weights)


def test_lambda_rises_to_its_peak_half_way_and_falls_again(make_toy_network):
    method = make_method(make_toy_network, guided_weight=2.0)
    snapshots = state_with_snapshots(method)[0].memory[SNAPSHOTS]
    found = [float(method.weight(jnp.asarray(step), snapshots)) for step in range(9)]
    assert found == pytest.approx([0, 0.5, 1, 1.5, 2, 1.5, 1, 0.5, 0])
    none = snapshots._replace(step=jnp.full(3, -1))
    assert float(method.weight(jnp.asarray(4), none)) == 0


def test_until_there_is_a_snapshot_it_is_unimatch(make_toy_network):
    method = make_method(make_toy_network)
    terms, _ = method.loss((s := first_state(method, TX, 0)).params, s._replace(step=jnp.int32(1)), batch(), KEY)
    weights = {name: float(term.weight) for name, term in terms.items() if not name.startswith("guided")}
    assert weights == {
        "supervised_loss": 0.5,
        "unsupervised1_loss": 0.125,
        "unsupervised2_loss": 0.125,
        "perturbed_loss": 0.25,
    }
    assert all(float(term.weight) == 0 for name, term in terms.items() if name.startswith("guided"))


def test_by_images_an_error_is_times_its_images_mean_confidence_whatever_the_batch(make_toy_network):
    """Two images of two pixels, one of them padding: errors log 2 at confidences (.5, .9) and .4, hence .7 and .4."""
    method = make_method(make_toy_network, image_confidence=True, guided_threshold=0.0)
    views = Views(
        image=jnp.zeros((2, 1, 2, 3)),
        label=jnp.array([[[0, 1]], [[1, IGNORE]]]),
        confidence=jnp.array([[[0.5, 0.9]], [[0.4, 1.0]]]),
        is_ground_truth=jnp.zeros((2, 1, 2), bool),
        valid=jnp.array([[[True, True]], [[True, False]]]),
        labelled_row=jnp.zeros(2, bool),
    )
    for repeats in (1, 4):
        rows = jax.tree.map(lambda leaf, n=repeats: jnp.concatenate([leaf] * n), views)
        terms, _ = method.guided(jnp.zeros((2 * repeats, 1, 2, 2)), rows, jnp.asarray(3))
        mean = terms["unsupervised_loss"].mean
        assert float(mean.value()) == pytest.approx(np.log(2) * (0.7 + 0.7 + 0.4) / 3)


def test_snapshots_get_no_gradient(make_toy_network):
    method = make_method(make_toy_network, guided_threshold=0.0)
    state, _ = state_with_snapshots(method)

    def loss(variables):
        memory = {SNAPSHOTS: state.memory[SNAPSHOTS]._replace(variables=variables)}
        return objective(method.loss(state.params, state._replace(memory=memory), batch(), KEY)[0])

    gradient = jax.jit(jax.grad(loss))(state.memory[SNAPSHOTS].variables)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_snapshot_is_the_student_before_the_step_and_stays_in_the_memory(make_toy_network):
    method = dataclasses.replace(make_method(make_toy_network), mixing=NoMixing())
    state = first_state(method, TX, 0)._replace(step=jnp.int32(2))
    _, aux = method.loss(state.params, state, batch(), KEY)
    snapshots = aux.memory[SNAPSHOTS]
    np.testing.assert_array_equal(snapshots.step, [-1, 2, -1])
    kept = jax.tree.map(lambda leaf: leaf[1], snapshots.variables)
    jax.tree.map(np.testing.assert_array_equal, kept.params, state.params["student"])
    jax.tree.map(np.testing.assert_array_equal, kept.batch_stats, state.batch_stats["student"])


def test_more_drawn_than_kept_is_an_error():
    c = load_config("configs/shapes.py:prevmatch", {"method.prevmatch.snapshots": 2})
    with pytest.raises(OptionError, match=r"drawn=3 is more than are kept: take 2"):
        build.build_method(c, Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,)))
