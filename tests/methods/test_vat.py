import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import HeadSpec
from forec_jax.methods.parts import vat
from forec_jax.methods.parts.vat import adversarial_perturbation, published_perturbation, random_like, unit_rows
from forec_jax.models import DeepLabOptions, deeplab_network

KEY = jax.random.key(4)


@functools.partial(jax.jit, static_argnums=0)
def perturb(decode, features, valid, epsilon):
    return adversarial_perturbation(decode, features, valid, epsilon, KEY)


@jax.jit
def random_steps(features, epsilon, seeds):
    """A random tree of length epsilon a seed, stacked."""
    return jax.vmap(lambda s: jax.tree.map(lambda d: epsilon * d, unit_rows(random_like(jax.random.key(s), features))))(
        seeds
    )


def length(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2, axis=tuple(range(1, x.ndim))) for x in tree))


def divergence(p_logits, q_logits):
    p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return np.asarray(jnp.sum(jnp.exp(p) * (p - q), axis=(1, 2, 3)))


@pytest.fixture(scope="module")
def linear():
    """Two leaves that a linear decoder joins: 2 rows of 3x3 pixels, 4 + 5 channels, 3 classes."""
    rng = np.random.default_rng(0)
    features = tuple(jnp.asarray(rng.normal(size=(2, 3, 3, c)), jnp.float32) for c in (4, 5))
    w = tuple(jnp.asarray(rng.normal(size=(c, 3)), jnp.float32) for c in (4, 5))
    return features, w, lambda f: f[0] @ w[0] + f[1] @ w[1]


def test_it_is_the_hessian_of_the_divergence_times_the_draw(linear):
    """In NumPy, pixel by pixel: H d = W (diag(p) - pp') W' d, scaled to the length epsilon."""
    features, w, decode = linear
    valid = jnp.ones((2, 3, 3), bool).at[1, 2].set(False)
    draw = [np.asarray(d) for d in unit_rows(random_like(KEY, features))]
    matrix, probabilities = np.concatenate(w), np.asarray(jax.nn.softmax(decode(features)))
    expected, valid = np.zeros((2, 3, 3, 9)), np.asarray(valid)
    for index in np.ndindex(2, 3, 3):
        if valid[index]:
            p = probabilities[index]
            d = np.concatenate([leaf[index] for leaf in draw])
            expected[index] = matrix @ (np.diag(p) - np.outer(p, p)) @ matrix.T @ d
    expected *= 2.0 / np.sqrt((expected**2).sum((1, 2, 3), keepdims=True))
    found = perturb(decode, features, valid, 2.0)
    np.testing.assert_allclose(np.concatenate(found, axis=-1), expected, rtol=1e-3, atol=1e-5)


def test_it_has_the_length_asked_for_and_climbs(linear):
    features, _, decode = linear
    valid, epsilon = jnp.ones((2, 3, 3), bool), 0.5
    found = perturb(decode, features, valid, epsilon)
    np.testing.assert_allclose(length(found), epsilon, rtol=1e-5)
    moved = jax.tree.map(jnp.add, features, found)
    by_ascent = divergence(decode(features), decode(moved))
    steps = random_steps(features, epsilon, jnp.arange(20))
    for logits in jax.vmap(lambda step: decode(jax.tree.map(jnp.add, features, step)))(steps):
        assert (by_ascent > divergence(decode(features), logits)).all()


def test_the_published_step_equals_a_numpy_oracle_where_float32_can_tell(linear, monkeypatch):
    """At xi = 0.1: g = xi W (softmax(z + xi d) - p) / rows, then epsilon g / (|g| + margin)."""
    monkeypatch.setattr(vat, "_DISTANCE", 0.1)
    monkeypatch.setattr(vat, "_MARGIN", 0.01)
    features, w, decode = linear
    valid = jnp.ones((2, 3, 3), bool).at[1, 2].set(False)
    found = published_perturbation(decode, features, valid, 2.0, KEY, jnp.array([2.0, 5.0]))
    in_cube = functools.partial(jax.random.uniform, minval=-0.5, maxval=0.5)
    draw = np.concatenate([np.asarray(d, np.float64) for d in random_like(KEY, features, in_cube)], axis=-1)
    assert np.abs(draw).max() <= 0.5
    draw /= np.sqrt((draw**2).sum((1, 2, 3), keepdims=True))
    matrix, z = np.concatenate(w).astype(np.float64), np.concatenate(features, axis=-1).astype(np.float64)
    p, moved = (np.exp(x @ matrix) / np.exp(x @ matrix).sum(-1, keepdims=True) for x in (z, z + 0.1 * draw))
    g = 0.1 * ((moved - p) * np.asarray(valid)[..., None]) @ matrix.T / np.array([2.0, 5.0])[:, None, None, None]
    size = np.sqrt((g**2).sum((1, 2, 3), keepdims=True))
    assert (size < 0.02).all()  # so that the margin counts
    np.testing.assert_allclose(np.concatenate(found, axis=-1), 2 * g / (size + 0.01), rtol=1e-3, atol=1e-5)


def test_the_published_perturbation_is_far_shorter_than_epsilon(linear):
    features, _, decode = linear
    found = published_perturbation(decode, features, jnp.ones((2, 3, 3), bool), 2.0, KEY, 2)
    assert (length(found) < 1e-3).all()
    assert (length(found) > 1e-6).all()


def test_nothing_to_change_gives_no_perturbation(linear):
    features, _, decode = linear
    for found in perturb(decode, features, jnp.zeros((2, 3, 3), bool), 1.0):
        np.testing.assert_array_equal(found, 0)


def test_it_carries_no_gradient(linear):
    features, _, decode = linear
    valid = jnp.ones((2, 3, 3), bool)

    for find in (perturb, functools.partial(published_perturbation, key=KEY, rows=1)):

        def total(f, find=find):
            return sum(jnp.sum(leaf) for leaf in find(decode, f, valid, 1.0))

        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(jax.grad(total)(features)))


def test_it_climbs_through_a_real_decoder():
    """DeepLab's convolutions have gradients of their own: they must allow the second one as well."""
    decoder = DeepLabOptions(rates=(1, 2, 3), channels=8, low_level_channels=4)
    heads = (HeadSpec("segmentation", 3),)
    network = deeplab_network(encoder="resnet18", heads=heads, width=0.125, decoder=decoder)
    variables = network.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))

    def decode(features):
        return network.decode(variables, "segmentation", features)[0].output

    @jax.jit
    def divergences(key):
        features, _ = network.encode(variables, image)
        found = adversarial_perturbation(decode, features, jnp.ones(image.shape[:3], bool), 0.1, key)
        random = jax.tree.map(lambda d: 0.1 * d, unit_rows(random_like(key, features)))
        moved, drawn = (decode(jax.tree.map(jnp.add, features, step)) for step in (found, random))
        return decode(features), moved, drawn

    clean, moved, drawn = divergences(KEY)
    assert (divergence(clean, moved) > 3 * divergence(clean, drawn)).all()
