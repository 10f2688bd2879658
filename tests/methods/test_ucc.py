"""UCC: the worked example, an oracle of the whole loss, and that no term of a head reaches the other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import ClassMix, CopyPaste, NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, Batch, HeadOutput, HeadSpec, Labelled, Unlabelled, Variables
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.losses import weighted_cross_entropy
from forec_jax.methods.parts.class_bank import BANK
from forec_jax.methods.ucc import HEADS, SECOND, Ucc
from forec_jax.options import OptionError
from forec_jax.training import first_state

SEGMENTATION, _ = HEADS
HEAD_SPECS = tuple(HeadSpec(name, 3) for name in HEADS)
LABELS = Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,))
TX = optax.sgd(0.1)
KEY = jax.random.key(0)


def brighter(key, image, valid):
    return jnp.clip(image + 0.25, 0, 1)


def batch(shape=(2, 4, 5)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    label = rng.integers(0, 3, shape).astype(np.int32)
    valid, none = np.ones(shape, bool), np.zeros(shape[0], np.int32)
    valid[..., -1] = False
    label[~valid] = IGNORE
    return Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none))


@functools.partial(jax.jit, static_argnums=0)
def terms_of(method, params, state, given):
    terms, _ = method.loss(params, state, jax.tree.map(jnp.asarray, given), jax.random.key(0))
    return {name: term.mean for name, term in terms.items()}


@pytest.mark.parametrize(("by_confidence", "expected"), [(False, 0.712667), (True, 0.612940)])
def test_the_worked_example(make_toy_network, by_confidence, expected):
    """V = .067131, .462117; w = .935073, .629949; the cross-entropies are 1.313262, .313262."""
    method = Ucc(make_toy_network(HEAD_SPECS), brighter, NoMixing(), by_confidence=by_confidence)
    weak = {SEGMENTATION: jnp.array([[[[2.0, 0], [1, 0]]]]), SECOND: jnp.array([[[[1.0, 0], [0, 1]]]])}
    weight = method.pixel_weight(SEGMENTATION, weak, {})
    if not by_confidence:
        np.testing.assert_allclose(weight[0, 0], [0.935073, 0.629949], rtol=1e-5)
    strong = jnp.array([[[[0.0, 1], [1, 0]]]])
    errors = weighted_cross_entropy(strong, jnp.zeros((1, 1, 2), jnp.int32), weight)
    np.testing.assert_allclose(jnp.mean(errors), expected, rtol=1e-5)


def said(state, image, head):
    """Logits of a toy network's head by NumPy."""
    p = state.params["student"]
    return np.tanh(image @ np.asarray(p["encoder"]["w"], np.float64)) @ np.asarray(p[head]["w"], np.float64)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def picked(p, label):
    return np.take_along_axis(p, label[..., None], -1)[..., 0]


@pytest.mark.parametrize("uncertainty", ["heads", "views", "none"])
def test_the_loss_equals_a_numpy_oracle(make_toy_network, uncertainty):
    network = make_toy_network(HEAD_SPECS, normalise=False)
    method = Ucc(
        network,
        brighter,
        NoMixing(),
        colour_labelled=False,
        threshold=0.0,
        uncertainty=uncertainty,
        by_confidence=False,
    )
    state, given = first_state(method, TX, seed=0), batch()
    terms = terms_of(method, state.params, state, given)
    weak_image = given.unlabelled.image / 255.0
    weak, strong = (
        {head: said(state, image, head) for head in HEADS} for image in (weak_image, np.clip(weak_image + 0.25, 0, 1))
    )
    valid, known = given.unlabelled.valid, given.labelled.label != IGNORE
    assert np.mean(weak[HEADS[0]].argmax(-1) != weak[HEADS[1]].argmax(-1)) > 0.5  # so that it shows who labels whom
    for head, labeller, prefix in ((SEGMENTATION, SECOND, ""), (SECOND, SEGMENTATION, "segmentation_2_")):
        p = softmax(weak[labeller])
        other = {"heads": softmax(weak[head]), "views": softmax(strong[labeller]), "none": p}[uncertainty]
        weight = np.exp(-np.sum(p * np.log(p / other), axis=-1))
        label = weak[labeller].argmax(-1)
        error = -np.log(picked(softmax(strong[head]), label))
        np.testing.assert_allclose(
            terms[f"{prefix}unsupervised_loss"].value(), (weight * error)[valid].mean(), rtol=1e-4
        )
        truth = softmax(said(state, given.labelled.image / 255.0, head))[known]
        wanted = -np.log(np.take_along_axis(truth, given.labelled.label[known][:, None], -1)).mean()
        np.testing.assert_allclose(terms[f"{prefix}supervised_loss"].value(), wanted, rtol=1e-4)


