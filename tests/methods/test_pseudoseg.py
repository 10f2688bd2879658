"""PseudoSeg: an oracle of the whole loss, who learns from what, and that soft labels are mixed as images are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import CutMix, NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, Batch, HeadOutput, HeadSpec, Labelled, Network, Unlabelled, Variables
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods.parts.refined_maps import bias_of_tags, depth_of_tags, refined_maps
from forec_jax.methods.parts.tags import tags_head
from forec_jax.methods.parts.views import unit_image
from forec_jax.methods.pseudoseg import ATTENTION, PseudoSeg
from forec_jax.models import attention_network
from forec_jax.models.attention import REFINED
from forec_jax.options import OptionError
from forec_jax.training import first_state

CLASSES, FOREGROUND, DEPTH = 3, (1, 2), 4
HEADS = HeadSpec("segmentation", CLASSES), tags_head(FOREGROUND)
KEY, TX = jax.random.key(0), optax.sgd(0.1)


def brighter(key, image, valid):
    return jnp.clip(image + 0.25, 0, 1)


def batch(shape=(2, 4, 5)):
    """Row 0 shows the classes 0 and 1, row 1 all; a column of padding."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    label = rng.integers(0, 2, shape).astype(np.int32)
    label[1] = rng.integers(0, CLASSES, shape[1:])
    valid, none = np.ones(shape, bool), np.zeros(shape[0], np.int32)
    valid[..., -1] = False
    label[~valid] = IGNORE
    label[:, 0, 0] = IGNORE
    return Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none))


def make_method(network, mixing=None, **options):
    attention = attention_network(DEPTH, len(FOREGROUND), CLASSES, channels=3)
    given = {"threshold": 0.0, "colour_labelled": False, **options}
    return PseudoSeg(network, brighter, mixing or NoMixing(), attention=attention, foreground=FOREGROUND, **given)


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, params, state, given):
    terms, aux = method.loss(params, state, jax.tree.map(jnp.asarray, given), KEY)
    return {name: term.mean for name, term in terms.items()}, aux


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def features_of(state, image):
    return np.tanh(image @ np.asarray(state.params["student"]["encoder"]["w"], np.float64))


def said(state, image, head):
    return features_of(state, image) @ np.asarray(state.params["student"][head]["w"], np.float64)


def refined(state, image, shown, valid):
    """The attention's logits f64[b,H,W,K] in train mode."""
    p = state.params[ATTENTION][REFINED]
    maps = np.maximum(said(state, image, "tags"), 0) * shown[:, None, None] * valid[..., None]
    maps = maps / np.maximum(maps.max((1, 2), keepdims=True), 1e-6)
    features = features_of(state, image) * valid[..., None]
    rows = []
    for x, cam, inside in zip(features, maps, valid, strict=True):
        x, cam = x.reshape(-1, x.shape[-1]), cam.reshape(-1, cam.shape[-1])
        query, key = (x @ np.asarray(p[name]["kernel"]) for name in ("query", "key"))
        alike = np.exp(query @ key.T / 3**0.5) * inside.reshape(-1)
        a = alike / alike.sum(-1, keepdims=True) @ cam + cam
        rows.append(np.concatenate([2 - a.max(-1, keepdims=True), a], axis=-1).reshape(*inside.shape, -1))
    z = np.stack(rows) @ np.asarray(p["logits"]["conv"]["kernel"])[0, 0]
    return (z - z.mean((0, 1, 2))) / np.sqrt(z.var((0, 1, 2)) + 1e-5)


def picked(p, label):
    return np.take_along_axis(p, label[..., None], -1)[..., 0]


