"""The first train state."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from forec_jax.contracts import Method, TrainState

INIT_STREAM, STEP_STREAM = 0, 1


def first_state(method: Method, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before step 0; a function of the seed alone."""
    key = jax.random.fold_in(jax.random.key(seed), INIT_STREAM)
    params, batch_stats, teacher, memory = method.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        teacher=teacher,
        opt_state=tx.init(params),
        memory=memory,
    )


def create_state(method: Method, tx: optax.GradientTransformation, seed: int, sharding: NamedSharding) -> TrainState:
    """`first_state`, made on the devices."""
    return jax.jit(lambda: first_state(method, tx, seed), out_shardings=sharding)()


def abstract_state(method: Method, tx: optax.GradientTransformation, seed: int, sharding: NamedSharding) -> TrainState:
    """The shapes, types and shardings of the state, without making it."""
    shapes = jax.eval_shape(lambda: first_state(method, tx, seed))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
