"""The real FOrec step, with colour changes, mixing and BatchNorm, on one and on eight devices, whole and in parts."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import CutMix, Photometric, photometric
from forec_jax.contracts import IGNORE, Batch, HeadSpec, Labelled, TrainState, Unlabelled
from forec_jax.methods import Auxiliary, ForegroundReconstruction, MeanTeacher
from forec_jax.methods.parts.heads import class_probabilities
from forec_jax.methods.parts.views import unit_image
from forec_jax.models import DeepLabOptions, deeplab_network
from forec_jax.parallel import batch_sharding, make_mesh, shard_batch
from forec_jax.training import compile_step, create_state, state_sharding

CLASSES, THRESHOLD, ROWS, SIZE = 3, 0.5, 8, 48
TX = optax.sgd(0.05, momentum=0.9)


def colour(key, image, valid):
    return photometric(key, image, Photometric(), valid)


@functools.cache
def forec():
    heads = (HeadSpec("segmentation", CLASSES), HeadSpec("reconstruction", 3))
    decoder = DeepLabOptions(channels=8, low_level_channels=4)
    network = deeplab_network(encoder="resnet18", heads=heads, width=0.125, decoder=decoder)
    task = Auxiliary(1.0, ForegroundReconstruction((0,), threshold=THRESHOLD))
    return MeanTeacher(network, colour, CutMix(probability=1.0), (task,), threshold=THRESHOLD)


def make_batch():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, ROWS, SIZE, SIZE, 3), dtype=np.uint8)
    label = rng.integers(0, CLASSES, (ROWS, SIZE, SIZE)).astype(np.int32)
    valid = np.ones((ROWS, SIZE, SIZE), bool)
    valid[3, :, 40:] = False
    label[~valid] = IGNORE
    none = np.zeros(ROWS, np.int32)
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


class Stepped(NamedTuple):
    """What a step was given, also as it was on the host, and what it left."""

    given: TrainState
    first: TrainState
    state: TrainState
    metrics: dict[str, float]


@functools.cache
def one_step(devices, fsdp=1):
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    given = create_state(forec(), TX, 0, state_sharding(forec(), TX, 0, mesh))
    first = jax.tree.map(np.array, given)
    step = compile_step(forec(), TX, seed=0, accumulate=1, mesh=mesh)
    state, metrics = step(given, shard_batch(mesh, make_batch()))
    assert step._cache_size() == 1
    return Stepped(given, first, state, jax.device_get(metrics))


@pytest.mark.slow
def test_the_fixtures_decisions_have_a_margin():
    """A rounding difference may flip a decision at the threshold or between two classes: here it cannot."""
    teacher, image = one_step(1).first.teacher["student"], unit_image(jnp.asarray(make_batch().unlabelled.image))
    probabilities = jax.jit(functools.partial(class_probabilities, forec().network))(teacher, image)
    ordered = np.sort(np.asarray(probabilities), axis=-1)
    assert np.abs(ordered[..., -1] - THRESHOLD).min() > 1e-6
    assert (ordered[..., -1] - ordered[..., -2]).min() > 1e-6


MANY = [pytest.param(*mesh, marks=pytest.mark.slow) for mesh in ((2, 1), (4, 1), (2, 2), (4, 2), (8, 8))]


@pytest.mark.parametrize(("devices", "fsdp"), [(8, 1), *MANY])
def test_one_and_several_devices_agree_with_and_without_fsdp(devices, fsdp):
    one, several = one_step(1), one_step(devices, fsdp)
    assert one.metrics.keys() == several.metrics.keys()
    for name, value in one.metrics.items():
        assert several.metrics[name] == pytest.approx(value, rel=1e-4 if name == "gradient_norm" else 1e-5), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.state, several.state)
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(several.given.params)]
    assert any(split) == (fsdp > 1)


def test_every_part_of_the_loss_has_a_value_and_moves_the_student():
    _, first, state, metrics = one_step(1)
    for name in ("supervised", "unsupervised", "reconstruction_labelled", "reconstruction_unlabelled"):
        assert metrics[f"{name}_loss"] > 0
    same = jax.tree.map(np.array_equal, state.params, first.params)
    moved = [not equal for equal in jax.tree.leaves(same)]
    assert np.mean(moved) > 0.9


def test_the_state_is_donated():
    given, _, state, _ = one_step(1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_a_batch_is_spread_over_the_devices():
    mesh = make_mesh()
    batch = shard_batch(mesh, make_batch())
    assert batch.labelled.image.sharding == batch_sharding(mesh)
    assert len({shard.device for shard in batch.labelled.image.addressable_shards}) == 8
    np.testing.assert_array_equal(batch.labelled.image, make_batch().labelled.image)