def test_the_loss_equals_a_numpy_oracle(make_toy_network):
    method = make_method(make_toy_network(HEADS, normalise=False), label_mode="train")
    state, given = first_state(method, TX, seed=1), batch()
    terms, aux = loss_of(method, state.params, state, given)
    labelled, weak, valid = given.labelled.image / 255.0, given.unlabelled.image / 255.0, given.unlabelled.valid
    known, label = given.labelled.label != IGNORE, np.where(given.labelled.label == IGNORE, 0, given.labelled.label)

    supervised = -np.log(picked(softmax(said(state, labelled, "segmentation")), label))[known].mean()
    np.testing.assert_allclose(terms["supervised_loss"].value(), supervised, rtol=1e-4)

    shown = np.array([[1, 0], [1, 1]])
    tags = (said(state, labelled, "tags") * valid[..., None]).sum((1, 2)) / valid.sum((1, 2))[:, None]
    p = 1 / (1 + np.exp(-tags))
    np.testing.assert_allclose(terms["tags_loss"].value(), -np.log(np.where(shown == 1, p, 1 - p)).mean(), rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["tags_right"].value(), np.mean((p > 0.5) == shown))

    own = refined(state, labelled, shown, valid)
    attention = -np.log(picked(softmax(own), label))[known].mean()
    np.testing.assert_allclose(terms["attention_loss"].value(), attention, rtol=1e-3)

    tags = (said(state, weak, "tags") * valid[..., None]).sum((1, 2)) / valid.sum((1, 2))[:, None]
    assert 0 < (tags >= 0).mean() < 1  # so that it shows whose maps are seen
    both = np.stack([said(state, weak, "segmentation"), refined(state, weak, tags >= 0, valid)])
    both = both / np.sqrt(np.square(both[:, valid]).mean() + 1e-8)
    q = np.square(softmax(both).mean(0))
    q = q / q.sum(-1, keepdims=True)
    error = -np.sum(q * np.log(softmax(said(state, np.clip(weak + 0.25, 0, 1), "segmentation"))), axis=-1)
    np.testing.assert_allclose(terms["unsupervised_loss"].value(), error[valid].mean(), rtol=1e-3)


def test_each_part_learns_from_its_own_terms(make_toy_network):
    """The attention from L_a alone, which reaches nothing else; the classifier from L_t; labels are constants."""
    method = make_method(make_toy_network(HEADS))
    state, given = first_state(method, TX, seed=1), batch()

    def values(params):
        return {name: mean.value() for name, mean in loss_of(method, params, state, given)[0].items()}

    gradients = jax.jacrev(values)(state.params)
    expected = {
        "supervised_loss": {"encoder", "segmentation"},
        "unsupervised_loss": {"encoder", "segmentation"},
        "tags_loss": {"encoder", "tags"},
        "attention_loss": {REFINED},
    }
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        parts = {**gradient["student"], **gradient[ATTENTION]}
        assert {part for part, tree in parts.items() if any(np.any(x) for x in jax.tree.leaves(tree))} == expected[name]
    weight = gradients["attention_loss"][ATTENTION][REFINED]
    assert all(np.any(weight[name]["kernel"]) for name in ("query", "key"))


def test_fused_labels_are_mixed_as_the_images_are(make_toy_network):
    """Where a box of another row is pasted its soft label is, and the label that tasks see is the likeliest class."""
    method = make_method(make_toy_network(HEADS, normalise=False), CutMix(1.0))
    parts = jax.tree.map(jnp.asarray, batch((4, 6, 6)))
    fused = jax.nn.softmax(30 * unit_image(parts.unlabelled.image))
    image, views, target = jax.jit(method.views)(parts.labelled, parts.unlabelled, fused, KEY)
    rows, valid = np.asarray(views.image)[1::2], np.asarray(views.valid)[1::2]
    assert np.any(rows != parts.unlabelled.image / np.float32(255))
    np.testing.assert_allclose(np.asarray(target)[1::2], softmax(30 * rows), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(views.label)[1::2][valid], rows.argmax(-1)[valid])
    np.testing.assert_array_equal(np.asarray(target)[0::2], 0)
    np.testing.assert_array_equal(np.asarray(image)[0::2], parts.labelled.image / np.float32(255))


def test_an_image_in_which_nothing_is_labelled_says_nothing_of_its_classes(make_toy_network):
    method = make_method(make_toy_network(HEADS))
    state, given = first_state(method, TX, seed=1), batch()
    label = given.labelled.label.copy()
    label[0] = IGNORE
    found, _ = loss_of(method, state.params, state, given._replace(labelled=given.labelled._replace(label=label)))
    assert found["tags_loss"].number == len(FOREGROUND)


def test_known_pixels_of_unlabelled_rows_keep_their_labels(make_toy_network):
    method = make_method(make_toy_network(HEADS))
    state, given = first_state(method, TX, seed=1), jax.tree.map(jnp.asarray, batch())
    student, attention = (Variables(state.params[name], state.batch_stats[name]) for name in ("student", ATTENTION))
    bias = bias_of_tags(method.network, student)
    labels = jax.jit(method.labels)
    fused, _, _ = labels(student, attention, given.unlabelled, bias, KEY)
    known, _, _ = labels(student, attention, given.labelled._replace(image=given.unlabelled.image), bias, KEY)
    labelled = np.asarray(given.labelled.label) != IGNORE
    np.testing.assert_array_equal(known[labelled], np.eye(CLASSES)[np.asarray(given.labelled.label)[labelled]])
    np.testing.assert_array_equal(known[~labelled], fused[~labelled])


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_labelling_moves_statistics_in_train_mode_alone(make_toy_network, mode):
    method = make_method(make_toy_network(HEADS), label_mode=mode)
    state, given = first_state(method, TX, seed=1), jax.tree.map(jnp.asarray, batch())
    student, attention = (Variables(state.params[name], state.batch_stats[name]) for name in ("student", ATTENTION))
    _, *after = jax.jit(method.labels)(student, attention, given.unlabelled, jnp.zeros(2), KEY)
    for before, now in zip((student, attention), after, strict=True):
        same = jax.tree.map(lambda a, b: bool(np.all(a == b)), before.batch_stats, now.batch_stats)
        assert all(jax.tree.leaves(same)) == (mode == "inference")


