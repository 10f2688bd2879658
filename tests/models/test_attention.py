"""The attention over class activation maps, beside NumPy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.models import attention_network
from forec_jax.models.attention import REFINED, Seen

DEPTH, MAPS, CLASSES, CHANNELS = 5, 2, 3, 4


def seen(rows=2, height=3, width=4):
    rng = np.random.default_rng(0)
    inside = np.ones((rows, height, width), bool)
    inside[0, :, -1] = inside[1, 1:] = False
    maps = rng.uniform(size=(rows, height, width, MAPS)).astype(np.float32) * inside[..., None]
    return Seen(rng.normal(size=(rows, height, width, DEPTH)).astype(np.float32), maps, inside)


@functools.partial(jax.jit, static_argnums=(0, 3))
def logits_of(network, variables, what, train):
    features, _ = network.encode(variables, what, train=train)
    head, stats = network.decode(variables, REFINED, features, train=train)
    return head.output, stats


def oracle(params, what, rest):
    """Logits before BatchNorm, f64[B,h,w,K]."""
    rows, height, width, _ = what.features.shape
    out = []
    for features, maps, inside in zip(*(leaf.reshape(rows, height * width, -1) for leaf in what), strict=True):
        query, key = (features.astype(np.float64) @ np.asarray(params[name]["kernel"]) for name in ("query", "key"))
        refined = np.empty((height * width, MAPS))
        for cell in range(height * width):
            alike = np.exp(query[cell] @ key.T / CHANNELS**0.5) * inside[:, 0]
            refined[cell] = alike / alike.sum() @ maps + maps[cell]
        if rest:
            refined = np.concatenate([2 - refined.max(-1, keepdims=True), refined], axis=-1)
        out.append(refined @ np.asarray(params["logits"]["conv"]["kernel"])[0, 0])
    return np.stack(out).reshape(rows, height, width, CLASSES)


@pytest.mark.parametrize("rest", [True, False])
def test_the_attention_equals_a_numpy_oracle(rest):
    network = attention_network(DEPTH, MAPS, CLASSES, channels=CHANNELS, rest=rest)
    variables, what = network.init(jax.random.key(0)), seen()
    params = variables.params[REFINED]
    assert set(params["query"]) == {"kernel"}  # no bias
    expected = oracle(params, what, rest)
    inference, still = logits_of(network, variables, what, False)
    np.testing.assert_allclose(inference, expected / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)  # statistics of the start
    jax.tree.map(np.testing.assert_array_equal, still, variables.batch_stats)
    mean, deviation = expected.mean((0, 1, 2)), np.sqrt(expected.var((0, 1, 2)) + 1e-5)
    trained, moved = logits_of(network, variables, what, True)
    np.testing.assert_allclose(trained, (expected - mean) / deviation, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(moved[REFINED]["logits"]["norm"]["mean"], 0.1 * mean, rtol=1e-3, atol=1e-5)


def test_no_cell_looks_at_the_padding():
    network = attention_network(DEPTH, MAPS, CLASSES, channels=CHANNELS)
    variables, what = network.init(jax.random.key(0)), seen()
    other = what._replace(features=np.where(what.inside[..., None], what.features, 7.0).astype(np.float32))
    one, two = (np.asarray(logits_of(network, variables, w, False)[0]) for w in (what, other))
    np.testing.assert_array_equal(one[what.inside], two[what.inside])


def test_half_precision_gives_logits_of_float32():
    network = attention_network(DEPTH, MAPS, CLASSES, channels=CHANNELS, compute_dtype=jnp.bfloat16)
    exact = attention_network(DEPTH, MAPS, CLASSES, channels=CHANNELS)
    variables, what = network.init(jax.random.key(0)), seen()
    found, expected = (logits_of(n, variables, what, True)[0] for n in (network, exact))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.1)
