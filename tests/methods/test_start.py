"""method.start: the first steps learn from no pseudo-label, whatever the method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import defaults
from forec_jax.contracts import IGNORE, Batch, HeadSpec, Labelled, Unlabelled, Views
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods import METHODS, Auxiliary, ImageReconstruction, MeanTeacher
from forec_jax.methods.entry import Epoch
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.views import labels_alone
from forec_jax.training import first_state
from forec_jax.variants import apply_variant

LABELS = Labels(("background", "disc", "square"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)), (0,))
PSEUDO = [name for name, entry in METHODS.items() if "unlabelled" in entry.needs]
GAME = {"feature_matching_loss", "discriminator_real_loss", "discriminator_fake_loss", "flaw_loss"}
GAME |= {"adversarial_labelled_loss", "corrector_loss", "approval_loss", "attention_loss", "tags_loss"}
"""Terms of critics, and of labelled rows, that are no word of a pseudo-label."""
WEIGHT = {"cps": 2, "ucc": 2, "ael": 2, "u2pl": 1.1, "adv_semseg": 0.101, "cac": 0.2, "gct": 2 * (100 * np.exp(-5) + 1)}
"""What the teaching terms weigh at the start of methods that have several, or none of L_u's usual name."""
STUDENTS = {"cps": 2, "gct": 2}
VIEWS = {**STUDENTS, **dict.fromkeys(("unimatch", "unimatch_v2", "prevmatch", "maskmatch"), 2)}
"""Strong views of an unlabelled row, or students that see it, where there are two."""


def same_colour(key, image, valid):
    return image


class Seen:
    """An auxiliary task that notes how many pixels it is told the class of, by who says so."""

    head, memory = HeadSpec("seen", 1), ()

    def __init__(self):
        self.truth, self.pseudo, self.confidence = [], [], []

    def loss(self, outputs, views, key, memory):
        told = views.label != IGNORE
        self.truth.append((told & views.is_ground_truth).sum())
        self.pseudo.append((told & ~views.is_ground_truth).sum())
        self.confidence.append(jnp.where(views.is_ground_truth, 0, views.confidence).max())
        return {}, {}, memory


def make_batch(rows=2, size=16):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, rows, size, size, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (rows, size, size)).astype(np.int32)
    valid, none = np.ones((rows, size, size), bool), np.zeros(rows, np.int32)
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


def test_the_weight_of_l_u_is_0_before_the_start_and_then_rises_from_there(make_toy_network):
    """start 3, ramp 4, weight 2: cosine of 0, 1/4, 2/4 ... of the ramp from step 3 on."""
    options = {"threshold": 0.0, "unsupervised_weight": 2.0, "start": 3, "ramp": 4}
    method = MeanTeacher(make_toy_network(), same_colour, NoMixing(), **options)
    logits, views = jnp.zeros((1, 1, 1, 3)), pseudo_labelled()
    weights = [
        float(method.unsupervised(logits, views, jnp.asarray(n), warmup=0)[0]["unsupervised_loss"].weight)
        for n in range(9)
    ]
    np.testing.assert_allclose(weights, [0, 0, 0, 0, 0.292893, 1, 1.707107, 2, 2], atol=1e-5)
    later = method.unsupervised(logits, views, jnp.asarray(7), warmup=5)[0]["unsupervised_loss"].weight
    assert float(later) == pytest.approx(1)  # a method's own warm-up of 5 is longer: half of the ramp


def pseudo_labelled():
    """One pixel that a teacher calls class 1."""
    one = jnp.ones((1, 1, 1))
    return Views(one[..., None], one.astype(int), 0.8 * one, one < 0, one > 0, jnp.array([False]))


def test_hidden_pseudo_labels_leave_the_ground_truth_alone():
    truth = jnp.array([[[True, False]]])
    one = jnp.ones((1, 1, 2))
    views = Views(one[..., None], jnp.array([[[2, 1]]]), jnp.array([[[1, 0.8]]]), truth, one > 0, jnp.array([True]))
    shown, hidden = (labels_alone(views, jnp.asarray(flag)) for flag in (False, True))
    np.testing.assert_array_equal(shown.label, [[[2, 1]]])
    np.testing.assert_array_equal(hidden.label, [[[2, IGNORE]]])
    np.testing.assert_array_equal(hidden.confidence, [[[1, 0]]])
    assert hidden.valid.all()  # a pixel of a labelled image, though nobody labelled it
    other = views._replace(is_ground_truth=~truth & truth, labelled_row=jnp.array([False]))
    assert labels_alone(other, jnp.asarray(False)).valid.all()
    assert not labels_alone(other, jnp.asarray(True)).valid.any()


