"""One training step: a pure function, compiled once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from forec_jax.contracts import Array, Aux, Batch, Method, Metrics, PyTree, Terms, TrainState
from forec_jax.methods.parts.views import PSEUDO_LABELS
from forec_jax.parallel import batch_sharding, replicated
from forec_jax.training.state import STEP_STREAM, state_sharding

StepMetrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
DROPPED = "dropped_updates"


def _step_key(seed: int, step: Array) -> Array:
    """The key of a step: nothing random is kept in the state, so a resumed run draws what an uninterrupted one draws."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STEP_STREAM), step)


def objective(terms: Terms) -> Array:
    """The loss: the sum of weight times mean."""
    return sum((term.weight * term.mean.value() for term in terms.values()), start=jnp.zeros(()))


def _micro_batches(batch: Batch, parts: int) -> Batch:
    """[B, ...] to [parts, B/parts, ...]; micro-batch m holds rows m, m + parts, ... so that no row leaves its device."""

    def split(rows: Array) -> Array:
        return jnp.moveaxis(rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)


def accumulated_terms(
    params: dict[str, PyTree],
    state: TrainState,
    batch: Batch,
    key: Array,
    method: Method,
    parts: int,
) -> tuple[Terms, Aux]:
    """The terms of a batch taken in `parts`, one after another.

    Sums and counts add up, so each mean is over the whole batch. The scan's body is recomputed in the backward pass:
    memory is that of one part, for one more forward pass of the student. The teacher's is not repeated: its labels and
    confidences, two numbers a pixel, are kept. BatchNorm moves once a part.
    """

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(PSEUDO_LABELS))
    def body(carry: TrainState, inputs: tuple[Batch, Array]) -> tuple[TrainState, tuple[Terms, Metrics]]:
        part, part_key = inputs
        terms, aux = method.loss(params, carry, part, part_key)
        teacher = {
            name: teacher._replace(batch_stats=aux.teacher_stats[name]) for name, teacher in carry.teacher.items()
        }
        carry = carry._replace(batch_stats=aux.batch_stats, teacher=teacher, memory=aux.memory)
        return carry, (terms, aux.metrics)

    last, (terms, metrics) = jax.lax.scan(body, state, (_micro_batches(batch, parts), jax.random.split(key, parts)))
    add = functools.partial(jax.tree.map, lambda leaf: jnp.sum(leaf, axis=0))
    # A weight is the same in every part, or a schedule's value that is; the mean keeps it.
    terms = {name: term._replace(mean=add(term.mean), weight=jnp.mean(term.weight)) for name, term in terms.items()}
    teacher_stats = {name: teacher.batch_stats for name, teacher in last.teacher.items()}
    return terms, Aux(last.batch_stats, teacher_stats, last.memory, add(metrics))


def skipped(batch: Batch) -> Array:
    """How many unreadable images were passed over to fill the batch."""
    return sum((jnp.sum(part.skipped) for part in batch if part is not None), start=jnp.zeros((), jnp.int32))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    method: Method,
    tx: optax.GradientTransformation,
    seed: int,
    accumulate: int = 1,
    gather: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> tuple[TrainState, StepMetrics]:
    """One update of student and teacher.

    The metrics are those of the state before the update: every term unweighted, the loss, the gradient's norm. `gather`
    makes whole what is sharded between steps, where the networks use it.
    """
    key = _step_key(seed, state.step)
    seen = state._replace(teacher=gather(state.teacher))

    def loss(params: dict[str, PyTree]) -> tuple[Array, tuple[Terms, Aux]]:
        if accumulate == 1:
            terms, aux = method.loss(gather(params), seen, batch, key)
        else:
            terms, aux = accumulated_terms(gather(params), seen, batch, key, method, accumulate)
        return objective(terms), (terms, aux)

    (value, (terms, aux)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    teacher = method.update_teacher(state, params, aux.batch_stats, aux.teacher_stats)
    new_state = TrainState(state.step + 1, params, aux.batch_stats, teacher, opt_state, aux.memory)
    return new_state, _step_metrics(value, terms, aux.metrics, optax.tree.norm(gradients), skipped(batch))


def _step_metrics(loss: Array, terms: Terms, metrics: Metrics, gradient_norm: Array, skip: Array) -> StepMetrics:
    """Scalars to log."""
    scalars = {"loss": loss, "gradient_norm": gradient_norm, "skipped": skip}
    scalars |= {name: term.mean.value() for name, term in terms.items()}
    return scalars | {name: mean.value() for name, mean in metrics.items()}


def drop_not_finite(step: Step) -> Step:
    """A step whose update is dropped where the loss, the gradient or another metric is not finite.

    Only `state.step` moves then, so that the next batch follows. The metrics say DROPPED: 1 where that happened, else 0.
    """

    def guarded(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        new_state, metrics = step(state, batch)
        finite = functools.reduce(jnp.logical_and, (jnp.isfinite(value) for value in metrics.values()))
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        return kept._replace(step=new_state.step), metrics | {DROPPED: 1 - finite.astype(jnp.int32)}

    return guarded


def compile_step(
    method: Method,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int,
    mesh: Mesh,
    wrap: Callable[[Step], Step] = lambda step: step,
) -> Step:
    """The jitted step over a mesh: the batch is split over the devices, the state lies as `state_sharding` says.

    The state is donated. `wrap` is around the step before it is compiled (`drop_not_finite`).
    """
    step = functools.partial(
        train_step, method=method, tx=tx, seed=seed, accumulate=accumulate, gather=functools.partial(gathered, mesh)
    )
    lies, whole = state_sharding(method, tx, seed, mesh), replicated(mesh)
    return jax.jit(wrap(step), in_shardings=(lies, batch_sharding(mesh)), out_shardings=(lies, whole), donate_argnums=0)


def gathered(mesh: Mesh, tree: PyTree) -> PyTree:
    """The tree with every array whole on every device, inside a compiled function."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh)) if mesh.shape["fsdp"] > 1 else tree
