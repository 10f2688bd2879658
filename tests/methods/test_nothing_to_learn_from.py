"""Every method with every task on crops in which nothing is labelled, or nothing is sure: terms of 0, finite gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Unlabelled
from forec_jax.methods import (
    Auxiliary,
    ForegroundReconstruction,
    ForegroundSegmentation,
    MeanTeacher,
    PsMt,
    RegionalContrast,
    S4Gan,
    Supervised,
)
from forec_jax.methods.adv_semseg import AdvSemSeg
from forec_jax.methods.ecs import Ecs
from forec_jax.methods.gct import Gct
from forec_jax.methods.parts.tags import tags_head
from forec_jax.methods.pseudoseg import PseudoSeg
from forec_jax.methods.vat import Vat
from forec_jax.models import attention_network, dense_critic, discriminator_network
from forec_jax.training import first_state, objective, with_own_optimizers

CLASSES, SIZE = 3, 16
RECO = RegionalContrast(CLASSES, channels=4, queries=4, negative_keys=4, pixel_threshold=0.0)
TASKS = (
    ForegroundReconstruction((0,), threshold=1.0),
    ForegroundSegmentation((0,), threshold=1.0),
    RegionalContrast(CLASSES, channels=4, queries=4, negative_keys=4, pixel_threshold=1.0),
)


def same_colour(key, image, valid):
    return image


def make_batch(label, unlabelled=True):
    """Rows all of whose pixels have one label."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 2, SIZE, SIZE, 3), dtype=np.uint8)
    valid, none = np.ones((2, SIZE, SIZE), bool), np.zeros(2, np.int32)
    labelled = Labelled(image[0], np.full(valid.shape, label, np.int32), valid, none)
    return jax.tree.map(jnp.asarray, Batch(labelled, Unlabelled(image[1], valid, none) if unlabelled else None))


def heads(tasks):
    return HeadSpec("segmentation", CLASSES), *(task.head for task in tasks)


@functools.cache
def with_tasks(make_toy_network, name, tasks=TASKS):
    """A method beside `tasks`; no pseudo-label is sure enough."""
    more = (tags_head((1, 2)),) if name == "pseudoseg" else ()
    network = make_toy_network((*heads(tasks), *more))
    auxiliary = tuple(Auxiliary(1.0, task) for task in tasks)
    match name:
        case "supervised":
            return Supervised(network, same_colour, NoMixing(), auxiliary)
        case "mean_teacher":
            return MeanTeacher(network, same_colour, NoMixing(), auxiliary, threshold=1.0)
        case "ps_mt":
            return PsMt(network, same_colour, NoMixing(), auxiliary, threshold=1.0, warmup=0, epoch=2)
        case "s4gan" | "s4gan, partial labels":
            critic = discriminator_network(CLASSES, channels=2, dropout=0.0)
            partial = name != "s4gan"
            return S4Gan(
                network,
                same_colour,
                NoMixing(),
                auxiliary,
                discriminator=critic,
                threshold=1.0,
                normaliser="kept",
                partial_labels=partial,
            )
        case "vat":
            return Vat(network, same_colour, NoMixing(), auxiliary, threshold=1.0, normaliser="batch")
        case "adv_semseg":
            critic = dense_critic(CLASSES, ((2, 2), (1, 1)))
            return AdvSemSeg(network, same_colour, NoMixing(), auxiliary, discriminator=critic, threshold=1.0)
        case "gct":
            critic = dense_critic(3 + CLASSES, ((2, 2), (1, 1)), normalise=True)
            return Gct(network, same_colour, NoMixing(), auxiliary, flaw_detector=critic, threshold=1.0)
        case "ecs":
            critic = dense_critic(3 + CLASSES, ((2, 2), (CLASSES + 1, 1)), normalise=True)
            return Ecs(network, same_colour, NoMixing(), auxiliary, corrector=critic, threshold=1.0)
        case "pseudoseg":
            attention = attention_network(4, 2, CLASSES, channels=2)
            return PseudoSeg(
                network, same_colour, NoMixing(), auxiliary, attention=attention, foreground=(1, 2), threshold=1.0
            )
    raise AssertionError(name)


def start_of(method):
    own = {"discriminator": optax.sgd(0.1)} if "discriminator" in method.networks else {}
    return first_state(method, with_own_optimizers(optax.sgd(0.1), own), seed=0)


@functools.partial(jax.jit, static_argnums=0)
def gradients(method, state, batch):
    def loss(params):
        terms, _ = method.loss(params, state, batch, jax.random.key(0))
        return objective(terms), terms

    return jax.grad(loss, has_aux=True)(state.params)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("supervised", UNLABELLED),
        ("mean_teacher", UNLABELLED),
        ("mean_teacher", IGNORE),
        ("ps_mt", UNLABELLED),
        pytest.param("s4gan", IGNORE, marks=pytest.mark.slow),
        pytest.param("s4gan, partial labels", UNLABELLED, marks=pytest.mark.slow),
        pytest.param("vat", IGNORE, marks=pytest.mark.slow),
        pytest.param("adv_semseg", IGNORE, marks=pytest.mark.slow),
        ("gct", IGNORE),
        pytest.param("ecs", IGNORE, marks=pytest.mark.slow),
        pytest.param("pseudoseg", IGNORE, marks=pytest.mark.slow),
    ],
)
def test_terms_are_zero_and_gradients_finite(make_toy_network, name, label):
    method = with_tasks(make_toy_network, name)
    gradient, terms = gradients(method, start_of(method), make_batch(label, unlabelled=name != "supervised"))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for term in ("supervised_loss", "reco_loss", "foreground_labelled_loss", "reconstruction_labelled_loss"):
        assert float(terms[term].mean.value()) == 0, term


@pytest.mark.parametrize("name", ["mean_teacher", "ps_mt", pytest.param("s4gan", marks=pytest.mark.slow)])
def test_regional_contrast_on_each_method_teaches_the_student_alone(make_toy_network, name):
    method = with_tasks(make_toy_network, name, (RECO,))
    batch = make_batch(0)
    label = jnp.broadcast_to(jnp.arange(SIZE) * CLASSES // SIZE, batch.labelled.label.shape)
    batch = batch._replace(labelled=batch.labelled._replace(label=label))
    state = start_of(method)

    def contrast(params, state, batch):
        return method.loss(params, state, batch, jax.random.key(0))[0]["reco_loss"].mean.value()

    value, gradient = jax.jit(jax.value_and_grad(contrast))(state.params, state, batch)
    assert 0 < float(value) < np.inf
    assert float(jnp.abs(gradient["student"]["encoder"]["w"]).max()) > 0
    assert (np.asarray(gradient["student"]["segmentation"]["w"]) == 0).all()
    for leaf in jax.tree.leaves(gradient.get("discriminator", {})):
        np.testing.assert_array_equal(leaf, 0)
