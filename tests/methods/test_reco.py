import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax import cli
from forec_jax.augment import ClassMix
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadOutput, HeadSpec, Labelled, Views
from forec_jax.experiment import load
from forec_jax.experiment import run as training
from forec_jax.experiment.plan import collective_bytes
from forec_jax.methods import Auxiliary, MeanTeacher, RegionalContrast
from forec_jax.methods.tasks.reco import label_probability, with_sure_pixels
from forec_jax.models.resize import nearest
from forec_jax.parallel import batch_sharding, make_mesh, replicated, shard_batch
from forec_jax.training import compile_step, create_state

KEY = jax.random.key(0)
CLASSES, CHANNELS = 3, 4


def task(**options):
    return RegionalContrast(CLASSES, channels=CHANNELS, queries=8, negative_keys=8, **options)


def test_nearest_keeps_the_corners_and_every_fourth_pixel():
    """321 pixels at a quarter: the decoder's 81, on every fourth pixel."""
    rows = jnp.broadcast_to(jnp.arange(321)[:, None], (1, 321, 321))
    np.testing.assert_array_equal(nearest(rows, (81, 81))[0, :, 0], np.arange(0, 321, 4))
    np.testing.assert_array_equal(nearest(rows, (321, 321)), rows)
    assert nearest(jnp.zeros((2, 7, 9, 3)), (2, 1)).shape == (2, 2, 1, 3)


def one_row(label, confidence, truth, valid, chance):
    """Views of one row of pixels, and outputs in which each pixel's label has the probability `chance`."""
    shape = (1, 1, len(label))
    views = Views(
        image=jnp.zeros((*shape, 3)),
        label=jnp.array(label).reshape(shape),
        confidence=jnp.array(confidence).reshape(shape),
        is_ground_truth=jnp.array(truth).reshape(shape),
        valid=jnp.array(valid).reshape(shape),
        labelled_row=jnp.array([True]),
    )
    chance = np.array(chance)[:, None]
    probability = np.where(np.arange(CLASSES) == np.array(label)[:, None], chance, (1 - chance) / 2)
    representation = np.random.default_rng(0).normal(size=(*shape, CHANNELS)).astype(np.float32)
    return views, {"segmentation": jnp.log(probability.reshape(*shape, CLASSES)), "representation": representation}


def run(reco, views, outputs):
    heads = {name: HeadOutput(jnp.asarray(output), jnp.zeros(())) for name, output in outputs.items()}
    return reco.loss(heads, views, KEY, ())[:2]


def test_who_takes_part_and_who_is_hard():
    """Ground truth, sure and unsure pseudo-label, void, padding; then what the student says of the first two."""
    views, outputs = one_row(
        label=[0, 1, 1, IGNORE, IGNORE, 2],
        confidence=[1.0, 0.71, 0.69, 1.0, 1.0, 1.0],
        truth=[True, False, False, True, True, True],
        valid=[True, True, True, True, False, True],
        chance=[0.96, 0.98, 0.5, 0.5, 0.5, 0.5],
    )
    terms, metrics = run(task(), views, outputs)
    assert (float(metrics["reco_valid"].total), float(metrics["reco_valid"].number)) == (3, 6)
    assert (float(metrics["reco_hard"].total), float(metrics["reco_hard"].number)) == (2, 3)
    assert float(terms["reco_loss"].mean.number) == 2  # class 1 has a valid pixel, which is not hard
    assert terms["reco_loss"].weight == 1.0


def test_a_probability_of_the_threshold_itself_is_hard():
    """delta_s is the most that a hard pixel has; one class of ground truth, seen at 0.5, and one at 0.75."""
    views, outputs = one_row([0, 1], [1.0, 1.0], [True, True], [True, True], [0.5, 0.75])
    logits = jnp.asarray(outputs["segmentation"]).reshape(-1, CLASSES)
    threshold = float(label_probability(logits, jnp.array([0, 1]))[1])
    assert threshold == pytest.approx(0.75)
    assert float(run(task(query_threshold=threshold), views, outputs)[1]["reco_hard"].total) == 2


