"""UniMatch, V1 and V2: dropout of channels, who sees what, and what the terms weigh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import Batch, Labelled, Unlabelled
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods.parts.dropout import channel_dropout, complementary_dropout
from forec_jax.methods.parts.views import unchanged
from forec_jax.methods.unimatch import UniMatch
from forec_jax.methods.unimatch_v2 import UniMatchV2
from forec_jax.options import OptionError
from forec_jax.training import first_state


def test_views_of_a_pair_keep_each_others_dropped_channels():
    features = {"low": jnp.ones((10, 2, 3, 64)), "high": jnp.ones((10, 1, 1, 64))}
    found = complementary_dropout(jax.random.key(0), features)
    low = np.asarray(found["low"])
    np.testing.assert_array_equal(low, np.broadcast_to(low[:, :1, :1], low.shape))  # whole channels
    np.testing.assert_array_equal(low[:, 0, 0], found["high"][:, 0, 0])  # the same in every map
    one, other = low[0::2, 0, 0], low[1::2, 0, 0]
    np.testing.assert_array_equal(one + other, np.full((5, 64), 2.0))
    untouched = np.all(one == 1, axis=1)
    assert untouched.sum() == 2  # half of five pairs, rounded down
    assert set(np.unique(one[~untouched])) == {0.0, 2.0}
    assert 0.3 < np.mean(one[~untouched] == 2) < 0.7


def test_dropped_channels_are_zero_and_the_others_made_up_for():
    dropped = np.asarray(channel_dropout(jax.random.key(0), (jnp.ones((4, 2, 2, 256)),) * 2, 0.25)[0])
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1, :1], dropped.shape))
    np.testing.assert_allclose(np.unique(dropped), [0.0, 4 / 3], rtol=1e-6)
    assert abs(np.mean(dropped == 0) - 0.25) < 0.05


def batch():
    rng = np.random.default_rng(0)
    shape, none = (2, 6, 6), np.zeros(2, np.int32)
    images = rng.integers(0, 200, (2, *shape, 3), dtype=np.uint8)
    label, valid = rng.integers(0, 3, shape).astype(np.int32), np.ones(shape, bool)
    return Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none))


def cross_entropy(logits, label):
    p = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)))
    return -np.take_along_axis(p, np.asarray(label)[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("kind", [UniMatch, UniMatchV2])
def test_the_student_sees_strong_views_and_says_what_the_weak_view_shows(kind, witness):
    method = kind(witness.network, witness.colour, NoMixing(), colour_labelled=False, dropout=0.0)
    given = batch()
    witness.watch(method, given)
    labelled, weak = given.labelled, given.unlabelled
    if kind is UniMatchV2:
        (teacher,), (student, strong) = witness.teacher, witness.student
        np.testing.assert_allclose(teacher, witness.weak(weak), atol=1e-6)
        np.testing.assert_allclose(student, witness.weak(labelled), atol=1e-6)
    else:
        first, strong = witness.student
        np.testing.assert_allclose(first, np.concatenate([witness.weak(labelled), witness.weak(weak)]), atol=1e-6)
        assert not witness.teacher  # the student labels in the pass that it learns from
    np.testing.assert_allclose(strong, np.repeat(witness.strong(weak), 2, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        (UniMatch, {"unsupervised1_loss": 0.125, "unsupervised2_loss": 0.125, "perturbed_loss": 0.25}),
        (UniMatchV2, {"unsupervised1_loss": 0.25, "unsupervised2_loss": 0.25}),
    ],
)
def test_terms_and_weights_are_the_published_ones(kind, weights, make_toy_network):
    """Without colours, boxes, dropout and normalisation all views are one, and each L is the cross-entropy of it."""
    method = kind(
        make_toy_network(normalise=False),
        unchanged,
        NoMixing(),
        dropout=0.0,
        threshold=0.4,
        supervised_weight=0.5,
        unsupervised_weight=0.5,
    )
    given, state = batch(), first_state(method, optax.sgd(0.1), seed=0)
    terms, _ = method.loss(state.params, state, given, jax.random.key(0))
    network, variables = method.network, state.teacher["student"]
    image = jnp.asarray(given.unlabelled.image, jnp.float32) / 255
    features, _ = network.encode(variables, image, train=False, rng=None)
    logits = network.decode(variables, "segmentation", features, train=False, rng=None)[0].output
    p = np.asarray(jax.nn.softmax(logits))
    error = np.where(p.max(-1) > 0.4, cross_entropy(logits, p.argmax(-1)), 0.0)
    assert 0 < np.mean(p.max(-1) > 0.4) < 1
    for name, weight in weights.items():
        np.testing.assert_allclose(terms[name].weight, weight)
        np.testing.assert_allclose(terms[name].mean.value(), error.mean(), rtol=1e-5)
    assert terms["supervised_loss"].weight == 0.5
    assert set(terms) == {*weights, "supervised_loss"}


def test_dropped_channels_change_what_the_segmentation_says(make_toy_network):
    found = []
    for dropout in (0.0, 1.0):
        method = UniMatchV2(make_toy_network(), unchanged, NoMixing(), threshold=0.0, dropout=dropout)
        state = first_state(method, optax.sgd(0.1), seed=0)
        terms, _ = method.loss(state.params, state, batch(), jax.random.key(0))
        found.append({name: float(term.mean.value()) for name, term in terms.items()})
    assert found[0]["supervised_loss"] == found[1]["supervised_loss"]
    assert found[0]["unsupervised1_loss"] != found[1]["unsupervised1_loss"]


@pytest.mark.parametrize("name", ["unimatch", "unimatch_v2"])
def test_partial_labels_are_refused_with_what_to_take(name):
    c = load_config(f"configs/shapes.py:{name}", {"data.partial": "1px"})
    with pytest.raises(OptionError, match=r"take .*mean_teacher"):
        build.build_method(c, Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,)))
