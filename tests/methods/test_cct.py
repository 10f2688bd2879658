"""CCT: the worked examples, each perturbation by hand, and who learns from what."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Unlabelled, Variables
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods.cct import Cct, Kind, Options, Seen
from forec_jax.methods.parts.perturbations import cut_box, shown_where, weak_pixels, with_noise
from forec_jax.methods.parts.views import unchanged
from forec_jax.models import DeepLabOptions, deeplab_network
from forec_jax.options import OptionError
from forec_jax.training import first_state

KEY = jax.random.key(3)
KINDS = get_args(Kind)
LABELS = Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,))


def only(**numbers):
    """So many decoders of these kinds, none of the others."""
    return {f"{kind}_decoders": numbers.get(kind, 0) for kind in KINDS}


def heads_of(numbers, classes=3):
    names = [name for name, _ in Options(**numbers).decoders]
    return HeadSpec("segmentation", classes), *(HeadSpec(name, classes, reads="segmentation") for name in names)


def make_method(network, numbers, **options):
    given = {"threshold": 0.0, "background": (0,), **numbers, **options}
    return Cct(network(heads_of(numbers), normalise=False), unchanged, NoMixing(), **given)


def batch(shape=(2, 4, 4), partial=False):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    label = rng.integers(0, 3, shape).astype(np.int32)
    valid, none = np.ones(shape, bool), np.zeros(shape[0], np.int32)
    valid[..., -1] = False
    label[:, 0, 0] = IGNORE
    if partial:
        label[0, 1, :3] = UNLABELLED
        return Batch(Labelled(images[0], label, valid, none))
    return Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none))


@functools.partial(jax.jit, static_argnums=0)
def terms_of(method, params, state, given):
    terms, _ = method.loss(params, state, jax.tree.map(jnp.asarray, given), KEY)
    return {name: (term.mean, term.weight) for name, term in terms.items()}


def test_the_worked_example(make_fixed_network):
    """Squares of two decoders: .053588 and .007376; their mean times 30 exp(-5 (1 - .5)^2): .262."""
    numbers = only(drop=1, noise=1)
    network = make_fixed_network(2, heads_of(numbers, 2))
    method = Cct(
        network, unchanged, NoMixing(), background=(0,), threshold=0.0, ramp=10, unsupervised_weight=30.0, **numbers
    )
    state = first_state(method, optax.sgd(0.1), seed=0)._replace(step=jnp.int32(5))
    says = {
        "segmentation": np.log([[0.8, 0.2], [0.4, 0.6]]),
        "cct_drop_1": [[0.0, 0.0], [0.0, 1.0]],
        "cct_noise_1": [[1.0, 0.0], [0.0, 0.0]],
    }
    params = {
        "student": state.params["student"] | {name: {"says": jnp.array(x, jnp.float32)} for name, x in says.items()}
    }
    shape, none = (1, 1, 2), np.zeros(1, np.int32)
    image, valid = np.zeros((*shape, 3), np.uint8), np.ones(shape, bool)
    given = Batch(Labelled(image, np.zeros(shape, np.int32), valid, none), Unlabelled(image, valid, none))
    mean, weight = terms_of(method, params, state, given)["consistency_loss"]
    np.testing.assert_allclose(mean, (2 * 0.030482, 2), rtol=1e-4)
    np.testing.assert_allclose(weight * mean.value(), 0.262, rtol=1e-4)


def test_each_part_learns_from_its_own_term(make_toy_network):
    """The main decoder from labels alone, the auxiliary ones from the consistency alone, the encoder from both."""
    numbers = only(**dict.fromkeys(KINDS, 1))
    method = make_method(make_toy_network, numbers)
    state = first_state(method, optax.sgd(0.1), seed=0)
    values = jax.jacrev(lambda params: {k: m.value() for k, (m, _) in terms_of(method, params, state, batch()).items()})
    gradients = values(state.params)
    supervised, consistency = (gradients[name]["student"] for name in ("supervised_loss", "consistency_loss"))
    assert np.any(supervised["encoder"]["w"])
    assert np.any(supervised["segmentation"]["w"])
    assert np.any(consistency["encoder"]["w"])
    np.testing.assert_array_equal(consistency["segmentation"]["w"], 0)
    for name, _ in method.decoders:
        assert np.any(consistency[name]["w"]), name
        np.testing.assert_array_equal(supervised[name]["w"], 0)


def test_fewer_and_fewer_sure_labels_are_left_out(make_fixed_network):
    """ab-CE by hand: three classes, probabilities of the truth .3, .5, .7 and .95; the bounds in four steps."""
    numbers, truth = only(noise=1), np.array([0.3, 0.5, 0.7, 0.95])
    method = Cct(
        make_fixed_network(4, heads_of(numbers)), unchanged, NoMixing(), background=(0,), annealing=10, **numbers
    )
    logits = jnp.log(jnp.array([[[[p, (1 - p) / 2, (1 - p) / 2] for p in truth]]]))
    label, known = jnp.zeros((1, 1, 4), jnp.int32), jnp.array([[[True, True, True, True]]])
    for step, bound, kept in ((0, 0.3333, 1), (2, 0.6915, 2), (10, 0.8962, 3), (99, 0.8962, 3)):
        rise = 1 - np.exp(-5 * min(step / 10, 1))
        assert bound == pytest.approx(1 / 3 + (0.9 - 1 / 3) * rise, abs=1e-4)
        mean = method.loss_of_labels(jnp.asarray(step), 3)(logits, label, known)
        np.testing.assert_allclose(mean, (-np.log(truth[:kept]).sum(), kept), rtol=1e-5)
    sure = method.loss_of_labels(jnp.asarray(0), 3)(logits, label, known.at[..., 0].set(False))
    np.testing.assert_allclose(sure, (-np.log(0.5), 1), rtol=1e-5)  # one of each row at least


def test_annealing_is_in_steps_and_chooses_pixels_alone():
    c = load_config("configs/shapes.py:cct", {"method.cct.annealing": 0.4})
    assert build.build_method(c, LABELS).annealing == 320
    c.method.supervised_loss = "ohem"
    with pytest.raises(OptionError, match=r"method\.cct\.annealing chooses pixels"):
        build.build_method(c, LABELS)


def test_the_consistency_is_of_unlabelled_pixels_alone(make_toy_network):
    method = make_method(make_toy_network, only(object=1))
    state, given = first_state(method, optax.sgd(0.1), seed=0), batch()
    other = given._replace(labelled=given.labelled._replace(image=255 - given.labelled.image))
    one, two = (terms_of(method, state.params, state, b)["consistency_loss"][0] for b in (given, other))
    assert one.number == 2 * 4 * 3
    np.testing.assert_array_equal(one, two)
    whole = make_method(make_toy_network, only(object=1), gaps="shown")
    mean, _ = terms_of(whole, state.params, state, given)["consistency_loss"]
    assert mean.number == 2 * 4 * 4  # the padding, the last column, counts as published
    assert mean.total > one.total
    partial = make_method(make_toy_network, only(object=1), partial_labels=True)
    mean, _ = terms_of(partial, state.params, state, batch(partial=True))["consistency_loss"]
    assert mean.number == 3
    assert mean.total > 0


def test_the_teacher_has_no_auxiliary_decoder(make_toy_network):
    method = make_method(make_toy_network, only(noise=2))
    state = first_state(method, optax.sgd(0.1), seed=0)
    assert set(state.teacher["student"].params) == {"encoder", "segmentation"}
    assert {"cct_noise_1", "cct_noise_2"} < set(state.params["student"])


def seen_by(method, variables, image, valid):
    """What the decoders see of images, and what the main one says."""
    features, _ = method.network.encode(variables, image, train=False, rng=None)
    says = method.network.classify(variables, "segmentation", features, train=False, rng=None)[0].output
    _, views = method.untaught(batch().labelled, None, KEY)
    views = views._replace(valid=valid, is_ground_truth=jnp.zeros_like(valid))
    return Seen(features, jax.nn.softmax(says), views)


def test_an_adversarial_change_is_the_decoders_own_and_raises_its_distance(make_toy_network):
    numbers = only(vat=2)
    still, moved = (make_method(make_toy_network, numbers, epsilon=epsilon) for epsilon in (0.0, 1.0))
    state = first_state(moved, optax.sgd(0.1), seed=0)
    variables = Variables(state.params["student"], state.batch_stats["student"])
    same = dict.fromkeys(variables.params, variables.params["segmentation"]) | {"encoder": variables.params["encoder"]}
    given = batch()
    seen = seen_by(
        moved, variables, jnp.asarray(given.labelled.image / np.float32(255)), jnp.asarray(given.labelled.valid)
    )
    agreeing = variables._replace(params=same)
    np.testing.assert_allclose(still.squares(agreeing, KEY, seen), 0, atol=1e-12)
    distance = np.asarray(moved.squares(agreeing, KEY, seen))
    assert distance[:, :, :-1].mean() > 1e-4
    np.testing.assert_allclose(distance[:, :, -1], 0, atol=1e-12)  # the padding is no aim


def test_what_context_and_object_decoders_see(make_toy_network):
    method = make_method(make_toy_network, only(object=1), background=(0, 2))
    target = jax.nn.one_hot(jnp.array([[[0, 1], [2, 1]]]), 3)
    features = jnp.arange(1.0, 9.0).reshape(1, 2, 2, 2)
    seen = Seen(features, target, None)
    context, objects = (np.asarray(method.changed(kind, seen, KEY))[0, ..., 0] for kind in ("context", "object"))
    np.testing.assert_array_equal(context, [[0, 3], [0, 7]])
    np.testing.assert_array_equal(objects, [[1, 0], [5, 0]])


def test_strong_pixels_are_dropped_and_padding_is_no_maximum():
    """Means 2, 2, .5, 2: with any factor only the third is kept. The padded row's maximum is 1."""
    values = jnp.array([[[2.0, 2.0, 0.5, 2.0]], [[1.0, 0.2, 0.6, 9.0]]])
    features = jnp.stack([values + 0.25, values - 0.25], axis=-1)
    valid = jnp.ones((2, 1, 4), bool).at[1, 0, 3].set(False)
    kept = np.asarray(weak_pixels(KEY, features, valid))[..., 0] != 0
    np.testing.assert_array_equal(kept[:, 0], [[False, False, True, False], [False, True, True, False]])
    steps = jnp.linspace(0.01, 1.0, 100).reshape(1, 10, 10, 1)
    kept = np.asarray(
        jax.vmap(lambda key: weak_pixels(key, steps, jnp.ones((1, 10, 10), bool)))(jax.random.split(KEY, 50))
    )
    factors = kept.max(axis=(1, 2, 3, 4))
    assert 0.68 < factors.min() < 0.75
    assert 0.85 < factors.max() < 0.9


