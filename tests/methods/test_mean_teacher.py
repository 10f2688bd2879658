import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Mean, Unlabelled, Variables, Views
from forec_jax.methods import Auxiliary, ForegroundReconstruction, ImageReconstruction, MeanTeacher, Supervised
from forec_jax.methods.parts.heads import class_probabilities
from forec_jax.methods.parts.teacher import ema_decay, first_teacher, updated_teacher
from forec_jax.methods.parts.terms import supervised_terms, unsupervised_terms
from forec_jax.methods.parts.views import (
    interleave,
    pseudo_labelled_rows,
    self_labelled,
    student_input,
    unlabelled_rows,
)
from forec_jax.models import DeepLabOptions, deeplab_network
from forec_jax.training import first_state, objective, train_step

HEADS = (HeadSpec("segmentation", 3), HeadSpec("reconstruction", 3))


def same_colour(key, image, valid):
    return image


def make_batch(rows=2, size=6, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (2, rows, size, size, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (rows, size, size)).astype(np.int32)
    valid = np.ones((rows, size, size), bool)
    valid[:, -1] = False
    label[~valid] = IGNORE
    none = np.zeros(rows, np.int32)
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def make_method(network, **options):
    tasks = (Auxiliary(2.0, ForegroundReconstruction((0,), threshold=0.0)),)
    return MeanTeacher(
        network=network, colour=same_colour, mixing=NoMixing(), auxiliary=tasks, threshold=0.0, **options
    )


def numpy_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_loss_equals_a_numpy_oracle(make_toy_network):
    """L = w_s L_s + w_u L_u + w (L_rec labelled + 0.5 L_rec unlabelled), worked out anew from the paper's equations."""
    network = make_toy_network(HEADS, normalise=False)
    method, batch = make_method(network, supervised_weight=0.3, unsupervised_weight=0.7), make_batch()
    state = first_state(method, optax.sgd(0.1), seed=3)
    terms, _ = method.loss(state.params, state, batch, jax.random.key(0))

    params = jax.tree.map(np.asarray, state.params["student"])
    images = {"l": batch.labelled.image / 255.0, "u": batch.unlabelled.image / 255.0}
    features = {k: np.tanh(x @ params["encoder"]["w"]) for k, x in images.items()}
    probabilities = {k: numpy_softmax(f @ params["segmentation"]["w"]) for k, f in features.items()}
    valid = np.asarray(batch.labelled.valid)
    label = {"l": np.asarray(batch.labelled.label), "u": probabilities["u"].argmax(-1)}  # teacher = student at first
    picked = {
        k: np.take_along_axis(p, np.where(valid, label[k], 0)[..., None], -1)[..., 0] for k, p in probabilities.items()
    }
    expected = 0.3 * -np.log(picked["l"][valid]).mean() + 0.7 * -np.log(picked["u"][valid]).mean()
    for part, weight in (("l", 1.0), ("u", 0.5)):
        target = np.where((label[part] > 0)[..., None], images[part], 0.0)
        error = (features[part] @ params["reconstruction"]["w"] - target) ** 2
        expected += 2.0 * weight * error[valid].mean()
    assert float(objective(terms)) == pytest.approx(float(expected), rel=1e-5)


def test_partial_labels_in_two_streams_equal_a_numpy_oracle(make_toy_network):
    """What labels say counts in L_u and eta with confidence 1, void is pseudo-labelled, and L_s sees the labelled rows."""
    network, batch = make_toy_network(HEADS[:1], normalise=False), make_batch(rows=3, size=12)
    shown = np.random.default_rng(1).random((2, *batch.labelled.label.shape))
    label = [np.where(part < 0.7, UNLABELLED, batch.labelled.label) for part in shown]
    label[1] = np.where(shown[1] > 0.95, IGNORE, label[1])
    batch = Batch(
        batch.labelled._replace(label=label[0]), batch.labelled._replace(image=batch.unlabelled.image, label=label[1])
    )
    method = MeanTeacher(network, same_colour, NoMixing(), threshold=0.8, normaliser="eta", labelled_mixing=NoMixing())
    state = first_state(method, optax.sgd(0.1), seed=3)
    terms, _ = method.loss(state.params, state, batch, jax.random.key(0))

    params = jax.tree.map(np.asarray, state.params["student"])
    probabilities = [
        numpy_softmax(np.tanh(part.image / 255.0 @ params["encoder"]["w"]) @ params["segmentation"]["w"])
        for part in (batch.labelled, batch.unlabelled)
    ]
    valid = np.asarray(batch.labelled.valid)
    error = lambda p, y: -np.log(np.take_along_axis(p, y[..., None], -1)[..., 0])  # noqa: E731
    known = [valid & (part < UNLABELLED) for part in label]
    supervised = error(probabilities[0], np.where(known[0], label[0], 0))[known[0]].mean()
    assert float(terms["supervised_loss"].mean.value()) == pytest.approx(float(supervised), rel=1e-5)

    y = np.where(known[1], label[1], probabilities[1].argmax(-1))
    confidence = np.where(known[1], 1.0, probabilities[1].max(-1))
    eta = [(confidence[i][valid[i]] > 0.8).mean() for i in range(3)]
    by_image = [eta[i] * error(probabilities[1], y)[i][valid[i]].sum() for i in range(3)]
    assert all(known[1][i].sum() / valid[i].sum() <= eta[i] < 1 for i in range(3))
    expected = sum(by_image) / valid.sum()
    assert float(terms["unsupervised_loss"].mean.value()) == pytest.approx(float(expected), rel=1e-5)


def test_known_labels_are_not_overwritten_by_the_students_own_word():
    part = Labelled(
        np.zeros((1, 1, 4, 3), np.uint8), np.array([[[2, UNLABELLED, IGNORE, 1]]]), np.ones((1, 1, 4), bool), None
    )
    _, views = student_input(unlabelled_rows(jax.random.key(0), part, same_colour), None)
    assert views.label.tolist() == [[[2, IGNORE, IGNORE, 1]]]
    assert views.confidence.tolist() == [[[1, 0, 0, 1]]]
    assert not views.is_ground_truth.any()
    found = self_labelled(views, jnp.broadcast_to(jnp.array([0.6, 0.4, 0.0]), (1, 1, 4, 3)))
    assert found.label.tolist() == [[[2, 0, 0, 1]]]
    np.testing.assert_allclose(found.confidence, [[[1, 0.6, 0.6, 1]]])


def test_the_supervised_loss_is_the_methods_own_and_sees_ground_truth_alone(make_toy_network):
    def count(logits, label, included):
        return Mean(jnp.sum(jnp.where(included, label, 1000), dtype=jnp.float32), jnp.ones(()))

    network, batch = make_toy_network(HEADS[:1]), make_batch()
    known = batch.labelled.label[batch.labelled.label != IGNORE]
    for method, excluded in (
        (Supervised(network, same_colour, NoMixing(), supervised_loss=count), 2 * 6),
        (MeanTeacher(network, same_colour, NoMixing(), supervised_loss=count), 2 * 6 + 2 * 36),
    ):
        state = first_state(method, optax.sgd(0.1), seed=0)
        terms, _ = method.loss(state.params, state, batch, jax.random.key(0))
        assert float(terms["supervised_loss"].mean.total) == known.sum() + 1000 * excluded


def test_with_both_segmentation_weights_0_no_class_is_learned(make_toy_network):
    """The autoencoder of the paper's Figure 1: labels reach neither the encoder nor the segmentation head."""
    network = make_toy_network(HEADS)
    tasks = (Auxiliary(1.0, ImageReconstruction()),)
    weights = {"supervised_weight": 0.0, "unsupervised_weight": 0.0}
    method = MeanTeacher(network=network, colour=same_colour, mixing=NoMixing(), auxiliary=tasks, **weights)
    batch, state = make_batch(), first_state(method, optax.sgd(0.1), seed=0)
    other = batch._replace(labelled=batch.labelled._replace(label=(batch.labelled.label + 1) % 3))

    def gradients(batch):
        return jax.grad(lambda p: objective(method.loss(p, state, batch, jax.random.key(0))[0]))(state.params)[
            "student"
        ]

    one, two = gradients(batch), gradients(other)
    np.testing.assert_array_equal(one["segmentation"]["w"], 0)
    np.testing.assert_array_equal(one["encoder"]["w"], two["encoder"]["w"])
    assert np.abs(one["encoder"]["w"]).max() > 0


def test_the_teacher_gets_no_gradient(make_toy_network):
    method, batch = make_method(make_toy_network(HEADS)), make_batch()
    state = first_state(method, optax.sgd(0.1), seed=0)

    def loss(teacher):
        terms, _ = method.loss(state.params, state._replace(teacher=teacher), batch, jax.random.key(0))
        return objective(terms)

    gradients = jax.grad(loss)(state.teacher)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


def test_the_teacher_keeps_no_auxiliary_head(make_toy_network):
    method = make_method(make_toy_network(HEADS))
    state = first_state(method, optax.sgd(0.1), seed=0)
    assert set(state.teacher["student"].params) == {"encoder", "segmentation"}
    assert set(state.params["student"]) == {"encoder", "segmentation", "reconstruction"}


def views(label, confidence, truth, valid):
    shape = (1, 1, len(label))
    return Views(
        image=jnp.zeros((*shape, 3)),
        label=jnp.array(label).reshape(shape),
        confidence=jnp.array(confidence).reshape(shape),
        is_ground_truth=jnp.array(truth).reshape(shape),
        valid=jnp.array(valid).reshape(shape),
        labelled_row=jnp.array([False]),
    )


@pytest.mark.parametrize(("normaliser", "divisor"), [("valid", 3), ("kept", 2)])
def test_unsupervised_terms_by_hand(normaliser, divisor):
    """Five pixels: two confident, one unsure, one padding, one ground truth."""
    v = views([0, 1, 1, IGNORE, 0], [0.9, 0.99, 0.5, 0.0, 1.0], [False] * 4 + [True], [True, True, True, False, True])
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.25, 0.75])), (1, 1, 5, 2))
    terms, metrics = unsupervised_terms(logits, v, threshold=0.8, normaliser=normaliser, weight=0.5)
    term = terms["unsupervised_loss"]
    assert float(term.mean.value()) == pytest.approx((-np.log(0.25) - np.log(0.75)) / divisor, rel=1e-6)
    assert term.weight == 0.5
    assert float(metrics["kept"].value()) == pytest.approx(2 / 3)
    supervised = supervised_terms(logits, v)["supervised_loss"]
    assert float(supervised.mean.value()) == pytest.approx(-np.log(0.25), rel=1e-6)


