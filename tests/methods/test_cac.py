"""CAC: the worked example, crops that show the same cells, who follows whom, and what carries no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import Batch, HeadSpec, Labelled, Unlabelled
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.losses import directional_contrast
from forec_jax.losses.contrast import unit
from forec_jax.methods import Cac
from forec_jax.methods.cac import PROJECTION
from forec_jax.methods.parts.cells import Cells
from forec_jax.methods.parts.double_crop import Crop, cropped, draw_crop, grid_of, in_cells, partners
from forec_jax.methods.parts.ring import Ring
from forec_jax.methods.parts.views import interleave
from forec_jax.options import OptionError
from forec_jax.parallel import make_mesh, replicated, shard_batch
from forec_jax.training import first_state, objective

D, ROWS, SIDE = 2, 8, 12  # a row a device


def noisy(key, image, valid):
    """Colours by which two crops of one image differ: to a toy network their cells would be the same."""
    return image + 0.5 * jax.random.uniform(key, image.shape)


def method_of(network, **options):
    small = {"channels": D, "cell": 2, "queue": 40, "pushed": 30, "threshold": 0.4, "unsupervised_weight": 0.1}
    return Cac(network, noisy, NoMixing(), **{**small, **options})


def worked_example():
    """Three cells of two crops, a store of three vectors, and room for one more."""
    one = Cells(
        unit(jnp.array([[[1.0, 0], [0, 1], [1, 1]]])), jnp.array([[0, 1, 0]]), jnp.array([[0.6, 0.9, 0.5]]), None
    )
    two = Cells(
        unit(jnp.array([[[1.0, 1], [0, 1], [1, 0]]])), jnp.array([[1, 1, 0]]), jnp.array([[0.8, 0.7, 0.6]]), None
    )
    cells = jax.tree.map(interleave, *(crop._replace(valid=jnp.ones((1, 3), bool)) for crop in (one, two)))
    store = jnp.array([[[1.0, 0, 0], [0, 1, 1], [-1, 0, 1], [9, 9, 9]]])
    return cells, Ring(store, jnp.array([3]), jnp.array([3]))


def contrast_of(method, cells, ring, index=(0, 1, 2), inside=(True, True, True)):
    return method.contrast(cells, (jnp.array([index]), jnp.array([inside])), ring, jnp.asarray(9))


def test_the_worked_example(make_toy_network):
    method = method_of(make_toy_network(), threshold=0.75, start=5.0, temperature=0.1)
    terms, metrics = contrast_of(method, *worked_example())
    np.testing.assert_allclose(terms["contrast1_loss"].mean.value(), 0.000849, atol=5e-7)
    np.testing.assert_allclose(terms["contrast2_loss"].mean.value(), 0.0000454, atol=5e-8)
    assert [float(terms[f"contrast{n}_loss"].mean.number) for n in (1, 2)] == [1, 1]
    assert [float(term.weight) for term in terms.values()] == [np.float32(0.1)] * 2
    np.testing.assert_allclose(metrics["kept"].value(), 2 / 3)


def test_a_cell_that_only_one_crop_shows_follows_nothing(make_toy_network):
    method = method_of(make_toy_network(), threshold=0.75)
    terms, metrics = contrast_of(method, *worked_example(), inside=(False, True, True))
    assert [float(terms[f"contrast{n}_loss"].mean.number) for n in (1, 2)] == [0, 1]
    assert terms["contrast1_loss"].mean.value() == 0
    np.testing.assert_allclose(metrics["overlap"].value(), 2 / 3)


def test_the_contrast_equals_an_oracle_in_any_number_of_chunks(monkeypatch):
    """And only the first argument has a gradient, that of the formula."""
    rng = np.random.default_rng(0)
    vector, positive, keys = (unit(jnp.asarray(rng.normal(size=(n, 3)), jnp.float32)) for n in (6, 6, 10))
    label, key_label = rng.integers(0, 3, 6), rng.integers(-1, 3, 10)
    label[0], key_label[:] = 7, np.where(key_label == 1, 0, key_label)

    def by_hand(i):
        others = [keys[j] for j in range(10) if key_label[j] >= 0 and key_label[j] != label[i]]
        choices = np.array([positive[i], *others])
        odds = np.exp(choices @ np.asarray(vector[i]) / 0.2)
        share = odds / odds.sum()
        slope = (share @ choices - choices[0]) / 0.2
        return -np.log(share[0]), slope - vector[i] * (
            slope @ vector[i]
        )  # across the vector: its length does not count

    def found(vector, positive, keys):
        errors = directional_contrast(
            vector, positive, jnp.asarray(label), keys, jnp.asarray(key_label), temperature=0.2
        )
        return errors.sum(), errors

    expected, slope = (np.stack(part) for part in zip(*(by_hand(i) for i in range(6)), strict=True))
    for at_once in (4, 100):
        monkeypatch.setattr("forec_jax.losses.contrast._KEYS_AT_ONCE", at_once)
        (_, errors), gradients = jax.jit(jax.value_and_grad(found, (0, 1, 2), has_aux=True))(vector, positive, keys)
        np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradients[0], slope, rtol=1e-4, atol=1e-5)
        for constant in gradients[1:]:
            np.testing.assert_array_equal(constant, 0)


def test_without_a_negative_nothing_is_lost():
    one = jnp.array([[1.0, 0.0]])
    lost, slope = jax.value_and_grad(
        lambda v: directional_contrast(v, one, jnp.array([1]), one, jnp.array([1]), temperature=0.1).sum()
    )(jnp.array([[0.6, 0.8]]))
    assert lost == 0
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (True, True)])
def test_partners_show_the_same_pixels(turned):
    """Each pixel's value is its place: a cell has a partner where the other crop shows the same mean."""
    grid = grid_of((12, 18), 2 / 3, 2)
    assert grid == (4, 6, 2)
    place = 1000.0 * jnp.arange(12)[:, None] + jnp.arange(18.0)[None]
    crops = [
        Crop(jnp.array([0, 2]), jnp.array([3, 0]), jnp.array([turned[0]] * 2)),
        Crop(jnp.array([1, 1]), jnp.array([1, 2]), jnp.array([turned[1]] * 2)),
    ]
    one, other = (in_cells(cropped(jnp.stack([place, place]), crop, grid), grid) for crop in crops)
    index, inside = partners(*crops, grid)
    for row in range(2):
        np.testing.assert_array_equal(inside[row], np.isin(one[row], other[row]))
        np.testing.assert_array_equal(other[row][index[row]][inside[row]], one[row][inside[row]])
    assert np.asarray(inside).sum(1).tolist() == [3 * 4, 3 * 4]