def test_the_classifiers_bias_is_no_activation():
    """Maps are those of scores without it, as Grad-CAM's are."""
    weight, bias = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([-5.0, 5.0])

    def classify(variables, head, features, *, train=False, rng=None):
        return HeadOutput(features @ weight + bias[None, None, None], features), variables.batch_stats

    def encode(variables, image, *, valid=None, train=False, rng=None):
        return image[..., :2], variables.batch_stats

    network = Network(lambda key: Variables({}, {}), encode, classify, HEADS)
    found = bias_of_tags(network, Variables({}, {}))
    np.testing.assert_array_equal(found, bias)
    assert depth_of_tags(network) == 2

    shown = []

    def look(variables, head, features, *, train=False, rng=None):
        shown.append(features)
        return HeadOutput(jnp.zeros((*features.maps.shape[:3], CLASSES)), features.maps), variables.batch_stats

    attention = attention_network(2, 2, CLASSES)._replace(classify=look)
    image = jnp.array([[[[4.0, 1.0, 0.0], [1.0, -2.0, 0.0], [2.0, 8.0, 0.0]]]])
    features, _ = encode(Variables({}, {}), image)
    tags, _ = classify(Variables({}, {}), "tags", features)
    valid = jnp.array([[[True, True, False]]])
    logits, _ = refined_maps(attention, Variables({}, {}), tags, found, jnp.ones((1, 2), bool), valid, train=False)
    assert logits.shape == (1, 1, 3, CLASSES)
    np.testing.assert_allclose(shown[0].maps[0, 0], [[1, 1], [0.25, 0], [0, 0]])
    np.testing.assert_array_equal(shown[0].features[0, 0, 2], 0)


def labels(classes, background):
    return Labels(classes, tuple((10 * k, 0, 0) for k in range(len(classes))), background)


@pytest.mark.parametrize(
    ("background", "foreground", "maps"), [((0,), (1, 2), 3), ((), (0, 1, 2), 3), ((0, 2), (1,), 2)]
)
def test_classes_that_are_no_background_have_maps(background, foreground, maps):
    """And all background classes together are the rest, where there is one."""
    c = load_config("configs/shapes.py:pseudoseg", {})
    method = build.build_method(c, labels(("a", "b", "c"), background))
    assert method.foreground == foreground
    params = jax.eval_shape(method.attention.init, KEY).params[REFINED]
    assert params["logits"]["conv"]["kernel"].shape == (1, 1, maps, 3)
    assert params["query"]["kernel"].shape == (256, 128)  # half of ResNet-18's last map
    assert set(jax.eval_shape(method.init, KEY)[2]["student"].params) == {"encoder", "segmentation"}


@pytest.mark.parametrize(
    ("options", "classes", "reason"),
    [
        ({"data.partial": "1px"}, ("a", "b"), "learns from whole masks which classes an image shows"),
        ({}, ("a",), "a class that is not background, and all are"),
    ],
)
def test_what_it_cannot_do_is_refused(options, classes, reason):
    with pytest.raises(OptionError, match=reason):
        build.build_method(load_config("configs/shapes.py:pseudoseg", options), labels(classes, (0,)))


@pytest.mark.parametrize("file", ["voc", "cityscapes", "camvid", "shapes", "folder"])
def test_as_published_by_name(file):
    plain, paper = (load_config(f"configs/{file}.py:{name}", {}) for name in ("pseudoseg", "pseudoseg_paper"))
    for c in (plain, paper):
        assert (c.method.name, c.method.threshold, c.augment.mixing) == ("pseudoseg", 0, "cutout_square")
        assert (c.augment.mix_labelled, c.augment.colour_labelled) == (False, False)
        assert c.method.pseudoseg.temperature == 0.5
    assert (plain.method.pseudoseg.label_mode, paper.method.pseudoseg.label_mode) == ("inference", "train")
    assert (paper.augment.jitter_probability, paper.augment.hue, paper.method.ramp) == (1, 0.25, 0)
    assert (paper.batch.labelled == 64) == paper.data.overlap == (file == "voc")
