import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Unlabelled, Variables, Views
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.losses import weighted_divergence
from forec_jax.methods.parts import vat
from forec_jax.methods.parts.terms import unsupervised_terms
from forec_jax.methods.parts.vat import (
    adaptive_length,
    adversarial_perturbation,
    fixed_length,
    logits_from,
    published_perturbation,
    random_like,
    unit_rows,
)
from forec_jax.methods.parts.views import apart, unchanged
from forec_jax.methods.vat import Vat
from forec_jax.models import DeepLabOptions, deeplab_network
from forec_jax.options import OptionError
from forec_jax.training import first_state

KEY = jax.random.key(4)


@functools.partial(jax.jit, static_argnums=0)
def perturb(decode, features, valid, epsilon):
    return adversarial_perturbation(decode, features, valid, epsilon, KEY)


@jax.jit
def random_steps(features, epsilon, seeds):
    """A random tree of length epsilon a seed, stacked."""
    return jax.vmap(lambda s: jax.tree.map(lambda d: epsilon * d, unit_rows(random_like(jax.random.key(s), features))))(
        seeds
    )


def length(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2, axis=tuple(range(1, x.ndim))) for x in tree))


def divergence(p_logits, q_logits):
    p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return np.asarray(jnp.sum(jnp.exp(p) * (p - q), axis=(1, 2, 3)))


@pytest.fixture(scope="module")
def linear():
    """Two leaves that a linear decoder joins: 2 rows of 3x3 pixels, 4 + 5 channels, 3 classes."""
    rng = np.random.default_rng(0)
    features = tuple(jnp.asarray(rng.normal(size=(2, 3, 3, c)), jnp.float32) for c in (4, 5))
    w = tuple(jnp.asarray(rng.normal(size=(c, 3)), jnp.float32) for c in (4, 5))
    return features, w, lambda f: f[0] @ w[0] + f[1] @ w[1]


def test_it_is_the_hessian_of_the_divergence_times_the_draw(linear):
    """In NumPy, pixel by pixel: H d = W (diag(p) - pp') W' d, scaled to the length epsilon."""
    features, w, decode = linear
    valid = jnp.ones((2, 3, 3), bool).at[1, 2].set(False)
    draw = [np.asarray(d) for d in unit_rows(random_like(KEY, features))]
    matrix, probabilities = np.concatenate(w), np.asarray(jax.nn.softmax(decode(features)))
    expected, valid = np.zeros((2, 3, 3, 9)), np.asarray(valid)
    for index in np.ndindex(2, 3, 3):
        if valid[index]:
            p = probabilities[index]
            d = np.concatenate([leaf[index] for leaf in draw])
            expected[index] = matrix @ (np.diag(p) - np.outer(p, p)) @ matrix.T @ d
    expected *= 2.0 / np.sqrt((expected**2).sum((1, 2, 3), keepdims=True))
    found = perturb(decode, features, valid, 2.0)
    np.testing.assert_allclose(np.concatenate(found, axis=-1), expected, rtol=1e-3, atol=1e-5)


def test_it_has_the_length_asked_for_and_climbs(linear):
    features, _, decode = linear
    valid, epsilon = jnp.ones((2, 3, 3), bool), 0.5
    found = perturb(decode, features, valid, epsilon)
    np.testing.assert_allclose(length(found), epsilon, rtol=1e-5)
    moved = jax.tree.map(jnp.add, features, found)
    by_ascent = divergence(decode(features), decode(moved))
    steps = random_steps(features, epsilon, jnp.arange(20))
    for logits in jax.vmap(lambda step: decode(jax.tree.map(jnp.add, features, step)))(steps):
        assert (by_ascent > divergence(decode(features), logits)).all()