def test_crops_lie_inside_and_overlap_by_half_of_each_side():
    grid = grid_of((480, 480), 2 / 3, 8)
    assert grid == (40, 40, 8)
    crop = draw_crop(jax.random.key(0), 2000, (480, 480), grid)
    for start in (crop.top, crop.left):
        assert (start.min(), start.max()) == (0, 20)
    assert grid_of((48, 48), 0.2, 8) == (1, 1, 8)
    assert draw_crop(jax.random.key(0), 50, (48, 48), grid_of((48, 48), 0.2, 8)).top.max() == 0
    with pytest.raises(OptionError, match=r"data\.crop larger"):
        grid_of((7, 7), 1.0, 8)
    with pytest.raises(OptionError, match=r"method\.cac\.stride=1"):
        in_cells(jnp.zeros((1, 50, 80, 2)), grid)


def make_batch(padding=0):
    images = np.random.default_rng(0).integers(0, 256, (2, ROWS, SIDE, SIDE, 3), dtype=np.uint8)
    valid, none = np.ones((ROWS, SIDE, SIDE), bool), np.zeros(ROWS, np.int32)
    label = np.broadcast_to(np.arange(SIDE, dtype=np.int32) % 3, valid.shape).copy()
    shown = valid & (np.arange(SIDE) < SIDE - padding)
    return jax.tree.map(jnp.asarray, Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], shown, none)))