@pytest.mark.parametrize(("class_mean", "number"), [("contrasted", 2), ("present", 3)])
def test_the_sum_over_classes_is_divided_by_those_contrasted_or_those_present(class_mean, number):
    """Of the three classes with a valid pixel the student is sure of the last; a fourth pixel does not take part."""
    views, outputs = one_row(
        [0, 1, 2, 2], [1.0, 1.0, 1.0, 0.1], [True] * 3 + [False], [True] * 4, [0.5, 0.5, 0.99, 0.5]
    )
    mean = run(task(class_mean=class_mean), views, outputs)[0]["reco_loss"].mean
    assert float(mean.number) == number
    assert float(mean.total) == float(run(task(), views, outputs)[0]["reco_loss"].mean.total) > 0


def test_pixels_that_nobody_labelled_take_part_in_labelled_rows_where_the_student_is_sure():
    """Truth, void, a pixel that nobody labelled and the student is sure of, one that it is not sure of, and padding."""
    views, outputs = one_row(
        label=[0, IGNORE, 2, 2, 2],
        confidence=[1.0, 1.0, 0.0, 0.0, 0.0],
        truth=[True, True, False, False, False],
        valid=[True, True, True, True, False],
        chance=[0.5, 0.98, 0.98, 0.96, 0.98],
    )
    views = views._replace(label=jnp.where(views.is_ground_truth, views.label, IGNORE))
    logits = jnp.asarray(outputs["segmentation"])
    found = with_sure_pixels(views, logits, 0.97)
    assert found.label.tolist() == [[[0, IGNORE, 2, IGNORE, IGNORE]]]
    assert found.confidence.tolist() == [[[1.0, 1.0, 1.0, 0.0, 0.0]]]
    unlabelled_row = views._replace(labelled_row=jnp.array([False]))
    assert with_sure_pixels(unlabelled_row, logits, 0.97).label.tolist() == views.label.tolist()
    for options, number in (({"sure_pixels": True}, 2), ({}, 1)):
        _, metrics = run(task(**options), views, outputs)
        assert float(metrics["reco_valid"].total) == number


@pytest.mark.parametrize(("sampling", "queries"), [("hard", [0, 3]), ("easy", [1, 2]), ("random", [0, 1, 2, 3])])
def test_queries_by_the_students_confidence(sampling, queries):
    """The pixels with a gradient are the queries; each class has few enough that all are drawn."""
    views, outputs = one_row([0, 0, 1, 1], [1.0] * 4, [True] * 4, [True] * 4, [0.97, 0.99, 0.98, 0.2])

    def loss(representation):
        terms, _ = run(task(query_sampling=sampling), views, outputs | {"representation": representation})
        return terms["reco_loss"].mean.value()

    gradient = np.abs(jax.grad(loss)(jnp.asarray(outputs["representation"]))).sum(-1)[0, 0]
    assert np.flatnonzero(gradient).tolist() == queries


def test_the_students_segmentation_gets_no_gradient():
    views, outputs = one_row([0, 0, 1, 1], [1.0] * 4, [True] * 4, [True] * 4, [0.9] * 4)

    def loss(logits):
        return run(task(), views, outputs | {"segmentation": logits})[0]["reco_loss"].mean.value()

    assert (np.asarray(jax.grad(loss)(outputs["segmentation"])) == 0).all()


