"""ECS: the worked example, who learns from what, and one scalar for two networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Unlabelled, Variables, Views
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods.ecs import CORRECTOR, Ecs, corrected
from forec_jax.methods.parts.views import interleave, unchanged
from forec_jax.models import dense_critic
from forec_jax.options import OptionError
from forec_jax.training import first_state, train_step, with_own_optimizers

CLASSES, SIZE, KEY = 3, 8, jax.random.key(0)
SGD = optax.sgd(0.5)
LABELS = Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,))
THREE = jnp.ones((1, 1, 3), bool)
TRUTH = Views(None, jnp.array([[[0, 0, 2]]]), jnp.ones((1, 1, 3)), THREE, THREE, jnp.ones(1, bool))
NOTHING = TRUTH._replace(
    label=jnp.full((1, 1, 3), IGNORE),
    confidence=jnp.zeros((1, 1, 3)),
    is_ground_truth=~THREE,
    labelled_row=~THREE[0, 0],
)
SAID = jnp.array([[[[2.0, 0, 0], [0, 1, 0], [0, 1, 0]]]])
VERDICT = jnp.array([[[[0.0, 0, 0, 2], [2, 0, 0, 0], [0, 0, 1, 0.5]]]])


def make_batch(partial=False, rows=2):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, rows, SIZE, SIZE, 3), dtype=np.uint8)
    label = rng.integers(0, CLASSES, (rows, SIZE, SIZE)).astype(np.int32)
    valid, none = np.ones((rows, SIZE, SIZE), bool), np.zeros(rows, np.int32)
    valid[:, :, -2:] = False
    label[:, :2] = IGNORE
    label[:, :, -2:] = IGNORE
    if partial:
        label[:, 4:, :-2] = UNLABELLED
        return Batch(Labelled(image[0], label, valid, none))
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def make_method(network, **options):
    critic = dense_critic(3 + CLASSES, ((4, 2), (CLASSES + 1, 1)), normalise=True)
    given = {"threshold": 0.0, "unsupervised_weight": 0.1, **options}
    return Ecs(network, unchanged, NoMixing(), corrector=critic, **given)


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, params, state, given):
    return method.loss(params, state, jax.tree.map(jnp.asarray, given), KEY)


def test_the_pseudo_labels_by_hand(make_toy_network):
    """C calls the first pixel right, and names the classes 0 and 2 in the others."""
    views = corrected(NOTHING, jax.nn.softmax(SAID), VERDICT)
    np.testing.assert_array_equal(views.label[0, 0], [0, 0, 2])
    np.testing.assert_allclose(views.confidence[0, 0], [0.711235, 0.711235, 0.426933], atol=1e-6)
    method = make_method(make_toy_network())
    for weight, expected in ((views.confidence, 0.645392), (1.0, np.mean([0.239545, 1.551445, 1.551445]))):
        terms, _ = method.unsupervised(SAID, views, jnp.asarray(0), pixel_weight=weight)
        np.testing.assert_allclose(terms["unsupervised_loss"].mean.value(), expected, rtol=1e-5)
    truth = corrected(TRUTH, jax.nn.softmax(SAID), VERDICT)
    np.testing.assert_array_equal(truth.label, TRUTH.label)
    np.testing.assert_array_equal(truth.confidence, 1)


@pytest.mark.parametrize("right_weight", [1.0, 0.25])
def test_what_the_corrector_should_say_by_hand(make_toy_network, right_weight):
    """The student says 0, 1, 1 of the truth 0, 0, 2: the corrector should say 3 (right), 0, 2."""
    method = make_method(make_toy_network(), right_weight=right_weight)
    terms, metrics = method.judged(VERDICT, VERDICT, jax.nn.softmax(SAID), TRUTH)
    log_p = np.log(np.exp(VERDICT[0, 0]) / np.exp(VERDICT[0, 0]).sum(-1, keepdims=True))
    weight = np.array([right_weight, 1, 1])
    np.testing.assert_allclose(
        terms["corrector_loss"].mean.value(), -(weight * log_p[[0, 1, 2], [3, 0, 2]]).sum() / weight.sum(), rtol=1e-5
    )
    np.testing.assert_allclose(terms["approval_loss"].mean.value(), -log_p[:, 3].mean(), rtol=1e-5)
    assert float(metrics["spotted"].value()) == 1
    worse, _ = method.judged(VERDICT, VERDICT, jax.nn.softmax(SAID), TRUTH._replace(label=jnp.array([[[1, 0, 2]]])))
    np.testing.assert_allclose(worse["corrector_loss"].mean.value(), -log_p[[0, 1, 2], [1, 0, 2]].mean(), rtol=1e-5)


def test_each_network_learns_from_its_own_terms_alone(make_toy_network):
    method = make_method(make_toy_network())
    state = first_state(method, SGD, seed=0)
    found = jax.jacrev(
        lambda p: {name: term.mean.value() for name, term in loss_of(method, p, state, make_batch())[0].items()}
    )(state.params)
    assert found.keys() == {"supervised_loss", "corrector_loss", "approval_loss", "unsupervised_loss"}
    for name, gradient in found.items():
        for network, tree in gradient.items():
            moved = any(np.any(leaf) for leaf in jax.tree.leaves(tree))
            assert moved == (network == (CORRECTOR if name == "corrector_loss" else "student")), (name, network)


@pytest.mark.slow
def test_one_scalar_is_a_step_of_each_network_in_turn(make_toy_network):
    """Each at the weights that both had before, by an oracle of the losses."""
    method = make_method(make_toy_network(normalise=False), unsupervised_weight=3.0, approval_weight=2.0)
    tx = with_own_optimizers(SGD, {CORRECTOR: optax.sgd(0.1)})
    state, batch = first_state(method, tx, seed=0), jax.tree.map(jnp.asarray, make_batch())
    together, _ = jax.jit(functools.partial(train_step, method=method, tx=tx, seed=0))(state, batch)

    image = interleave(batch.labelled.image, batch.unlabelled.image) / 255.0
    label = interleave(batch.labelled.label, jnp.full_like(batch.labelled.label, IGNORE))
    valid, known = interleave(batch.labelled.valid, batch.unlabelled.valid), label != IGNORE
    asked = valid & ~jnp.array([True, False] * 2)[:, None, None]

    def logits(student):
        return jnp.tanh(image @ student["encoder"]["w"]) @ student["segmentation"]["w"]

    def verdict(own, p):
        variables = Variables(own, state.batch_stats[CORRECTOR])
        shown = jnp.where(valid[..., None], jnp.concatenate([image, p], axis=-1), 0.0)
        features, _ = method.corrector.encode(variables, shown, train=True)
        return method.corrector.decode(variables, "score", features, train=True)[0].output

    def mean_error(said, target, where, weight=1.0):
        error = -jnp.sum(jax.nn.one_hot(target, said.shape[-1]) * jax.nn.log_softmax(said), axis=-1)
        return jnp.sum(jnp.where(where, weight * error, 0.0)) / jnp.sum(where)

    def of_student(student, own, target, certainty):
        said = logits(student)
        approved = mean_error(verdict(own, jax.nn.softmax(said)), jnp.full_like(label, CLASSES), known)
        return mean_error(said, label, known) + 2 * approved + 3 * mean_error(said, target, asked, certainty)

    def of_corrector(own, p, target):
        return mean_error(verdict(own, p), target, known)

    @jax.jit
    def in_turn(params):
        p = jax.nn.softmax(logits(params["student"]))
        word = verdict(params[CORRECTOR], p)
        own, named = p.argmax(-1), word.argmax(-1)
        target, certainty = jnp.where(named == CLASSES, own, named), jax.nn.softmax(word).max(-1)
        student = jax.grad(of_student)(params["student"], params[CORRECTOR], target, certainty)
        corrector = jax.grad(of_corrector)(params[CORRECTOR], p, jnp.where(own == label, CLASSES, label))
        return {
            "student": jax.tree.map(lambda x, g: x - 0.5 * g, params["student"], student),
            CORRECTOR: jax.tree.map(lambda x, g: x - 0.1 * g, params[CORRECTOR], corrector),
        }, named

    after, named = in_turn(state.params)
    assert 0 < np.mean(np.asarray(named)[np.asarray(asked)] == CLASSES) < 1
    for name, expected in after.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), together.params[name], expected)
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (expected, state.params[name])), strict=True))


def test_with_partial_labels_the_corrector_learns_from_what_is_labelled(make_toy_network):
    method = make_method(make_toy_network(normalise=False), partial_labels=True)
    state, given = first_state(method, SGD, seed=0), make_batch(partial=True)
    terms, aux = loss_of(method, state.params, state, given)
    number = {name: float(term.mean.number) for name, term in terms.items()}
    labelled, others = (given.labelled.label < IGNORE - 1).sum(), (given.labelled.label == UNLABELLED).sum()
    assert number == {
        "supervised_loss": labelled,
        "corrector_loss": labelled,
        "approval_loss": labelled,
        "unsupervised_loss": others,
    }
    before, after = (jax.tree.leaves(tree) for tree in (state.batch_stats[CORRECTOR], aux.batch_stats[CORRECTOR]))
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))
    assert set(state.teacher) == {"student"}


def test_certainty_weighs_the_pseudo_labels(make_toy_network):
    totals = []
    for certainty in ("max", "none"):
        method = make_method(make_toy_network(normalise=False), certainty=certainty)
        state = first_state(method, SGD, seed=0)
        totals.append(float(loss_of(method, state.params, state, make_batch())[0]["unsupervised_loss"].mean.total))
    assert 0 < totals[0] < totals[1]


def test_a_student_and_its_tasks_are_built_by_name():
    c = load_config("configs/shapes.py:ecs+forec", {})
    method = build.build_method(c, LABELS)
    assert {head.name for head in method.network.heads} == {"segmentation", "reconstruction"}
    assert method.corrector.heads == (HeadSpec("score", 3),)


def test_classmix_is_refused():
    with pytest.raises(OptionError, match="ecs has none before an image is mixed"):
        build.build_method(load_config("configs/shapes.py:ecs", {"augment.mixing": "classmix"}), LABELS)


@pytest.mark.parametrize("file", ["voc", "cityscapes", "camvid", "shapes", "folder"])
def test_by_name_on_every_data_set(file):
    plain, paper = (load_config(f"configs/{file}.py:{name}", {}) for name in ("ecs", "ecs_paper"))
    for c in (plain, paper):
        assert (c.method.name, c.method.threshold, c.method.unsupervised_weight) == ("ecs", 0, 0.1)
        assert c.augment.mixing == "none"
    assert (paper.augment.jitter_probability, paper.method.ramp) == (0, 0)
