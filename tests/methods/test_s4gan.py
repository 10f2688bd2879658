import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import CutOut, NoMixing
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Unlabelled, Variables, Views
from forec_jax.losses import discrimination
from forec_jax.methods import Auxiliary, ForegroundReconstruction, S4Gan
from forec_jax.methods.parts.views import interleave, self_labelled
from forec_jax.methods.s4gan import shown_once, shown_twice
from forec_jax.models import discriminator_network
from forec_jax.parallel import make_mesh, replicated, shard_batch
from forec_jax.training import compile_step, create_state, first_state, objective, with_own_optimizers

CLASSES, SIZE = 3, 16
HEADS = (HeadSpec("segmentation", CLASSES), HeadSpec("reconstruction", 3))
TASK = Auxiliary(1.0, ForegroundReconstruction((0,), threshold=0.4))
TX = with_own_optimizers(optax.sgd(0.5), {"discriminator": optax.adam(1e-2)})


def same_colour(key, image, valid):
    return image


def make_batch(rows=2):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, rows, SIZE, SIZE, 3), dtype=np.uint8)
    label = rng.integers(0, CLASSES, (rows, SIZE, SIZE)).astype(np.int32)
    label[:, :3] = IGNORE
    valid, none = np.ones((rows, SIZE, SIZE), bool), np.zeros(rows, np.int32)
    valid[:, :, -2:] = False
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def partial_batch(rows=2):
    """No unlabelled rows; a block of pixels that nobody labelled."""
    labelled = make_batch(rows).labelled
    label = labelled.label.copy()
    label[:, 3:, 5:9] = UNLABELLED
    return Batch(labelled._replace(label=label))


BATCHES = {False: make_batch, True: partial_batch}  # by whether labels are partial


def make_method(network, dropout=0.0, **options):
    critic = discriminator_network(CLASSES, channels=2, dropout=dropout)
    return S4Gan(
        network,
        same_colour,
        discriminator=critic,
        **{"mixing": NoMixing(), "threshold": 0.5, "normaliser": "kept", **options},
    )


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, params, state):
    batch = jax.tree.map(jnp.asarray, BATCHES[method.partial_labels]())
    return method.loss(params, state, batch, jax.random.key(0))


def views(label, truth, valid, labelled_row):
    shape = (2, 1, 3)
    return Views(
        jnp.zeros((*shape, 3)),
        jnp.array(label).reshape(shape),
        jnp.zeros(shape),
        jnp.array(truth).reshape(shape),
        jnp.array(valid).reshape(shape),
        jnp.array(labelled_row),
    )


def test_what_the_discriminator_sees_by_hand():
    """The truth of a labelled row, the prediction in its void and in the unlabelled row, nothing in the padding."""
    v = views([1, IGNORE, 0, 0, 1, IGNORE], [True] * 3 + [False] * 3, [True, True, False] * 2, [True, False])
    p = jnp.array([[[[0.6, 0.4]] * 3], [[[0.2, 0.8]] * 3]])
    image = jnp.full((2, 1, 3, 3), 0.5)
    exhibit = shown_once(image, v, p)
    shown = exhibit.pair
    assert (exhibit.is_real.tolist(), exhibit.is_fake.tolist()) == ([True, False], [False, True])
    assert exhibit.prediction.tolist() == [0, 1]
    np.testing.assert_array_equal(shown[..., :3], image)
    np.testing.assert_allclose(shown[0, 0, :, 3:], [[0, 1], [0.6, 0.4], [0, 0]])
    np.testing.assert_allclose(shown[1, 0, :, 3:], [[0.2, 0.8], [0.2, 0.8], [0, 0]])
    gradient = jax.grad(lambda x: shown_once(image, v, x).pair.sum())(p)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_array_equal(gradient[1, 0], [[1, 1], [1, 1], [0, 0]])


