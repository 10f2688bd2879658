"""Attention: against the formula and JAX's own, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.experiment.plan import keep_remat
from forec_jax.models import dot_product_attention
from forec_jax.models.dot_product_attention import attend

ROWS, QUERIES, KEYS, HEADS, SIZE = 2, 5, 7, 3, 8
PROGRAMS = ("_by_head", "_all_heads")
SEEN = np.array([[True] * KEYS, [True, True, False, True, False, False, True]])


def drawn(dtype=np.float32, scale=1.0, size=SIZE):
    """Queries, keys and values."""
    draw = np.random.default_rng(0)
    shapes = ((ROWS, QUERIES, HEADS, size), (ROWS, KEYS, HEADS, size), (ROWS, KEYS, HEADS, size))
    return tuple(jnp.asarray(scale * draw.normal(size=shape), dtype) for shape in shapes)


def oracle(query, key, value, seen):
    """The formula, in float64, head by head."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    result = np.zeros(query.shape)
    for row, position, head in np.ndindex(*query.shape[:3]):
        scores = key[row, :, head] @ query[row, position, head] / np.sqrt(SIZE)
        weights = np.where(seen[row], np.exp(scores - scores.max()), 0)
        result[row, position, head] = weights / weights.sum() @ value[row, :, head]
    return result


def test_two_keys_by_hand():
    """Scores 2 ln 3 / sqrt(4) and 0: weights 3/4 and 1/4."""
    query = jnp.zeros((1, 1, 1, 4)).at[..., 0].set(2 * np.log(3))
    key = jnp.zeros((1, 2, 1, 4)).at[0, 0, 0, 0].set(1)
    value = jnp.asarray([[[[8.0, 0, 4, 0]], [[0, 8, 4, 0]]]])
    np.testing.assert_allclose(attend(query, key, value)[0, 0, 0], [6, 2, 4, 0], rtol=1e-6)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("seen", [None, SEEN], ids=["all", "some"])
def test_formula_and_gradients(program, seen):
    arrays = drawn()
    run = getattr(dot_product_attention, program)
    np.testing.assert_allclose(
        run(*arrays, seen), oracle(*arrays, np.ones_like(SEEN) if seen is None else seen), atol=1e-6
    )
    mask = None if seen is None else seen[:, None, None]

    def loss(function):
        return lambda *x: jnp.sum(jnp.sin(function(*x)))

    ours = jax.grad(loss(lambda *x: run(*x, seen)), argnums=(0, 1, 2))(*arrays)
    theirs = jax.grad(loss(lambda *x: jax.nn.dot_product_attention(*x, mask=mask)), argnums=(0, 1, 2))(*arrays)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_unseen_key_counts_nothing():
    query, key, value = drawn()
    other = jnp.where(SEEN[..., None, None], key, 100.0), jnp.where(SEEN[..., None, None], value, -100.0)
    np.testing.assert_array_equal(attend(query, key, value, SEEN), attend(query, *other, SEEN))
    gradients = jax.grad(lambda k, v: jnp.sum(attend(query, k, v, SEEN) ** 2), argnums=(0, 1))(key, value)
    assert all(np.all(np.asarray(gradient)[~SEEN] == 0) for gradient in gradients)


def test_large_scores_are_finite():
    arrays = drawn(scale=1e3)
    gradients = jax.grad(lambda *x: jnp.sum(attend(*x)), argnums=(0, 1, 2))(*arrays)
    assert all(np.all(np.isfinite(x)) for x in (attend(*arrays), *gradients))


def test_bfloat16():
    arrays = drawn(jnp.bfloat16)
    result = attend(*arrays)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float32), oracle(*arrays, np.ones_like(SEEN)), atol=0.02)


@pytest.mark.parametrize(("program", "matrices"), [("_by_head", 4), ("_all_heads", 14)])
def test_a_stack_keeps_no_scores(program, matrices):
    """Six layers of four heads hold a few heads' or one layer's scores, where all would be 24 and their weights 24 more."""
    tokens, heads = 256, 4
    one = jax.ShapeDtypeStruct((1, tokens, heads, SIZE), jnp.float32)

    def loss(x):
        for _ in range(6):
            x = x + getattr(dot_product_attention, program)(x, x, x, None)
        return jnp.sum(x**2)

    memory = jax.jit(jax.grad(loss)).lower(one).compile(compiler_options=keep_remat()).memory_analysis()
    assert memory.temp_size_in_bytes < matrices * tokens * tokens * 4 + 40 * tokens * heads * SIZE * 4


@pytest.mark.parametrize(
    ("dtype", "seen", "size", "taken"),
    [
        (jnp.bfloat16, None, 8, True),
        (jnp.bfloat16, None, 4, False),
        (jnp.bfloat16, SEEN, 8, False),
        (np.float32, None, 8, False),
    ],
)
def test_cudnn_is_asked_for(monkeypatch, dtype, seen, size, taken):
    """Where a GPU can; the program of a GPU is traced on a CPU as well, and the CPU's is run."""
    asked = []

    def stand_in(query, key, value, implementation):
        asked.append(implementation)
        return query

    monkeypatch.setattr(dot_product_attention, "_cudnn_can", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    arrays = drawn(dtype, size=size)
    result = jax.jit(attend)(*arrays, seen)
    assert asked == (["cudnn"] if taken else [])
    expected = dot_product_attention._by_head(*arrays, seen)
    np.testing.assert_array_equal(np.asarray(result, np.float32), np.asarray(expected, np.float32))


def test_no_gpu_no_cudnn():
    assert not dot_product_attention._cudnn_can()
