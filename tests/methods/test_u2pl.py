"""U2PL: the worked examples, who is an anchor and who a negative by either rule, and what carries no gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Unlabelled
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.losses import Draws, regional_contrast
from forec_jax.methods import U2pl
from forec_jax.methods.parts.anchors import Pixels, anchors, draw_anchors, negatives, present_classes, reliable
from forec_jax.methods.parts.ring import Ring
from forec_jax.methods.parts.views import unchanged
from forec_jax.methods.u2pl import EMBEDDING
from forec_jax.training import first_state, objective

TX = optax.sgd(0.1)
D = 2


def heads(classes):
    return HeadSpec("segmentation", classes), HeadSpec(EMBEDDING, D)


def method_of(network, classes, **options):
    small = {"channels": D, "queries": 4, "negative_keys": 3, "queue": 8, "pushed": 4, "low_rank": 1, "steps": 10}
    return U2pl(network, unchanged, NoMixing(), classes=classes, **{**small, **options})


def batch(shape, label):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    valid, none = np.ones(shape, bool), np.zeros(shape[0], np.int32)
    label = np.broadcast_to(np.asarray(label, np.int32), shape).copy()
    return Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none))


@functools.partial(jax.jit, static_argnums=0)
def run(method, state, batch):
    """Terms, what is left behind, and the loss's gradients by the params and by the teacher."""

    def total(params, teacher):
        batch_here = jax.tree.map(jnp.asarray, batch)
        terms, aux = method.loss(params, state._replace(teacher=teacher), batch_here, jax.random.key(0))
        return objective(terms), (terms, aux)

    gradients, (terms, aux) = jax.grad(total, (0, 1), has_aux=True)(state.params, state.teacher)
    return terms, aux, gradients


@functools.cache
def toy_method(network):
    """One for several tests, so that it is compiled once: three classes, from step 5 on all terms count."""
    return method_of(network(heads(3)), 3, bn_mode="own", contrast_weight=0.5, start=5.0)


def three_classes():
    return batch((2, 6, 6), np.arange(6) % 3)


def example(network):
    """The worked example: four pixels of class 0, logits of teacher and student given."""
    method = method_of(network(4, heads(2)), 2)
    state = first_state(method, TX, seed=0)
    says = {"teacher": [[4.0, 0], [2, 0], [1, 0], [0, 0]], "student": [[1.0, 0], [0, 1], [2, 0], [0, 3]]}

    def saying(params, who):
        return params | {"segmentation": {"says": jnp.array(says[who])}}

    teacher = state.teacher["student"]
    state = state._replace(
        params={"student": saying(state.params["student"], "student")},
        teacher={"student": teacher._replace(params=saying(teacher.params, "teacher"))},
    )
    return method, state, batch((1, 1, 4), 0)


def test_the_worked_example_of_the_unsupervised_loss(make_fixed_network):
    """H = .090095, .365334, .582203, .693147; the percentile 80 is .626581, and the mean of three .584484."""
    method, state, given = example(make_fixed_network)
    terms, aux, _ = run(method, state, given)
    np.testing.assert_allclose(terms["unsupervised_loss"].mean.value(), 0.779312, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["kept"].value(), 0.75)
    at_the_end, *_ = run(method, state._replace(step=jnp.int32(10)), given)
    np.testing.assert_allclose(at_the_end["unsupervised_loss"].mean.number, 3)  # the most unsure one alone is left out


def test_padding_counts_where_gaps_are_shown(make_fixed_network):
    """The worked example again, of which two pixels are padding."""
    method, state, given = example(make_fixed_network)
    given = given._replace(unlabelled=given.unlabelled._replace(valid=np.array([[[True, True, False, False]]])))
    terms, *_ = run(dataclasses.replace(method, gaps="shown"), state, given)
    np.testing.assert_allclose(terms["unsupervised_loss"].mean.value(), 0.779312, rtol=1e-5)


def test_the_worked_example_of_the_contrast():
    draws = Draws(jnp.array([[0, 1]]), jnp.array([[[0, 1]]]), jnp.array([True]))
    embedding, keys = jnp.array([[1.0, 0], [3, 4]]), jnp.array([[0.0, 1], [-1, 0]])
    mean = regional_contrast(embedding, jnp.array([[1.0, 1]]), keys, draws, temperature=0.5, at_once=2)
    np.testing.assert_allclose(mean.value(), 0.394637, rtol=1e-5)


def test_without_a_pseudo_label_nothing_is_lost_and_everything_is_finite(make_toy_network):
    method, given = toy_method(make_toy_network), three_classes()
    gone = given.unlabelled._replace(valid=np.zeros_like(given.unlabelled.valid))
    state = first_state(method, TX, seed=0)._replace(step=jnp.int32(6))
    terms, aux, gradients = run(method, state, given._replace(unlabelled=gone))
    assert terms["unsupervised_loss"].mean.value() == 0
    for leaf in jax.tree.leaves((terms, aux, gradients)):
        assert np.all(np.isfinite(leaf))


