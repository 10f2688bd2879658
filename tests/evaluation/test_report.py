"""An evaluation as text, JSON and CSV, from a confusion matrix whose scores are known by hand."""

import csv
import io

import numpy as np
import pytest

from forec_jax.evaluation import Evaluation, class_iou, mean_iou
from forec_jax.evaluation.report import as_csv, as_dict, as_text

NAMES = ["background", "cat, small", "dog"]
# Ground truth 0: three right, one called 1. Ground truth 1: two right, two called 0. Class 2 nowhere.
HAND = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
NEAR = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 9]])  # boundary IoU 1/2 and 1/2


def evaluation(boundary=None):
    return Evaluation(mean_iou(HAND), class_iou(HAND), HAND, boundary)


def test_the_text_has_a_line_a_class_the_means_and_what_is_absent():
    lines = as_text(evaluation(), NAMES).splitlines()
    assert lines[0].split() == ["IoU", "precision", "recall", "F1"]
    assert [line.split()[-4:] for line in lines[1:6]] == [
        ["50.00", "60.00", "75.00", "66.67"],
        ["40.00", "66.67", "50.00", "57.14"],
        ["-", "-", "-", "-"],
        ["45.00", "63.33", "62.50", "61.90"],
        ["45.00", "63.33", "62.50", "61.90"],
    ]
    assert len({len(line) for line in lines[:6]}) == 1
    assert [line.split() for line in lines[7:12]] == [
        ["pixel", "accuracy", "62.50"],
        ["mean", "accuracy", "62.50"],
        ["mIoU", "45.00"],
        ["frequency", "weighted", "IoU", "45.00"],
        ["mean", "F1", "61.90"],
    ]
    assert lines[12] == "not in this split, and never predicted: dog"


def test_the_json_has_every_class_and_the_matrix():
    found = as_dict(evaluation(NEAR), NAMES)
    assert found["pixel_accuracy"] == pytest.approx(5 / 8)
    assert found["not_in_this_split"] == ["dog"]
    assert found["confusion"] == HAND.tolist()
    assert found["mean_boundary_iou"] == pytest.approx(0.5)
    assert found["classes"]["cat, small"] == pytest.approx(
        {"pixels": 4, "iou": 2 / 5, "precision": 2 / 3, "recall": 1 / 2, "f1": 4 / 7, "boundary_iou": 1 / 2}
    )
    assert np.isnan(found["classes"]["dog"]["iou"])


def test_the_csv_is_read_back_by_any_reader():
    rows = list(csv.reader(io.StringIO(as_csv(evaluation(NEAR), NAMES))))
    assert rows[0][:7] == ["class", "pixels", "iou", "precision", "recall", "f1", "boundary_iou"]
    assert rows[0][7:] == [f"called {name}" for name in NAMES]
    assert rows[2] == ["cat, small", "4", "0.400000", "0.666667", "0.500000", "0.571429", "0.500000", "2", "2", "0"]
    assert rows[3] == ["dog", "0", "", "", "", "", "", "0", "0", "0"]
    assert [row[:3] for row in rows[4:]] == [["(mean)", "8", "0.450000"], ["(mean by pixels)", "8", "0.450000"]]
    assert {len(row) for row in rows} == {10}


def test_names_must_be_those_of_the_matrix():
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        as_text(evaluation(), ["a", "b"])
