"""method.separate_passes: labelled rows pass the student first, then the others; BatchNorm sees each kind by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing
from forec_jax.config import defaults
from forec_jax.contracts import Batch, HeadSpec, Labelled, Pseudo, Unlabelled, Variables
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods import Auxiliary, MeanTeacher
from forec_jax.methods.entry import Epoch
from forec_jax.methods.parts.heads import STUDENT, run_heads, two_passes
from forec_jax.methods.parts.views import apart, interleave
from forec_jax.options import OptionError
from forec_jax.parallel import make_mesh, shard_batch
from forec_jax.training import first_state
from forec_jax.variants import apply_variant

LABELS = Labels(("background", "disc", "square"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)), (0,))
KEY = jax.random.key(2)


class Seen:
    """An auxiliary task that notes the outputs that it is given."""

    head, memory = HeadSpec("seen", 2), ()

    def loss(self, outputs, views, key, memory):
        self.outputs, self.image = outputs, views.image
        return {}, {}, memory


def same_colour(key, image, valid):
    return image


def make_batch(labelled, others, kind=Unlabelled, size=16):
    """Labelled rows are dark, the others bright: their means differ."""
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 100, (labelled, size, size, 3), dtype=np.uint8)
    bright = rng.integers(150, 256, (others, size, size, 3), dtype=np.uint8)
    valid, none = np.ones((max(labelled, others), size, size), bool), np.zeros(max(labelled, others), np.int32)
    first = Labelled(dark, rng.integers(0, 3, dark.shape[:3]).astype(np.int32), valid[:labelled], none[:labelled])
    if kind is Pseudo:
        label = rng.integers(0, 3, bright.shape[:3]).astype(np.int32)
        return Batch(
            first, pseudo=Pseudo(bright, label, np.full(label.shape, 255, np.uint8), valid[:others], none[:others])
        )
    return Batch(first, Unlabelled(bright, valid[:others], none[:others]))


@pytest.mark.parametrize(("labelled", "others"), [(3, 3), (2, 4), (4, 2)])
def test_rows_are_taken_apart_as_they_were_joined(labelled, others):
    first, second = np.arange(labelled * 2).reshape(labelled, 2), -np.arange(1, others * 2 + 1).reshape(others, 2)
    for found, expected in zip(apart(interleave(first, second), labelled), (first, second), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "name", ["mean_teacher", "fixmatch", "ps_mt", pytest.param("s4gan", marks=pytest.mark.slow), "st"]
)
@pytest.mark.parametrize(("labelled", "others"), [(2, 2), (3, 1)])
def test_two_passes_by_hand(make_toy_network, monkeypatch, name, labelled, others):
    """As the student run twice, the second time with the statistics that the first has left; tasks see both joined."""
    task, batch = Seen(), make_batch(labelled, others, Pseudo if name == "st" else Unlabelled)
    c = apply_variant(defaults(), name)
    c.steps, c.augment.mixing, c.method.separate_passes = 16, "none", True
    c.method.ps_mt.epsilon = 0.0
    monkeypatch.setattr(build, "build_network", lambda c, heads: make_toy_network(heads))
    monkeypatch.setattr(build, "build_colour", lambda c: same_colour)
    method = build.build_method(build.with_epoch(c, Epoch(2, 2)), LABELS, more=(Auxiliary(1.0, task),))
    state = first_state(method, optax.sgd(0.1), seed=0)
    _, aux = method.loss(state.params, state, batch, KEY)

    student = Variables(state.params[STUDENT], state.batch_stats[STUDENT])
    expected = {}
    for kind, part in (("labelled", batch.labelled), ("others", batch.pseudo if name == "st" else batch.unlabelled)):
        image = part.image / np.float32(255)
        heads = ("segmentation", "seen")
        expected[kind], stats = run_heads(method.network, student, image, heads, train=True, rng=KEY)
        student = student._replace(batch_stats=stats)
    joined = jax.tree.map(interleave, expected["labelled"], expected["others"])
    for head in ("segmentation", "seen"):
        np.testing.assert_allclose(task.outputs[head].output, joined[head].output, atol=1e-5)
        np.testing.assert_allclose(task.outputs[head].latent, joined[head].latent, atol=1e-5)
    np.testing.assert_allclose(aux.batch_stats[STUDENT]["encoder"]["mean"], stats["encoder"]["mean"], atol=1e-6)
    together, _ = run_heads(method.network, student, task.image, ("segmentation",), train=True, rng=KEY)
    assert np.abs(together["segmentation"].output - task.outputs["segmentation"].output).max() > 0.1


def test_each_pass_has_a_key_of_its_own_and_the_labelled_rows_come_first():
    def forward(stats, rows, key):
        return rows + jax.random.uniform(key), [*stats, len(rows)]

    found, stats = two_passes(forward, [], jnp.zeros(5), 3, KEY)
    drawn = [float(jax.random.uniform(key)) for key in jax.random.split(KEY)]
    np.testing.assert_allclose(found, [drawn[0]] * 3 + [drawn[1]] * 2)
    assert (stats, drawn[0] != drawn[1]) == ([3, 2], True)


def test_rows_that_a_teacher_completes_pass_alone(make_toy_network):
    """With partial labels and no other rows there is one pass."""
    batch = make_batch(2, 2)._replace(unlabelled=None)
    found = []
    for separate in (False, True):
        options = {"partial_labels": True, "separate_passes": separate}
        method = MeanTeacher(make_toy_network(), same_colour, NoMixing(), **options)
        state = first_state(method, optax.sgd(0.1), seed=0)
        found.append(method.loss(state.params, state, batch, KEY)[1].batch_stats[STUDENT]["encoder"]["mean"])
    np.testing.assert_array_equal(*found)


def test_one_and_eight_devices_agree(make_toy_network):
    method = MeanTeacher(make_toy_network(), same_colour, NoMixing(), threshold=0.4, separate_passes=True)
    state, batch = first_state(method, optax.sgd(0.1), seed=0), make_batch(8, 8)

    @jax.jit
    def loss(batch):
        terms, aux = method.loss(state.params, state, batch, KEY)
        return {name: term.mean.value() for name, term in terms.items()}, aux.batch_stats

    one, eight = loss(batch), loss(shard_batch(make_mesh(), batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, eight)


@pytest.mark.parametrize("name", ["unimatch", "unimatch_v2", "maskmatch"])
def test_a_method_with_passes_of_its_own_refuses_others(make_toy_network, monkeypatch, name):
    c = apply_variant(defaults(), name)
    c.method.separate_passes = True
    monkeypatch.setattr(build, "build_network", lambda c, heads: make_toy_network(heads))
    with pytest.raises(OptionError, match=r"method\.separate_passes=True: .*Match.* passes of its own"):
        build.build_method(c, LABELS)