def test_eta_weights_each_image_by_its_share_of_confident_pixels():
    """Image 0 has one of two confident, image 1 (its last pixel is padding) none of three, image 2 both of two."""
    label = jnp.array([[[0, 1, IGNORE, IGNORE]], [[0, 1, 1, IGNORE]], [[1, 1, IGNORE, IGNORE]]])
    v = Views(
        image=jnp.zeros((3, 1, 4, 3)),
        label=label,
        confidence=jnp.array([[[0.99, 0.5, 0, 0]], [[0.5, 0.5, 0.5, 0]], [[0.99, 0.99, 0, 0]]]),
        is_ground_truth=jnp.zeros((3, 1, 4), bool),
        valid=label != IGNORE,
        labelled_row=jnp.zeros(3, bool),
    )
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.25, 0.75])), (3, 1, 4, 2))
    terms, _ = unsupervised_terms(logits, v, threshold=0.97, normaliser="eta", weight=1.0)
    expected = (0.5 * (-np.log(0.25) - np.log(0.75)) + 2 * -np.log(0.75)) / 7
    assert float(terms["unsupervised_loss"].mean.value()) == pytest.approx(expected, rel=1e-6)


def partly_labelled(batch):
    """The labelled rows alone, with a pixel that nobody labelled and a void one in each, and a row without any label."""
    label = batch.labelled.label.copy()
    label[:, 0, 0], label[:, 0, 1] = UNLABELLED, IGNORE
    label[1, :-1] = UNLABELLED
    return Batch(batch.labelled._replace(label=label))


