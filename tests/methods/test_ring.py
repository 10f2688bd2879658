"""The store of vectors: the newest are kept, at most so many a step, and every number of devices stores the same."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from forec_jax.methods.parts.ring import Ring, draw_places, empty_ring, filled, push
from forec_jax.parallel import make_mesh, vectors_sharding

CLASSES, PLACES, MOST = 3, 5, 2


def vectors(call, n=8):
    """Vector i of a call says who it is: 100 call + i."""
    return jnp.stack([100.0 * call + jnp.arange(n), jnp.ones(n)], axis=1)


def eligible(*of_class, n=8):
    """bool[n,K] from the eligible vectors of each class."""
    return jnp.stack([jnp.isin(jnp.arange(n), jnp.array(which, int)) for which in of_class], axis=1)


def stored(ring):
    return [set(np.asarray(ring.values[k, : ring.number[k], 0], int)) for k in range(CLASSES)]


def test_what_is_pushed_is_eligible_and_never_more_than_asked():
    ring = empty_ring(CLASSES, PLACES, 2)
    assert filled(ring).value() == 0
    found = set()
    for seed in range(20):
        pushed = push(ring, jax.random.key(seed), vectors(0), eligible([0, 3, 6], [5], []), MOST)
        np.testing.assert_array_equal(pushed.number, [2, 1, 0])
        np.testing.assert_array_equal(pushed.next, [2, 1, 0])
        first, second, third = stored(pushed)
        assert first < {0, 3, 6}
        assert (second, third) == ({5}, set())
        assert np.all(np.asarray(pushed.values[1, 1:]) == 0)  # nothing else was written
        found.add(tuple(sorted(first)))
    assert found == {(0, 3), (0, 6), (3, 6)}
    assert filled(pushed).value() == np.float32(3 / 15)


def test_the_newest_are_kept_and_a_full_ring_starts_again_at_its_first_place():
    ring = empty_ring(CLASSES, PLACES, 2)
    for call in range(4):
        ring = push(ring, jax.random.key(call), vectors(call), eligible([call, call + 1], [], []), MOST)
    np.testing.assert_array_equal(ring.number, [5, 0, 0])
    np.testing.assert_array_equal(ring.next, [8 % PLACES, 0, 0])
    first = {int(x) for x in ring.values[0, :, 0]}
    assert first > {202, 203, 303, 304}  # of the last five: the last two calls, and one of the call before
    assert first - {202, 203, 303, 304} < {101, 102}


def test_it_holds_no_more_than_its_places_however_many_are_pushed():
    ring = push(empty_ring(CLASSES, PLACES, 2), jax.random.key(0), vectors(0), jnp.ones((8, CLASSES), bool), 100)
    np.testing.assert_array_equal(ring.number, [PLACES] * CLASSES)
    assert all(len(which) == PLACES for which in stored(ring))
    assert filled(ring).value() == 1


def test_draws_are_uniform_below_the_count():
    ring = Ring(jnp.zeros((3, 4, 2)), jnp.array([4, 3, 0]), jnp.zeros(3, jnp.int32))
    drawn = np.asarray(draw_places(ring, jax.random.key(0), (40, 50)))
    assert drawn.shape == (3, 40, 50)
    for k, count in enumerate([4, 3, 1]):
        share = np.bincount(drawn[k].ravel(), minlength=4) / 2000
        np.testing.assert_allclose(share[:count], 1 / count, atol=0.04)
        assert (share[count:] == 0).all()


def test_no_gradient_flows_into_the_store():
    def total(vectors):
        return jnp.sum(
            push(empty_ring(CLASSES, PLACES, 2), jax.random.key(0), vectors, eligible([1], [1], [1]), 1).values
        )

    assert float(total(vectors(0))) == 6  # (1, 1) in each store
    np.testing.assert_array_equal(jax.grad(total)(vectors(0)), 0)


def test_one_and_eight_devices_store_the_same():
    spread = NamedSharding(make_mesh(), PartitionSpec(("data", "fsdp")))
    which = jax.random.bernoulli(jax.random.key(9), 0.4, (64, CLASSES))
    rings = []
    for place in (lambda x: x, lambda x: jax.device_put(x, spread)):
        ring, step = empty_ring(CLASSES, 16, 2), jax.jit(push, static_argnums=4)
        for call in range(3):
            ring = step(ring, jax.random.key(call), place(vectors(call, 64)), place(which), 7)
        rings.append(ring)
    jax.tree.map(np.testing.assert_array_equal, *rings)


def test_a_store_that_is_split_over_devices_stores_and_gives_the_same_and_is_never_gathered():
    """Each device holds a part of every vector: what comes together are the few vectors of a step, and their products."""
    mesh, shape = make_mesh(fsdp=8), (CLASSES, 64, 64)
    whole, split = NamedSharding(mesh, PartitionSpec()), vectors_sharding(mesh, shape)
    which = jax.random.bernoulli(jax.random.key(9), 0.4, (64, CLASSES))
    drawn = jax.random.normal(jax.random.key(8), (64, 64))

    def step(ring, vectors):
        ring = push(ring, jax.random.key(0), vectors, which, 7)
        place = draw_places(ring, jax.random.key(1), (4,))
        return ring, ring.values[jnp.arange(CLASSES)[:, None], place] @ drawn[0]

    found = []
    for lies in (whole, split):
        ring = jax.device_put(empty_ring(*shape), Ring(lies, whole, whole))
        compiled = jax.jit(step, out_shardings=(Ring(lies, whole, whole), whole)).lower(ring, drawn).compile()
        found.append(compiled(ring, drawn))
    assert found[1][0].values.addressable_shards[0].data.shape == (CLASSES, 64, 8)
    assert "all-gather" not in compiled.as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)
