"""Some classes of a data set alone."""

import dataclasses

import numpy as np
import pytest

from forec_jax.config import load_config
from forec_jax.data import Dataset, Example, chosen_classes
from forec_jax.experiment.sources import build_dataset, planned_labels
from forec_jax.options import OptionError


@dataclasses.dataclass(frozen=True)
class OneMask:
    ids = ("a",)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Example("a", np.zeros((1, 6, 3), np.uint8), np.array([[0, 1, 2, 3, 254, 255]], np.uint8))

    def without_labels(self):
        return "the images alone"


COLOURS = ((9, 9, 9), (1, 0, 0), (0, 0, 0), (0, 0, 3))


def test_the_others_are_background_and_void_stays_void():
    """sky, cat, dog, cow with dog and cat chosen: cat is 1 and dog 2, as the data set has them."""
    toy = Dataset("toy", ("sky", "cat", "dog", "cow"), COLOURS, {"train": OneMask()}, background_classes=(0, 3))
    animals = chosen_classes(toy, ("dog", "cat"))
    assert animals.classes == ("background", "cat", "dog")
    assert animals.background_classes == (0,)
    assert animals.palette == ((0, 0, 0), (1, 0, 0), (255, 255, 255))  # black is the background's
    np.testing.assert_array_equal(animals.source("train")[0].label, [[0, 1, 2, 0, 254, 255]])
    assert animals.source("train").without_labels() == "the images alone"


def test_the_option_chooses_classes_by_name():
    c = load_config("configs/shapes.py:forec", {"data.classes": "star, triangle"})
    dataset = build_dataset(c)
    assert dataset.classes == planned_labels(c).classes == ("background", "triangle", "star")
    whole = build_dataset(load_config("configs/shapes.py:forec", {}))
    for i in range(4):
        label = whole.source("val")[i].label
        expected = (label == whole.classes.index("triangle")) + 2 * (label == whole.classes.index("star"))
        np.testing.assert_array_equal(dataset.source("val")[i].label, expected)
    c.data.tag = "star"
    assert build_dataset(c).classes == ("background", "star")
    for names in ("stars", "star,background"):
        with pytest.raises(OptionError, match=f"data.classes='{names.split(',')[-1]}'"):
            planned_labels(load_config("configs/shapes.py:forec", {"data.classes": names}))