def test_the_teacher_labels_the_pixels_that_nobody_labelled_but_no_void(make_toy_network):
    method = dataclasses.replace(make_method(make_toy_network(HEADS)), partial_labels=True)
    batch = partly_labelled(make_batch())
    state = first_state(method, optax.sgd(0.1), seed=0)
    teacher = state.teacher["student"]
    _, views = method.views(teacher, batch.labelled, None, jax.random.key(0))
    probabilities = class_probabilities(method.network, teacher, jnp.asarray(batch.labelled.image / 255.0, jnp.float32))
    gap = batch.labelled.label == UNLABELLED
    np.testing.assert_array_equal(views.is_ground_truth, ~gap)
    np.testing.assert_array_equal(np.asarray(views.label)[~gap], batch.labelled.label[~gap])
    np.testing.assert_array_equal(np.asarray(views.label)[gap], np.asarray(probabilities.argmax(-1))[gap])
    np.testing.assert_allclose(np.asarray(views.confidence)[gap], np.asarray(probabilities.max(-1))[gap], rtol=1e-6)
    assert (views.label[0, 0, 1], views.confidence[0, 0, 1]) == (IGNORE, 1.0)
    terms, _ = method.loss(state.params, state, batch, jax.random.key(0))
    assert float(terms["unsupervised_loss"].mean.number) == gap.sum()
    assert float(terms["supervised_loss"].mean.number) == 5 * 6 - 2  # row 0, without gap, void and padding