@functools.cache
def some_pixels(classes=6, n=60):
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.full(classes, 0.7), n).astype(np.float32)
    label = rng.integers(0, classes, n).astype(np.int32)
    label[rng.random(n) < 0.2] = IGNORE
    truth = np.arange(n) < n // 2
    kind = np.where(truth | (label == IGNORE), 0, rng.integers(0, 3, n))  # of a pseudo-label: neither, sure, unsure
    return Pixels(label, truth, kind == 1, kind == 2, probability)


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_anchors_and_negatives_equal_an_oracle_pixel_by_pixel(rule):
    pixels, low, high = some_pixels(), 2, 4
    one, many = np.zeros(60, bool), np.zeros((60, 6), bool)
    for i in range(60):
        ranking = list(np.argsort(-pixels.probability[i]))
        known = pixels.label[i] != IGNORE
        is_reliable = known and (pixels.is_truth[i] or pixels.sure[i])
        one[i] = is_reliable and pixels.probability[i][pixels.label[i]] > 0.3
        for c in range(6):
            rank = ranking.index(c)
            unlikely = pixels.unsure[i] and low <= rank < high
            mistaken = pixels.is_truth[i] and known and pixels.label[i] != c and rank < low
            many[i, c] = (unlikely and pixels.label[i] == c) if rule == "released" else (unlikely or mistaken)
    assert 0 < one.sum() < 60
    assert many.any()
    arrays = jax.tree.map(jnp.asarray, pixels)
    np.testing.assert_array_equal(anchors(arrays, 0.3), one)
    np.testing.assert_array_equal(negatives(arrays, rule, low, high), many)
    assert one.sum() < np.asarray(reliable(arrays)).sum()


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_which_classes_enter_and_whose_negatives_they_meet(rule):
    """Of present 0, 3, 7 and 12 the released code has the anchors of 0 and 3 alone, 3 against what is stored for 12."""
    label = jnp.array([0, 3, 7, 12] * 5)
    yes = jnp.ones(20, bool)
    pixels = Pixels(label, yes, ~yes, ~yes, jnp.full((20, 13), 1 / 13))
    np.testing.assert_array_equal(np.flatnonzero(present_classes(pixels)), [0, 3, 7, 12])
    ring = Ring(jnp.zeros((13, 4, D)), jnp.full(13, 4), jnp.zeros(13, int))
    draw = jax.jit(functools.partial(draw_anchors, rule=rule, queries=5, keys=6))
    draws = draw(jax.random.key(0), pixels, yes, ring)
    enters = np.flatnonzero(draws.active)
    np.testing.assert_array_equal(enters, [0, 3, 7, 12] if rule == "paper" else [0, 3])
    for c in enters:
        assert (label[draws.query[c]] == c).all()
        assert (draws.key[c] // 4 == (12 if (rule, c) == ("released", 3) else c)).all()
    nothing = ring._replace(number=ring.number.at[0].set(0))
    assert not draw(jax.random.key(0), pixels, yes, nothing).active[0]


def test_with_one_class_there_is_no_contrast():
    yes = jnp.ones(4, bool)
    pixels = Pixels(jnp.zeros(4, int), yes, ~yes, ~yes, jnp.full((4, 3), 1 / 3))
    ring = Ring(jnp.zeros((3, 4, D)), jnp.full(3, 4), jnp.zeros(3, int))
    assert not draw_anchors(jax.random.key(0), pixels, yes, ring, "paper", queries=2, keys=2).active.any()


def test_the_contrast_equals_an_oracle_and_only_anchors_have_a_gradient(make_toy_network):
    """Each anchor by itself: its class's mean of the teacher's vectors, and the places that were drawn."""
    method = method_of(make_toy_network(heads(3), normalise=False), 3)
    pixels = jax.tree.map(jnp.asarray, some_pixels(3, 40))
    rng = np.random.default_rng(1)
    mine, guides = (jnp.asarray(rng.normal(size=(40, D)), jnp.float32) for _ in range(2))
    empty = first_state(method, TX, seed=0).memory[EMBEDDING]
    key = jax.random.key(5)

    def value(mine, guides):
        mean, ring = method.contrast(mine, guides, pixels, empty, key, 1.0)
        return mean.value(), ring

    (found, ring), (of_mine, of_guides) = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(mine, guides)
    is_anchor = np.asarray(anchors(pixels, method.anchor_threshold))
    draws = draw_anchors(jax.random.split(key)[1], pixels, jnp.asarray(is_anchor), ring, "paper", queries=4, keys=3)
    good, total = np.asarray(reliable(pixels)), 0.0
    for c in np.flatnonzero(draws.active):
        positive = np.asarray(guides)[good & (np.asarray(pixels.label) == c)].mean(0)
        for query, places in zip(draws.query[c], draws.key[c], strict=True):
            assert is_anchor[query]
            others = np.asarray(ring.values).reshape(-1, D)[places]
            q = np.asarray(mine)[query]
            cosines = [v @ q / np.linalg.norm(v) / np.linalg.norm(q) / 0.5 for v in (positive, *others)]
            total += (np.log(np.sum(np.exp(cosines))) - cosines[0]) / 4
    present = np.asarray(present_classes(pixels)).sum()
    assert np.asarray(draws.active).any()
    np.testing.assert_allclose(found, total / present, rtol=1e-5)
    np.testing.assert_array_equal(of_guides, 0)
    drawn = np.isin(np.arange(40), draws.query[draws.active])
    np.testing.assert_array_equal(np.asarray(of_mine)[~drawn], 0)
    assert np.any(np.asarray(of_mine)[drawn])


def test_the_teacher_has_no_gradient_and_its_own_statistics(make_toy_network):
    method, given = toy_method(make_toy_network), three_classes()
    state = first_state(method, TX, seed=0)._replace(step=jnp.int32(6))
    _, aux, _ = run(method, state, given)
    moved = {name: jax.tree.map(lambda x: 1.1 * x + 0.05, teacher) for name, teacher in state.teacher.items()}
    state = state._replace(memory=aux.memory, teacher=moved)
    terms, aux, (of_params, of_teacher) = run(method, state, given)
    for leaf in jax.tree.leaves(of_teacher):
        np.testing.assert_array_equal(leaf, 0)
    assert terms["contrast_loss"].mean.value() > 0
    assert np.any(of_params["student"][EMBEDDING]["w"])
    before = state.teacher["student"].batch_stats["encoder"]["mean"]
    assert np.all(np.asarray(aux.teacher_stats["student"]["encoder"]["mean"]) != before)
    assert EMBEDDING in state.teacher["student"].params
    assert 0 < aux.metrics["negatives_stored"].value() <= 1


def test_before_its_start_nothing_is_contrasted_or_stored(make_toy_network):
    method, given = toy_method(make_toy_network), three_classes()
    state = first_state(method, TX, seed=0)
    for step, starts in ((4, False), (5, True)):
        terms, aux, _ = run(method, state._replace(step=jnp.int32(step)), given)
        weights = [float(terms[name].weight) for name in ("contrast_loss", "unsupervised_loss")]
        assert weights == ([0.5, 1.0] if starts else [0.0, 0.0])
        assert bool(np.any(aux.memory[EMBEDDING].number)) == starts


def test_pixels_that_nobody_labelled_are_pseudo_labelled_ones(make_toy_network):
    method = method_of(make_toy_network(heads(3)), 3, partial_labels=True)
    label = np.where(np.arange(6) < 2, np.arange(6), UNLABELLED)
    given = batch((2, 6, 6), label)._replace(unlabelled=None)
    state = first_state(method, TX, seed=0)
    terms, aux, _ = run(method, state, given)
    assert terms["supervised_loss"].mean.number == 2 * 6 * 2
    assert aux.metrics["kept"].number == 2 * 6 * 4
    np.testing.assert_allclose(aux.metrics["kept"].value(), 0.8, atol=0.03)


def built(classes, **options):
    labels = Labels(tuple(f"c{i}" for i in range(classes)), ((0, 0, 0),) * classes, (0,))
    given = {f"method.u2pl.{key}": value for key, value in options.items()}
    return build.build_method(load_config("configs/shapes.py:u2pl+forec+reco", given), labels)


def test_few_classes_have_a_lower_first_rank():
    assert [built(classes).low_rank for classes in (2, 3, 4, 21)] == [1, 1, 3, 3]
    assert built(3, low_rank=2).low_rank == 2
    assert {head.name for head in built(3).network.heads} == {
        "segmentation",
        "reconstruction",
        "representation",
        EMBEDDING,
    }


def test_the_papers_settings():
    voc, cityscapes = (load_config(f"configs/{data}.py:u2pl_paper", {}) for data in ("voc", "cityscapes"))
    for c, weight, crop in ((voc, 0.25, 513), (cityscapes, 0.125, 769)):
        u2pl = c.method.u2pl
        assert (u2pl.negatives, u2pl.contrast_weight, u2pl.queue, c.data.crop) == ("released", weight, 30_000, crop)
        assert (c.ema.bn_mode, c.augment.mixing, u2pl.gaps) == ("own", "cutmix_half", "shown")
    assert voc.method.start == 1 / 80
    assert cityscapes.method.supervised_loss == "ohem"
