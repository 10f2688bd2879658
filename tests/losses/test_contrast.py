"""ReCo's loss against a slow oracle in float64, and its draws against their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.stats import chisquare

from forec_jax.losses.contrast import ClassMeans, Draws, class_means, class_weights, draw, regional_contrast
from forec_jax.parallel import make_mesh

N, D, K, Q, M = 96, 5, 4, 6, 7
TEMPERATURE = 0.5


def pixels(seed=0, absent=()):
    """Representation f32[N,D], label i32[N] and valid bool[N]; no valid pixel of the `absent` classes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, K, N).astype(np.int32)
    valid = (rng.random(N) < 0.8) & ~np.isin(label, absent)
    return rng.normal(size=(N, D)).astype(np.float32), label, valid


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def oracle(representation, constant, label, valid, draws):
    """Eq. 1 and 2, query by query; `representation` gives the queries, `constant` keys and means."""
    per_class = []
    for c in range(len(draws.active)):
        if not draws.active[c]:
            continue
        mean = constant[valid & (label == c)].mean(0)
        errors = []
        for q, query in enumerate(draws.query[c]):
            keys = draws.key[c][q if len(draws.key[c]) > 1 else 0]
            r = representation[query]
            near = np.exp(cosine(r, mean) / TEMPERATURE)
            far = sum(np.exp(cosine(r, constant[k]) / TEMPERATURE) for k in keys)
            errors.append(-np.log(near / (near + far)))
        per_class.append(np.mean(errors))
    return np.mean(per_class)


def some_draws(label, valid, sets, absent=()):
    """Arbitrary draws of the right classes, without the code under test."""
    rng = np.random.default_rng(1)
    active = np.array([c not in absent for c in range(K)])
    query = np.array([rng.choice(np.flatnonzero(label == c), Q) for c in range(K)])
    key = np.array([rng.choice(np.flatnonzero(valid & (label != c)), (sets, M)) for c in range(K)])
    return Draws(query, key, active)


def reco(representation, means, draws, **how):
    """ReCo's: the positives are the classes' means, the keys pixels of the same representation."""
    return regional_contrast(representation, means.mean, representation, draws, **how)


def loss(representation, label, valid, draws):
    means = class_means(representation, label, valid, K)
    draws = jax.tree.map(jnp.asarray, draws)
    return reco(representation, means, draws, temperature=TEMPERATURE, at_once=4).value()