def test_what_the_discriminator_sees_of_shown_gaps_by_hand():
    """As published: no class in the void and the padding of a labelled row, the prediction in those of an unlabelled one."""
    label, truth = [1, IGNORE, IGNORE, 0, 1, IGNORE], [True] * 3 + [False] * 3
    v = views(label, truth, [True, True, False] * 2, [True, False])
    p = jnp.array([[[[0.6, 0.4]] * 3], [[[0.2, 0.8]] * 3]])
    shown = shown_once(jnp.zeros((2, 1, 3, 3)), v, p, hide_gaps=False).pair
    np.testing.assert_allclose(shown[0, 0, :, 3:], [[0, 1], [0, 0], [0, 0]])
    np.testing.assert_allclose(shown[1, 0, :, 3:], [[0.2, 0.8]] * 3)
    v = views(label, [*truth[:1], False, *truth[2:]], [True, True, False] * 2, [True, True])  # one pixel unlabelled
    shown = shown_twice(jnp.zeros((2, 1, 3, 3)), v, p, hide_gaps=False).pair
    np.testing.assert_allclose(shown[0, 0, :, 3:], [[0, 1], [0.6, 0.4], [0, 0]])
    np.testing.assert_allclose(shown[1, 0, :, 3:], [[0.6, 0.4]] * 3)


def test_the_gaps_of_a_method_are_as_its_option_says(make_toy_network):
    network = make_toy_network(normalise=False)
    state = first_state(make_method(network), TX, seed=3)
    hidden, shown = (
        loss_of(make_method(network, gaps=gaps), state.params, state)[0]["discriminator_real_loss"].mean.value()
        for gaps in ("hidden", "shown")
    )
    assert abs(float(hidden) - float(shown)) > 1e-4


def test_what_the_discriminator_sees_of_partial_labels_by_hand():
    """Of each row its truth, completed by the prediction, then the prediction; a row without a label is neither."""
    v = views([1, 0, 0, 0, 1, 0], [True] + [False] * 4 + [True], [True, True, False] * 2, [True, True])
    p = jnp.array([[[[0.6, 0.4]] * 3], [[[0.2, 0.8]] * 3]])
    exhibit = shown_twice(jnp.zeros((2, 1, 3, 3)), v, p)
    truth, prediction, of_none, _ = exhibit.pair[:, 0, :, 3:]
    np.testing.assert_allclose(truth, [[0, 1], [0.6, 0.4], [0, 0]])
    np.testing.assert_allclose(prediction, [[0.6, 0.4], [0.6, 0.4], [0, 0]])
    np.testing.assert_allclose(of_none, [[0.2, 0.8], [0.2, 0.8], [0, 0]])  # what is labelled there is padding
    assert exhibit.is_real.tolist() == [True, False, False, False]
    assert exhibit.is_fake.tolist() == [False, True, False, False]
    assert exhibit.prediction.tolist() == [1, 3]
    gradient = jax.grad(lambda x: (shown_twice(jnp.zeros((2, 1, 3, 3)), v, x).pair[:2] ** 2).sum())(p)
    np.testing.assert_allclose(gradient[0, 0], [[1.2, 0.8], [1.2, 0.8], [0, 0]], rtol=1e-6)


def test_a_discriminator_that_cannot_tell_says_a_half_however_few_rows_have_truth():
    """The best score for pairs that look alike: where the loss of the discriminator has no slope."""
    v = views([1, IGNORE, IGNORE] * 2, [True, False, False, False, False, False], [True] * 6, [True, True])
    exhibit = shown_twice(jnp.zeros((2, 1, 3, 3)), v, jnp.full((2, 1, 3, 2), 0.5))

    def loss(score):
        real, fake = discrimination(jnp.full(4, score), exhibit.is_real, exhibit.is_fake)
        return real.value() + fake.value()

    assert float(jax.grad(loss)(0.0)) == 0
    assert float(jax.grad(loss)(0.5)) > 0 > float(jax.grad(loss)(-0.5))


def test_the_students_own_predictions_fill_what_is_not_known():
    v = views(
        [1, IGNORE, IGNORE, IGNORE, IGNORE, 0], [True] * 2 + [False] * 3 + [True], [True] * 4 + [False, True], [1, 0]
    )
    p = jnp.broadcast_to(jnp.array([0.3, 0.7]), (2, 1, 3, 2))
    filled = self_labelled(v, p)
    np.testing.assert_array_equal(filled.label.reshape(-1), [1, IGNORE, 1, 1, IGNORE, 0])
    np.testing.assert_allclose(filled.confidence.reshape(-1), [0, 0, 0.7, 0.7, 0, 0])


