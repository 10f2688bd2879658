"""Weights, teacher and optimiser state that are split over devices: the same numbers, and checkpoints either way."""

import functools

import jax
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import Batch, Labelled, Unlabelled
from forec_jax.methods import MeanTeacher
from forec_jax.models.network import with_frozen_encoder
from forec_jax.parallel import make_mesh, shard_batch
from forec_jax.training import (
    Checkpoints,
    OptimizerOptions,
    abstract_state,
    compile_step,
    create_state,
    make_optimizer,
    state_sharding,
)
from forec_jax.training.state import INIT_STREAM

ROWS, SIZE, THRESHOLD = 8, 6, 0.4
TX = optax.adamw(1e-2)


def no_colour(key, image, valid):
    return image


@pytest.fixture(scope="module")
def method(make_toy_network):
    return MeanTeacher(make_toy_network(channels=512), no_colour, NoMixing(), (), threshold=THRESHOLD)


@functools.cache
def batch_of(step):
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (2, ROWS, SIZE, SIZE, 3), dtype=np.uint8)
    valid, none = np.ones((ROWS, SIZE, SIZE), bool), np.zeros(ROWS, np.int32)
    return Batch(
        Labelled(image[0], (image[0, ..., 0] // 86).astype(np.int32), valid, none), Unlabelled(image[1], valid, none)
    )


@functools.cache
def trained(method, devices, fsdp, tx=TX, accumulate=1):
    """The state after three steps, and their losses."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    state = create_state(method, tx, 0, state_sharding(method, tx, 0, mesh))
    step = compile_step(method, tx, seed=0, accumulate=accumulate, mesh=mesh)
    losses = []
    for number in range(3):
        state, metrics = step(state, shard_batch(mesh, batch_of(number)))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    return state, losses


def test_split_or_not_the_numbers_are_those_of_one_device(method):
    one, losses = trained(method, 1, 1)
    for devices, fsdp in ((2, 2), (4, 2), (8, 1), (8, 8)):
        other, other_losses = trained(method, devices, fsdp)
        assert other_losses == pytest.approx(losses, rel=1e-5), (devices, fsdp)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_is_where_it_is_split_and_the_batch_taken_in_parts(make_toy_network):
    network = with_frozen_encoder(make_toy_network(channels=512, normalise=False))
    method = MeanTeacher(network, no_colour, NoMixing(), (), threshold=THRESHOLD)
    tx = make_optimizer(OptimizerOptions(name="adamw", lr=1e-2), steps=8, freeze="encoder")
    one, losses = trained(method, 1, 1, tx=tx)
    split, split_losses = trained(method, 4, 4, tx=tx, accumulate=2)
    assert split_losses == pytest.approx(losses, rel=1e-5)
    first = method.init(jax.random.fold_in(jax.random.key(0), INIT_STREAM))[0]["student"]["encoder"]["w"]
    assert split.params["student"]["encoder"]["w"].addressable_shards[0].data.shape == (3, 128)
    for state in (one, split):
        for encoder in (state.params["student"], state.teacher["student"].params):
            np.testing.assert_array_equal(encoder["encoder"]["w"], first)


def test_a_device_holds_its_part_of_weights_teacher_and_moments(method):
    state, _ = trained(method, 8, 8)
    moments = state.opt_state[0].mu["student"]
    for tree in (state.params["student"], state.teacher["student"].params, moments):
        assert tree["encoder"]["w"].addressable_shards[0].data.shape == (3, 64)
        assert tree["segmentation"]["w"].addressable_shards[0].data.shape == (64, 3)
    assert state.step.sharding.is_fully_replicated


@pytest.mark.parametrize(("written", "read"), [((8, 8), (2, 1)), ((1, 1), (8, 4))])
def test_a_checkpoint_is_read_on_another_mesh(method, tmp_path, written, read):
    state, _ = trained(method, *written)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(state, int(state.step))
    checkpoints.wait()
    lies = state_sharding(method, TX, 0, make_mesh(read[1], jax.devices()[: read[0]]))
    restored = checkpoints.restore_last(abstract_state(method, TX, 0, lies))
    checkpoints.close()
    assert len(restored.params["student"]["encoder"]["w"].sharding.device_set) == read[0]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, restored)
