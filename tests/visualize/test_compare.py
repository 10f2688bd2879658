"""Sheets and correlations of toy models whose latent images are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from forec_jax.augment import NoMixing
from forec_jax.contracts import HeadOutput, HeadSpec, Network, Variables
from forec_jax.data import Example, Labels
from forec_jax.methods import Supervised
from forec_jax.models.layers import channelwise
from forec_jax.training import first_state
from forec_jax.visualize import IGNORE_COLOUR, Model, Painter, compare, mean_correlations, overlay
from forec_jax.visualize.compare import painting_variables
from forec_jax.visualize.panel import Panel
from forec_jax.visualize.sheets import CELL_SIDE

COLOURS = ((0, 0, 0), (250, 10, 10), (10, 10, 250))
PALETTE = np.array(COLOURS, np.uint8)
LABELS = Labels(("background", "a", "b"), COLOURS, (0,))
LEGEND_HEIGHT = 20  # pixels of a sheet's last lines, which name its colours
HEADS = (HeadSpec("segmentation", 3), HeadSpec("reconstruction", 3))
STRIDE = 4


def copying_network(heads):
    """Its features are every fourth pixel; the segmentation says the brightest channel; the reconstruction paints `tint`."""

    def init(key):
        params = {"encoder": {}} | {head.name: {"tint": jnp.zeros(3)} for head in heads}
        return Variables(params, {part: {} for part in params})

    def encode(variables, image, *, valid=None, train, rng):
        return image, variables.batch_stats

    def classify(variables, head, image, *, train, rng):
        latent = image[:, ::STRIDE, ::STRIDE]
        if head == "segmentation":
            return HeadOutput(2 * image, latent), variables.batch_stats
        return HeadOutput(image * 0 + channelwise(variables.params[head]["tint"]), latent), variables.batch_stats

    return Network(init, encode, classify, heads)


def make_model(name, heads=HEADS, space="unit", tint=0.0):
    method = Supervised(network=copying_network(heads), colour=lambda key, image, valid: image, mixing=NoMixing())
    state = first_state(method, optax.sgd(0.1), seed=0)
    student = {"student": Variables(state.params["student"], state.batch_stats["student"])}
    student = jax.tree.map(lambda leaf: leaf + tint, student)
    return Model(name, method, "teacher", state.teacher, student, 32, space, method), state


def make_example(name="one", labelled=True):
    """40x24 pixels: class 1 is green, the rest is red (paler in the lower half): the network is right everywhere."""
    label = np.zeros((24, 40), np.uint8)
    label[4:16, 8:24] = 1
    image = np.zeros((24, 40, 3), np.uint8)
    image[..., 0], image[..., 1] = 200 * (label == 0), 255 * (label == 1)
    image[12:, :, 0] -= image[12:, :, 0] // 4
    return Example(name, image, label if labelled else None)


def cells(sheet, width, height=144):
    """The cells' pictures, row by row; a sheet has an 18-pixel title, each cell an 18-pixel caption, and a legend below."""
    rows = range(18, sheet.shape[0] - LEGEND_HEIGHT, height + 18 + 4)
    return [[sheet[y : y + height, 4 + x * 244 : 4 + x * 244 + CELL_SIDE] for x in range(width)] for y in rows]


def test_a_sheet_shows_truth_prediction_reconstruction_and_the_latents_that_follow_the_class():
    model, _ = make_model("run", tint=0.5)
    example = make_example()
    ((shown, sheet),) = compare([model], [example], LABELS, class_index=None, count=2)
    assert shown is example
    ((image, over, truth, prediction, confidence, painted, mask, first, second),) = cells(sheet, 9)
    np.testing.assert_array_equal(image[::6, ::6], example.image)
    np.testing.assert_array_equal(over[::6, ::6], overlay(example.image, example.label, PALETTE))
    np.testing.assert_array_equal(truth[::6, ::6], PALETTE[example.label])
    np.testing.assert_array_equal(prediction, truth)
    assert np.ptp(confidence.astype(int), axis=(0, 1)).max() > 0
    assert (painted == 128).all()  # the student's tint: the teacher keeps no such head
    np.testing.assert_array_equal(mask[::6, ::6, 0], 255 * example.label)
    np.testing.assert_array_equal(first, mask)  # channel 1 is the mask at a quarter of the size
    assert second[30, 60, 0] < second[90, 6, 0] < second[6, 6, 0]  # channel 0: dark there, and less even elsewhere
    assert (sheet[18 + 144 : 18 + 144 + 18, 4 + 5 * 244 :] < 128).any()  # captions