def test_the_loss_equals_a_numpy_oracle(make_toy_network):
    method = make_method(
        make_toy_network(normalise=False), unsupervised_weight=0.7, threshold=0.0, labelled_mixing=NoMixing()
    )
    state = first_state(method, TX, seed=3)
    terms, _ = loss_of(method, state.params, state)
    batch, params = make_batch(), jax.tree.map(np.asarray, state.params["student"])

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    images = {"l": batch.labelled.image / 255.0, "u": batch.unlabelled.image / 255.0}
    p = {k: softmax(np.tanh(x @ params["encoder"]["w"]) @ params["segmentation"]["w"]) for k, x in images.items()}
    label, valid = np.asarray(batch.labelled.label), np.asarray(batch.labelled.valid)[..., None]
    truth = np.where((label == IGNORE)[..., None], p["l"], np.eye(CLASSES)[np.where(label == IGNORE, 0, label)])
    critic = method.discriminator
    variables = Variables(state.params["discriminator"], {})
    latent, score = {}, {}
    for part, shown in (("l", truth), ("u", p["u"])):
        pair = np.concatenate([images[part], np.where(valid, shown, 0)], axis=-1).astype(np.float32)
        latent[part] = np.asarray(critic.encode(variables, pair)[0])
        score[part] = np.asarray(critic.decode(variables, "score", latent[part])[0].output)
    known = label != IGNORE
    supervised = -np.log(np.take_along_axis(p["l"], np.where(known, label, 0)[..., None], -1)[..., 0][known]).mean()
    expected = supervised + 0.7 * -np.log(p["u"].max(-1)[valid[..., 0]]).mean()
    expected += 0.1 * np.abs(latent["l"].mean(0) - latent["u"].mean(0)).mean()
    expected += 0.5 * np.log1p(np.exp(-score["l"])).mean() + 0.5 * np.log1p(np.exp(score["u"])).mean()
    assert float(objective(terms)) == pytest.approx(float(expected), rel=1e-4)


