"""The objective and accumulation, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import Aux, Batch, Mean, Term, TrainState, Unlabelled, Variables
from forec_jax.training.step import _micro_batches, accumulated_terms, objective


def mean(total, number):
    return Mean(jnp.asarray(total, jnp.float32), jnp.asarray(number, jnp.float32))


def test_the_loss_is_the_sum_of_each_mean_times_its_weight():
    assert float(objective({"a_loss": Term(mean(6, 2), 0.5), "b_loss": Term(mean(4, 1), 2.0)})) == 0.5 * 3 + 2 * 4


class Counting:
    """Everything that a part may leave to the next one counts the parts; the loss is the sum over its rows."""

    def loss(self, params, state, batch, key):
        teacher = {"n": state.teacher["n"].batch_stats + 1}
        aux = Aux({"n": state.batch_stats["n"] + 1}, teacher, state.memory + 1, {})
        return {"a_loss": Term(mean(batch.unlabelled.skipped.sum(), batch.unlabelled.skipped.size), 2.0)}, aux


def test_every_part_goes_on_from_what_the_last_one_left():
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, {"n": zero}, {"n": zero}, {"n": Variables(zero, zero)}, (), zero)
    rows = jnp.arange(6, dtype=jnp.int32)
    batch = Batch(unlabelled=Unlabelled(rows, rows, rows))
    terms, aux = accumulated_terms(state.params, state, batch, jax.random.key(0), Counting(), 3)
    assert [int(aux.batch_stats["n"]), int(aux.teacher_stats["n"]), int(aux.memory)] == [3, 3, 3]
    np.testing.assert_allclose(jax.tree.leaves(terms["a_loss"]), [15, 6, 2])


def test_a_part_has_every_nth_row_so_that_no_row_leaves_its_device():
    rows = jnp.arange(6)
    parts = _micro_batches(Batch(unlabelled=Unlabelled(rows, rows, rows)), 3)
    np.testing.assert_array_equal(parts.unlabelled.image, [[0, 3], [1, 4], [2, 5]])
