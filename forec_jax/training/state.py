"""The first train state."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from forec_jax.contracts import Array, Method, TrainState
from forec_jax.parallel import replicated, shape_sharding, vectors_sharding

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


def create_state(
    method: Method, tx: optax.GradientTransformation, seed: int, sharding: NamedSharding | TrainState
) -> TrainState:
    """`first_state`, made on the devices; `sharding` is one for all arrays, or a tree of them (`state_sharding`)."""
    make, weights = state_program(method, tx, seed)
    return jax.jit(make, out_shardings=sharding)(weights)


def state_program(
    method: Method, tx: optax.GradientTransformation, seed: int
) -> tuple[Callable[[list[Array]], TrainState], list[Array]]:
    """`first_state` as a function of the arrays that it is made from, pretrained weights above all, and these arrays.

    Compiled as it is, it would hold the weights as constants, once for the student and once more for the teacher.
    """
    traced, shapes = jax.make_jaxpr(lambda: first_state(method, tx, seed), return_shape=True)()
    structure = jax.tree.structure(shapes)

    def make(weights: list[Array]) -> TrainState:
        return jax.tree.unflatten(structure, jax.core.eval_jaxpr(traced.jaxpr, weights))

    return make, traced.consts


def abstract_state(
    method: Method, tx: optax.GradientTransformation, seed: int, sharding: NamedSharding | TrainState
) -> TrainState:
    """The shapes, types and shardings of the state, without making it."""
    shapes = jax.eval_shape(lambda: first_state(method, tx, seed))
    return jax.tree.map(
        lambda leaf, lies: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies),
        shapes,
        jax.tree.broadcast(sharding, shapes),
    )


def state_sharding(
    method: Method, tx: optax.GradientTransformation, seed: int, mesh: Mesh
) -> NamedSharding | TrainState:
    """How the state lies on a mesh: parameters, teacher and optimiser state are split over "fsdp" by their shapes.

    So is what a method remembers, by its last axis: a store by the parts of its vectors.
    The rest (statistics, step) is small, and is whole on every device; so is everything on a mesh whose fsdp axis is 1.
    """
    whole = replicated(mesh)
    if mesh.shape["fsdp"] == 1:
        return whole
    shapes = jax.eval_shape(lambda: first_state(method, tx, seed))
    state: TrainState = jax.tree.map(lambda _: whole, shapes)
    split = functools.partial(jax.tree.map, lambda leaf: shape_sharding(mesh, leaf.shape))
    memory = jax.tree.map(lambda leaf: vectors_sharding(mesh, leaf.shape), shapes.memory)
    of_networks = {name: split(getattr(shapes, name)) for name in ("params", "teacher", "opt_state")}
    return state._replace(memory=memory, **of_networks)