def test_the_loss_of_partial_labels_equals_a_numpy_oracle(make_toy_network):
    """Pixels that nobody labelled learn from their argmax, and D sees every row twice."""
    method = make_method(make_toy_network(normalise=False), threshold=0.0, partial_labels=True)
    state = first_state(method, TX, seed=3)
    terms, _ = loss_of(method, state.params, state)

    rows, params = partial_batch().labelled, jax.tree.map(np.asarray, state.params["student"])
    image, label, valid = rows.image / 255.0, rows.label, rows.valid
    logits = np.tanh(image @ params["encoder"]["w"]) @ params["segmentation"]["w"]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    known, asked = label < CLASSES, (label == UNLABELLED) & valid
    truth = np.where(known[..., None], np.eye(CLASSES)[np.where(known, label, 0)], p)
    latent, score = {}, {}
    for part, shown in (("real", truth), ("fake", p)):
        pair = np.concatenate([image, np.where(valid[..., None], shown, 0)], axis=-1).astype(np.float32)
        variables = Variables(state.params["discriminator"], {})
        latent[part] = np.asarray(method.discriminator.encode(variables, pair)[0])
        score[part] = np.asarray(method.discriminator.decode(variables, "score", latent[part])[0].output)
    of_label = np.take_along_axis(p, np.where(known, label, 0)[..., None], -1)[..., 0]
    expected = {
        "supervised_loss": -np.log(of_label[known]).mean(),
        "unsupervised_loss": -np.log(p.max(-1)[asked]).mean(),
        "feature_matching_loss": np.abs(latent["real"].mean(0) - latent["fake"].mean(0)).mean(),
        "discriminator_real_loss": np.log1p(np.exp(-score["real"])).mean(),
        "discriminator_fake_loss": np.log1p(np.exp(score["fake"])).mean(),
    }
    assert {name: float(term.mean.value()) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_self_training_takes_the_rows_that_the_discriminator_trusts(make_toy_network):
    network = make_toy_network(normalise=False)
    state = first_state(make_method(network), TX, seed=0)
    score = state.params["discriminator"]["score"]["last"]
    kept = {}
    for bias in (-5.0, 5.0):
        params = state.params | {
            "discriminator": state.params["discriminator"]
            | {"score": {"last": {"kernel": score["kernel"], "bias": jnp.full(1, bias)}}}
        }
        terms, aux = loss_of(make_method(network), params, state)
        kept[bias] = float(aux.metrics["kept"].value())
        assert (float(terms["unsupervised_loss"].mean.total) > 0) == (bias > 0)
    assert kept == {-5.0: 0.0, 5.0: 1.0}


@pytest.mark.parametrize("partial", [pytest.param(False, marks=pytest.mark.slow), True])
def test_neither_network_learns_from_the_others_terms(make_toy_network, partial):
    options = {"auxiliary": (TASK,), "threshold": 0.0, "partial_labels": partial}
    method = make_method(make_toy_network(HEADS), dropout=0.5, **options)
    state = first_state(method, TX, seed=0)

    @functools.partial(jax.jit, static_argnums=1)
    def gradients(params, name):
        return jax.grad(lambda p: loss_of(method, p, state)[0][name].mean.value())(params)

    def moved(tree):
        return any((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(tree))

    for name, term in loss_of(method, state.params, state)[0].items():
        found, counts = gradients(state.params, name), float(term.mean.number) > 0
        of_discriminator = name.startswith("discriminator")
        assert counts != (partial and name == "reconstruction_unlabelled_loss")
        assert moved(found["discriminator"]) == (counts and of_discriminator), name
        assert moved(found["student"]) == (counts and not of_discriminator), name


def test_the_teacher_gets_no_gradient_and_keeps_no_discriminator(make_toy_network):
    method = make_method(make_toy_network(HEADS), auxiliary=(TASK,))
    state = first_state(method, TX, seed=0)
    assert {name: set(t.params) for name, t in state.teacher.items()} == {"student": {"encoder", "segmentation"}}
    gradient = jax.grad(lambda t: objective(loss_of(method, state.params, state._replace(teacher=t))[0]))(state.teacher)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("partial", [False, True])
def test_one_and_eight_devices_agree_and_so_do_parts(make_toy_network, partial):
    network = make_toy_network(HEADS, normalise=False)
    options = {"feature_matching_weight": 0.0, "threshold": 0.0, "partial_labels": partial}

    def run(devices, accumulate, method):
        mesh = make_mesh(devices=jax.devices()[:devices])
        state = create_state(method, TX, 0, replicated(mesh))
        step = compile_step(method, TX, seed=0, accumulate=accumulate, mesh=mesh)
        for _ in range(2):
            state, metrics = step(state, shard_batch(mesh, BATCHES[partial](rows=8)))
        return jax.device_get((state, metrics))

    mixed = make_method(network, mixing=CutOut(1.0), auxiliary=(TASK,), **options)
    one, eight = run(1, 1, mixed), run(8, 1, mixed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, eight)
    whole, parts = (run(1, n, make_method(network, **options))[1] for n in (1, 4))
    for name in ("discriminator_real_loss", "discriminator_fake_loss", "unsupervised_loss"):
        assert whole[name] > 0
        assert parts[name] == pytest.approx(whole[name], rel=1e-4)


def test_the_student_is_shown_strong_views_and_tasks_aim_at_weak_ones(witness):
    critic = discriminator_network(CLASSES, channels=2, dropout=0.0)
    method = S4Gan(
        witness.network, witness.colour, NoMixing(), auxiliary=(Auxiliary(1.0, witness),), discriminator=critic
    )
    batch = make_batch()
    witness.watch(method, batch)
    np.testing.assert_allclose(witness.student, [interleave(*map(witness.strong, batch[:2]))], rtol=1e-6)
    np.testing.assert_allclose(witness.targets, [interleave(*map(witness.weak, batch[:2]))], rtol=1e-6)