@functools.partial(jax.jit, static_argnums=0)
def run(method, state, batch):
    def total(params):
        terms, aux = method.loss(params, state, batch, jax.random.key(3))
        return objective(terms), (terms, aux)

    gradient, (terms, aux) = jax.grad(total, has_aux=True)(state.params)
    return terms, aux, gradient


@functools.cache
def toy_method(make):
    return method_of(make((HeadSpec("segmentation", 3), HeadSpec(PROJECTION, D))), start=5.0)


def test_from_its_start_on_it_stores_valid_cells_and_teaches_on_any_number_of_devices(make_toy_network):
    method = toy_method(make_toy_network)
    state = first_state(method, optax.sgd(0.1), seed=0)
    terms, aux, gradient = run(method, state._replace(step=jnp.int32(4)), make_batch())
    assert not np.any(gradient["student"][PROJECTION]["w"])
    assert aux.memory[PROJECTION].number == 0
    terms, aux, gradient = run(method, state._replace(step=jnp.int32(5)), make_batch())
    assert np.any(gradient["student"][PROJECTION]["w"])
    assert sum(float(terms[f"contrast{n}_loss"].mean.number) for n in (1, 2)) > 0
    ring = aux.memory[PROJECTION]
    assert ring.number == 30
    stored = np.asarray(ring.values[0, :30])
    assert np.all(np.any(stored[:, :-1] != 0, axis=1))
    assert set(stored[:, -1]) <= {0.0, 1.0, 2.0}
    mesh = make_mesh(devices=jax.devices())
    spread = jax.device_put(state._replace(step=jnp.int32(5)), replicated(mesh)), shard_batch(mesh, make_batch())
    jax.tree.map(
        lambda one, eight: np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-6),
        (terms, aux, gradient),
        run(method, *spread),
    )
    _, padded, _ = run(method, state._replace(step=jnp.int32(5)), make_batch(padding=SIDE))
    assert padded.memory[PROJECTION].number == 0
    assert padded.metrics["overlap"].value() == 0


def test_both_crops_are_of_one_image_in_colours_of_their_own(witness):
    colours = iter((0.0, 0.25))
    method = Cac(
        witness.network._replace(heads=(*witness.network.heads, HeadSpec(PROJECTION, D))),
        lambda key, image, valid: image + next(colours),
        NoMixing(),
        cell=2,
        channels=D,
        colour_labelled=False,
    )
    batch = make_batch()
    crops, places, grid = method.crops(batch.unlabelled, jax.random.key(1))
    weak = np.asarray(witness.weak(batch.unlabelled))
    for number, crop in enumerate(places):
        expected = cropped(jnp.asarray(weak), crop, grid)
        np.testing.assert_allclose(crops.clean[number::2], expected, rtol=1e-6)
        np.testing.assert_allclose(crops.strong[number::2], expected + 0.25 * number, rtol=1e-6)
    assert crops.label.shape == (2 * ROWS, 8, 8)


def built(options):
    labels = Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,))
    return build.build_method(load_config("configs/shapes.py:cac+forec", options), labels)


def test_what_cannot_be_is_refused():
    with pytest.raises(OptionError, match="cac has none before an image is mixed"):
        built({"augment.mixing": "classmix"})
    with pytest.raises(OptionError, match="separate_passes=True: Cac has passes of its own"):
        built({"method.separate_passes": True})
    assert {head.name for head in built({}).network.heads} == {"segmentation", "reconstruction", PROJECTION}


@pytest.mark.parametrize("file", ["voc", "cityscapes", "camvid", "shapes", "folder"])
def test_as_published_by_name(file):
    plain, paper = (load_config(f"configs/{file}.py:{name}", {}) for name in ("cac", "cac_paper"))
    for c in (plain, paper):
        assert (c.method.name, c.method.threshold, c.method.unsupervised_weight) == ("cac", 0.75, 0.1)
        assert (c.method.start, c.augment.mixing) == (0.0625, "none")
    assert paper.method.cac.queue == (129_600 if file == "cityscapes" else 51_200)
    if file in ("voc", "cityscapes"):
        assert paper.data.crop * 2 / 3 == {"voc": 320, "cityscapes": 720}[file]