def test_no_term_of_a_head_reaches_the_other(make_toy_network):
    method = Ucc(make_toy_network(HEAD_SPECS), brighter, ClassMix(3), threshold=0.0, uncertainty="views")
    state = first_state(method, TX, seed=0)
    values = jax.jacrev(lambda params: {k: m.value() for k, m in terms_of(method, params, state, batch()).items()})
    for name, gradient in values(state.params).items():
        own, other = (SECOND, SEGMENTATION) if name.startswith(SECOND) else (SEGMENTATION, SECOND)
        assert np.any(gradient["student"][own]["w"])
        np.testing.assert_array_equal(gradient["student"][other]["w"], 0)


def test_both_heads_labels_and_logits_are_mixed_as_the_images_are(make_toy_network):
    network = make_toy_network(HEAD_SPECS, normalise=False)
    method = Ucc(network, lambda key, image, valid: image, ClassMix(3), threshold=0.0)
    state, given = first_state(method, TX, seed=0), batch()
    student = Variables(state.params["student"], state.batch_stats["student"])
    parts = jax.tree.map(jnp.asarray, given)
    image, views, words = method.views(student, parts.labelled, parts.unlabelled, {}, jax.random.key(1))
    rows, valid = np.asarray(image)[1::2], np.asarray(views[SEGMENTATION].valid)[1::2]
    assert np.any(rows != given.unlabelled.image / np.float32(255))
    for head in HEADS:
        logits = said(state, rows, head)
        np.testing.assert_allclose(np.asarray(words.logits[head])[1::2][valid], logits[valid], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(views[head].label)[1::2][valid], logits.argmax(-1)[valid])
        np.testing.assert_array_equal(np.asarray(views[head].label)[0::2], given.labelled.label)


def pasting(network, share):
    """The method, which pastes class 2 where it is into every row, from labelled rows or not; and a state."""
    paste = CopyPaste(probability=1.0, scale=(1.0, 1.0), left_out=(0, 1))
    method = Ucc(network, brighter, NoMixing(), colour_labelled=False, threshold=0.0, copy_paste=paste)
    method = dataclasses.replace(method, paste_labelled=share, bank_decay=0.9)
    state = first_state(method, TX, seed=0)
    return method, state._replace(memory={BANK: jnp.array([0.2, 0.4, 0.6])})


def seen(method, state, given):
    student = Variables(state.params["student"], state.batch_stats["student"])
    parts = jax.tree.map(jnp.asarray, given)
    found = jax.jit(method.views)(student, parts.labelled, parts.unlabelled, state.memory, jax.random.split(KEY, 3)[0])
    return jax.tree.map(np.asarray, found)


def test_masks_classes_are_pasted_into_unlabelled_rows_with_their_labels(make_toy_network):
    """A row pasted from is mirrored or not. Nothing is unsure of a mask, and the pixel is still an unlabelled row's."""
    method, state = pasting(make_toy_network(HEAD_SPECS, normalise=False), 1.0)
    given = batch()
    image, views, words = seen(method, state, given)
    rows, known = image[1::2], words.known[1::2]
    for i, (plain, label) in enumerate(zip(given.labelled.image / np.float32(255), given.labelled.label, strict=True)):
        turned = [
            side for side in (slice(None), slice(None, None, -1)) if np.array_equal(known[i], label[:, side] == 2)
        ]
        assert len(turned) == 1
        assert known[i].any()
        np.testing.assert_allclose(rows[i][known[i]], np.clip(plain[:, turned[0]] + 0.25, 0, 1)[known[i]], rtol=1e-6)
        own = np.clip(given.unlabelled.image[i] / np.float32(255) + 0.25, 0, 1)
        np.testing.assert_allclose(rows[i][~known[i]], own[~known[i]], rtol=1e-6)
    for head in HEADS:
        np.testing.assert_array_equal(views[head].label[1::2][known], 2)
        np.testing.assert_array_equal(views[head].confidence[1::2][known], 1)
        assert not views[head].is_ground_truth[1::2].any()


