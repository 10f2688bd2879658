"""DMT: the dynamic weight by hand and by a NumPy oracle, and one number for both kinds of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import IGNORE, Batch, Labelled, Pseudo, TrainState, Views
from forec_jax.losses import mean_cross_entropy
from forec_jax.methods.dmt import Dmt, dynamic_weight

LOGITS = np.array([[2, 0], [0, 1], [0, 3], [1, 0]], np.float32)
LABEL, CONFIDENCE = np.array([0, 0, 0, IGNORE]), np.array([0.7, 0.9, 0.6, 0.0], np.float32)


def same_colour(key, image, valid):
    return image


def method_of(network, **options):
    return Dmt(network, same_colour, NoMixing(), threshold=0.0, **options)


def four_stored():
    """Views of the four pixels in one row of stored masks."""
    shape = (1, 1, 4)
    flags = jnp.zeros(shape, bool)
    label, confidence = jnp.asarray(LABEL).reshape(shape), jnp.asarray(CONFIDENCE).reshape(shape)
    return Views(jnp.zeros((*shape, 3)), label, confidence, flags, ~flags, jnp.array([False]))


def numpy_weight(logits, label, confidence, agreement_power, difference_power):
    """The three cases, pixel by pixel."""
    weights = []
    for scores, said, peer in zip(logits.astype(np.float64), label, confidence, strict=True):
        p = np.exp(scores) / np.exp(scores).sum()
        if p.argmax() == said:
            weights.append(p[said] ** agreement_power)
        elif p.max() > peer:
            weights.append(0.0)
        else:
            weights.append(p[said] ** difference_power)
    return np.array(weights)


def test_the_worked_example(make_toy_network):
    """Agreed; not agreed and less sure than the peer; not agreed and surer; void."""
    logits, views = jnp.asarray(LOGITS).reshape(1, 1, 4, 2), four_stored()
    weight = dynamic_weight(logits, views.label, views.confidence, 5.0, 5.0)
    np.testing.assert_allclose(weight[0, 0, :3], [0.530126, 0.001407, 0], atol=1e-6)
    terms, metrics = method_of(make_toy_network()).mask_terms(logits, views, jnp.asarray(0))
    taught = terms["unsupervised_loss"].mean
    assert taught.number == 3  # the outvoted label is one of them
    np.testing.assert_allclose(taught.value(), 0.0230452, rtol=1e-5)
    np.testing.assert_allclose(metrics["agreement"].value(), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["label_weight"].value(), (0.530126 + 0.001407) / 3, rtol=1e-5)


def test_as_sure_as_the_peer_is_not_surer():
    logits, label = jnp.asarray([[[[0.0, 3.0]]]]), jnp.zeros((1, 1, 1), int)
    sure = jax.nn.softmax(logits)[..., 1]
    for confidence, expected in ((sure, (1 - sure) ** 2), (jnp.nextafter(sure, jnp.zeros_like(sure)), 0 * sure)):
        np.testing.assert_allclose(dynamic_weight(logits, label, confidence, 5.0, 2.0), expected, rtol=1e-5)


def test_the_weight_is_that_of_the_oracle_and_has_no_gradient():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(0, 2, (500, 4)).astype(np.float32), rng.integers(0, 4, 500)
    confidence = rng.uniform(0.25, 1, 500).astype(np.float32)
    shaped = [jnp.asarray(array).reshape(5, 10, 10, *array.shape[1:]) for array in (logits, label, confidence)]
    found = dynamic_weight(*shaped, 3.0, 1.5)
    expected = numpy_weight(logits, label, confidence, 3.0, 1.5)
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-7)
    assert (expected == 0).any()
    assert (expected > 0).any()
    gradient = jax.grad(lambda logits: dynamic_weight(logits, *shaped[1:], 3.0, 1.5).sum())(shaped[0])
    assert not gradient.any()


def test_a_power_of_0_counts_every_label_but_those_that_the_student_outdoes():
    views = four_stored()
    weight = dynamic_weight(jnp.asarray(LOGITS).reshape(1, 1, 4, 2), views.label, views.confidence, 0.0, 0.0)
    np.testing.assert_array_equal(weight[0, 0, :3], [1, 1, 0])


def make_batch(side=6):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 2, side, side, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (2, 2, side, side)).astype(np.int32)
    label[0, :, 0], label[1, :, 1] = IGNORE, IGNORE
    confidence = rng.integers(90, 256, (2, side, side)).astype(np.uint8)
    valid, none = np.ones((2, side, side), bool), np.zeros(2, np.int32)
    labelled = Labelled(image[0], label[0], valid, none)
    return jax.tree.map(jnp.asarray, Batch(labelled, pseudo=Pseudo(image[1], label[1], confidence, valid, none)))


@pytest.mark.parametrize(("start", "stored"), [(0, 2 * 6 * 5), (3, 0)])
def test_true_and_stored_pixels_are_divided_by_the_number_of_both(make_toy_network, start, stored):
    method = method_of(make_toy_network(normalise=False), agreement_power=2.0, difference_power=1.0, start=start)
    params, stats, teacher, memory = method.init(jax.random.key(1))
    state, batch = TrainState(jnp.int32(2), params, stats, teacher, (), memory), make_batch()
    terms, _ = method.loss(params, state, batch, jax.random.key(0))
    p = params["student"]

    def logits_of(part):
        image = np.asarray(part.image, np.float32) / 255
        return np.tanh(image @ np.asarray(p["encoder"]["w"])) @ np.asarray(p["segmentation"]["w"])

    logits, said = logits_of(batch.pseudo).reshape(-1, 3), np.asarray(batch.pseudo.label).ravel()
    known = said != IGNORE
    error = np.log(np.exp(logits[known]).sum(-1)) - logits[known, said[known]]
    peer = np.asarray(batch.pseudo.confidence).ravel()[known] / 255
    expected = (numpy_weight(logits[known], said[known], peer, 2.0, 1.0) * error).sum()
    truth = mean_cross_entropy(logits_of(batch.labelled), batch.labelled.label, batch.labelled.label != IGNORE)
    number = 2 * 6 * 5 + stored
    assert terms["supervised_loss"].mean.number == terms["unsupervised_loss"].mean.number == number
    np.testing.assert_allclose(terms["supervised_loss"].mean.total, truth.total, rtol=1e-5)
    if stored:
        np.testing.assert_allclose(terms["unsupervised_loss"].mean.total, expected, rtol=1e-5)
        assert terms["unsupervised_loss"].weight == terms["supervised_loss"].weight == 1
    else:
        assert terms["unsupervised_loss"].weight == terms["unsupervised_loss"].mean.total == 0


def test_it_says_which_part_of_the_batch_it_misses(make_toy_network):
    method = method_of(make_toy_network())
    params, stats, teacher, memory = method.init(jax.random.key(0))
    state = TrainState(jnp.int32(0), params, stats, teacher, (), memory)
    with pytest.raises(ValueError, match=r"set batch\.labelled and batch\.pseudo above 0"):
        method.loss(params, state, make_batch()._replace(pseudo=None), jax.random.key(0))
