import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing, ShuffledCutMix
from forec_jax.contracts import UNLABELLED, Batch, HeadSpec, Labelled, Unlabelled, Variables, Views
from forec_jax.methods import Auxiliary, ForegroundReconstruction, PsMt
from forec_jax.methods.parts.vat import adversarial_perturbation, published_perturbation
from forec_jax.methods.parts.views import interleave
from forec_jax.methods.ps_mt import TEACHERS
from forec_jax.parallel import make_mesh, replicated, shard_batch
from forec_jax.training import compile_step, create_state, first_state, objective, train_step

HEADS = (HeadSpec("segmentation", 3), HeadSpec("reconstruction", 3))
TASK = Auxiliary(1.0, ForegroundReconstruction((0,), threshold=0.0))
TX = optax.sgd(0.5)


def same_colour(key, image, valid):
    return image


def make_batch(rows=2, size=5):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, rows, size, size, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (rows, size, size)).astype(np.int32)
    valid, none = np.ones((rows, size, size), bool), np.zeros(rows, np.int32)
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def make_method(network, **options):
    return PsMt(network, same_colour, NoMixing(), **{"epoch": 3, "warmup": 2, "threshold": 0.0, **options})


@functools.partial(jax.jit, static_argnums=0)
def terms_of(method, params, state):
    return method.loss(params, state, jax.tree.map(jnp.asarray, make_batch()), jax.random.key(0))[0]


def apart(state):
    """Teachers that differ from each other and from the student."""
    first, second = TEACHERS
    teacher = {
        first: jax.tree.map(lambda x: 1.3 * x, state.teacher[first]),
        second: jax.tree.map(lambda x: 0.5 * x - 0.1, state.teacher[second]),
    }
    return state._replace(teacher=teacher, step=jnp.int32(100))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_loss_equals_a_numpy_oracle(make_toy_network):
    """L_u: cross-entropy against the argmax of the mean logits, times its probability above 0.6, over all pixels."""
    method = make_method(
        make_toy_network(normalise=False), threshold=0.6, unsupervised_weight=0.7, ramp=196, epsilon=0.0
    )
    state = apart(first_state(method, TX, seed=3))
    terms = terms_of(method, state.params, state)

    image = np.asarray(make_batch().unlabelled.image) / 255.0

    def logits(variables):
        p, mean = variables.params, variables.batch_stats["encoder"]["mean"]
        return np.tanh(image @ np.asarray(p["encoder"]["w"]) - np.asarray(mean)) @ np.asarray(p["segmentation"]["w"])

    ensemble = softmax((logits(state.teacher[TEACHERS[0]]) + logits(state.teacher[TEACHERS[1]])) / 2)
    student = softmax(logits(Variables(state.params["student"], state.batch_stats["student"])))
    label, confidence = ensemble.argmax(-1), ensemble.max(-1)
    assert 0.1 < (confidence > 0.6).mean() < 1
    error = -np.log(np.take_along_axis(student, label[..., None], -1)[..., 0])
    expected = np.where(confidence > 0.6, confidence * error, 0).mean()
    assert float(terms["unsupervised_loss"].mean.value()) == pytest.approx(float(expected), rel=1e-4)
    assert float(terms["unsupervised_loss"].weight) == pytest.approx(0.7 * 0.5, rel=1e-5)  # step 98 of 196


def test_the_teacher_whose_turn_it_is_not_says_its_likeliest_classes_alone(make_toy_network):
    """By hand: of the other teacher's four logits the two largest stay, the rest are its partner's."""
    method = make_method(make_toy_network(), top_classes=2)
    first, second = jnp.array([[4.0, 3.0, 2.0, 1.0]]), jnp.array([[-1.0, 9.0, 5.0, 7.0]])
    logits = dict(zip(TEACHERS, (first, second), strict=True))
    for first_has_turn, expected in ((True, [first, [[4, 9, 2, 7]]]), (False, [[[4, 3, 5, 7]], second])):
        found = method.assisted(logits, jnp.asarray(first_has_turn))
        np.testing.assert_array_equal([found[name] for name in TEACHERS], expected)
    for every in (0, 4, 7):
        assert dataclasses.replace(method, top_classes=every).assisted(logits, jnp.asarray(True)) is logits


