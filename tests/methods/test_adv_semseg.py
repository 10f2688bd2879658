"""AdvSemSeg: its terms by hand and by an oracle, who learns from what, and one scalar for two networks."""

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
from forec_jax.methods import Auxiliary, ForegroundReconstruction
from forec_jax.methods.adv_semseg import AdvSemSeg
from forec_jax.methods.parts.views import unchanged
from forec_jax.models import dense_critic
from forec_jax.options import OptionError
from forec_jax.training import first_state, objective, train_step, with_own_optimizers

CLASSES, SIZE, KEY = 3, 8, jax.random.key(0)
HEADS = (HeadSpec("segmentation", CLASSES), HeadSpec("reconstruction", 3))
TASK = Auxiliary(1.0, ForegroundReconstruction((0,), threshold=0.4))
SGD = optax.sgd(0.5)


def make_batch(partial=False, rows=2):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, rows, SIZE, SIZE, 3), dtype=np.uint8)
    label = rng.integers(0, CLASSES, (rows, SIZE, SIZE)).astype(np.int32)
    label[:, :2] = IGNORE
    valid, none = np.ones((rows, SIZE, SIZE), bool), np.zeros(rows, np.int32)
    valid[:, :, -2:] = False
    label[:, :, -2:] = IGNORE
    if partial:
        label[:, 2:, 2:4] = UNLABELLED
        return Batch(Labelled(image[0], label, valid, none))
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def make_method(network, **options):
    critic = dense_critic(CLASSES, ((4, 2), (4, 1), (1, 1)))
    given = {"threshold": 0.0, "normaliser": "kept", "trust_start": 0, **options}
    return AdvSemSeg(network, unchanged, NoMixing(), discriminator=critic, **given)


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, params, state):
    batch = jax.tree.map(jnp.asarray, make_batch(method.partial_labels))
    return method.loss(params, state, batch, KEY)[0]


def row(*values):
    return jnp.array(values)[None]


SCORES = row(1.0, -1.0, 0.0)
MEAN = 0.773224


def views_by_hand(unlabelled_rows):
    """One row of three pixels, labelled, and as many rows without labels."""
    shape = (1 + unlabelled_rows, 1, 3)
    labelled = jnp.arange(shape[0]) == 0
    truth = jnp.broadcast_to(labelled[:, None, None], shape)
    label = jnp.where(truth, 1, 0)
    return Views(jnp.zeros((*shape, 3)), label, jnp.ones(shape), truth, jnp.ones(shape, bool), labelled)


def test_the_game_by_hand(make_toy_network):
    method = make_method(make_toy_network())
    shown = jnp.broadcast_to(SCORES[None], (4, 1, 3))  # truth and prediction of either row
    terms, score = method.game(shown, shown, views_by_hand(1), jnp.asarray(0))
    weighted = {name: float(term.weight * term.mean.value()) for name, term in terms.items()}
    assert weighted == pytest.approx(
        {
            "discriminator_real_loss": 0.386612,
            "discriminator_fake_loss": 0.386612,
            "adversarial_labelled_loss": 0.01 * MEAN,
            "adversarial_unlabelled_loss": 0.001 * MEAN,
        },
        abs=1e-6,
    )
    np.testing.assert_array_equal(score, shown[:2])
    assert {name: float(term.mean.number) for name, term in terms.items()} == {
        "discriminator_real_loss": 3,
        "discriminator_fake_loss": 6,
        "adversarial_labelled_loss": 3,
        "adversarial_unlabelled_loss": 3,
    }