def test_noise_is_the_rows_own_share_and_the_same_for_all():
    features = jnp.ones((3, 4, 4, 8), jnp.bfloat16).at[1].mul(2)
    changed = with_noise(KEY, features)
    assert changed.dtype == jnp.bfloat16
    noise = np.asarray(changed, np.float32) / np.asarray(features, np.float32) - 1
    np.testing.assert_array_equal(noise[0], noise[1])
    assert 0.27 < np.abs(noise[0]).max() < 0.31
    assert len(np.unique(noise[0])) > 20


def test_a_box_of_two_fifths_inside_the_foregrounds():
    foreground = np.zeros((2, 30, 40), bool)
    foreground[0, 5:15, 10:30] = np.eye(10, 20) > 0
    foreground[0, 14, 29] = True  # 10 rows, 20 columns around it: a box of 4 x 8
    boxes = np.asarray(jax.vmap(lambda key: cut_box(key, jnp.asarray(foreground)))(jax.random.split(KEY, 60)))
    assert not boxes[:, 1].any()
    assert (boxes[:, 0].sum((1, 2)) == 32).all()
    rows, columns = boxes[:, 0].any(2), boxes[:, 0].any(1)
    assert (rows.sum(1) == 4).all()
    assert (columns.sum(1) == 8).all()
    assert set(rows.argmax(1)) == set(range(5, 12))
    assert (columns.argmax(1).min(), columns.argmax(1).max()) == (10, 22)


