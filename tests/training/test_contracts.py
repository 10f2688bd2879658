"""The trainer serves methods it has never heard of: two students, two teachers in turn, a queue, no teacher at all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.contracts import Aux, Batch, Labelled, Mean, Network, Term, Variables
from forec_jax.losses import cross_entropy
from forec_jax.methods.parts.heads import class_probabilities
from forec_jax.methods.parts.views import unit_image
from forec_jax.options import from_config, to_config
from forec_jax.parallel import make_mesh, replicated, shard_batch
from forec_jax.training import OptimizerOptions, compile_step, create_state, make_optimizer, with_own_optimizers

SEED, STEPS, TX = 0, 12, optax.sgd(0.5)


def labelled_batch(rows=8, size=4):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    label = (image[..., 0] > 127).astype(np.int32)
    return Batch(Labelled(image, label, np.ones((rows, size, size), bool), np.zeros(rows, np.int32)))


def pixel_mean(error):
    return Mean(jnp.sum(error), jnp.asarray(error.size, jnp.float32))


def logits_of(network, variables, image):
    features, stats = network.encode(variables, image, train=True, rng=None)
    head, _ = network.decode(variables, "segmentation", features, train=True, rng=None)
    return head.output, stats


@dataclasses.dataclass(frozen=True)
class TwoStudents:
    """Each learns from the labels and from the other's hard predictions, which carry no gradient. No teacher."""

    network: Network

    def init(self, key):
        students = {name: self.network.init(jax.random.fold_in(key, i)) for i, name in enumerate("ab")}
        return {n: v.params for n, v in students.items()}, {n: v.batch_stats for n, v in students.items()}, {}, {}

    def loss(self, params, state, batch, key):
        image = unit_image(batch.labelled.image)
        logits, stats = {}, {}
        for name in "ab":
            variables = Variables(params[name], state.batch_stats[name])
            logits[name], stats[name] = logits_of(self.network, variables, image)
        terms = {}
        for name, other in ("ab", "ba"):
            peer = jax.lax.stop_gradient(logits[other].argmax(-1))
            terms[f"{name}_loss"] = Term(pixel_mean(cross_entropy(logits[name], batch.labelled.label)), 1.0)
            terms[f"{name}_peer_loss"] = Term(pixel_mean(cross_entropy(logits[name], peer)), 0.5)
        return terms, Aux(stats, {}, {}, {})

    def update_teacher(self, state, params, batch_stats, teacher_stats):
        return {}

    def predict(self, variables, image, valid):
        return sum(class_probabilities(self.network, v, image, valid) for v in variables.values()) / len(variables)


@dataclasses.dataclass(frozen=True)
class TwoTeachers:
    """Two teachers that copy the student in alternate steps, and a queue of the last losses in memory."""

    network: Network

    def init(self, key):
        student = self.network.init(key)
        teacher = {name: jax.tree.map(jnp.copy, student) for name in ("even", "odd")}
        return {"student": student.params}, {"student": student.batch_stats}, teacher, jnp.zeros(3)

    def loss(self, params, state, batch, key):
        variables = Variables(params["student"], state.batch_stats["student"])
        logits, stats = logits_of(self.network, variables, unit_image(batch.labelled.image))
        mean = pixel_mean(cross_entropy(logits, batch.labelled.label))
        memory = jnp.concatenate([state.memory[1:], jax.lax.stop_gradient(mean.value())[None]])
        own = {name: teacher.batch_stats for name, teacher in state.teacher.items()}
        return {"loss_of_student_loss": Term(mean, 1.0)}, Aux({"student": stats}, own, memory, {})

    def update_teacher(self, state, params, batch_stats, teacher_stats):
        student = Variables(params["student"], batch_stats["student"])
        return {
            name: jax.tree.map(
                lambda new, old, turn=turn: jnp.where(state.step % 2 == turn, new, old), student, teacher
            )
            for turn, (name, teacher) in enumerate(sorted(state.teacher.items()))
        }

    def predict(self, variables, image, valid):
        return sum(class_probabilities(self.network, v, image, valid) for v in variables.values()) / len(variables)


@functools.cache
def toy(kind, make_toy_network, normalise=True):
    """One of each, so that what it was compiled to serves several tests."""
    return kind(make_toy_network(normalise=normalise))