@pytest.mark.parametrize("absent", [(), (2,)])
@pytest.mark.parametrize("sets", [Q, 1])
def test_the_loss_of_given_draws_equals_the_oracle(sets, absent):
    representation, label, valid = pixels(absent=absent)
    draws = some_draws(label, valid, sets, absent)
    expected = oracle(representation.astype(np.float64), representation.astype(np.float64), label, valid, draws)
    assert float(jax.jit(loss)(representation, label, valid, draws)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sets", [Q, 1])
def test_only_queries_have_a_gradient(sets):
    """The gradient is that of the oracle with keys and means held fixed, and 0 at every pixel that is no query."""
    representation, label, valid = pixels()
    draws = some_draws(label, valid, sets)
    gradient = np.asarray(jax.grad(loss)(jnp.asarray(representation), label, valid, draws))
    is_query = np.isin(np.arange(N), draws.query)
    assert (gradient[~is_query] == 0).all()
    wide = representation.astype(np.float64)
    for pixel in (*draws.query[:, 0], draws.query[0, 1]):
        for dimension in (0, D - 1):
            step = np.zeros_like(wide)
            step[pixel, dimension] = 1e-5
            rise = oracle(wide + step, wide, label, valid, draws) - oracle(wide - step, wide, label, valid, draws)
            assert gradient[pixel, dimension] == pytest.approx(rise / 2e-5, rel=1e-3, abs=1e-6)


def drawn(keys="active", queries=64, count=400, eligible=None, absent=()):
    representation, label, valid = pixels(absent=absent)
    eligible = np.ones(N, bool) if eligible is None else eligible
    means = class_means(jnp.asarray(representation), jnp.asarray(label), jnp.asarray(valid), K)
    weights = class_weights(means, keys, TEMPERATURE)
    draws = draw(
        jax.random.key(3),
        *map(jnp.asarray, (label, valid, eligible)),
        weights,
        queries=queries,
        sets=queries,
        keys=count,
    )
    return representation.astype(np.float64), label, valid, jax.device_get(draws)


def counts(draws):
    return np.bincount(draws.ravel(), minlength=N)


def test_active_keys_follow_the_class_relation_graph():
    """Classes by the softmax over the means' cosines (Eq. 3), pixels of a class uniformly: 25,600 keys a class."""
    representation, label, valid, draws = drawn()
    means = [representation[valid & (label == c)].mean(0) for c in range(K)]
    for c in range(K):
        others = [j for j in range(K) if j != c]
        share = np.exp([cosine(means[c], means[j]) / TEMPERATURE for j in others])
        expected = np.zeros(N)
        for j, part in zip(others, share / share.sum(), strict=True):
            expected[valid & (label == j)] = part / (valid & (label == j)).sum()
        found = counts(draws.key[c])
        assert (found[expected == 0] == 0).all()
        possible = expected > 0
        assert chisquare(found[possible], expected[possible] * found.sum()).pvalue > 1e-3
        assert chisquare(found[possible]).pvalue < 1e-6  # the test can tell: these keys are not just any pixels


def test_random_keys_are_any_pixels_of_other_classes():
    _, label, valid, draws = drawn("random")
    for c in range(K):
        found, possible = counts(draws.key[c]), valid & (label != c)
        assert (found[~possible] == 0).all()
        assert chisquare(found[possible]).pvalue > 1e-3


def test_queries_are_drawn_uniformly_from_the_eligible_pixels_of_their_class():
    eligible = np.arange(N) % 3 > 0
    _, label, valid, draws = drawn(queries=4000, count=1, eligible=eligible)
    assert draws.active.all()
    for c in range(K):
        found, possible = counts(draws.query[c]), valid & eligible & (label == c)
        assert (found[~possible] == 0).all()
        assert chisquare(found[possible]).pvalue > 1e-3


def test_no_two_queries_and_no_two_classes_share_their_keys_by_chance_of_the_key():
    _, _, _, draws = drawn(queries=4, count=50)
    sets = draws.key.reshape(-1, 50)
    assert len(np.unique(sets, axis=0)) == len(sets)


def test_an_absent_class_is_neither_contrasted_nor_drawn():
    _, label, valid, draws = drawn(absent=(1,))
    assert draws.active.tolist() == [True, False, True, True]
    assert not np.isin(label[draws.key[draws.active]], 1).any()
    assert valid[draws.key[draws.active]].all()


def test_a_class_without_eligible_pixels_is_not_contrasted_but_drawn_as_key():
    _, label, _, draws = drawn(eligible=pixels()[1] != 3)
    assert draws.active.tolist() == [True, True, True, False]
    assert (label[draws.key[0]] == 3).any()


@pytest.mark.parametrize("absent", [(0, 1, 2), (0, 1, 2, 3)], ids=["one class", "no valid pixel"])
def test_with_fewer_than_two_classes_there_is_no_loss_and_a_finite_gradient(absent):
    representation, label, valid = map(jnp.asarray, pixels(absent=absent))

    def value(representation):
        means = class_means(representation, label, valid, K)
        weights = class_weights(means, "active", TEMPERATURE)
        draws = draw(jax.random.key(0), label, valid, valid, weights, queries=Q, sets=Q, keys=M)
        return reco(representation, means, draws, temperature=TEMPERATURE, at_once=4).value()

    loss, gradient = jax.value_and_grad(value)(representation)
    assert float(loss) == 0
    assert (np.asarray(gradient) == 0).all()


def test_of_two_classes_each_is_contrasted_with_the_other():
    representation, label, valid = pixels()
    label %= 2
    means = class_means(jnp.asarray(representation), jnp.asarray(label), jnp.asarray(valid), 2)
    weights = class_weights(means, "active", TEMPERATURE)
    draws = draw(jax.random.key(0), label, valid, valid, weights, queries=Q, sets=Q, keys=M)
    assert all((label[draws.query[c]] == c).all() and (label[draws.key[c]] == 1 - c).all() for c in (0, 1))
    found = reco(jnp.asarray(representation), means, draws, temperature=TEMPERATURE, at_once=4).value()
    assert float(found) == pytest.approx(oracle(representation, representation, label, valid, draws), abs=1e-5)


def test_a_representation_of_zero_has_a_finite_gradient():
    _, label, valid = pixels()
    draws = some_draws(label, valid, Q)
    gradient = jax.grad(loss)(jnp.zeros((N, D)), label, valid, draws)
    assert np.isfinite(gradient).all()


def test_one_and_eight_devices_draw_the_same_and_agree():
    label, valid = pixels()[1:]

    @jax.jit
    def contrast(representation):
        means = class_means(representation, jnp.asarray(label), jnp.asarray(valid), K)
        weights = class_weights(means, "active", TEMPERATURE)
        draws = draw(
            jax.random.key(0), jnp.asarray(label), jnp.asarray(valid), valid, weights, queries=Q, sets=Q, keys=M
        )
        return reco(representation, means, draws, temperature=TEMPERATURE, at_once=4).value(), draws

    spread = NamedSharding(make_mesh(), PartitionSpec(("data", "fsdp")))
    one, one_draws = contrast(jnp.asarray(pixels()[0]))
    eight, eight_draws = contrast(jax.device_put(pixels()[0], spread))
    assert float(eight) == pytest.approx(float(one), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, one_draws, eight_draws)


def test_the_keys_of_one_class_at_a_time_are_in_memory():
    """Kept for the backward pass, the keys of 16 classes would take 16 MB."""
    classes, size = 16, (64, 64, 64)
    label = jnp.arange(1000) % classes
    means = ClassMeans(jnp.ones((classes, size[2])), jnp.ones(classes, jnp.int32))
    draws = Draws(jnp.zeros((classes, size[0]), int), jnp.zeros((classes, *size[:2]), int), jnp.ones(classes, bool))

    def value(representation, draws):
        return reco(representation, means, draws, temperature=TEMPERATURE, at_once=4).value()

    compiled = jax.jit(jax.grad(value)).lower(jnp.zeros((label.size, size[2])), draws).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 6e6