def test_the_published_step_equals_a_numpy_oracle_where_float32_can_tell(linear, monkeypatch):
    """At xi = 0.1: g = xi W (softmax(z + xi d) - p) / rows, then epsilon g / (|g| + margin)."""
    monkeypatch.setattr(vat, "_DISTANCE", 0.1)
    monkeypatch.setattr(vat, "_MARGIN", 0.01)
    features, w, decode = linear
    valid = jnp.ones((2, 3, 3), bool).at[1, 2].set(False)
    found = published_perturbation(decode, features, valid, 2.0, KEY, jnp.array([2.0, 5.0]))
    in_cube = functools.partial(jax.random.uniform, minval=-0.5, maxval=0.5)
    draw = np.concatenate([np.asarray(d, np.float64) for d in random_like(KEY, features, in_cube)], axis=-1)
    assert np.abs(draw).max() <= 0.5
    draw /= np.sqrt((draw**2).sum((1, 2, 3), keepdims=True))
    matrix, z = np.concatenate(w).astype(np.float64), np.concatenate(features, axis=-1).astype(np.float64)
    p, moved = (np.exp(x @ matrix) / np.exp(x @ matrix).sum(-1, keepdims=True) for x in (z, z + 0.1 * draw))
    g = 0.1 * ((moved - p) * np.asarray(valid)[..., None]) @ matrix.T / np.array([2.0, 5.0])[:, None, None, None]
    size = np.sqrt((g**2).sum((1, 2, 3), keepdims=True))
    assert (size < 0.02).all()  # so that the margin counts
    np.testing.assert_allclose(np.concatenate(found, axis=-1), 2 * g / (size + 0.01), rtol=1e-3, atol=1e-5)


def test_the_published_perturbation_is_far_shorter_than_epsilon(linear):
    features, _, decode = linear
    found = published_perturbation(decode, features, jnp.ones((2, 3, 3), bool), 2.0, KEY, 2)
    assert (length(found) < 1e-3).all()
    assert (length(found) > 1e-6).all()


def test_nothing_to_change_gives_no_perturbation(linear):
    features, _, decode = linear
    for found in perturb(decode, features, jnp.zeros((2, 3, 3), bool), 1.0):
        np.testing.assert_array_equal(found, 0)


def test_it_carries_no_gradient(linear):
    features, _, decode = linear
    valid = jnp.ones((2, 3, 3), bool)

    for find in (perturb, functools.partial(published_perturbation, key=KEY, rows=1)):

        def total(f, find=find):
            return sum(jnp.sum(leaf) for leaf in find(decode, f, valid, 1.0))

        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(jax.grad(total)(features)))


@pytest.mark.slow
def test_it_climbs_through_a_real_network():
    """DeepLab's convolutions, and the encoder's, have gradients of their own: they must allow the second one as well."""
    decoder = DeepLabOptions(rates=(1, 2, 3), channels=8, low_level_channels=4)
    heads = (HeadSpec("segmentation", 3),)
    network = deeplab_network(encoder="resnet18", heads=heads, width=0.125, decoder=decoder)
    variables = network.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    decode = logits_from(network, variables, "image")

    @jax.jit
    def divergences(key):
        found = adversarial_perturbation(decode, image, jnp.ones(image.shape[:3], bool), 0.1, key)
        random = 0.1 * unit_rows(random_like(key, image))
        return jnp.split(decode(jnp.concatenate([image, image + found, image + random])), 3)

    clean, moved, drawn = divergences(KEY)
    assert (divergence(clean, moved) > 3 * divergence(clean, drawn)).all()


def test_each_row_has_a_length_of_its_own(linear):
    features, _, decode = linear
    valid, epsilon = jnp.ones((2, 3, 3), bool), jnp.array([0.5, 3.0])
    found = perturb(decode, features, valid, epsilon)
    np.testing.assert_allclose(length(found), epsilon, rtol=1e-5)
    alike = perturb(decode, features, valid, 1.0)
    for ours, unit in zip(found, alike, strict=True):
        np.testing.assert_allclose(ours[1], 3.0 * unit[1], rtol=1e-5, atol=1e-7)


SQUARE = jnp.array([[0.0, 1, 4], [0, 0, 2], [2, 3, 1]])[None, ..., None]


