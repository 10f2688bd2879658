"""Two students: they start apart, each has its EMA, and the first or both predict."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import Mean, Term, Variables
from forec_jax.methods.parts.students import STUDENTS, TwoStudents, of_student
from forec_jax.methods.parts.views import unchanged
from forec_jax.options import OptionError
from forec_jax.training import first_state

TX = optax.sgd(0.1)


def students(network, **options):
    return TwoStudents(network, unchanged, NoMixing(), **options)


def parameters(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_they_start_apart_and_each_ema_starts_at_its_student(make_toy_network):
    state = first_state(students(make_toy_network()), TX, seed=0)
    first, second = STUDENTS
    for part in ("encoder", "segmentation"):
        assert np.all(state.params[first][part]["w"] != state.params[second][part]["w"])
    for name in STUDENTS:
        jax.tree.map(np.testing.assert_array_equal, state.teacher[name].params, state.params[name])


def test_each_ema_follows_its_own_student(make_toy_network):
    method = students(make_toy_network(), decay=0.75)
    state = first_state(method, TX, seed=0)._replace(step=jnp.int32(100))
    params = {name: jax.tree.map(lambda x, n=n: x + n, state.params[name]) for n, name in enumerate(STUDENTS)}
    stats = {name: jax.tree.map(lambda x, n=n: x + 4 * n, state.batch_stats[name]) for n, name in enumerate(STUDENTS)}
    teacher = method.update_teacher(state, params, stats, {name: state.teacher[name].batch_stats for name in STUDENTS})
    for moved, name in enumerate(STUDENTS):
        before = state.teacher[name]
        np.testing.assert_allclose(
            parameters(teacher[name].params), parameters(before.params) + 0.25 * moved, rtol=1e-6, atol=1e-7
        )
        np.testing.assert_allclose(parameters(teacher[name].batch_stats), parameters(before.batch_stats) + moved)


def test_the_first_predicts_or_both_do_by_their_mean_logits(make_toy_network):
    network = make_toy_network()
    variables = {name: network.init(jax.random.key(n)) for n, name in enumerate(STUDENTS)}
    image = jax.random.uniform(jax.random.key(2), (1, 2, 3, 3))

    def logits(v: Variables):
        return np.tanh(image @ v.params["encoder"]["w"]) @ v.params["segmentation"]["w"]

    one, other = (logits(variables[name]) for name in STUDENTS)
    for prediction, wanted in (("first", one), ("mean", (one + other) / 2)):
        found = students(network, prediction=prediction).predict(variables, image, None)
        np.testing.assert_allclose(found, jax.nn.softmax(wanted), rtol=1e-5)


def test_the_same_first_head_for_both_is_refused(make_toy_network):
    encoder_given = make_toy_network()._replace(given=("encoder",))
    students(encoder_given)
    with pytest.raises(OptionError, match=r"model\.weights .*weights of the encoder alone"):
        students(encoder_given._replace(given=("encoder", "segmentation")))


def test_terms_of_the_second_student_have_its_name():
    found = {"supervised_loss": Term(Mean(jnp.ones(()), jnp.ones(())), 1.0)}
    assert [*of_student(STUDENTS[0], found), *of_student(STUDENTS[1], found)] == [
        "supervised_loss",
        "student_2_supervised_loss",
    ]
