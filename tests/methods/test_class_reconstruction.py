"""S4MIM's task: each class has channels of its own, and the features of a class are pulled together image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import IGNORE, HeadOutput, Views
from forec_jax.methods.tasks.class_reconstruction import ClassReconstruction, distance_to_class, painted_by_class


def views():
    """Row 0 is labelled: class 0, class 1, void. Row 1 is not: sure class 1, unsure class 0, padding."""
    return Views(
        image=jnp.arange(18, dtype=jnp.float32).reshape(2, 1, 3, 3) / 18,
        label=jnp.array([[[0, 1, IGNORE]], [[1, 0, IGNORE]]]),
        confidence=jnp.array([[[1.0, 1, 1]], [[0.96, 0.5, 0.0]]]),
        is_ground_truth=jnp.array([[[True] * 3], [[False] * 3]]),
        valid=jnp.array([[[True, True, True]], [[True, True, False]]]),
        labelled_row=jnp.array([True, False]),
    )


def outputs(painted, latent=None):
    latent = jnp.ones((2, 1, 3, 2)) if latent is None else latent
    return {"segmentation": HeadOutput(None, latent), "class_reconstruction": HeadOutput(painted, None)}


def test_a_pixel_is_painted_by_the_channels_of_its_class():
    output = jnp.arange(18, dtype=jnp.float32).reshape(1, 1, 3, 6)
    found = painted_by_class(output, jnp.array([[[1, 0, IGNORE]]]))
    np.testing.assert_array_equal(found, [[[[3, 4, 5], [6, 7, 8], [0, 0, 0]]]])


def test_the_loss_by_hand_over_pixels_of_known_class():
    """Class 0 paints 0, class 1 paints 1: three pixels count, each with its own class's error."""
    seen, task = views(), ClassReconstruction(2, aggregation=0.0)
    painted = jnp.broadcast_to(jnp.array([0.0, 0, 0, 1, 1, 1]), (2, 1, 3, 6))
    terms, metrics, _ = task.loss(outputs(painted), seen, jax.random.key(0), ())
    image = np.asarray(seen.image)
    labelled = np.mean([image[0, 0, 0] ** 2, (1 - image[0, 0, 1]) ** 2])
    assert float(terms["class_reconstruction_labelled_loss"].mean.value()) == pytest.approx(labelled)
    unlabelled = np.mean((1 - image[1, 0, 0]) ** 2)
    assert float(terms["class_reconstruction_unlabelled_loss"].mean.value()) == pytest.approx(unlabelled)
    assert [term.weight for term in terms.values()] == [1.0, 0.5]
    assert float(metrics["class_reconstructed"].value()) == pytest.approx(3 / 5)


def test_other_classes_channels_and_pixels_of_unknown_class_get_no_gradient():
    seen, task = views(), ClassReconstruction(2, aggregation=0.1)

    def loss(painted, latent):
        terms, _, _ = task.loss(outputs(painted, latent), seen, jax.random.key(0), ())
        return sum(term.mean.value() for term in terms.values())

    latent = jax.random.normal(jax.random.key(1), (2, 1, 3, 2))
    of_painted, of_latent = jax.grad(loss, (0, 1))(jnp.full((2, 1, 3, 6), 2.0), latent)
    touched = np.any(np.asarray(of_painted).reshape(2, 3, 2, 3), axis=-1)
    none = [False, False]
    np.testing.assert_array_equal(touched, [[[True, False], [False, True], none], [[False, True], none, none]])
    unknown = np.asarray([[[False, False, True]], [[False, True, True]]])
    assert not np.any(np.asarray(of_latent)[unknown])
    assert np.any(np.asarray(of_latent)[~unknown])


def test_features_are_compared_with_their_classs_mean_in_their_image():
    """Image 0: class 0 has (2, 0) and (0, 2), whose mean has a cosine of 1/sqrt(2) to both; class 1 one feature. Image 1
    has class 0 once: its mean is its own, whatever image 0 shows, and whatever pixels of unknown class hold."""
    features = jnp.array([[[[2.0, 0], [0, 2], [1, 5]]], [[[-3, 1], [np.inf, 9], [np.nan, 0]]]])
    label = jnp.array([[[0, 0, 1]], [[0, 0, 0]]])
    known = jnp.array([[[True, True, True]], [[True, False, False]]])
    mean = distance_to_class(features, label, known, 2)
    assert float(mean.number) == 4
    assert float(mean.total) == pytest.approx(2 * (1 - 1 / np.sqrt(2)), rel=1e-4)


def test_a_features_gradient_is_that_of_the_distance_to_a_constant_mean():
    features = jnp.array([[[[2.0, 0], [0, 1]]]])
    label, known = jnp.zeros((1, 1, 2), int), jnp.ones((1, 1, 2), bool)
    gradient = jax.grad(lambda z: distance_to_class(z, label, known, 1).total)(features)
    # d/dz of -cos(z, m) at z = (2, 0), m along (2, 1): only across z, by -sin(z, m) / |z|.
    np.testing.assert_allclose(gradient[0, 0, 0], [0, -np.sqrt(1 / 5) / 2], atol=1e-5)
    zero = jax.grad(lambda z: distance_to_class(z, label, known, 1).total)(jnp.zeros((1, 1, 2, 2)))
    assert np.isfinite(zero).all()