def test_the_adaptive_length_by_hand():
    """Differences of the neighbours above and below: 2, 2, -3; left and right: 4, 2, -1."""
    valid = jnp.ones((1, 3, 3), bool)
    assert float(adaptive_length(SQUARE, valid)[0]) == pytest.approx(3.082207, abs=1e-6)
    assert float(adaptive_length((SQUARE, 2 * SQUARE), valid)[0]) == pytest.approx(3.082207 * 5**0.5, abs=1e-5)
    padded = valid.at[:, :, 2].set(False)  # the differences above and below of two columns are left
    assert float(adaptive_length(SQUARE, padded)[0]) == pytest.approx(0.5 * 8**0.5, abs=1e-6)
    assert float(adaptive_length(SQUARE[:, :1, :1], valid)[0]) == 0


def test_the_fixed_length_by_hand():
    valid = jnp.ones((2, 4, 4), bool).at[1, :, 2:].set(False)
    tree = jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 2, 2, 5))
    np.testing.assert_allclose(fixed_length(tree, valid), [(48 + 20) ** 0.5, (24 + 10) ** 0.5], rtol=1e-6)


TEACHER = jnp.array([[[[0.98, 0.02], [0.7, 0.3]]]])
SAID = jnp.array([[[[2.0, 0.0], [0.0, 0.0]]]])