def make_batch(rows=8, size=12):
    """Rows with a class on each third, a third of whose pixels is UNLABELLED."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    label = np.broadcast_to(np.arange(size) * CLASSES // size, (rows, size, size)).astype(np.int32)
    label = np.where(rng.random(label.shape) < 1 / 3, UNLABELLED, label)
    return Batch(Labelled(image, label, np.ones(label.shape, bool), np.zeros(rows, np.int32)))


def on_devices(reco, mesh, make_toy_network):
    """The mean teacher with ReCo, whose queries these devices share."""
    reco = dataclasses.replace(reco, mesh=mesh)
    return MeanTeacher(
        make_toy_network((HeadSpec("segmentation", CLASSES), reco.head)),
        lambda key, image, valid: image,
        ClassMix(CLASSES),
        (Auxiliary(1.0, reco),),
        threshold=0.3,
        normaliser="eta",
        partial_labels=True,
    )


@pytest.mark.parametrize("key_sets", ["own", pytest.param("shared", marks=pytest.mark.slow)])
def test_one_and_eight_devices_agree_on_a_step_with_partial_labels(make_toy_network, key_sets):
    reco = task(key_sets=key_sets, pixel_threshold=0.3)
    tx = optax.sgd(0.1)
    results = []
    for devices in (1, 8):
        mesh = make_mesh(devices=jax.devices()[:devices])
        method = on_devices(reco, mesh, make_toy_network)
        step = compile_step(method, tx, seed=0, accumulate=1, mesh=mesh)
        state, metrics = step(create_state(method, tx, 0, replicated(mesh)), shard_batch(mesh, make_batch()))
        results.append(jax.device_get((metrics, state.params)))
    (one, one_params), (eight, eight_params) = results
    assert one["reco_loss"] > 0
    assert one["unsupervised_loss"] > 0
    for name, value in one.items():
        assert eight[name] == pytest.approx(value, rel=1e-4 if name == "gradient_norm" else 1e-5), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one_params, eight_params)


def test_no_keys_cross_between_devices():
    """Only the representation does, and its gradient: 64 KiB each, where the keys of one class are 512 KiB."""
    mesh = make_mesh()
    reco = RegionalContrast(CLASSES, channels=16, queries=64, negative_keys=128, mesh=mesh)
    pixels = jax.ShapeDtypeStruct((8, 16, 8), jnp.int32, sharding=batch_sharding(mesh))
    representation = jax.ShapeDtypeStruct((8, 16, 8, 16), jnp.float32, sharding=batch_sharding(mesh))

    def loss(representation, label):
        ones = jnp.ones(label.shape)
        views = Views(jnp.zeros((*label.shape, 3)), label, ones, ones > 0, ones > 0, jnp.ones(8, bool))
        outputs = {"segmentation": jnp.zeros((*label.shape, CLASSES)), "representation": representation}
        return run(reco, views, outputs)[0]["reco_loss"].mean.value()

    program = jax.jit(jax.grad(loss)).lower(representation, pixels).compile().as_text()
    moved = collective_bytes(program)
    assert moved["all-gather"] >= 64 * 1024  # the text is read as meant
    assert sum(moved.values()) < 200 * 1024


@pytest.mark.slow
def test_a_short_training_with_forec_on_partial_labels(tmp_path):
    """The whole way, from the config to a summary; the representation head is no part of the teacher."""
    c = load_config(
        "configs/shapes.py:reco_forec+partial_5pc",
        {
            "steps": 2,
            "evaluate_every": 2,
            "checkpoint_every": 2,
            "log_every": 1,
            "data.size": 48,
            "data.crop": 33,
            "eval.split": "tune",
            "eval.bucket": 64,
            "eval.pictures": 0,
            "model.width": 0.125,
            "model.decoder.channels": 8,
            "model.decoder.low_level_channels": 4,
            "auxiliary.reco.channels": 8,
            "auxiliary.reco.queries": 8,
            "auxiliary.reco.negative_keys": 8,
        },
    )
    training.run_training(c, tmp_path)
    run = load.load_run(tmp_path, "last")
    assert {"representation", "reconstruction"} < set(run.state.params["student"])
    assert set(run.state.teacher["student"].params) == {"encoder", "segmentation"}
    shape = run.state.params["student"]["representation"]["last"]["kernel"].shape
    assert shape[-1] == 8
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert '"reco_loss"' in lines
    assert '"unsupervised_loss"' in lines
    arguments = [f"--workdir={tmp_path}", f"--out={tmp_path / 'seen'}", "--images=tune_00000"]
    assert cli.run(["visualize", "--what=classes", *arguments]) == 0
    found = json.loads((tmp_path / "seen" / "classes.json").read_text())["runs"][tmp_path.name]
    assert found["representation"]["classes"][0] == "background"
    assert (tmp_path / "seen" / "queries" / "tune_00000.png").stat().st_size > 0
