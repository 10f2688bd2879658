"""GCT: targets by hand, who learns from what, and one scalar for three networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, Batch, HeadSpec, Labelled, Unlabelled, Variables, Views
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.losses import flaw_target, handled, keeps_own
from forec_jax.methods import Auxiliary, ForegroundReconstruction
from forec_jax.methods.entry import Epoch
from forec_jax.methods.gct import FLAW_DETECTOR, Gct, Said
from forec_jax.methods.parts.views import interleave, unchanged
from forec_jax.models import dense_critic
from forec_jax.options import OptionError
from forec_jax.training import first_state, train_step, with_own_optimizers

CLASSES, SIZE, KEY = 3, 12, jax.random.key(0)
HEADS = (HeadSpec("segmentation", CLASSES), HeadSpec("reconstruction", 3))
TASK = Auxiliary(1.0, ForegroundReconstruction((0,), threshold=0.4))
SGD = optax.sgd(0.5)
STUDENTS = "student", "student_2"
THRESHOLD = 0.3


def make_batch(rows=2):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, rows, SIZE, SIZE, 3), dtype=np.uint8)
    label = rng.integers(0, CLASSES, (rows, SIZE, SIZE)).astype(np.int32)
    label[:, :2] = IGNORE
    valid, none = np.ones((rows, SIZE, SIZE), bool), np.zeros(rows, np.int32)
    valid[:, :, -2:] = False
    label[:, :, -2:] = IGNORE
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def make_method(network, **options):
    detector = dense_critic(3 + CLASSES, ((4, 2), (1, 1)), normalise=True)
    given = {"threshold": THRESHOLD, "unsupervised_weight": 100.0, **options}
    return Gct(network, unchanged, NoMixing(), flaw_detector=detector, **given)


def started(method, tx=SGD):
    """A first state whose flaw detector finds flaws."""
    state = first_state(method, tx, seed=0)
    detector = state.params[FLAW_DETECTOR]
    last = {"kernel": 5 * detector["score"]["last"]["kernel"], "bias": jnp.full(1, 0.5)}
    return state._replace(params=state.params | {FLAW_DETECTOR: detector | {"score": {"last": last}}})


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, params, state):
    return method.loss(params, state, jax.tree.map(jnp.asarray, make_batch()), KEY)


def by_hand(probability, flaw, judging):
    """What a student says in two classes, in a row of four pixels."""
    p = jnp.array(probability)
    flat = jnp.array(judging)[None, None]
    return Said(jnp.stack([p, 1 - p], axis=-1)[None, None], flat, flat, jnp.array(flaw)[None, None])


LEFT = by_hand([0.9, 0.6, 0.4, 0.3], [0.1, 0.7, 0.9, 0.5], [0.2, 0.4, 0.5, -0.1])
RIGHT = by_hand([0.8, 0.2, 0.7, 0.6], [0.3, 0.2, 0.8, 0.65], [0.0, 0.0, 1.0, 0.0])
FOUR = jnp.ones((1, 1, 4), bool)
VIEWS = Views(None, None, None, ~FOUR, FOUR, jnp.zeros(1, bool))


@pytest.mark.parametrize(
    ("own", "other", "target", "distance", "correction"),
    [
        (LEFT, RIGHT, [0.9, 0.2, 0.4, 0.3], 0.04, 0.0625),
        (RIGHT, LEFT, [0.9, 0.2, 0.7, 0.3], 0.025, 0.25),
    ],
)
def test_the_less_flawed_teaches_and_both_bad_are_corrected_by_hand(
    make_toy_network, own, other, target, distance, correction
):
    method = make_method(make_toy_network(), threshold=0.6)
    found = method.target(own, other)
    np.testing.assert_allclose(found[0, 0, :, 0], target)
    terms, metrics = method.guided(own, other, found, VIEWS, jnp.asarray(0))
    assert float(terms["consistency_loss"].mean.value()) == pytest.approx(distance, rel=1e-5)
    assert float(terms["correction_loss"].mean.value()) == pytest.approx(correction, rel=1e-5)
    taught = 0.25 if own is LEFT else 0.5
    assert {name: float(m.value()) for name, m in metrics.items()} == {"both_bad": 0.25, "taught_by_other": taught}


def test_padding_counts_where_gaps_are_shown_alone(make_toy_network):
    views = VIEWS._replace(valid=FOUR.at[0, 0, 2:].set(False))
    found = {}
    for gaps in ("hidden", "shown"):
        method = make_method(make_toy_network(), threshold=0.6, gaps=gaps)
        terms, _ = method.guided(LEFT, RIGHT, method.target(LEFT, RIGHT), views, jnp.asarray(0))
        found[gaps] = [float(terms[name].mean.value()) for name in ("consistency_loss", "correction_loss")]
    assert found["hidden"] == pytest.approx([0.08, 0])
    assert found["shown"] == pytest.approx([0.04, 0.0625])


def test_the_weights_in_a_step(make_toy_network):
    method = make_method(make_toy_network(), start=3, ramp=10)
    terms = [method.guided(LEFT, RIGHT, LEFT.probabilities, VIEWS, jnp.asarray(step))[0] for step in (2, 3, 8, 13, 20)]
    rises = [float(found["consistency_loss"].weight) for found in terms]
    assert rises == pytest.approx([0, 100 * np.exp(-5), 100 * np.exp(-1.25), 100, 100], rel=1e-5)
    assert [float(found["correction_loss"].weight) for found in terms] == [0, 1, 1, 1, 1]


def of_whom(name):
    """The network that a term teaches."""
    if name == "flaw_loss":
        return FLAW_DETECTOR
    return "student_2" if name.startswith("student_2") else "student"


def test_each_network_learns_from_its_own_terms_alone(make_toy_network):
    method = make_method(make_toy_network(HEADS), auxiliary=(TASK,))
    state = started(method)

    @jax.jit
    def gradients(params):
        return jax.jacrev(lambda p: {name: term.mean.value() for name, term in loss_of(method, p, state)[0].items()})(
            params
        )

    found, terms = gradients(state.params), loss_of(method, state.params, state)[0]
    assert len(found) == 1 + 2 * (3 + 2)
    for name, gradient in found.items():
        assert float(terms[name].mean.value()) > 0, name
        for network, tree in gradient.items():
            moved = any((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(tree))
            assert moved == (network == of_whom(name)), (name, network)


def test_every_network_has_its_own_statistics(make_toy_network):
    method = make_method(make_toy_network())
    state = started(method)
    _, aux = loss_of(method, state.params, state)
    assert set(aux.batch_stats) == {*STUDENTS, FLAW_DETECTOR}
    assert set(state.teacher) == set(aux.teacher_stats) == set(STUDENTS)
    for name, stats in aux.batch_stats.items():
        before = jax.tree.leaves(state.batch_stats[name])
        assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(stats), before, strict=True)), name


def test_one_scalar_is_a_step_of_each_network_in_turn(make_toy_network):
    """The students one after the other, then the flaw detector by its maps from before, as the published code goes."""
    method = make_method(make_toy_network(normalise=False), unsupervised_weight=20.0)
    tx = with_own_optimizers(SGD, {FLAW_DETECTOR: optax.sgd(0.01)})
    state, batch = started(method, tx), jax.tree.map(jnp.asarray, make_batch())
    together, _ = jax.jit(functools.partial(train_step, method=method, tx=tx, seed=0))(state, batch)

    image = interleave(batch.labelled.image, batch.unlabelled.image) / 255.0
    labelled = jnp.array([True, False] * 2)[:, None, None]
    label = interleave(batch.labelled.label, jnp.full_like(batch.labelled.label, IGNORE))
    valid, known = interleave(batch.labelled.valid, batch.unlabelled.valid), labelled & (label != IGNORE)

    def logits(student):
        return jnp.tanh(image @ student["encoder"]["w"]) @ student["segmentation"]["w"]

    def flaws(detector, p):
        variables = Variables(detector, state.batch_stats[FLAW_DETECTOR])
        shown = jnp.where(valid[..., None], jnp.concatenate([image, p], axis=-1), 0.0)
        features, _ = method.flaw_detector.encode(variables, shown, train=True)
        return method.flaw_detector.decode(variables, "score", features, train=True)[0].output[..., 0]

    def mean(values, where):
        return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where)

    def of_student(student, detector, target, both_bad):
        said = logits(student)
        p = jax.nn.softmax(said)
        cross = -jnp.sum(jax.nn.one_hot(label, CLASSES) * jax.nn.log_softmax(said), axis=-1)
        corrected = jnp.where(both_bad, flaws(detector, p) ** 2, 0.0)
        return mean(cross, known) + mean(corrected, valid) + 20 * mean(jnp.mean((p - target) ** 2, axis=-1), valid)

    def of_detector(detector, several):
        targets = [flaw_target(p, label, known) for p in several]
        return 5 * sum(mean((flaws(detector, p) - t) ** 2, known) for p, t in zip(several, targets, strict=True))

    @jax.jit
    def in_turn(params):
        said = [jax.nn.softmax(logits(params[name])) for name in STUDENTS]
        first, second = (handled(flaws(params[FLAW_DETECTOR], p), valid) for p in said)
        both_bad, after = valid & (first > THRESHOLD) & (second > THRESHOLD), {}
        for name, mine, other, (p, q) in zip(
            STUDENTS, (first, second), (second, first), (said, said[::-1]), strict=True
        ):
            target = jnp.where(keeps_own(mine, other, THRESHOLD)[..., None], p, q)
            slope = jax.grad(of_student)(params[name], params[FLAW_DETECTOR], target, both_bad)
            after[name] = jax.tree.map(lambda x, g: x - 0.5 * g, params[name], slope)
        slope = jax.grad(of_detector)(params[FLAW_DETECTOR], said)
        after[FLAW_DETECTOR] = jax.tree.map(lambda x, g: x - 0.01 * g, params[FLAW_DETECTOR], slope)
        return after, both_bad

    after, both_bad = in_turn(state.params)
    assert 0 < np.mean(both_bad) < 1
    for name, expected in after.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), together.params[name], expected)
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (expected, state.params[name])), strict=True))


def test_tasks_are_taught_by_the_less_flawed_student(make_toy_network):
    """The views of a student have the target of L_dc as pseudo-label: its own word where it keeps it."""
    method = make_method(make_toy_network(), threshold=0.6)
    np.testing.assert_array_equal(jnp.argmax(method.target(LEFT, RIGHT), axis=-1)[0, 0], [0, 1, 1, 1])
    np.testing.assert_array_equal(jnp.argmax(method.target(RIGHT, LEFT), axis=-1)[0, 0], [0, 1, 0, 1])


LABELS = Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,))


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("augment.mixing", "classmix", "gct has none before an image is mixed"),
        ("data.partial", "1px", "compares predictions with whole masks; .* take fixmatch or mean_teacher"),
    ],
)
def test_what_it_cannot_do_is_refused(option, value, reason):
    with pytest.raises(OptionError, match=reason):
        build.build_method(load_config("configs/shapes.py:gct", {option: value}), LABELS)


@pytest.mark.parametrize("file", ["voc", "cityscapes", "camvid", "shapes", "folder"])
def test_as_published_by_name(file):
    plain, paper = (load_config(f"configs/{file}.py:{name}", {}) for name in ("gct", "gct_paper"))
    for c in (plain, paper):
        assert (c.method.name, c.method.threshold, c.method.unsupervised_weight) == ("gct", 0.6, 100)
        epochs = 3 if c is paper and file == "cityscapes" else 5
        assert build.with_epoch(c, Epoch(7, 2)).method.ramp == 7 * epochs
    assert (paper.method.gct.gaps, paper.augment.jitter_probability) == ("shown", 0)
    assert (paper.model.decoder == "pspnet") == (file == "voc")