def test_the_divergence_by_hand():
    one = jnp.ones((1, 1, 2))
    np.testing.assert_allclose(weighted_divergence(SAID, TEACHER, one)[0, 0], [0.068889, 0.082283], atol=1e-6)
    sure = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])  # log 0 counts for nothing
    np.testing.assert_allclose(weighted_divergence(SAID, sure, one)[0, 0], [0.126928, np.log(2)], atol=1e-6)
    slope = jax.grad(lambda x: weighted_divergence(*x, one.at[0, 0, 1].set(0)).sum())((SAID, TEACHER))
    np.testing.assert_allclose(slope[0][0, 0], [[0.880797 - 0.98, 0.119203 - 0.02], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(slope[1], 0)


@pytest.mark.parametrize(("normaliser", "expected"), [("batch", 0.0377929), ("valid", 0.0344444)])
def test_the_confidence_of_a_batch_and_of_a_pixel_by_hand(normaliser, expected):
    confidence, no, yes = jnp.max(TEACHER, axis=-1), jnp.zeros((1, 1, 2), bool), jnp.ones((1, 1, 2), bool)
    views = Views(None, jnp.zeros((1, 1, 2), jnp.int32), confidence, no, yes, jnp.zeros(1, bool))

    def error(logits, label, weight):
        return weighted_divergence(logits, TEACHER, weight)

    terms, _ = unsupervised_terms(SAID, views, threshold=0.97, normaliser=normaliser, weight=1.0, error=error)
    assert float(terms["unsupervised_loss"].mean.value()) == pytest.approx(expected, abs=1e-7)


SIZE = 5


def make_batch(partial=False):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 2, SIZE, SIZE, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (2, SIZE, SIZE)).astype(np.int32)
    valid, none = np.ones((2, SIZE, SIZE), bool), np.zeros(2, np.int32)
    valid[:, :, -1] = False
    label[:, 0] = IGNORE
    if partial:
        label[:1, 2] = UNLABELLED
        return Batch(Labelled(image[0], label, valid, none))
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def make_method(network, **options):
    network = network._replace(std=(0.25, 0.5, 1.0))
    return Vat(network, unchanged, NoMixing(), **{"threshold": 0.4, "normaliser": "batch", **options})


def terms_of(method, batch):
    """The terms where the teacher is not the student."""
    state = first_state(method, optax.sgd(0.1), seed=0)
    state = state._replace(teacher=jax.tree.map(lambda leaf: 1.5 * leaf, state.teacher))
    terms = jax.jit(lambda *given: method.loss(*given, KEY)[0])(state.params, state, batch)
    return {name: float(term.mean.value()) for name, term in terms.items()}, state


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_loss_asks_for_the_teachers_prediction_of_the_clean_image(make_toy_network, adaptive):
    method = make_method(make_toy_network(normalise=False), radius=0.3, adaptive=adaptive, threshold=0.8)
    batch = make_batch()
    terms, state = terms_of(method, batch)
    image, valid = (jnp.asarray(x) for x in (batch.unlabelled.image / np.float32(255), batch.unlabelled.valid))
    teacher, student = state.teacher["student"], Variables(state.params["student"], state.batch_stats["student"])
    views = Views(None, None, None, jnp.zeros_like(valid), valid, None)
    found = method.of_image(teacher, image, views, jax.random.split(KEY, 4)[2])
    measure = adaptive_length if adaptive else fixed_length
    std = np.array((0.25, 0.5, 1.0), np.float32)[None, None, None]
    np.testing.assert_allclose(length([found / std]), 0.3 * measure(image / std, valid), rtol=1e-5)

    target = jax.nn.softmax(logits_from(method.network, teacher, "image")(image))
    said = jax.nn.log_softmax(logits_from(method.network, student, "image")(image + found))
    error = np.asarray(jnp.sum(target * (jnp.log(target) - said), axis=-1))[valid]
    sure = np.asarray(jnp.max(target, axis=-1) > 0.8)[valid]
    assert 0 < sure.mean() < 1
    assert terms["consistency_loss"] == pytest.approx(sure.mean() * error.mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("place", "direction"),
    [("image", "teacher"), ("image", "student"), ("encoder", "teacher"), ("fused", "student")],
)
def test_a_perturbation_raises_the_consistency_loss_and_leaves_labelled_rows_alone(make_toy_network, place, direction):
    network, batch = make_toy_network(normalise=False), make_batch()
    still, _ = terms_of(make_method(network, radius=0.0), batch)
    moved, _ = terms_of(make_method(network, radius=1.0, perturbed=place, direction=direction), batch)
    assert moved["supervised_loss"] == still["supervised_loss"]
    assert moved["consistency_loss"] > 1.1 * still["consistency_loss"]


def test_with_partial_labels_the_aim_is_the_pixels_that_nobody_labelled(make_toy_network):
    """The second row has none of them: it is not moved."""
    method = make_method(make_toy_network(normalise=False), partial_labels=True)
    batch = make_batch(partial=True)
    moved, state = terms_of(method, batch)
    still, _ = terms_of(make_method(method.network, partial_labels=True, radius=0.0), batch)
    assert moved["consistency_loss"] != still["consistency_loss"]
    _, views = method.untaught(batch.labelled, None, KEY)
    found = method.of_image(state.teacher["student"], views.image, views, KEY)
    assert np.any(found[0, 2, :-1])
    np.testing.assert_array_equal(found[0, np.arange(SIZE) != 2], 0)
    np.testing.assert_array_equal(found[1], 0)


def test_the_teacher_sees_clean_images_and_the_student_strong_ones(witness):
    """The teacher: of the clean image as target, and of the strong one to find the perturbation."""
    method = Vat(witness.network, witness.colour, NoMixing(), colour_labelled=False, radius=0.0)
    batch = make_batch()
    witness.watch(method, batch)
    (seen,), (target,) = witness.student, witness.teacher
    labelled, unlabelled = apart(seen, 2)
    np.testing.assert_allclose(labelled, witness.weak(batch.labelled), rtol=1e-6)
    np.testing.assert_allclose(unlabelled, witness.strong(batch.unlabelled), rtol=1e-6)
    np.testing.assert_allclose(target, witness.weak(batch.unlabelled), rtol=1e-6)


def test_classmix_is_refused():
    c = load_config("configs/shapes.py:vat", {"augment.mixing": "classmix"})
    with pytest.raises(OptionError, match="vat has none before an image is mixed"):
        build.build_method(c, Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,)))


@pytest.mark.parametrize("file", ["voc", "cityscapes", "camvid", "shapes", "folder"])
def test_as_published_by_name(file):
    plain, paper = (load_config(f"configs/{file}.py:{name}", {}) for name in ("vat", "vat_paper"))
    for c in (plain, paper):
        assert (c.method.name, c.method.threshold, c.method.unsupervised_weight) == ("vat", 0.97, 0.1)
    assert (paper.method.ramp, paper.augment.hue, paper.augment.blur_probability) == (0, 0.1, 0)
    assert (paper.optim.poly_power == 0) == (file in ("voc", "cityscapes"))
