"""Easy and hard queries, and drawn keys, of a student whose probabilities are known."""

import jax
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import HeadOutput, HeadSpec, Network, Variables
from forec_jax.data import Example, Labels
from forec_jax.methods import Auxiliary, RegionalContrast, Supervised
from forec_jax.training import first_state
from forec_jax.visualize import Model, heatmap, query_sheets
from forec_jax.visualize.queries import contrast_of
from forec_jax.visualize.sheets import CELL_SIDE

COLOURS = ((0, 0, 0), (250, 10, 10), (10, 10, 250))
PALETTE = np.array(COLOURS, np.uint8)
LABELS = Labels(("background", "a", "b"), COLOURS, (0,))
STRIDE = 4


def network(heads):
    """The image says the logits: 20 times red, green and blue for the three classes. The representation is random."""

    def init(key):
        return Variables({part: {} for part in ("encoder", *heads)}, {part: {} for part in ("encoder", *heads)})

    def encode(variables, image, *, valid=None, train, rng):
        return image, variables.batch_stats

    def classify(variables, head, image, *, train, rng):
        if head == "segmentation":
            return HeadOutput(20 * image, image), variables.batch_stats
        small = image[:, ::STRIDE, ::STRIDE]
        noise = jax.random.normal(jax.random.key(1), (*small.shape[:3], 4))
        return HeadOutput(noise, small), variables.batch_stats

    return Network(init, encode, classify, tuple(HeadSpec(name, 3, upsample=name == "segmentation") for name in heads))


def model(contrast=True):
    heads = ("segmentation", "representation") if contrast else ("segmentation",)
    tasks = (Auxiliary(1.0, RegionalContrast(3, channels=4)),) if contrast else ()
    colour = lambda key, image, valid: image  # noqa: E731
    method = Supervised(network=network(heads), colour=colour, mixing=NoMixing(), auxiliary=tasks)
    state = first_state(method, optax.sgd(0.1), seed=0)
    student = {"student": Variables(state.params["student"], state.batch_stats["student"])}
    return Model("run", method, "student", student, student, 32, "unit", method)


def example():
    """32x64: the left half is background, the right half class 1. The student is right, and sure in the upper half."""
    label = np.zeros((32, 64), np.uint8)
    label[:, 32:] = 1
    image = np.zeros((32, 64, 3), np.uint8)
    image[..., 0], image[..., 1] = 255 * (label == 0), 255 * (label == 1)
    image[16:] //= 10
    return Example("one", image, label)


def cells(sheet):
    height = CELL_SIDE // 2
    return [sheet[18 : 18 + height, x : x + CELL_SIDE] for x in range(4, sheet.shape[1] - 1, CELL_SIDE + 4)]


def test_sure_pixels_are_easy_and_unsure_ones_hard():
    ((_, sheet),) = query_sheets([model()], [example()], LABELS, class_index=None)
    _, label, probability, easy, hard, drawn = cells(sheet)
    np.testing.assert_array_equal(label[::60, ::120], PALETTE[[[0, 1], [0, 1]]])
    sure, unsure = (float(np.exp(p) / (np.exp(p) + 2)) for p in (20, 20 * 25 / 255))
    assert sure > 0.97 > unsure  # delta_s
    np.testing.assert_array_equal(probability[10, 10], heatmap(np.array([[sure]]))[0, 0])
    np.testing.assert_array_equal(probability[105, 10], heatmap(np.array([[unsure]]))[0, 0])
    assert (easy[:60] == 255).all()
    assert (easy[60:] < 255).all()
    assert (hard[60:] == 255).all()
    assert (hard[:60] < 255).all()
    white, black = (drawn == 255).all(-1), (drawn == 0).all(-1)
    assert white[61:, 117:].any()
    assert not white[:, :112].any()
    assert not white[:52].any()
    assert black[:, :112].any()
    assert not (drawn == PALETTE[1]).all(-1).any()


def test_an_absent_class_has_no_queries_and_a_method_without_contrast_only_probabilities():
    ((_, absent),) = query_sheets([model()], [example()], LABELS, class_index=2)
    assert len(cells(absent)) == 5
    ((_, without),) = query_sheets([model(contrast=False)], [example()], LABELS, class_index=None)
    assert len(cells(without)) == 3
    assert contrast_of(model(contrast=False).method) is None


def test_without_a_truth_the_students_own_labels_take_part_where_it_is_sure():
    ((_, sheet),) = query_sheets([model()], [example()._replace(label=None)], LABELS, class_index=None)
    _, label, _, easy, hard, *_ = cells(sheet)
    np.testing.assert_array_equal(label[::60, ::120], PALETTE[[[0, 1], [0, 1]]])
    assert (easy[:60] == 255).all()
    assert (hard[60:] == 255).all()


def test_a_method_that_does_not_segment_has_no_queries():
    bare = model()
    method = Supervised(network=network(("other",)), colour=bare.method.colour, mixing=NoMixing())
    with pytest.raises(ValueError, match="no segmentation head"):
        next(query_sheets([bare._replace(method=method)], [example()], LABELS, class_index=None))