def test_self_training_in_trusted_pixels_by_hand(make_toy_network):
    method = make_method(make_toy_network(), threshold=0.3)
    logits = jnp.array([[[[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]] * 2)
    views = views_by_hand(1)
    views = views._replace(label=jnp.argmax(logits, -1), confidence=jnp.broadcast_to(jax.nn.sigmoid(SCORES), (2, 1, 3)))
    np.testing.assert_allclose(views.confidence[1, 0], [0.731, 0.269, 0.5], atol=1e-3)
    terms, _ = method.unsupervised(logits, views, jnp.asarray(0))
    mean = terms["unsupervised_loss"].mean
    assert float(mean.value()) == pytest.approx(0.410038, abs=1e-6)
    assert float(mean.number) == 2


def test_it_waits_for_trust(make_toy_network):
    method = make_method(make_toy_network(normalise=False), trust_start=5, unsupervised_weight=0.1)
    state = first_state(method, SGD, seed=0)
    found = [loss_of(method, state.params, state._replace(step=jnp.int32(step))) for step in (4, 5)]
    assert [float(terms["unsupervised_loss"].weight) for terms in found] == pytest.approx([0, 0.1])
    assert [float(terms["adversarial_unlabelled_loss"].weight) for terms in found] == pytest.approx([0.001] * 2)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def score_of(method, state, maps):
    variables = Variables(state.params["discriminator"], state.batch_stats["discriminator"])
    features, _ = method.discriminator.encode(variables, jnp.asarray(maps, jnp.float32))
    return np.asarray(method.discriminator.decode(variables, "score", features)[0].output)[..., 0]


@pytest.mark.parametrize("gaps", ["hidden", "shown"])
@pytest.mark.parametrize("partial", [False, True])
def test_the_terms_equal_a_numpy_oracle(make_toy_network, partial, gaps):
    network, options = make_toy_network(normalise=False), {"partial_labels": partial, "gaps": gaps}
    method = make_method(network, **options)
    state = first_state(method, SGD, seed=3)

    batch, params = make_batch(partial), jax.tree.map(np.asarray, state.params["student"])
    parts = [batch.labelled] + ([] if partial else [batch.unlabelled])
    p = {}
    for name, part in zip("lu", parts, strict=False):
        p[name] = softmax(np.tanh(part.image / 255.0 @ params["encoder"]["w"]) @ params["segmentation"]["w"])
    label, valid = batch.labelled.label, batch.labelled.valid
    known, said = label < CLASSES, label != UNLABELLED
    one_hot = np.where(known[..., None], np.eye(CLASSES)[np.where(known, label, 0)], 0.0)
    truth = np.where((known if gaps == "hidden" else said)[..., None], one_hot, p["l"])
    sight = valid[..., None] if gaps == "hidden" else np.ones((1, 1, 1, 1), bool)
    real = score_of(method, state, np.where(sight, truth, 0))
    fake = {name: score_of(method, state, np.where(sight, maps, 0)) for name, maps in p.items()}
    asked = fake["l"][~said & valid] if partial else fake["u"][valid]
    of_asked = p["l"][~said & valid] if partial else p["u"][valid]
    predicted = fake["l"][known] if partial else np.concatenate([fake["l"][known], asked])
    trust = 1 / (1 + np.exp(-asked))
    threshold = float(np.sort(trust)[len(trust) // 2 - 1 : len(trust) // 2 + 1].mean())
    method = make_method(network, threshold=threshold, **options)
    found = {name: float(term.mean.value()) for name, term in loss_of(method, state.params, state).items()}
    error = -np.log(of_asked.max(-1))[trust > threshold]
    of_label = np.take_along_axis(p["l"], np.where(known, label, 0)[..., None], -1)[..., 0]
    assert found == pytest.approx(
        {
            "supervised_loss": -np.log(of_label[known]).mean(),
            "unsupervised_loss": error.mean(),
            "adversarial_labelled_loss": np.log1p(np.exp(-fake["l"][known])).mean(),
            "adversarial_unlabelled_loss": np.log1p(np.exp(-asked)).mean(),
            "discriminator_real_loss": np.log1p(np.exp(-real[known])).mean(),
            "discriminator_fake_loss": np.log1p(np.exp(predicted)).mean(),
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("partial", [pytest.param(False, marks=pytest.mark.slow), True])
def test_neither_network_learns_from_the_others_terms(make_toy_network, partial):
    method = make_method(make_toy_network(HEADS), auxiliary=(TASK,), partial_labels=partial)
    state = first_state(method, SGD, seed=0)

    @jax.jit
    def gradients(params):
        return jax.jacrev(lambda p: {name: term.mean.value() for name, term in loss_of(method, p, state).items()})(
            params
        )

    def moved(tree):
        return any((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(tree))

    terms = loss_of(method, state.params, state)
    for name, found in gradients(state.params).items():
        of_discriminator, counts = name.startswith("discriminator"), float(terms[name].mean.number) > 0
        assert counts != (partial and name == "reconstruction_unlabelled_loss")
        assert moved(found["discriminator"]) == (counts and of_discriminator), name
        assert moved(found["student"]) == (counts and not of_discriminator), name


@pytest.mark.slow
def test_one_scalar_is_a_step_of_each_network_in_turn(make_toy_network):
    """The student first, then the discriminator on the class maps from before that step, by gradients of two losses."""
    method = make_method(make_toy_network(normalise=False), unsupervised_weight=0.1, threshold=0.4)
    tx = with_own_optimizers(SGD, {"discriminator": optax.sgd(0.3)})
    state, batch = first_state(method, tx, seed=0), jax.tree.map(jnp.asarray, make_batch())
    together, _ = jax.jit(functools.partial(train_step, method=method, tx=tx, seed=0))(state, batch)

    labelled, unlabelled = batch.labelled, batch.unlabelled
    known, valid = labelled.label != IGNORE, unlabelled.valid
    truth = jax.nn.one_hot(labelled.label, CLASSES)

    def predictions(student):
        def logits(image):
            return jnp.tanh(image / 255.0 @ student["encoder"]["w"]) @ student["segmentation"]["w"]

        return logits(labelled.image.astype(jnp.float32)), logits(unlabelled.image.astype(jnp.float32))

    def scores(critic, maps):
        variables = Variables(critic, state.batch_stats["discriminator"])
        features, _ = method.discriminator.encode(variables, jnp.where(valid[..., None], maps, 0.0), train=True)
        return method.discriminator.decode(variables, "score", features)[0].output[..., 0]

    def mean(values, where):
        return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)

    def of_student(student, critic):
        of_l, of_u = predictions(student)
        score_l, score_u = (scores(critic, jax.nn.softmax(x)) for x in (of_l, of_u))
        cross = -jnp.sum(truth * jax.nn.log_softmax(of_l), axis=-1)
        trusted = valid & (jax.nn.sigmoid(score_u) > 0.4)
        own = -jnp.max(jax.nn.log_softmax(of_u), axis=-1)
        loss = mean(cross, known) + 0.1 * mean(own, trusted)
        return loss + 0.01 * mean(jax.nn.softplus(-score_l), known) + 0.001 * mean(jax.nn.softplus(-score_u), valid)

    def of_critic(critic, maps):
        of_l, of_u = (jax.nn.softmax(x) for x in maps)
        real = scores(critic, jnp.where(known[..., None], truth, of_l))
        fake = jnp.concatenate([scores(critic, of_l), scores(critic, of_u)])
        fakes = jnp.concatenate([known, valid])
        return 0.5 * mean(jax.nn.softplus(-real), known) + 0.5 * mean(jax.nn.softplus(fake), fakes)

    @jax.jit
    def in_turn(student, critic):
        before = predictions(student)
        student = jax.tree.map(lambda p, g: p - 0.5 * g, student, jax.grad(of_student)(student, critic))
        return student, jax.tree.map(lambda p, g: p - 0.3 * g, critic, jax.grad(of_critic)(critic, before))

    for name, expected in zip(("student", "discriminator"), in_turn(*state.params.values()), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), together.params[name], expected)
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (expected, state.params[name])), strict=True))


def test_the_teacher_gets_no_gradient_and_keeps_no_discriminator(make_toy_network):
    method = make_method(make_toy_network(HEADS), auxiliary=(TASK,))
    state = first_state(method, SGD, seed=0)
    assert set(state.teacher) == {"student"}
    gradient = jax.grad(lambda t: objective(loss_of(method, state.params, state._replace(teacher=t))))(state.teacher)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_classmix_is_refused():
    c = load_config("configs/shapes.py:adv_semseg", {"augment.mixing": "classmix"})
    with pytest.raises(OptionError, match="adv_semseg has none before an image is mixed"):
        build.build_method(c, Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,)))


@pytest.mark.parametrize("file", ["voc", "cityscapes", "camvid", "shapes", "folder"])
def test_as_published_by_name(file):
    plain, paper = (load_config(f"configs/{file}.py:{name}", {}) for name in ("adv_semseg", "adv_semseg_paper"))
    for c in (plain, paper):
        assert (c.method.name, c.method.threshold, c.method.unsupervised_weight) == ("adv_semseg", 0.2, 0.1)
    assert (paper.method.ramp, paper.method.adv_semseg.gaps, paper.augment.jitter_probability) == (0, "shown", 0)
    assert (paper.model.decoder == "deeplab_v2") == (file in ("voc", "cityscapes"))
