"""AEL: the worked examples, an oracle of the whole loss, what is constant in it, and partial labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import AdaptiveCutMix, CopyPaste, NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Unlabelled, Views
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods.ael import BANK, Ael
from forec_jax.methods.parts.class_bank import moved_bank, sampling_rates
from forec_jax.options import OptionError
from forec_jax.training import first_state

TX = optax.sgd(0.1)
LABELS = Labels(("background", "disc", "square"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)), (0,))
SHAPE = 4, 8, 9


def brighter(key, image, valid):
    return jnp.clip(image + 0.25, 0, 1)


def ael(network, *, paste=0.0, cutmix=0.0, **options):
    """The method with three classes; nothing is pasted or mixed unless asked."""
    copy_paste, boxes = CopyPaste(probability=paste, left_out=(0,)), AdaptiveCutMix(cutmix, cell=2)
    given = {"classes": 3, "copy_paste": copy_paste, "cutmix": boxes, "threshold": 0.5, **options}
    return Ael(network, brighter, NoMixing(), colour_labelled=False, **given)


def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *SHAPE, 3), dtype=np.uint8)
    label = rng.integers(0, 3, SHAPE).astype(np.int32)
    valid, none = np.ones(SHAPE, bool), np.zeros(SHAPE[0], np.int32)
    valid[..., -1] = False
    label[~valid] = IGNORE
    label[:, 0, 0] = IGNORE
    return Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none))


def started(method, bank=None):
    state = first_state(method, TX, seed=0)
    return state if bank is None else state._replace(memory={BANK: jnp.asarray(bank)})


def loss(method, state, given, key=0):
    run = jax.jit(lambda params, state, given: method.loss(params, state, given, jax.random.key(key)))
    return run(state.params, state, jax.tree.map(jnp.asarray, given))


@pytest.mark.parametrize(("skip", "last"), [(False, 0.1998), (True, 0.2)])
def test_the_worked_example_of_the_bank(skip, last):
    """b = .5, .9, .2 and v = .6, .8 and nothing; void says nothing."""
    p = jnp.log(jnp.array([[[[0.5, 0.25, 0.25], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]]]))
    label, known = jnp.array([[[0, 0, 1, IGNORE]]]), jnp.array([[[True, True, True, False]]])
    moved = moved_bank(jnp.array([0.5, 0.9, 0.2]), p, label, known, decay=0.999, skip_absent=skip)
    np.testing.assert_allclose(moved, [0.5001, 0.8999, last], rtol=1e-6)


def test_the_worked_example_of_the_rates():
    bank = jnp.array([0.5, 0.9, 0.2])
    np.testing.assert_allclose(sampling_rates(bank, 1.0), [0.625, 0.125, 1], rtol=1e-5)
    np.testing.assert_allclose(sampling_rates(bank, 2.0), [0.390625, 0.015625, 1], rtol=1e-5)
    np.testing.assert_array_equal(sampling_rates(bank, 0.0), 1)
    np.testing.assert_array_equal(sampling_rates(jnp.ones(3), 1.0), 1)


def test_the_worked_example_of_the_loss(make_toy_network):
    """q = .9, .6, .8, s = 1, 0, 1, CE = .2, 1, .5: .332414. The second pixel's class, for the student, has rate 0."""
    said = np.exp(-np.array([0.2, 1.0, 0.5]))  # its probability of class 0, the teacher's word
    p = np.array([[said[0], 0, 1 - said[0]], [said[1], 1 - said[1], 0], [said[2], 0, 1 - said[2]]])
    logits = jnp.log(jnp.maximum(jnp.asarray(p, jnp.float32), 1e-12))[None, None]
    confidence = jnp.array([[[0.9, 0.6, 0.8]]])
    one = jnp.ones((1, 1, 3))
    views = Views(one[..., None], jnp.zeros((1, 1, 3), int), confidence, one < 0, one > 0, jnp.array([False]))
    bank = jnp.array([0.0, 1.0, 0.0])
    method = ael(make_toy_network(), threshold=0.0)
    mean, metrics = method.equalized(logits, views, bank, jax.random.key(0))
    np.testing.assert_allclose(mean.value(), 0.332414, rtol=1e-5)
    np.testing.assert_allclose(metrics["sampled"].value(), 2 / 3)
    # A word that is not sure has no error, and counts in the denominator: (.81 x .2) / (.81 + .64).
    unsure = dataclasses.replace(method, threshold=0.85)
    mean, metrics = unsure.equalized(logits, views, bank, jax.random.key(0))
    np.testing.assert_allclose(mean.value(), 0.162 / 1.45, rtol=1e-5)
    np.testing.assert_allclose(metrics["kept"].value(), 1 / 3)