@pytest.mark.parametrize("name", PSEUDO)
def test_no_pseudo_label_teaches_before_the_start(make_toy_network, monkeypatch, name):
    task, batch = Seen(), make_batch()
    c = apply_variant(defaults(), name)
    c.steps, c.method.start, c.method.ramp, c.augment.mixing = 16, 0.25, 0.0, "none"  # a quarter of 16 steps
    c.method.prevmatch.every = 16  # no snapshot, whose terms would weigh too
    monkeypatch.setattr(build, "build_network", lambda c, heads: make_toy_network(heads))
    monkeypatch.setattr(build, "build_colour", lambda c: same_colour)
    method = build.build_method(build.with_epoch(c, Epoch(2, 2)), LABELS, more=(Auxiliary(1.0, task),))
    assert isinstance(method, SemiSupervised)
    state = first_state(method, optax.sgd(0.1), seed=0)

    @jax.jit  # once for both steps, and what is not asked for is not compiled
    def shown(state, batch):
        terms, _ = method.loss(state.params, state, batch, jax.random.key(0))
        teaching = {name for name in terms if not name.endswith("supervised_loss") or "unsupervised" in name} - GAME
        weight = sum(terms[name].weight for name in teaching)
        return weight, sum(task.truth), sum(task.pseudo), jnp.stack(task.confidence).max()

    before, then = (shown(state._replace(step=jnp.int32(step)), batch) for step in (3, 4))
    (weight, truth, pseudo, confidence), (weight_then, truth_then, pseudo_then, confidence_then) = before, then
    assert (weight, weight_then) == (0, pytest.approx(WEIGHT.get(name, c.method.unsupervised_weight)))
    assert truth == truth_then == 2 * 16 * 16 * STUDENTS.get(name, 1)
    assert (pseudo, confidence) == (0, 0)
    assert confidence_then > 0 < pseudo_then
    if name != "cac":  # whose crops are smaller
        assert pseudo_then == 2 * 16 * 16 * VIEWS.get(name, 1)


def test_nothing_of_an_unlabelled_row_is_reconstructed_before_the_start(make_toy_network):
    """Neither its pseudo-labels nor its image; labelled rows are, and from the start on all of them."""
    task = ImageReconstruction()
    heads = (HeadSpec("segmentation", 3), task.head)
    method = MeanTeacher(make_toy_network(heads), same_colour, NoMixing(), (Auxiliary(1.0, task),), start=3)
    state = first_state(method, optax.sgd(0.1), seed=0)

    def pixels(step):
        terms, _ = method.loss(state.params, state._replace(step=jnp.int32(step)), make_batch(), jax.random.key(0))
        return [float(terms[f"reconstruction_{rows}_loss"].mean.number) for rows in ("labelled", "unlabelled")]

    every = 2 * 16 * 16 * 3
    assert [pixels(2), pixels(3)] == [[every, 0], [every, every]]


@pytest.mark.slow
def test_s4gans_student_matches_no_features_before_the_start(make_toy_network, monkeypatch):
    c = apply_variant(defaults(), "s4gan")
    c.method.start = 3.0
    monkeypatch.setattr(build, "build_network", lambda c, heads: make_toy_network(heads))
    method = build.build_method(c, LABELS)
    state = first_state(method, optax.sgd(0.1), seed=0)
    weights = [
        {name: float(term.weight) for name, term in terms.items()}
        for step in (2, 3)
        for terms, _ in [
            method.loss(state.params, state._replace(step=jnp.int32(step)), make_batch(), jax.random.key(0))
        ]
    ]
    assert [each["feature_matching_loss"] for each in weights] == [0, pytest.approx(0.1)]
    assert [each["discriminator_real_loss"] for each in weights] == [0.5, 0.5]


@pytest.mark.parametrize("name", PSEUDO)
def test_a_start_in_passes_over_the_labelled_images(name):
    """Two passes of 12 steps are 24 steps, whatever `start` was; a run that goes on finds the same."""
    c = apply_variant(defaults(), name)
    assert build.with_epoch(c, Epoch(50, 12)).method.start == c.method.start
    c.method.start_passes = 2
    resolved = build.with_epoch(c, Epoch(50, 12))
    assert resolved.method.start == 24
    assert build.with_epoch(resolved, Epoch(50, 12)).method.start == 24


def test_supervised_training_has_no_start():
    c = apply_variant(defaults(), "supervised")
    assert build.with_epoch(c, Epoch(50, 12)) is c
