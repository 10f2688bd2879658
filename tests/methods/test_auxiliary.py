import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import IGNORE, Batch, HeadOutput, HeadSpec, Labelled, Mean, Term, Views
from forec_jax.methods import (
    Auxiliary,
    ForegroundReconstruction,
    ForegroundSegmentation,
    ImageReconstruction,
    Supervised,
)
from forec_jax.parallel import make_mesh, replicated, shard_batch
from forec_jax.training import compile_step, create_state

KEY = jax.random.key(0)


def views_of_two_rows():
    """Row 0 is labelled: background, class 1, void, padding. Row 1 is not: sure background, sure 2, unsure 1, padding."""
    return Views(
        image=jnp.arange(24, dtype=jnp.float32).reshape(2, 1, 4, 3) / 24,
        label=jnp.array([[[0, 1, IGNORE, IGNORE]], [[0, 2, 1, IGNORE]]]),
        confidence=jnp.array([[[1.0, 1, 1, 1]], [[0.99, 0.96, 0.5, 0.0]]]),
        is_ground_truth=jnp.array([[[True] * 4], [[False] * 4]]),
        valid=jnp.array([[[True, True, True, False]], [[True, True, True, False]]]),
        labelled_row=jnp.array([True, False]),
    )


def test_forec_paints_foreground_and_blackens_background():
    views = views_of_two_rows()
    target, included = ForegroundReconstruction((0,), threshold=0.95).target(views)
    np.testing.assert_array_equal(included[:, 0], [[True, True, False, False], [True, True, False, False]])
    np.testing.assert_array_equal(target[:, 0, 0], np.zeros((2, 3)))
    np.testing.assert_array_equal(target[:, 0, 1], views.image[:, 0, 1])


def test_forec_reads_equation_3_to_the_letter_with_void_zero():
    views = views_of_two_rows()
    target, included = ForegroundReconstruction((0,), threshold=0.95, void="zero").target(views)
    np.testing.assert_array_equal(included[0, 0], [True, True, True, False])
    np.testing.assert_array_equal(target[0, 0, 2], np.zeros(3))


def test_forec_takes_any_set_of_classes_as_background():
    views = views_of_two_rows()
    target, _ = ForegroundReconstruction((0, 2), threshold=0.95).target(views)
    np.testing.assert_array_equal(target[1], np.zeros((1, 4, 3)))


@pytest.mark.parametrize("space", ["unit", "imagenet"])
def test_forec_loss_by_hand(space):
    views = views_of_two_rows()
    task = ForegroundReconstruction((0,), threshold=0.95, pixel_space=space, labelled_weight=1.0, unlabelled_weight=0.5)
    outputs = {"reconstruction": HeadOutput(jnp.zeros((2, 1, 4, 3)), jnp.zeros(()))}
    terms, metrics, _ = task.loss(outputs, views, KEY, ())
    pixels = np.asarray(views.image)
    if space == "imagenet":
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for name, row, weight in (("labelled", 0, 1.0), ("unlabelled", 1, 0.5)):
        term = terms[f"reconstruction_{name}_loss"]
        np.testing.assert_allclose(term.mean.value(), (pixels[row, 0, 1] ** 2).sum() / 6, rtol=1e-6)
        assert term.weight == weight
    assert float(metrics["reconstructed"].value()) == pytest.approx(4 / 6)


def test_an_excluded_pixel_has_no_gradient():
    views = views_of_two_rows()
    task = ForegroundReconstruction((0,), threshold=0.95)

    def loss(output):
        terms, *_ = task.loss({"reconstruction": HeadOutput(output, output)}, views, KEY, ())
        return sum(term.mean.value() for term in terms.values())

    gradient = np.abs(np.asarray(jax.grad(loss)(jnp.ones((2, 1, 4, 3))))).sum(-1)[:, 0] > 0
    np.testing.assert_array_equal(gradient, [[True, True, False, False], [True, True, False, False]])


def test_image_reconstruction_takes_every_valid_pixel():
    views = views_of_two_rows()
    outputs = {"reconstruction": HeadOutput(jnp.zeros((2, 1, 4, 3)), jnp.zeros(()))}
    terms, *_ = ImageReconstruction().loss(outputs, views, KEY, ())
    pixels = np.asarray(views.image)[:, 0, :3]
    np.testing.assert_allclose(terms["reconstruction_labelled_loss"].mean.value(), (pixels[0] ** 2).mean(), rtol=1e-6)
    np.testing.assert_allclose(terms["reconstruction_unlabelled_loss"].mean.value(), (pixels[1] ** 2).mean(), rtol=1e-6)


def test_foreground_segmentation_by_hand():
    views = views_of_two_rows()
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.25, 0.75])), (2, 1, 4, 2))
    terms, *_ = ForegroundSegmentation((0,)).loss({"foreground": HeadOutput(logits, logits)}, views, KEY, ())
    expected = (-np.log(0.25) - np.log(0.75)) / 2  # one background and one foreground pixel in each row
    for term in terms.values():
        np.testing.assert_allclose(term.mean.value(), expected, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Remembered:
    """Pulls its head towards the mean colour of all batches so far."""

    head: HeadSpec = HeadSpec("remembered", 3)
    memory: tuple = (0.0, (0.0, 0.0, 0.0))

    def loss(self, outputs, views, key, memory):
        number, mean = memory[0] + 1, jnp.stack(memory[1])
        mean = mean + (views.image.mean((0, 1, 2)) - mean) / number
        error = ((outputs["remembered"].output - mean[None, None, None]) ** 2).sum(-1)
        return {"remembered_loss": Term(Mean(error.sum(), 1.0 * error.size), 1.0)}, {}, (number, tuple(mean))


@pytest.mark.parametrize("devices", [1, 8])
def test_what_a_task_remembers_goes_from_step_to_step_without_a_gradient(make_toy_network, devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    network = make_toy_network((HeadSpec("segmentation", 3), Remembered.head))
    method = Supervised(network, lambda key, image, valid: image, NoMixing(), (Auxiliary(1.0, Remembered()),))
    tx, rng, seen = optax.sgd(0.1), np.random.default_rng(0), []
    state = create_state(method, tx, 0, replicated(mesh))
    step = compile_step(method, tx, seed=0, accumulate=1, mesh=mesh)
    for _ in range(3):
        image = rng.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
        seen.append(image.mean((0, 1, 2)) / 255)
        label, valid = np.zeros((8, 4, 4), np.int32), np.ones((8, 4, 4), bool)
        batch = Batch(Labelled(image, label, valid, np.zeros(8, np.int32)))
        state, _ = step(state, shard_batch(mesh, batch))
    assert state.memory.keys() == {"remembered"}
    number, mean = jax.device_get(state.memory["remembered"])
    assert number == 3
    np.testing.assert_allclose(mean, np.mean(seen, axis=0), rtol=1e-5)
    assert step._cache_size() == 1