def test_the_turn_says_whose_classes_are_cut(make_toy_network):
    """With one class of two left: the labels of a turn are those of the mean of its teacher and the other's winner."""
    method = make_method(make_toy_network(normalise=False), top_classes=1)
    state, batch = apart(first_state(method, TX, seed=3)), make_batch()
    image = jnp.asarray(batch.unlabelled.image / 255.0, jnp.float32)
    logits, _ = method.said(state.teacher, image, jax.random.key(0))
    one, two = (np.asarray(logits[name]) for name in TEACHERS)

    def cut(own, partner):
        return np.where(own == own.max(-1, keepdims=True), own, partner)

    # epoch 3, warm-up 2: the first teacher has steps 2 to 4, the second 5 to 7
    for step, mean in ((4, (one + cut(two, one)) / 2), (5, (cut(one, two) + two) / 2)):
        state = state._replace(step=jnp.int32(step))
        _, views, _ = method.views(state, batch.labelled, batch.unlabelled, jax.random.key(0), jax.random.key(1))
        rows = ~np.asarray(views.labelled_row)
        np.testing.assert_allclose(np.asarray(views.confidence)[rows], softmax(mean).max(-1), rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(views.label)[rows], mean.argmax(-1))


def test_teachers_in_train_mode_label_by_the_batchs_statistics_and_keep_them(make_toy_network):
    method = make_method(make_toy_network(), teacher_mode="train", decay=0.9, epsilon=0.0)
    state, batch = apart(first_state(method, TX, seed=0))._replace(step=jnp.int32(5)), make_batch()
    image = batch.unlabelled.image / np.float32(255)

    def seen(variables):  # NumPy's reading of the toy network in train mode, and the mean that it keeps
        features = image @ np.asarray(variables.params["encoder"]["w"])
        kept = 0.9 * np.asarray(variables.batch_stats["encoder"]["mean"]) + 0.1 * features.mean((0, 1, 2))
        return np.tanh(features - features.mean((0, 1, 2))) @ np.asarray(variables.params["segmentation"]["w"]), kept

    (one, kept_1), (two, kept_2) = (seen(state.teacher[name]) for name in TEACHERS)
    terms, aux = method.loss(state.params, state, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
    assert terms
    np.testing.assert_allclose(
        float(aux.metrics["confidence"].value()), softmax((one + two) / 2).max(-1).mean(), rtol=1e-5
    )
    after = method.update_teacher(state, state.params, aux.batch_stats, aux.teacher_stats)
    student = np.asarray(aux.batch_stats["student"]["encoder"]["mean"])
    decay = 1 - 1 / 6  # the EMA's own warm-up; in step 5 the second teacher follows the student
    for name, expected in zip(TEACHERS, (kept_1, decay * kept_2 + (1 - decay) * student), strict=True):
        np.testing.assert_allclose(after[name].batch_stats["encoder"]["mean"], expected, rtol=1e-4)


def test_the_teachers_label_the_pixels_that_nobody_labelled(make_toy_network):
    batch = make_batch()
    label = batch.labelled.label.copy()
    label[:, 0, :2] = UNLABELLED
    batch = Batch(batch.labelled._replace(label=label))
    method = make_method(make_toy_network(normalise=False), partial_labels=True, epsilon=0.0)
    state = apart(first_state(method, TX, seed=3))
    _, views, _ = method.views(state, batch.labelled, None, jax.random.key(0), jax.random.key(1))
    ensemble = method.predict(state.teacher, jnp.asarray(batch.labelled.image / 255.0, jnp.float32), None)
    gap = label == UNLABELLED
    np.testing.assert_array_equal(np.asarray(views.label)[gap], np.asarray(ensemble.argmax(-1))[gap])
    np.testing.assert_array_equal(np.asarray(views.label)[~gap], label[~gap])
    terms, _ = method.loss(state.params, state, batch, jax.random.key(0))
    assert float(terms["unsupervised_loss"].mean.number) == gap.sum()


def test_the_teachers_take_turns_after_the_warm_up(make_toy_network):
    method = make_method(make_toy_network(normalise=False))
    step = jax.jit(functools.partial(train_step, method=method, tx=TX, seed=0))
    state, moved = first_state(method, TX, seed=0), []
    for _ in range(10):
        after, _ = step(state, make_batch())
        moved.append(
            "".join(
                name[-1]
                for name in TEACHERS
                if not all(jax.tree.leaves(jax.tree.map(np.array_equal, state.teacher[name], after.teacher[name])))
            )
        )
        state = after
    assert moved == ["12", "12", "1", "1", "1", "2", "2", "2", "1", "1"]


@pytest.mark.parametrize("mode", ["ema", "copy", "own"])
def test_a_teachers_turn_is_an_ema_of_the_student(make_toy_network, mode):
    method = make_method(make_toy_network(), decay=0.9, bn_mode=mode)
    state = apart(first_state(method, TX, seed=0))._replace(step=jnp.int32(2 + 3))  # the second's first step
    one = jax.tree.map(jnp.ones_like, state.params), jax.tree.map(jnp.ones_like, state.batch_stats)
    own = {name: jax.tree.map(lambda x: x + 5.0, t.batch_stats) for name, t in state.teacher.items()}
    after = method.update_teacher(state, *one, own)
    before, stats = state.teacher[TEACHERS[1]], after[TEACHERS[1]].batch_stats["encoder"]["mean"]
    decay = 1 - 1 / 6  # the EMA's own warm-up, below 0.9
    np.testing.assert_allclose(
        after[TEACHERS[1]].params["encoder"]["w"], decay * before.params["encoder"]["w"] + (1 - decay), rtol=1e-5
    )
    old = np.asarray(before.batch_stats["encoder"]["mean"])
    expected = {"ema": decay * old + (1 - decay), "copy": np.ones_like(old), "own": old + 5.0}[mode]
    np.testing.assert_allclose(stats, expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after[TEACHERS[0]], state.teacher[TEACHERS[0]])


def test_in_the_warm_up_the_unlabelled_rows_teach_nothing_and_nothing_is_perturbed(make_toy_network):
    network = make_toy_network(normalise=False)
    state = first_state(make_method(network), TX, seed=0)._replace(step=jnp.int32(1))
    perturbed, plain = (terms_of(make_method(network, epsilon=e), state.params, state) for e in (2.0, 0.0))
    assert float(perturbed["unsupervised_loss"].weight) == 0
    np.testing.assert_allclose(perturbed["supervised_loss"].mean.total, plain["supervised_loss"].mean.total, rtol=1e-6)


def test_the_perturbation_reaches_the_segmentation_of_all_rows_and_no_other_head(make_toy_network):
    network = make_toy_network(HEADS, normalise=False)
    state = first_state(make_method(network, auxiliary=(TASK,)), TX, seed=0)._replace(step=jnp.int32(9))
    perturbed, plain = (
        terms_of(make_method(network, auxiliary=(TASK,), epsilon=e), state.params, state) for e in (2.0, 0.0)
    )
    for name in ("supervised_loss", "unsupervised_loss"):
        assert float(perturbed[name].mean.total) > 1.02 * float(plain[name].mean.total)
    for name in ("reconstruction_labelled_loss", "reconstruction_unlabelled_loss"):
        assert float(perturbed[name].mean.total) == float(plain[name].mean.total) > 0


def test_the_perturbation_is_made_with_the_teachers_decoders(make_toy_network):
    """T-VAT: the direction in which the teachers', not the student's, predictions change most."""
    method = make_method(make_toy_network(normalise=False))
    state, key = apart(first_state(method, TX, seed=0)), jax.random.key(4)
    features, valid = jax.random.normal(jax.random.key(3), (2, 4, 4, 4)), jnp.ones((2, 4, 4), bool)
    views = Views(None, None, None, None, valid, None)
    moved = method.moved(features, views, state, key) - features
    student = {"student": Variables(state.params["student"], state.batch_stats["student"])}
    by_teachers, by_student = (
        adversarial_perturbation(functools.partial(method.mean_logits, v), features, valid, jnp.asarray(2.0), key)
        for v in (state.teacher, student)
    )
    np.testing.assert_allclose(moved, by_teachers, atol=1e-5)
    assert float(jnp.abs(by_teachers - by_student).max()) > 1e-3


def test_the_fused_map_is_perturbed_for_the_segmentation_alone(make_toy_network):
    """The student's fused map moves by what the teachers' classifiers say of it; another head reads it unmoved."""
    toy = make_toy_network((HEADS[0], HEADS[1]._replace(reads="segmentation")), normalise=False)
    network = toy._replace(fuse=lambda variables, head, features, **_: (features**2, variables.batch_stats))
    method = make_method(network, auxiliary=(TASK,), perturbed="fused")
    state = apart(first_state(method, TX, seed=0))
    terms = terms_of(method, state.params, state)

    view_key, dropout_key, _, vat_key = jax.random.split(jax.random.key(0), 4)
    batch = jax.tree.map(jnp.asarray, make_batch())
    image, views, _ = method.views(state, batch.labelled, batch.unlabelled, view_key, dropout_key)
    student = Variables(state.params["student"], state.batch_stats["student"])
    fused = network.encode(student, image, train=True, rng=None)[0] ** 2
    mean = sum(t.params["segmentation"]["w"] for t in state.teacher.values()) / 2
    found = adversarial_perturbation(lambda z: z @ mean, fused, views.valid, 2.0, vat_key)
    logits = (fused + found) @ student.params["segmentation"]["w"]
    truth = np.asarray(views.is_ground_truth)
    error = -np.log(np.take_along_axis(softmax(np.asarray(logits)), np.asarray(views.label)[..., None], -1)[..., 0])
    assert float(terms["supervised_loss"].mean.value()) == pytest.approx(float(error[truth].mean()), rel=1e-4)
    plain = terms_of(dataclasses.replace(method, epsilon=0.0), state.params, state)
    assert float(plain["supervised_loss"].mean.value()) < 0.98 * float(terms["supervised_loss"].mean.value())
    name = "reconstruction_labelled_loss"
    assert float(plain[name].mean.total) == float(terms[name].mean.total) > 0


def test_the_published_direction_takes_the_mean_over_the_rows_of_a_kind(make_toy_network):
    network = make_toy_network(normalise=False)
    method = make_method(network, direction="published")
    state, key = apart(first_state(method, TX, seed=0)), jax.random.key(4)
    features = jax.random.normal(jax.random.key(3), (3, 4, 4, 4))
    valid, labelled = jnp.ones((3, 4, 4), bool), jnp.array([True, False, False])
    found = method.moved(features, Views(None, None, None, None, valid, labelled), state, key) - features
    decode = functools.partial(method.mean_logits, state.teacher)
    expected = published_perturbation(decode, features, valid, 2.0, key, jnp.array([1.0, 2.0, 2.0]))
    np.testing.assert_allclose(found, (features + expected) - features, atol=1e-9)
    assert 0 < float(jnp.abs(expected).max()) < 1e-3


def test_the_teachers_get_no_gradient(make_toy_network):
    method = make_method(make_toy_network())
    state = apart(first_state(method, TX, seed=0))
    gradients = jax.grad(lambda t: objective(terms_of(method, state.params, state._replace(teacher=t))))(state.teacher)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


def test_prediction_is_the_softmax_of_the_mean_logits(make_toy_network):
    method = make_method(make_toy_network())
    state = apart(first_state(method, TX, seed=0))
    image = jax.random.uniform(jax.random.key(1), (1, 4, 4, 3))
    single = [np.log(method.predict({name: state.teacher[name]}, image, None)) for name in TEACHERS]
    np.testing.assert_allclose(method.predict(state.teacher, image, None), softmax(sum(single) / 2), rtol=1e-5)


def test_an_unknown_epoch_predicts_but_does_not_train(make_toy_network):
    method = make_method(make_toy_network(), epoch=0)
    state = first_state(method, TX, seed=0)
    assert method.predict(state.teacher, jnp.zeros((1, 4, 4, 3)), None).shape == (1, 4, 4, 3)
    with pytest.raises(ValueError, match=r"method\.ps_mt\.epoch"):
        method.update_teacher(state, state.params, state.batch_stats, {})


PUBLISHED = {"teacher_mode": "train", "top_classes": 2, "perturbed": "fused", "mixing": ShuffledCutMix()}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, PUBLISHED], ids=["plain", "published"])
def test_one_and_eight_devices_agree_and_so_do_parts(make_toy_network, options):
    network = make_toy_network(normalise=False)
    method = dataclasses.replace(make_method(network, warmup=1), **options)

    def run(devices, accumulate):
        mesh = make_mesh(devices=jax.devices()[:devices])
        state = create_state(method, TX, 0, replicated(mesh))
        step = compile_step(method, TX, seed=0, accumulate=accumulate, mesh=mesh)
        for _ in range(3):
            state, metrics = step(state, shard_batch(mesh, make_batch(rows=8)))
        return jax.device_get((state, metrics))

    one, eight = run(1, 1), run(8, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, eight)
    if not options:  # the parts of a batch are mixed, and normalised, among themselves
        state, metrics = run(2, 4)
        assert int(state.step) == 3
        assert metrics["kept"] == one[1]["kept"]


def test_the_teachers_are_shown_weak_views_the_student_strong_ones_and_tasks_aim_at_weak_ones(witness):
    method = PsMt(witness.network, witness.colour, NoMixing(), auxiliary=(Auxiliary(1.0, witness),), epoch=3)
    batch = make_batch()
    witness.watch(method, batch)
    np.testing.assert_allclose(witness.teacher, [witness.weak(batch.unlabelled)] * len(TEACHERS), rtol=1e-6)
    np.testing.assert_allclose(witness.student, [interleave(*map(witness.strong, batch[:2]))], rtol=1e-6)
    np.testing.assert_allclose(witness.targets, [interleave(*map(witness.weak, batch[:2]))], rtol=1e-6)
