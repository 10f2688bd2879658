import colorsys
import pickle

import numpy as np
import pytest

from forec_jax.data import DataError, shapes_dataset
from forec_jax.data.datasets.shapes import (
    CLASSES,
    CONTEXT_RATE,
    COUNTS,
    HUE_SPREAD,
    PALETTE,
    TYPICAL_RATE,
    ShapesSource,
)


def test_examples_have_the_promised_form():
    data = shapes_dataset(size=64, counts={"train": 3})
    example = data.source("train")[2]
    assert example.id == "train_00002" == data.source("train").ids[2]
    assert (example.image.shape, example.image.dtype) == ((64, 64, 3), np.uint8)
    assert (example.label.shape, example.label.dtype) == ((64, 64), np.uint8)
    assert {name: len(source) for name, source in data.sources.items()} == {**COUNTS, "train": 3}
    assert data.classes == CLASSES
    assert len(data.palette) == len(set(PALETTE)) == len(CLASSES)
    assert data.background_classes == (0,)


def test_an_example_depends_on_seed_split_and_index_alone():
    first = shapes_dataset().source("train")
    second = shapes_dataset(counts={"train": 40}).source("train")
    second[7]
    np.testing.assert_array_equal(first[11].image, second[11].image)
    np.testing.assert_array_equal(first[11].label, second[11].label)
    others = (first[12], shapes_dataset(seed=1).source("train")[11], shapes_dataset().source("val")[11])
    assert not any(np.array_equal(first[11].image, other.image) for other in others)


def test_every_class_is_drawn_and_background_is_the_largest():
    source = shapes_dataset().source("tune")
    share = np.bincount(np.concatenate([source[i].label.ravel() for i in range(len(source))]), minlength=len(CLASSES))
    share = share / share.sum()
    assert 0.6 < share[0] < 0.9
    assert share[1:].min() > 0.01


def context_rate(split: str) -> float:
    source = ShapesSource(split, 2000)
    scenes = [source.scene(i) for i in range(len(source))]
    return float(np.mean([scene.background == scene.things[-1].class_index - 1 for scene in scenes]))


def test_classes_have_a_context_except_in_the_decorrelated_split():
    chance = 1 / (len(CLASSES) - 1)
    for split in ("train", "tune", "val"):
        assert context_rate(split) == pytest.approx(CONTEXT_RATE + (1 - CONTEXT_RATE) * chance, abs=0.03)
    assert context_rate("val_decorrelated") == pytest.approx(chance, abs=0.03)


def test_the_background_says_nothing_about_single_classes_when_decorrelated():
    source = ShapesSource("val_decorrelated", 3000)
    table = np.zeros((6, 6))
    for i in range(len(source)):
        scene = source.scene(i)
        table[scene.things[-1].class_index - 1, scene.background] += 1
    assert np.abs(table / table.sum(1, keepdims=True) - 1 / 6).max() < 0.06


def hue(colour) -> float:
    return colorsys.rgb_to_hsv(*colour)[0]


def test_an_object_mostly_has_its_classs_colour_and_apart_from_that_its_texture():
    things = [thing for i in range(1500) for thing in ShapesSource("train", 1500).scene(i).things]
    texture = np.array([thing.kind == thing.class_index - 1 for thing in things])
    distance = np.array([hue(thing.colours[0]) - (thing.class_index - 1) / 6 for thing in things])
    colour = np.abs((distance + 0.5) % 1 - 0.5) < 3 * HUE_SPREAD
    by_chance = 6 * HUE_SPREAD  # a uniform hue falls into an arc of that length
    assert colour.mean() == pytest.approx(TYPICAL_RATE * 0.997 + (1 - TYPICAL_RATE) * by_chance, abs=0.02)
    assert texture.mean() == pytest.approx(TYPICAL_RATE + (1 - TYPICAL_RATE) / 6, abs=0.02)
    assert np.corrcoef(texture, colour)[0, 1] == pytest.approx(0, abs=0.06)


def test_a_backgrounds_hue_lies_between_those_of_two_classes():
    scenes = [ShapesSource("val", 400).scene(i) for i in range(400)]
    away = [(hue(scene.colours[0]) - (scene.background + 0.5) / 6 + 0.5) % 1 - 0.5 for scene in scenes]
    assert np.mean(away) == pytest.approx(0, abs=0.006)
    assert np.std(away) == pytest.approx(HUE_SPREAD, rel=0.15)


def test_without_labels_shares_the_images():
    source = shapes_dataset().source("train")
    view = source.without_labels()
    assert view[3].label is None
    assert view[3].image is source[3].image


def test_a_copy_for_a_worker_leaves_the_cache_behind():
    source = ShapesSource("train", 8)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy._cache) == 0
    np.testing.assert_array_equal(copy[0].image, source[0].image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32}, "at least 33"),
        ({"counts": {"test": 3}}, "unknown splits"),
        ({"counts": {"train": -1}}, "negative"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        shapes_dataset(**options)


def test_an_unknown_split_is_answered_with_the_known_ones():
    with pytest.raises(DataError, match="val_decorrelated"):
        shapes_dataset().source("test")


def test_an_index_past_the_end():
    with pytest.raises(IndexError, match="no index 3"):
        ShapesSource("train", 3)[3]