def test_a_mask_meets_the_map_at_its_nearest_pixels():
    shown = jnp.zeros((1, 8, 8), bool).at[:, :4].set(True)
    seen = shown_where(jnp.ones((1, 2, 2, 3)), shown)
    np.testing.assert_array_equal(seen[0, :, :, 0], [[1, 1], [0, 0]])


def test_auxiliary_decoders_are_a_convolution_of_the_map_that_the_segmentation_fuses():
    heads = HeadSpec("segmentation", 3), HeadSpec("aux", 2, linear=True, reads="segmentation")
    decoder = DeepLabOptions(rates=(1,), channels=8, low_level_channels=4)
    network = deeplab_network(encoder="resnet18", heads=heads, width=0.125, decoder=decoder)
    variables = jax.eval_shape(network.init, KEY)
    assert {leaf.shape for leaf in jax.tree.leaves(variables.params["aux"])} == {(1, 1, 12, 2), (2,)}

    def run(variables, image):
        features, _ = network.encode(variables, image)
        return network.decode(variables, "aux", features)[0]

    found = jax.eval_shape(run, variables, jax.ShapeDtypeStruct((2, 32, 64, 3), jnp.float32))
    assert (found.output.shape, found.latent.shape) == ((2, 32, 64, 2), (2, 8, 16, 12))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augment.mixing": "classmix"}, "cct has none before an image is mixed"),
        ({f"method.cct.{kind}_decoders": 0 for kind in KINDS}, "decoders are all 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(OptionError, match=words):
        build.build_method(load_config("configs/shapes.py:cct", changes), LABELS)


@pytest.mark.parametrize("file", ["voc", "cityscapes", "camvid", "shapes", "folder"])
def test_as_published_by_name(file):
    plain, paper = (load_config(f"configs/{file}.py:{name}", {}) for name in ("cct", "cct_paper"))
    for c in (plain, paper):
        assert (c.method.name, c.method.threshold, c.method.unsupervised_weight, c.method.ramp) == ("cct", 0, 30, 0.1)
        assert len(Options(**c.method.cct).decoders) == 30
    assert (paper.augment.jitter_probability, paper.method.cct.gaps) == (0, "shown")
    assert (paper.data.crop == 320) == (file == "voc")