def test_supervised_leaves_pixels_without_a_label_out(make_toy_network):
    method = Supervised(network=make_toy_network(HEADS[:1]), colour=same_colour, mixing=NoMixing())
    state = first_state(method, optax.sgd(0.1), seed=0)
    batch = partly_labelled(make_batch())
    terms, _ = method.loss(state.params, state, batch, jax.random.key(0))
    assert float(terms["supervised_loss"].mean.number) == 5 * 6 - 2
    nothing = Batch(batch.labelled._replace(label=np.full_like(batch.labelled.label, UNLABELLED)))
    terms, _ = method.loss(state.params, state, nothing, jax.random.key(0))
    assert float(terms["supervised_loss"].mean.value()) == 0


def test_ema_decay_warms_up():
    values = [float(ema_decay(jnp.asarray(step), 0.99)) for step in (0, 1, 3, 99, 1000)]
    np.testing.assert_allclose(values, [0.0, 0.5, 0.75, 0.99, 0.99], rtol=1e-6)


@pytest.mark.parametrize(("mode", "expected"), [("ema", 0.75), ("copy", 0.0), ("own", 7.0)])
def test_updated_teacher_by_hand(mode, expected):
    def variables(value):
        part = {"w": jnp.full(2, value)}
        return Variables({"encoder": part, "segmentation": part}, {"encoder": part, "segmentation": part})

    own = {"encoder": {"w": jnp.full(2, 7.0)}, "segmentation": {"w": jnp.full(2, 7.0)}}
    teacher = updated_teacher(variables(1.0), variables(0.0), own, decay=jnp.asarray(0.75), bn_mode=mode)
    np.testing.assert_array_equal(teacher.params["encoder"]["w"], [0.75, 0.75])
    np.testing.assert_array_equal(teacher.batch_stats["segmentation"]["w"], [expected, expected])


@pytest.mark.parametrize("mode", ["ema", "copy", "own"])
def test_a_frozen_part_of_the_teacher_stays_the_students_to_the_last_bit(mode):
    """Both start equal and never move. An average of equal numbers is rounded; the part that is not frozen shows it."""
    values = {"w": jax.random.normal(jax.random.key(0), (99,))}
    parts = {"encoder": values, "segmentation": values}
    teacher = student = Variables(parts, parts)
    for _ in range(3):
        teacher = updated_teacher(
            teacher, student, teacher.batch_stats, decay=jnp.asarray(0.99), bn_mode=mode, frozen=("encoder",)
        )
    for tree in teacher:
        np.testing.assert_array_equal(tree["encoder"]["w"], values["w"])
    assert np.any(teacher.params["segmentation"]["w"] != values["w"])
    assert mode != "ema" or np.any(teacher.batch_stats["segmentation"]["w"] != values["w"])


def test_the_teacher_keeps_a_shared_aspp():
    decoder = DeepLabOptions(rates=(1, 2, 3), channels=8, low_level_channels=4)
    network = deeplab_network(encoder="resnet18", heads=HEADS, width=0.125, decoder=decoder, share_aspp=True)
    teacher = jax.eval_shape(lambda key: first_teacher(network.init(key)), jax.random.key(0))
    assert sorted(teacher.params) == sorted(teacher.batch_stats) == ["encoder", "pyramid", "segmentation"]


def test_accumulation_asks_the_teacher_once_a_part(make_toy_network):
    """Its labels are kept for the backward pass, which recomputes the student alone."""
    method, batch = make_method(make_toy_network(HEADS)), make_batch(rows=4)
    tx = optax.sgd(0.1)
    state = first_state(method, tx, seed=3)
    step = jax.make_jaxpr(lambda s, b: train_step(s, b, method=method, tx=tx, seed=0, accumulate=2))(state, batch)
    assert str(step).count("= argmax[") == 1


def test_first_teacher_shares_no_buffer_with_the_student(make_toy_network):
    student = make_toy_network().init(jax.random.key(0))
    teacher = first_teacher(student)
    pairs = zip(jax.tree.leaves(teacher), jax.tree.leaves(student), strict=True)
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)