def test_pixels_are_drawn_by_the_rate_of_the_class_that_the_student_sees(make_toy_network):
    """Rates 1, 1/2 and 0 of classes 0, 1 and 2, whatever the teacher says."""
    logits = jnp.eye(3)[jnp.arange(3000).reshape(1, 60, 50) % 3] * 5
    one = jnp.ones((1, 60, 50))
    views = Views(one[..., None], jnp.zeros(one.shape, int), one, one < 0, one > 0, jnp.array([False]))
    mean, metrics = ael(make_toy_network()).equalized(logits, views, jnp.array([0.0, 0.5, 1.0]), jax.random.key(0))
    assert float(metrics["sampled"].value()) == pytest.approx(0.5, abs=0.02)
    assert float(metrics["sampled"].total) == float(mean.number)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def said(variables, image):
    """Probabilities of a toy network without normalisation, by NumPy."""
    p = variables.params if hasattr(variables, "params") else variables
    features = np.tanh(image @ np.asarray(p["encoder"]["w"], np.float64))
    return softmax(features @ np.asarray(p["segmentation"]["w"], np.float64))


def picked(p, label):
    return np.take_along_axis(p, label[..., None], -1)[..., 0]


def test_the_loss_and_the_bank_equal_a_numpy_oracle(make_toy_network):
    """Rates of 1 and 0, so that nothing is left to chance; the student differs from the teacher."""
    method, given = ael(make_toy_network(normalise=False), bank_decay=0.9, labelled_weight=0.5), batch()
    state = started(method, np.array([1.0, 0.0, 0.0], np.float32))
    rng = np.random.default_rng(5)
    other = jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), state.params)
    terms, aux = loss(method, state._replace(params=other), given)
    images = {"labelled": given.labelled.image / 255.0, "unlabelled": given.unlabelled.image / 255.0}
    strong = {"labelled": images["labelled"], "unlabelled": np.clip(images["unlabelled"] + 0.25, 0, 1)}
    known = given.labelled.label != IGNORE
    for part, name, asked in (
        ("labelled", "labelled_consistency_loss", known),
        ("unlabelled", "unsupervised_loss", given.unlabelled.valid),
    ):
        q, p = said(state.teacher["student"], images[part])[asked], said(other["student"], strong[part])[asked]
        counts = (p.argmax(-1) != 0) * q.max(-1) ** 2
        error = np.where(q.max(-1) > 0.5, -np.log(picked(p, q.argmax(-1))), 0)
        assert 0 < np.mean(p.argmax(-1) == 0) < 1 > np.mean(q.max(-1) > 0.5) > 0
        np.testing.assert_allclose(terms[name].mean.value(), (counts * error).sum() / counts.sum(), rtol=1e-4)
    assert [float(terms[name].weight) for name in ("labelled_consistency_loss", "unsupervised_loss")] == [0.5, 1]
    p, label = said(other["student"], images["labelled"])[known], given.labelled.label[known]
    np.testing.assert_allclose(terms["supervised_loss"].mean.value(), -np.log(picked(p, label)).mean(), rtol=1e-4)
    v = [picked(p, label)[label == c].mean() for c in range(3)]
    np.testing.assert_allclose(aux.memory[BANK], 0.9 * np.array([1, 0, 0]) + 0.1 * np.array(v), rtol=1e-5)
    np.testing.assert_allclose(aux.metrics[BANK].value(), 1 / 3, rtol=1e-6)  # before the step
    np.testing.assert_array_equal(aux.metrics[f"{BANK}_lowest"].value(), 0)


def test_neither_the_teacher_nor_the_bank_has_a_gradient(make_toy_network):
    method, given = ael(make_toy_network(), paste=1.0, cutmix=1.0), jax.tree.map(jnp.asarray, batch())
    state = started(method, np.array([0.2, 0.5, 0.8], np.float32))

    def value(params, teacher, bank):
        seen = state._replace(teacher=teacher, memory={BANK: bank})
        terms, aux = method.loss(params, seen, given, jax.random.key(0))
        return {name: term.mean.value() for name, term in terms.items()}, jnp.sum(aux.memory[BANK])

    values, bank = jax.jit(jax.jacrev(value, argnums=(0, 1, 2)))(state.params, state.teacher, state.memory[BANK])
    assert set(values) == {"supervised_loss", "unsupervised_loss", "labelled_consistency_loss"}
    for student, *constants in values.values():
        assert any(np.any(leaf) for leaf in jax.tree.leaves(student))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(constants))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(bank))


def test_the_teacher_labels_pasted_rows_and_unmixed_ones(make_toy_network):
    """Its word lies where the student sees what it was said of, on images in other colours."""
    method = ael(make_toy_network(normalise=False), paste=1.0, cutmix=1.0)
    state, given = started(method), jax.tree.map(jnp.asarray, batch())
    image, views, of_truth, _ = jax.jit(method.views)(state, given.labelled, given.unlabelled, jax.random.key(1))
    plain = np.stack([given.labelled.image, given.unlabelled.image], axis=1).reshape(image.shape) / np.float32(255)
    assert np.any(views.image[::2] != plain[::2])
    assert np.any(views.image[1::2] != plain[1::2])
    np.testing.assert_allclose(image[1::2], np.clip(views.image[1::2] + 0.25, 0, 1), rtol=1e-6)
    q = said(state.teacher["student"], np.asarray(views.image))
    named, asked = np.asarray(of_truth.label) != IGNORE, np.asarray(views.valid & ~views.is_ground_truth)
    np.testing.assert_array_equal(named, views.is_ground_truth & (views.label != IGNORE))
    np.testing.assert_array_equal(of_truth.label[named], q.argmax(-1)[named])
    np.testing.assert_allclose(of_truth.confidence[named], q.max(-1)[named], rtol=1e-4)
    np.testing.assert_array_equal(views.label[asked], q.argmax(-1)[asked])
    assert not of_truth.is_ground_truth.any()
    assert np.any(views.label[named] != of_truth.label[named])  # the truth stays


