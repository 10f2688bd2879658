"""Sheets and correlations of toy models whose latent images are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from forec_jax.augment import NoMixing
from forec_jax.contracts import HeadOutput, HeadSpec, Network, Variables
from forec_jax.data import Example
from forec_jax.methods import Supervised
from forec_jax.models.layers import channelwise
from forec_jax.training import first_state
from forec_jax.visualize import Legend, Model, Painter, compare, mean_correlations
from forec_jax.visualize.compare import CELL_SIDE, painting_variables
from forec_jax.visualize.panel import Panel

PALETTE = np.array([(0, 0, 0), (250, 10, 10), (10, 10, 250)], np.uint8)
LEGEND = Legend(("background", "a", "b"), PALETTE, (0,))
HEADS = (HeadSpec("segmentation", 3), HeadSpec("reconstruction", 3))
STRIDE = 4


def copying_network(heads):
    """Its features are every fourth pixel; the segmentation says the brightest channel; the reconstruction paints `tint`."""

    def init(key):
        params = {"encoder": {}} | {head.name: {"tint": jnp.zeros(3)} for head in heads}
        return Variables(params, {part: {} for part in params})

    def encode(variables, image, *, valid=None, train, rng):
        return image, variables.batch_stats

    def decode(variables, head, image, *, train, rng):
        latent = image[:, ::STRIDE, ::STRIDE]
        if head == "segmentation":
            return HeadOutput(2 * image, latent), variables.batch_stats
        return HeadOutput(image * 0 + channelwise(variables.params[head]["tint"]), latent), variables.batch_stats

    return Network(init, encode, decode, heads)


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


def cells(sheet, width, height=96):
    """The cells' pictures, row by row; a sheet has an 18-pixel title, each cell an 18-pixel caption."""
    rows = range(18, sheet.shape[0], height + 18 + 4)
    return [[sheet[y : y + height, 4 + x * 164 : 4 + x * 164 + CELL_SIDE] for x in range(width)] for y in rows]


def test_a_sheet_shows_truth_prediction_reconstruction_and_the_latents_that_follow_the_class():
    model, _ = make_model("run", tint=0.5)
    example = make_example()
    ((shown, sheet),) = compare([model], [example], LEGEND, class_index=None, count=2)
    assert shown is example
    ((image, truth, prediction, confidence, painted, mask, first, second),) = cells(sheet, 8)
    np.testing.assert_array_equal(image[::4, ::4], example.image)
    np.testing.assert_array_equal(truth[::4, ::4], PALETTE[example.label])
    np.testing.assert_array_equal(prediction, truth)
    assert np.ptp(confidence.astype(int), axis=(0, 1)).max() > 0
    assert (painted == 128).all()  # the student's tint: the teacher keeps no such head
    np.testing.assert_array_equal(mask[::4, ::4, 0], 255 * example.label)
    np.testing.assert_array_equal(first, mask)  # channel 1 is the mask at a quarter of the size
    assert second[20, 40, 0] < second[60, 4, 0] < second[4, 4, 0]  # channel 0: dark there, and less even elsewhere
    assert (sheet[18 + 96 : 18 + 96 + 18, 4 + 4 * 164 :] < 128).any()  # captions


def test_rows_are_models_and_end_where_a_model_has_no_reconstruction_head():
    models = [make_model("with")[0], make_model("without", HEADS[:1])[0]]
    ((_, sheet),) = compare(models, [make_example()], LEGEND, class_index=1, count=1)
    with_head, without = cells(sheet, 7)
    np.testing.assert_array_equal(with_head[2], without[2])
    assert (with_head[4] == 0).all()
    assert all((cell == 255).all() for cell in without[4:])


def test_an_image_without_the_class_has_no_latents():
    model, _ = make_model("run")
    ((_, sheet),) = compare([model], [make_example()], LEGEND, class_index=2, count=3)
    assert sheet.shape[1] == 4 + 5 * 164


def test_an_image_without_a_mask_is_explained_by_the_prediction():
    model, _ = make_model("run")
    ((_, known),) = compare([model], [make_example()], LEGEND, class_index=None, count=1)
    ((_, unknown),) = compare([model], [make_example(labelled=False)], LEGEND, class_index=None, count=1)
    np.testing.assert_array_equal(cells(unknown, 7)[0][5], cells(known, 7)[0][5])
    assert (cells(unknown, 7)[0][1] == np.array([224, 224, 192])).all()


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
    picture = Panel(method, method, PALETTE, [make_example()], 32, "unit").draw(state)
    assert picture.shape == (18 + 24 + 4, 4 + 5 * 44, 3)
    assert (picture[18:42, -44:-4] == 0).all()


def test_two_teachers_leave_the_painting_to_the_student():
    """Their variables have names of their own, none of them the student's."""
    model, _ = make_model("run")
    teachers = {name: model.variables["student"] for name in ("teacher_1", "teacher_2")}
    painter = Painter("student", model.method.networks["student"], 32, "unit")
    assert painting_variables(model._replace(variables=teachers), painter) == (model.student, "student")