@pytest.mark.parametrize("mode", ["ema", "copy", "own"])
def test_own_statistics_follow_the_teachers_weights(make_toy_network, mode):
    """After a step the teacher's "own" statistics come from its own forward, the student's from its own."""
    method, batch = make_method(make_toy_network(HEADS), bn_mode=mode, decay=1.0), make_batch()
    tx = optax.sgd(0.5)
    state = first_state(method, tx, seed=0)
    state = state._replace(step=jnp.int32(10), teacher=jax.tree.map(lambda x: x + 0.25, state.teacher))
    before = state.teacher["student"]
    after, _ = train_step(state, batch, method=method, tx=tx, seed=0)
    teacher_mean = np.asarray(after.teacher["student"].batch_stats["encoder"]["mean"])
    student_mean = np.asarray(after.batch_stats["student"]["encoder"]["mean"])
    images = np.concatenate([batch.labelled.image, batch.unlabelled.image]) / 255.0
    own = 0.9 * 0.25 + 0.1 * (images @ np.asarray(before.params["encoder"]["w"])).mean((0, 1, 2))
    decay = 1 - 1 / 11
    expected = {"ema": decay * 0.25 + (1 - decay) * student_mean, "copy": student_mean, "own": own}[mode]
    np.testing.assert_allclose(teacher_mean, expected, rtol=1e-4)


def test_supervised_learns_from_labelled_rows_alone(make_toy_network):
    method = Supervised(network=make_toy_network(), colour=same_colour, mixing=NoMixing())
    batch = make_batch()._replace(unlabelled=None)
    tx = optax.sgd(0.5)
    state, losses = first_state(method, tx, seed=0), []
    for _ in range(20):
        state, metrics = train_step(state, batch, method=method, tx=tx, seed=0)
        losses.append(float(metrics["supervised_loss"]))
    assert losses[-1] < losses[0]


def test_methods_say_which_part_of_the_batch_they_miss(make_toy_network):
    method = make_method(make_toy_network(HEADS))
    state = first_state(method, optax.sgd(0.1), seed=0)
    with pytest.raises(ValueError, match=r"batch\.unlabelled"):
        method.loss(state.params, state, make_batch()._replace(unlabelled=None), jax.random.key(0))


def test_interleave_alternates_equal_parts_and_appends_others():
    np.testing.assert_array_equal(interleave(jnp.array([0, 1]), jnp.array([10, 11])), [0, 10, 1, 11])
    np.testing.assert_array_equal(interleave(jnp.array([0, 1]), jnp.array([10])), [0, 1, 10])


def test_the_teacher_is_shown_weak_views_the_student_strong_ones_and_tasks_aim_at_weak_ones(witness):
    method = MeanTeacher(witness.network, witness.colour, NoMixing(), auxiliary=(Auxiliary(1.0, witness),))
    batch = make_batch()
    witness.watch(method, batch)
    np.testing.assert_allclose(witness.teacher, [witness.weak(batch.unlabelled)], rtol=1e-6)
    np.testing.assert_allclose(witness.student, [interleave(*map(witness.strong, batch[:2]))], rtol=1e-6)
    np.testing.assert_allclose(witness.targets, [interleave(*map(witness.weak, batch[:2]))], rtol=1e-6)


def test_labelled_rows_keep_their_colours_where_asked(witness):
    method = MeanTeacher(witness.network, witness.colour, NoMixing(), colour_labelled=False)
    batch = make_batch()
    witness.watch(method, batch)
    seen = interleave(witness.weak(batch.labelled), witness.strong(batch.unlabelled))
    np.testing.assert_allclose(witness.student, [seen], rtol=1e-6)


def test_the_teacher_completes_partial_labels_from_the_weak_view(witness):
    method = MeanTeacher(witness.network, witness.colour, NoMixing(), partial_labels=True)
    batch = partly_labelled(make_batch())
    witness.watch(method, batch)
    np.testing.assert_allclose(witness.teacher, [witness.weak(batch.labelled)], rtol=1e-6)
    np.testing.assert_allclose(witness.student, [witness.strong(batch.labelled)], rtol=1e-6)


def test_supervised_training_shows_strong_views_and_tasks_aim_at_weak_ones(witness):
    method = Supervised(witness.network, witness.colour, NoMixing(), auxiliary=(Auxiliary(1.0, witness),))
    batch = make_batch()
    witness.watch(method, batch)
    np.testing.assert_allclose(witness.student, [witness.strong(batch.labelled)], rtol=1e-6)
    np.testing.assert_allclose(witness.targets, [witness.weak(batch.labelled)], rtol=1e-6)


def test_the_teacher_says_nothing_of_padding():
    valid = np.array([[[True, False]]])
    part = Unlabelled(np.zeros((1, 1, 2, 3), np.uint8), valid, np.zeros(1, np.int32))
    probabilities = jnp.array([[[[0.1, 0.9], [0.1, 0.9]]]])
    rows = pseudo_labelled_rows(jax.random.key(0), part, probabilities, lambda key, image, valid: image)
    np.testing.assert_array_equal(rows.label, [[[1, IGNORE]]])
    np.testing.assert_allclose(rows.confidence, [[[0.9, 0]]])