@functools.cache
def run(method, tx, devices, accumulate):
    """The state and the metrics after each step."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    state = create_state(method, tx, SEED, replicated(mesh))
    step = compile_step(method, tx, seed=SEED, accumulate=accumulate, mesh=mesh)
    history = []
    for _ in range(STEPS):
        with jax.transfer_guard("disallow"):
            batch = shard_batch(mesh, labelled_batch())
            state, metrics = step(state, batch)
        history.append((jax.device_get(state), jax.device_get(metrics)))
    assert step._cache_size() == 1
    return history


def test_two_students_train_without_a_teacher(make_toy_network):
    history = run(toy(TwoStudents, make_toy_network), TX, 1, 1)
    assert history[-1][0].teacher == {}
    for name in ("a_loss", "b_loss"):
        assert history[-1][1][name] < history[0][1][name]


def test_the_other_students_parameters_get_no_gradient(make_toy_network):
    method = toy(TwoStudents, make_toy_network)
    params, stats, _, _ = method.init(jax.random.key(0))

    class State:
        batch_stats = stats

    def loss_of_a(params):
        terms, _ = method.loss(params, State, labelled_batch(), None)
        return terms["a_loss"].mean.value() + terms["a_peer_loss"].mean.value()

    gradients = jax.jit(jax.grad(loss_of_a))(params)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients["b"]))
    assert any((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(gradients["a"]))


def test_networks_have_optimisers_of_their_own_under_partition(make_toy_network):
    tx = optax.partition({"a": optax.sgd(0.5), "b": optax.set_to_zero()}, {"a": "a", "b": "b"})
    history = run(toy(TwoStudents, make_toy_network), tx, 1, 1)
    first, last = (history[i][0].params for i in (0, -1))
    same = jax.tree.map(np.array_equal, first, last)
    assert all(jax.tree.leaves(same["b"]))
    assert not any(jax.tree.leaves(same["a"]))


def test_two_teachers_alternate_and_the_queue_moves(make_toy_network):
    history = run(toy(TwoTeachers, make_toy_network), TX, 1, 1)
    for index, (state, _) in enumerate(history):
        current = ("even", "odd")[index % 2]
        np.testing.assert_array_equal(
            state.teacher[current].params["encoder"]["w"], state.params["student"]["encoder"]["w"]
        )
    np.testing.assert_allclose(history[-1][0].memory, [m["loss"] for _, m in history[-3:]], rtol=1e-6)


@pytest.mark.parametrize("kind", [TwoStudents, TwoTeachers])
def test_one_and_eight_devices_agree(make_toy_network, kind):
    one, eight = (run(toy(kind, make_toy_network), TX, devices, 1)[3] for devices in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, eight)


def test_accumulation_equals_the_whole_batch_without_batch_norm(make_toy_network):
    method = toy(TwoStudents, make_toy_network, normalise=False)
    whole, parts, spread = (run(method, TX, devices, accumulate)[2] for devices, accumulate in ((1, 1), (1, 4), (4, 2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, spread)


def test_the_encoder_and_the_heads_have_their_learning_rates():
    options = {"momentum": 0.0, "weight_decay": 0.1, "decay_batch_norm": False, "poly_power": 1.0, "warmup": 0}
    tx = make_optimizer(
        OptimizerOptions(name="sgd", lr=0.1, head_lr_multiplier=10.0, clip_norm=0.0, **options), steps=4
    )
    params = {
        "n": {
            "encoder": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)},
            "segmentation": {"kernel": jnp.ones((1, 1))},
        }
    }
    opt_state, gradients = tx.init(params), jax.tree.map(jnp.ones_like, params)
    for step in range(3):
        updates, opt_state = tx.update(gradients, opt_state, params)
        rate = 0.1 * (1 - step / 4)
        assert float(updates["n"]["encoder"]["kernel"][0, 0]) == pytest.approx(-rate * 1.1, rel=1e-5)  # with decay
        assert float(updates["n"]["encoder"]["bias"][0]) == pytest.approx(-rate, rel=1e-5)  # without
        assert float(updates["n"]["segmentation"]["kernel"][0, 0]) == pytest.approx(-10 * rate * 1.1, rel=1e-5)


def test_a_network_with_an_optimiser_of_its_own_neither_sees_nor_disturbs_the_others():
    """Clipping by the norm over all parameters would couple them: each must be as if it were alone."""
    shared, own = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), optax.adam(1e-2)
    params = {"student": {"w": jnp.ones(3)}, "discriminator": {"w": jnp.ones(2)}}
    gradients = {"student": {"w": jnp.array([3.0, 0.0, 4.0])}, "discriminator": {"w": jnp.array([100.0, -7.0])}}
    tx = with_own_optimizers(shared, {"discriminator": own})
    updates, _ = tx.update(gradients, tx.init(params), params)
    np.testing.assert_allclose(updates["student"]["w"], [-0.06, 0.0, -0.08], rtol=1e-6)
    np.testing.assert_allclose(updates["discriminator"]["w"], [-0.01, 0.01], rtol=1e-5)
    assert with_own_optimizers(shared, {}) is shared


def test_an_unknown_optimiser_is_named():
    c = to_config(OptimizerOptions)
    c.name = "lion"
    with pytest.raises(ValueError, match=r"optim\.name='lion'"):
        from_config(OptimizerOptions, c, "optim")
