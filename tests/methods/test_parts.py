"""Small parts that tasks and methods share, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import IGNORE, HeadSpec, Mean, Term, Views
from forec_jax.methods.parts.background import is_known
from forec_jax.methods.parts.heads import Auxiliary, auxiliary_terms
from forec_jax.methods.parts.terms import unsupervised_terms


def test_whose_class_can_be_relied_on():
    """Truth but void and padding, even padding with a label (data.pad_label); a pseudo-label surer than the threshold."""
    label = jnp.array([[[1, IGNORE, 0, 1, 1, 1, IGNORE]]])
    truth = jnp.array([[[True, True, True, False, False, False, False]]])
    confidence = jnp.array([[[1, 1, 1, 0.75, 0.8, 0.9, 0.9]]])
    valid = jnp.array([[[True, True, False, True, True, False, True]]])
    views = Views(jnp.zeros((1, 1, 7, 3)), label, confidence, truth, valid, jnp.array([True]))
    np.testing.assert_array_equal(is_known(views, 0.75), [[[True, False, False, False, True, False, False]]])


class Half:
    """A task whose one term counts half."""

    head, memory = HeadSpec("half", 1), ()

    def loss(self, outputs, views, key, memory):
        return {"half_loss": Term(Mean(jnp.array(3.0), jnp.array(1.0)), 0.5)}, {}, memory


def test_a_tasks_weight_multiplies_that_of_each_of_its_terms():
    terms, metrics, memory = auxiliary_terms((Auxiliary(4.0, Half()),), {}, None, jax.random.key(0), {})
    assert (terms["half_loss"].weight, float(terms["half_loss"].mean.value()), metrics, memory) == (2.0, 3.0, {}, {})


def test_a_pseudo_label_counts_above_the_threshold_and_never_in_the_padding():
    """Two of three labelled pixels are candidates, the third is padding; one of them is as sure as the threshold."""
    label, none = jnp.array([[[1, 1, 1]]]), jnp.zeros((1, 1, 3), bool)
    confidence, valid = jnp.array([[[0.75, 0.8, 0.9]]]), jnp.array([[[True, True, False]]])
    views = Views(jnp.zeros((1, 1, 3, 3)), label, confidence, none, valid, jnp.array([False]))
    terms, metrics = unsupervised_terms(jnp.zeros((1, 1, 3, 2)), views, threshold=0.75, normaliser="valid", weight=1.0)
    found = terms["unsupervised_loss"].mean
    np.testing.assert_allclose([found.total, found.number], [np.log(2), 2], rtol=1e-6)
    assert [float(part) for part in metrics["kept"]] == [1, 2]
