"""CPS: the worked example, who labels whom, with the same boxes for both, and that neither teaches itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import CutMix, NoMixing
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, UNLABELLED, Batch, HeadSpec, Labelled, Mean, Term, Unlabelled, Variables
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods import Auxiliary, Cps
from forec_jax.methods.cps import cross_views
from forec_jax.methods.parts.students import STUDENTS
from forec_jax.methods.parts.views import unchanged
from forec_jax.options import OptionError
from forec_jax.training import first_state, objective

FIRST, SECOND = STUDENTS
PAIRS = (FIRST, SECOND), (SECOND, FIRST)  # who learns from whom
TX = optax.sgd(0.1)


def batch(shape, classes=3, label=None, rest=True):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    label = rng.integers(0, classes, shape).astype(np.int32) if label is None else label
    valid, none = np.ones(shape, bool), np.zeros(shape[0], np.int32)
    return Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none) if rest else None)


@functools.partial(jax.jit, static_argnums=0)
def terms_of(method, params, state, batch):
    terms, aux = method.loss(params, state, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
    return terms, aux


def said_by(method, variables, image):
    """Logits of a toy network by NumPy, with its running mean."""
    p, mean = variables.params, variables.batch_stats["encoder"]["mean"]
    return np.tanh(image @ np.asarray(p["encoder"]["w"]) - np.asarray(mean)) @ np.asarray(p["segmentation"]["w"])


def cross_entropy(logits, label):
    p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(p, label[..., None], -1)[..., 0]


def example(network):
    method = Cps(network(3), unchanged, NoMixing(), threshold=0.0)
    state = first_state(method, TX, seed=0)
    logits = {FIRST: [[2.0, 0], [0, 1], [1, 0]], SECOND: [[1.0, 0], [1, 0], [0, 2]]}
    params = {name: state.params[name] | {"segmentation": {"says": jnp.array(logits[name])}} for name in STUDENTS}
    return method, params, state, batch((1, 1, 3), classes=2)


def test_the_worked_example(make_fixed_network):
    """CE(l, argmax r) = .126928, 1.313262, 1.313262; CE(r, argmax l) = .313262, 1.313262, 2.126928."""
    terms, _ = terms_of(*example(make_fixed_network))
    first, second = (terms[name].mean for name in ("unsupervised_loss", "student_2_unsupervised_loss"))
    np.testing.assert_allclose(first.total, 2.753452, rtol=1e-6)
    np.testing.assert_allclose(second.total, 3.753452, rtol=1e-6)
    np.testing.assert_allclose(first.value() + second.value(), 2.168968, rtol=1e-6)


def test_no_term_of_a_student_reaches_the_other(make_fixed_network):
    method, params, state, given = example(make_fixed_network)
    for name, other in PAIRS:

        def own(params, name=name):
            terms, _ = terms_of(method, params, state, given)
            return objective({key: t for key, t in terms.items() if key.startswith(SECOND) == (name == SECOND)})

        gradient = jax.grad(own)(params)
        assert np.all(np.asarray(gradient[name]["segmentation"]["says"]) != 0)
        np.testing.assert_array_equal(gradient[other]["segmentation"]["says"], 0)


@pytest.mark.parametrize("mixing", [NoMixing(), CutMix(1.0)], ids=str)
def test_each_learns_the_others_labels_with_the_same_boxes(make_toy_network, mixing):
    network = make_toy_network(normalise=False)
    method = Cps(network, unchanged, mixing, threshold=0.0, unsupervised_weight=1.5)
    state, given = first_state(method, TX, seed=1), batch((3, 6, 6))
    terms, _ = terms_of(method, state.params, state, given)
    image = np.asarray(given.unlabelled.image) / 255
    students = {name: Variables(state.params[name], state.batch_stats[name]) for name in STUDENTS}
    label = {name: said_by(method, students[name], image).argmax(-1) for name in STUDENTS}
    assert 0.1 < np.mean(label[FIRST] != label[SECOND]) < 0.9
    pasted = pasted_pixels(method, given) if isinstance(mixing, CutMix) else np.zeros(label[FIRST].shape, bool)
    mixed = np.where(pasted[..., None], np.roll(image, -1, axis=0), image)
    for name, other in PAIRS:
        wanted = np.where(pasted, np.roll(label[other], -1, axis=0), label[other])
        error = cross_entropy(said_by(method, students[name], mixed), wanted)
        term = terms["unsupervised_loss" if name == FIRST else "student_2_unsupervised_loss"]
        np.testing.assert_allclose(term.mean.value(), error.mean(), rtol=1e-5)
        assert term.weight == 1.5


def pasted_pixels(method, given):
    """Where the loss of the key 0 pastes, by images of a number a row."""
    view_key = jax.random.split(jax.random.key(0), 4)[0]
    rows = given.unlabelled
    numbers = np.broadcast_to(np.arange(3, dtype=np.uint8)[:, None, None, None], rows.image.shape)
    image, _ = method.untaught(given.labelled, rows._replace(image=numbers), view_key)
    pasted = np.rint(np.asarray(image)[1::2, ..., 0] * 255) != np.arange(3)[:, None, None]
    assert 0 < pasted.mean() < 1
    return pasted


def test_labelled_rows_take_part_where_asked_but_void_and_padding_never_do(make_toy_network):
    given = batch((2, 4, 4))
    label, valid = given.labelled.label.copy(), given.labelled.valid.copy()
    label[0, 0], valid[1, :, 3] = IGNORE, False
    rest = given.unlabelled.valid.copy()
    rest[:, 0] = False
    given = Batch(given.labelled._replace(label=label, valid=valid), given.unlabelled._replace(valid=rest))
    number = {}
    for cross in ("unlabelled", "all"):
        method = Cps(make_toy_network(), unchanged, NoMixing(), threshold=0.0, cross=cross)
        state = first_state(method, TX, seed=0)
        number[cross] = terms_of(method, state.params, state, given)[0]["unsupervised_loss"].mean.number
    assert number == {"unlabelled": 32 - 8, "all": 32 - 8 + 32 - 4 - 4}
    _, views = method.untaught(given.labelled, given.unlabelled, jax.random.key(0))
    others = jax.nn.one_hot(jnp.full(views.label.shape, 2), 3)
    asked = cross_views(views, others, True)
    assert not np.any(asked.is_ground_truth)
    labelled = np.asarray(asked.label)[np.asarray(views.labelled_row)]
    np.testing.assert_array_equal(labelled, np.where((label == IGNORE) | ~valid, IGNORE, 2))
    np.testing.assert_array_equal(cross_views(views, others, False).label, 2)


def test_padding_counts_where_gaps_are_shown(make_toy_network):
    """As published: the other student says what the padding is, and it is mixed like an image."""
    given = batch((2, 4, 4))
    valid = given.unlabelled.valid.copy()
    valid[:, :, 3] = False
    given = given._replace(unlabelled=given.unlabelled._replace(valid=valid))
    method = Cps(make_toy_network(normalise=False), unchanged, NoMixing(), threshold=0.0, gaps="shown", cross="all")
    state = first_state(method, TX, seed=0)
    mean = terms_of(method, state.params, state, given)[0]["unsupervised_loss"].mean
    images = np.concatenate([given.labelled.image, given.unlabelled.image]) / 255
    own, other = (
        said_by(method, Variables(state.params[name], state.batch_stats[name]), images) for name in (FIRST, SECOND)
    )
    np.testing.assert_allclose(mean, (cross_entropy(own, other.argmax(-1)).sum(), 64), rtol=1e-5)


class Noted:
    """A task whose terms say what labels it was shown: a sum and a number of pixels."""

    head, memory = HeadSpec("noted", 1), jnp.zeros(())

    def loss(self, outputs, views, key, memory):
        said = jnp.where(views.label == IGNORE, 0, views.label).astype(jnp.float32)
        number = jnp.sum(views.label != IGNORE, dtype=jnp.float32)
        return {"noted_loss": Term(Mean(jnp.sum(said), number), 1.0)}, {}, memory + jnp.sum(said)


@pytest.mark.parametrize("partial", [False, True])
def test_tasks_attach_to_each_student_and_hear_the_other(make_toy_network, partial):
    heads = (HeadSpec("segmentation", 3), HeadSpec("noted", 1))
    network = make_toy_network(heads, normalise=False)
    mixing = CutMix(0.0) if partial else NoMixing()
    method = Cps(network, unchanged, mixing, (Auxiliary(2.0, Noted()),), threshold=0.0, partial_labels=partial)
    label = np.array([[[0, 1, UNLABELLED, IGNORE]]], np.int32)
    given = batch((1, 1, 4), label=label, rest=not partial)
    state = first_state(method, TX, seed=1)
    terms, aux = terms_of(method, state.params, state, given)
    for name, other in PAIRS:
        variables = Variables(state.params[other], state.batch_stats[other])
        says = [said_by(method, variables, np.asarray(p.image) / 255).argmax(-1)[0, 0] for p in given if p is not None]
        wanted = 0 + 1 + says[0][2] + (0 if partial else says[1].sum())
        term = terms["noted_loss" if name == FIRST else "student_2_noted_loss"]
        np.testing.assert_allclose(term.mean, (wanted, 3 if partial else 7))
        assert term.weight == 2.0
        np.testing.assert_allclose(aux.memory[name]["noted"], wanted)


def test_labelling_in_train_mode_sees_the_batch_and_moves_the_statistics(make_toy_network):
    moved = {}
    for mode in ("inference", "train"):
        method = Cps(make_toy_network(), unchanged, CutMix(0.0), threshold=0.0, label_mode=mode)
        state, given = first_state(method, TX, seed=0), batch((2, 4, 4))
        terms, aux = terms_of(method, state.params, state, given)
        moved[mode] = aux.batch_stats[FIRST]["encoder"]["mean"], terms["unsupervised_loss"].mean.total
    (once, one), (twice, other) = moved["inference"], moved["train"]
    image = np.concatenate([np.asarray(part.image) / 255 for part in given if part is not None])
    w = np.asarray(state.params[FIRST]["encoder"]["w"])
    of_all, of_unlabelled = (x.mean((0, 1, 2)) @ w for x in (image, np.asarray(given.unlabelled.image) / 255))
    np.testing.assert_allclose(once, 0.1 * of_all, rtol=1e-4)
    np.testing.assert_allclose(twice, 0.9 * 0.1 * of_unlabelled + 0.1 * of_all, rtol=1e-4)
    assert one != other


def test_classmix_is_refused_with_what_to_take():
    labels = Labels(("background", "disc"), ((0, 0, 0), (255, 0, 0)), (0,))
    with pytest.raises(OptionError, match=r"classmix.*two, who would paste different pixels.*cutmix"):
        build.build_method(load_config("configs/shapes.py:cps", {"augment.mixing": "classmix"}), labels)


def test_the_papers_settings():
    voc, cityscapes = (load_config(f"configs/{data}.py:cps_paper", {}) for data in ("voc", "cityscapes"))
    for c, weight in ((voc, 1.0), (cityscapes, 5.0)):
        assert (c.method.threshold, c.method.unsupervised_weight, c.method.cps.cross) == (0, weight, "unlabelled")
        assert (c.augment.mixing, c.method.cps.label_mode, c.eval.mode) == ("cutmix_pairs", "train", "sliding")
        assert (c.data.unlabelled_pairs, c.method.cps.gaps) == (True, "shown")
    unmixed = load_config("configs/voc.py:cps_unmixed+forec", {})
    assert (unmixed.augment.mixing, unmixed.method.cps.cross) == ("none", "all")