def test_rows_are_models_and_end_where_a_model_has_no_reconstruction_head():
    models = [make_model("with")[0], make_model("without", HEADS[:1])[0]]
    ((_, sheet),) = compare(models, [make_example()], LABELS, class_index=1, count=1)
    with_head, without = cells(sheet, 8)
    np.testing.assert_array_equal(with_head[3], without[3])
    assert (with_head[5] == 0).all()
    assert all((cell == 255).all() for cell in without[5:])


def test_an_image_without_the_class_has_no_latents():
    model, _ = make_model("run")
    ((_, sheet),) = compare([model], [make_example()], LABELS, class_index=2, count=3)
    assert sheet.shape[1] == 4 + 6 * 244


def test_an_image_without_a_mask_is_explained_by_the_prediction():
    model, _ = make_model("run")
    ((_, known),) = compare([model], [make_example()], LABELS, class_index=None, count=1)
    ((_, unknown),) = compare([model], [make_example(labelled=False)], LABELS, class_index=None, count=1)
    np.testing.assert_array_equal(cells(unknown, 8)[0][6], cells(known, 8)[0][6])
    assert (cells(unknown, 8)[0][2] == np.array([224, 224, 192])).all()


def test_mean_correlations_of_a_channel_that_is_the_mask():
    model, _ = make_model("run")
    found = mean_correlations(model, [make_example(str(n), labelled=n < 3) for n in range(4)])
    assert found.keys() == {0, 1}
    assert found[1].images == 3
    np.testing.assert_allclose(found[1].correlation, 1.0, rtol=1e-9)
    assert mean_correlations(make_model("without", HEADS[:1])[0], [make_example("a"), make_example("b")]) == {}


def test_a_head_that_paints_normalised_pixels_is_shown_in_colours():
    model, _ = make_model("run", space="imagenet")  # paints 0: ImageNet's mean colour
    painted = Painter("student", copying_network(HEADS), 32, "imagenet")(model.student, make_example())
    np.testing.assert_array_equal(painted.image[3, 5], [124, 116, 104])
    assert painted.latent.shape == (6, 10, 3)


def test_the_panel_ends_with_what_the_student_paints():
    _, state = make_model("run")
    method = make_model("run")[0].method
    picture = Panel(method, method, LABELS, [make_example()], 32, "unit").draw(state)
    assert picture.shape == (18 + 144 + 4 + LEGEND_HEIGHT, 4 + 6 * 244, 3)  # 40 pixels are enlarged to 240
    assert (picture[18:162, -244:-4] == 0).all()


def test_rows_of_an_image_without_a_mask_are_about_one_class():
    """The second model predicts another class than the first; what follows class 1 is shown of it all the same."""
    first, second = make_model("first")[0], make_model("second")[0]
    swapped = second.method.networks["student"]
    classify = lambda variables, head, image, **rest: swapped.classify(  # noqa: E731 - red and blue change places
        variables, head, image[..., ::-1] if head == "segmentation" else image, **rest
    )
    method = dataclasses.replace(second.method, network=swapped._replace(classify=classify))
    second = second._replace(method=method, predicts=method)
    example = make_example(labelled=False)
    example = example._replace(image=example.image[:, ::-1])
    ((_, picture),) = compare([first, second], [example], LABELS, class_index=None, count=1)
    above, below = cells(picture, 8)
    assert (above[3] != below[3]).any()
    np.testing.assert_array_equal(above[6], below[6])
    assert classes_of(picture) == {(0, 0, 0), (250, 10, 10), (10, 10, 250), IGNORE_COLOUR}


def classes_of(picture):
    """The colours of a sheet's legend."""
    strip = picture[-LEGEND_HEIGHT:]
    return {colour for colour in (*COLOURS, IGNORE_COLOUR) if (strip == np.array(colour)).all(-1).sum() >= 100}


def test_two_teachers_leave_the_painting_to_the_student():
    """Their variables have names of their own, none of them the student's."""
    model, _ = make_model("run")
    teachers = {name: model.variables["student"] for name in ("teacher_1", "teacher_2")}
    painter = Painter("student", model.method.networks["student"], 32, "unit")
    assert painting_variables(model._replace(variables=teachers), painter) == (model.student, "student")