def test_a_pasted_masks_pixel_counts_whole_and_the_bank_learns_from_masks_alone(make_toy_network):
    method, state = pasting(make_toy_network(HEAD_SPECS, normalise=False), 1.0)
    given = batch()
    image, views, words = seen(method, state, given)
    terms, aux = jax.jit(method.loss)(state.params, state, jax.tree.map(jnp.asarray, given), KEY)
    p, q = (softmax(words.logits[head][1::2].astype(np.float64)) for head in HEADS)
    unsure = np.exp(-np.sum(q * np.log(q / p), axis=-1)) * q.max(-1)
    weight, valid = np.where(words.known[1::2], 1, unsure), views[SECOND].valid[1::2]
    error = -np.log(picked(softmax(said(state, image[1::2], SEGMENTATION)), views[SECOND].label[1::2] % IGNORE))
    np.testing.assert_allclose(terms["unsupervised_loss"].mean.value(), (weight * error)[valid].mean(), rtol=1e-4)
    label = given.labelled.label
    p = softmax(said(state, given.labelled.image / 255.0, SEGMENTATION))
    of_truth = [p[label == k][:, k].mean() for k in range(3)]
    np.testing.assert_allclose(aux.memory[BANK], [0.18, 0.36, 0.54] + 0.1 * np.array(of_truth), rtol=1e-5)
    np.testing.assert_allclose(aux.metrics[BANK].value(), 0.4, rtol=1e-6)


def test_pasted_from_an_unlabelled_row_both_heads_words_come_along(make_toy_network):
    method, state = pasting(make_toy_network(HEAD_SPECS, normalise=False), 0.0)
    given = batch()
    _, views, words = seen(method, state, given)
    clean, valid = views[SEGMENTATION].image[1::2], views[SEGMENTATION].valid[1::2]
    moved = np.any(np.abs(clean - given.unlabelled.image / np.float32(255)) > 1e-4, axis=-1)
    assert 0 < moved.mean() < 1
    np.testing.assert_array_equal(views[SEGMENTATION].label[1::2][moved], 2)
    assert not words.known[1::2].any()
    for head in HEADS:
        logits = said(state, clean, head)
        np.testing.assert_allclose(words.logits[head][1::2][valid], logits[valid], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(views[head].label[1::2][valid], logits.argmax(-1)[valid])


def test_the_variant_pastes_all_but_the_background_and_without_a_paste_nothing_is_remembered():
    def built(**options):
        return build.build_method(
            load_config("configs/shapes.py:ucc", {f"method.ucc.{k}": v for k, v in options.items()}), LABELS
        )

    assert built(paste_classes=3).copy_paste == CopyPaste(3, 0.5, (1.0, 1.0), (0,))
    assert set(built().first_memory()) == {BANK}
    assert built().first_memory()[BANK].shape == (2,)
    assert built(paste_probability=0.0).first_memory() == {}


def test_the_mean_of_both_heads_predicts_where_asked(make_toy_network):
    network = make_toy_network(HEAD_SPECS, normalise=False)
    methods = {name: Ucc(network, brighter, NoMixing(), prediction=name) for name in ("first", "mean")}
    state, image = first_state(methods["mean"], TX, seed=0), batch().labelled.image / np.float32(255)
    assert set(state.teacher["student"].params) == {"encoder", *HEADS}
    first, second = (said(state, image, head) for head in HEADS)
    for name, logits in (("first", first), ("mean", (first + second) / 2)):
        np.testing.assert_allclose(methods[name].predict(state.teacher, image, None), softmax(logits), rtol=1e-4)


def test_partial_labels_are_refused():
    c = load_config("configs/shapes.py:partial_5pc+ucc", {})
    with pytest.raises(OptionError, match="Ucc has two heads that label the weak views"):
        build.build_method(c, LABELS)


def test_a_head_output_is_what_the_views_are_compared_with(make_toy_network):
    """With the same logits of both views nothing is unsure."""
    method = Ucc(make_toy_network(HEAD_SPECS), brighter, NoMixing(), uncertainty="views", by_confidence=False)
    logits = jnp.array([[[[2.0, 0], [1, 0]]]])
    weight = method.pixel_weight(SECOND, {SEGMENTATION: -logits, SECOND: logits}, {SECOND: HeadOutput(logits, logits)})
    np.testing.assert_allclose(weight, 1, rtol=1e-6)
