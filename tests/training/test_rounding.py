"""How far a run on eight devices may part from one on a single device: as far as one bit of rounding takes it."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from forec_jax.augment import CutMix, Photometric, photometric
from forec_jax.contracts import Batch, HeadSpec, Labelled, Unlabelled
from forec_jax.methods import PsMt
from forec_jax.models import DeepLabOptions, deeplab_network
from forec_jax.parallel import make_mesh, shard_batch
from forec_jax.training import compile_step, create_state, state_sharding

CLASSES, ROWS, SIZE = 3, 8, 48
TX = optax.sgd(0.05, momentum=0.9)
ONE_BIT = 6e-8  # of a float32's value


def colour(key, image, valid):
    return photometric(key, image, Photometric(), valid)


def ps_mt(epsilon=2.0):
    head, decoder = HeadSpec("segmentation", CLASSES), DeepLabOptions(channels=8, low_level_channels=4)
    network = deeplab_network(encoder="resnet18", heads=(head,), width=0.125, decoder=decoder)
    mixing = CutMix(probability=1.0)
    return PsMt(network, colour, mixing, threshold=0.5, ramp=1, warmup=0, epoch=2, epsilon=epsilon)


def batch_of(step):
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (2, ROWS, SIZE, SIZE, 3), dtype=np.uint8)
    label = np.kron(rng.integers(0, CLASSES, (ROWS, SIZE // 8, SIZE // 8)), np.ones((1, 8, 8), int)).astype(np.int32)
    valid, none = np.ones(label.shape, bool), np.zeros(ROWS, np.int32)
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def nudged(leaf, rng):
    """Every value up or down by its last bit or so."""
    values = np.asarray(leaf) * (1 + ONE_BIT * rng.choice([-1, 1], size=leaf.shape)).astype(np.float32)
    return jax.device_put(values, leaf.sharding)


def run(method, devices, steps, nudge=False):
    """The metrics and the parameters after each step."""
    mesh = make_mesh(1, jax.devices()[:devices])
    state = create_state(method, TX, 0, state_sharding(method, TX, 0, mesh))
    if nudge:
        one = functools.partial(nudged, rng=np.random.default_rng(1))
        state = state._replace(params=jax.tree.map(one, state.params))
    step, after = compile_step(method, TX, seed=0, accumulate=1, mesh=mesh), []
    for index in range(steps):
        state, metrics = step(state, shard_batch(mesh, batch_of(index)))
        after.append((jax.device_get(metrics), jax.device_get(state.params)))
    return after


def apart(one, other):
    """How far two trees of parameters are from each other, relative to their length."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@pytest.mark.slow
def test_a_step_of_ps_mt_is_the_same_on_one_and_eight_devices():
    ((one, _),), ((eight, _),) = run(ps_mt(), 1, 1), run(ps_mt(), 8, 1)
    for name, value in one.items():
        assert eight[name] == pytest.approx(value, rel=1e-4 if name == "gradient_norm" else 1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [2.0, 0.0])
def test_rounding_grows_with_and_without_t_vat_by_devices_as_by_a_bit(monkeypatch, epsilon):
    """With a smooth activation. ReLU's kinks add jumps, when a unit changes sides, at steps that only chance tells."""
    monkeypatch.setattr(nn, "relu", lambda x: x * jax.nn.sigmoid(8 * x))
    method = ps_mt(epsilon)
    whole, eight, bit = run(method, 1, 4), run(method, 8, 4), run(method, 1, 4, nudge=True)
    by_devices = [apart(one, other) for (_, one), (_, other) in zip(whole, eight, strict=True)]
    by_a_bit = [apart(one, other) for (_, one), (_, other) in zip(whole, bit, strict=True)]
    print(f"epsilon {epsilon}: devices {by_devices}, a bit {by_a_bit}")  # docs/scaling.md
    assert by_devices[0] < 1e-6
    assert by_a_bit[3] > 30 * by_a_bit[0]
    assert max(by_devices + by_a_bit) < 1e-3