def test_partial_labels_are_completed_and_boxes_mix_the_rows(make_toy_network):
    """Half of the pixels have a label; C is of both halves, and there are no other rows."""
    method = ael(make_toy_network(normalise=False), cutmix=1.0, partial_labels=True, threshold=0.0)
    given = batch().labelled
    label = np.where(np.arange(SHAPE[2]) % 2 == 0, given.label, UNLABELLED)
    part = jax.tree.map(jnp.asarray, given._replace(label=np.where(given.valid, label, IGNORE).astype(np.int32)))
    state = started(method)
    image, views, _, _ = jax.jit(method.views)(state, part, None, jax.random.key(1))
    plain = given.image / np.float32(255)
    moved = np.any(image != plain, axis=-1)
    assert 0 < moved.mean() < 1
    q, asked = said(state.teacher["student"], np.asarray(image)), np.asarray(views.valid & ~views.is_ground_truth)
    np.testing.assert_array_equal(views.label[asked], q.argmax(-1)[asked])
    terms, _ = loss(method, state, Batch(part))
    for name in ("unsupervised_loss", "labelled_consistency_loss"):
        assert float(terms[name].mean.number) > 0


def test_a_teacher_that_labels_in_train_mode_keeps_the_statistics_of_that_pass(make_toy_network):
    """The mean of what it saw, the images as they are; in inference mode they come from the student's views."""
    for mode in ("train", "inference"):
        method = ael(make_toy_network(), label_mode=mode, bn_mode="own")
        state, given = started(method), batch()
        _, aux = loss(method, state, given)
        strong = np.clip(given.unlabelled.image / 255.0 + 0.25, 0, 1)
        seen = given.labelled.image / 255.0, given.unlabelled.image / 255.0 if mode == "train" else strong
        mean = (np.concatenate(seen) @ np.asarray(state.params["student"]["encoder"]["w"])).mean((0, 1, 2))
        np.testing.assert_allclose(aux.teacher_stats["student"]["encoder"]["mean"], 0.1 * mean, rtol=1e-4)


def test_the_bank_may_start_with_noise(make_toy_network):
    network = make_toy_network()
    np.testing.assert_array_equal(started(ael(network)).memory[BANK], 0)
    noise = np.asarray(started(ael(network, bank_start="noise")).memory[BANK])
    assert len(set(noise)) == 3
    assert ((noise > 0) & (noise < 1)).all()


def test_the_background_is_never_pasted_and_classes_must_exist():
    method = build.build_method(load_config("configs/shapes.py:ael", {"method.ael.not_pasted": (2,)}), LABELS)
    assert isinstance(method, Ael)
    assert method.copy_paste.left_out == (2, 0)
    for wrong, message in (((3,), "from 0 to 2"), ((-1,), "whole numbers from 0 on"), (("disc",), "whole numbers")):
        with pytest.raises(OptionError, match=message):
            build.build_method(load_config("configs/shapes.py:ael", {"method.ael.not_pasted": wrong}), LABELS)


def test_one_class_alone_trains(make_toy_network):
    """It is the background: nothing is pasted, and the class that there is has the rate 1."""
    network, given = make_toy_network((HeadSpec("segmentation", 1),)), batch()
    method = ael(network, paste=1.0, cutmix=1.0, classes=1)
    label = np.where(given.labelled.label == IGNORE, IGNORE, 0)
    terms, aux = loss(method, started(method), given._replace(labelled=given.labelled._replace(label=label)))
    assert {name: float(term.mean.value()) for name, term in terms.items()} == dict.fromkeys(terms, 0)
    assert float(aux.metrics["sampled"].value()) == 1
    np.testing.assert_allclose(aux.memory[BANK], 0.001, rtol=1e-5)


def test_without_a_labelled_pixel_the_bank_stays(make_toy_network):
    method, given = ael(make_toy_network(), paste=1.0, cutmix=1.0), batch()
    label = np.full(SHAPE, IGNORE, np.int32)
    bank = np.array([0.2, 0.5, 0.8], np.float32)
    terms, aux = loss(method, started(method, bank), given._replace(labelled=given.labelled._replace(label=label)))
    assert float(terms["labelled_consistency_loss"].mean.value()) == 0
    assert float(terms["unsupervised_loss"].mean.value()) > 0
    np.testing.assert_array_equal(aux.memory[BANK], bank)
