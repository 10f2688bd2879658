import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import IGNORE, Batch, Labelled, Pseudo, TrainState
from forec_jax.methods.self_training import SelfTraining

SIDE = 6


def make_batch():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 2, SIDE, SIDE, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (2, 2, SIDE, SIDE)).astype(np.int32)
    label[:, :, 0] = IGNORE
    confidence = np.full((2, SIDE, SIDE), 255, np.uint8)
    confidence[:, :, :2] = 102  # two fifths
    valid, none = np.ones((2, SIDE, SIDE), bool), np.zeros(2, np.int32)
    labelled = Labelled(image[0], label[0], valid, none)
    return jax.tree.map(jnp.asarray, Batch(labelled, pseudo=Pseudo(image[1], label[1], confidence, valid, none)))


def state_of(method):
    params, stats, teacher, memory = method.init(jax.random.key(1))
    return TrainState(jnp.int32(0), params, stats, teacher, (), memory)


@pytest.mark.parametrize(("threshold", "columns"), [(0.0, SIDE), (0.5, SIDE - 2)])
def test_the_stored_masks_are_what_it_learns_under_the_strong_view_by_hand(make_toy_network, threshold, columns):
    def brighter(key, image, valid):
        return jnp.clip(image + 0.25, 0.0, 1.0)

    method = SelfTraining(
        make_toy_network(normalise=False), brighter, NoMixing(), threshold=threshold, normaliser="kept"
    )
    state, batch = state_of(method), make_batch()
    terms, aux = method.loss(state.params, state, batch, jax.random.key(0))
    p = state.params["student"]
    strong = np.clip(np.asarray(batch.pseudo.image, np.float32) / 255 + 0.25, 0, 1)
    logits = np.tanh(strong @ np.asarray(p["encoder"]["w"])) @ np.asarray(p["segmentation"]["w"])
    label = np.asarray(batch.pseudo.label)[:, 1:]
    error = np.log(np.exp(logits).sum(-1))[:, 1:] - np.take_along_axis(logits[:, 1:], label[..., None], -1)[..., 0]
    kept = error[:, :, SIDE - columns :]
    mean = terms["unsupervised_loss"].mean
    assert mean.number == 2 * (SIDE - 1) * columns  # void says nothing
    np.testing.assert_allclose(mean.value(), kept.mean(), rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["confidence"].value(), (2 * 0.4 + 4) / 6, rtol=1e-6)


def test_it_says_which_part_of_the_batch_it_misses(make_toy_network):
    method = SelfTraining(make_toy_network(), lambda key, image, valid: image, NoMixing())
    state = state_of(method)
    with pytest.raises(ValueError, match=r"batch\.pseudo"):
        method.loss(state.params, state, make_batch()._replace(pseudo=None), jax.random.key(0))


def test_tasks_aim_at_weak_views_and_labelled_rows_keep_their_colours_where_asked(witness):
    method = SelfTraining(witness.network, witness.colour, NoMixing(), colour_labelled=False)
    batch = make_batch()
    witness.watch(method, batch)
    seen = witness.student[0]
    np.testing.assert_allclose(seen[::2], witness.weak(batch.labelled), rtol=1e-6)
    np.testing.assert_allclose(seen[1::2], witness.strong(batch.pseudo), rtol=1e-6)
