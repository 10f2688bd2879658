import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.augment import NoMixing
from forec_jax.config import apply_variant, defaults
from forec_jax.contracts import Batch, Labelled, TrainState, Unlabelled
from forec_jax.data import Labels
from forec_jax.experiment import build
from forec_jax.methods.fixmatch import FixMatch

SIDE = 6


def batch():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 2, SIDE, SIDE, 3), dtype=np.uint8)
    label = jnp.asarray(rng.integers(0, 3, (2, SIDE, SIDE)), jnp.int32)
    valid, none = jnp.ones((2, SIDE, SIDE), bool), jnp.zeros(2, jnp.int32)
    return Batch(Labelled(jnp.asarray(image[0]), label, valid, none), Unlabelled(jnp.asarray(image[1]), valid, none))


def brighter(key, image, valid):
    return jnp.clip(image + 0.25, 0.0, 1.0)


def test_the_students_own_labels_of_the_weak_view_are_what_it_learns_under_the_strong_one(make_toy_network):
    """By hand: cross-entropy of the strong view against the argmax of the weak one, where that is above the threshold."""
    network = make_toy_network(normalise=False)
    method = FixMatch(network, brighter, NoMixing(), threshold=0.4, supervised_weight=0.0)
    params, stats, teacher, memory = method.init(jax.random.key(1))
    other = jax.tree.map(lambda leaf: leaf + 1.0, teacher)  # a teacher that says something else, and is not asked
    state = TrainState(jnp.int32(0), params, stats, other, (), memory)
    terms, aux = method.loss(params, state, batch(), jax.random.key(0))

    def logits(image):
        p = params["student"]
        return np.tanh(np.asarray(image) @ np.asarray(p["encoder"]["w"])) @ np.asarray(p["segmentation"]["w"])

    weak = np.asarray(batch().unlabelled.image, np.float32) / 255
    exp = np.exp(logits(weak))
    probabilities = exp / exp.sum(-1, keepdims=True)
    label, kept = probabilities.argmax(-1), probabilities.max(-1) > 0.4
    strong = logits(np.clip(weak + 0.25, 0, 1))
    error = np.log(np.exp(strong).sum(-1)) - np.take_along_axis(strong, label[..., None], -1)[..., 0]
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(terms["unsupervised_loss"].mean.value(), (error * kept).sum() / kept.size, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["kept"].value(), kept.mean(), rtol=1e-6)


def test_the_labels_carry_no_gradient(make_toy_network):
    method = FixMatch(
        make_toy_network(normalise=False), lambda key, image, valid: image * 0.0, NoMixing(), threshold=0.0
    )
    params, stats, teacher, memory = method.init(jax.random.key(1))
    state = TrainState(jnp.int32(0), params, stats, teacher, (), memory)

    def loss(params):
        terms, _ = method.loss(params, state, batch(), jax.random.key(0))
        return terms["unsupervised_loss"].mean.value()

    gradient = jax.grad(loss)(params)["student"]["encoder"]["w"]
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))  # the student sees black, its labels do not


def test_the_variant_is_unimatchs_baseline():
    c = defaults()
    c.data.name, c.model.encoder, c.model.resnet.width = "shapes", "resnet18", 0.125
    apply_variant(c, "fixmatch+forec")
    method = build.build_method(c, Labels(("background", "a"), ((0, 0, 0), (1, 1, 1)), (0,)))
    assert isinstance(method, FixMatch)
    assert (method.threshold, method.supervised_weight, method.unsupervised_weight) == (0.95, 0.5, 0.5)
    assert (method.mixing.probability, isinstance(method.labelled_mixing, NoMixing)) == (0.5, True)
    assert len(method.auxiliary) == 1
