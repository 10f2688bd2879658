"""What holds for every method of METHODS, and for every task beside mean_teacher: a new one is tested here unasked.

Each is built as a run builds it, from a variant's name, on networks of a few matrices and without colour changes.
"""

import dataclasses
import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.config import defaults, method_entry
from forec_jax.contracts import IGNORE, Batch, Labelled, Pseudo, Tagged, Unlabelled, Variables
from forec_jax.data.source import Labels
from forec_jax.experiment import build
from forec_jax.methods import METHODS, TagClassifier, cct, ecs, gct
from forec_jax.methods.entry import Epoch, Guide
from forec_jax.methods.parts.tags import tags_head
from forec_jax.methods.tasks import TASKS
from forec_jax.models import dense_critic
from forec_jax.models.network import with_frozen_encoder
from forec_jax.parallel import make_mesh, replicated, shard_batch
from forec_jax.training import compile_step, create_state, first_state, train_step
from forec_jax.training.step import accumulated_terms
from forec_jax.variants import apply_variant

VARIANTS = [*METHODS, *(f"mean_teacher+{part}" for entry in TASKS.values() for part in entry.variants)]
LABELS = Labels(("background", "disc", "square"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)), (0,))
ROWS, SIZE, SEED = 8, 16, 0  # rows of each part: one a device; the discriminator's smallest image
TX = optax.sgd(0.1, momentum=0.9)
SMALL = {
    "threshold": 0.4,
    "pixel_threshold": 0.4,
    "guided_threshold": 0.4,
    "channels": 4,
    "queries": 8,
    "negative_keys": 8,
    "dropout": 0.0,
    "halvings": 0,
    **{f"{kind}_decoders": int(kind in ("cutout", "vat", "drop", "noise")) for kind in get_args(cct.Kind)},
    "cell": 2,
}
"""Options that, where a method or a task has them, make it cheap, sure of some pixels, and free of dropout."""
UNMIXED = {"paste_probability": 0.0, "cutmix_probability": 0.0}
"""The same of a method that mixes by itself, where nothing shall be mixed."""

OF_THE_WHOLE_BATCH = (
    "feature_matching_loss",
    "reco_loss",
    "contrast_loss",
    "contrast1_loss",
    "contrast2_loss",
    "u2pl: unsupervised_loss",
    "pseudoseg: unsupervised_loss",
    "attention_loss",
    "ecs: unsupervised_loss",
    "corrector_loss",
    "approval_loss",
    "ael: unsupervised_loss",
    "ael: labelled_consistency_loss",
    "flaw_loss",
    *(f"{student}{term}_loss" for student in ("", "student_2_") for term in ("consistency", "correction")),
)
"""Terms that compare a batch's pixels with each other, or draw for each part, so that its parts have others.

Some are of one method alone.
"""

SEE_WHOLE_IMAGES = ("feature_matching_loss", "discriminator_real_loss", "discriminator_fake_loss")
"""Terms of a network that judges an image with its padding."""

START = 4
"""The step from which they are trained: all terms count. As int32: for a bare number's weak type all is compiled again."""

every_method = pytest.mark.parametrize("variant", VARIANTS)
OFTEN = ("s4gan", "cps", "u2pl", "wsss", "mean_teacher+forec")
"""One of each kind: with a critic, two students, a store, from tags, averaged with a task."""
each_kind = pytest.mark.parametrize(
    "variant", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
"""For properties that take a program more a method: `make slow` asks them of every method."""


def same_colour(key, image, valid):
    return image


def small_flaw_detector(classes, outputs=1, **_):
    """GCT's critic with two convolutions in place of eight, which take longer to compile than all else."""
    return dense_critic(3 + classes, ((4, 2), (outputs, 1)), normalise=True)


def small_corrector(classes, **_):
    """ECS's critic, made as small."""
    return small_flaw_detector(classes, classes + 1)


def config_of(variant, mixing):
    """A variant's config: an epoch is two steps, ps_mt's warm-up one."""
    c = apply_variant(defaults(), variant)
    c.steps, c.augment.mixing = 16, c.augment.mixing if mixing else "none"
    options = SMALL if mixing else SMALL | UNMIXED
    for block in (c.method, *(c.method[name] for name in METHODS), *c.auxiliary.values()):
        block.update({key: value for key, value in options.items() if key in block})
    return build.with_epoch(c, Epoch(2, 2))


@functools.cache
def built(toy, variant, normalise=True, mixing=True, devices=1):
    """The method as a run on so many devices builds it, with `toy` networks."""
    foreground = 1, 2
    classifier = TagClassifier(toy((tags_head(foreground),)), same_colour, foreground, 0)
    guide = Guide("runs/tags", "tag_classifier", classifier, LABELS, classifier.network.init(jax.random.key(1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_network", lambda c, heads: toy(heads, normalise))
        patch.setattr(build, "build_colour", lambda c: same_colour)
        patch.setattr(gct, "flaw_detector", small_flaw_detector)
        patch.setattr(ecs, "corrector", small_corrector)
        mesh = make_mesh(devices=jax.devices()[:devices])
        return build.build_method(config_of(variant, mixing), LABELS, guide=lambda role: guide, mesh=mesh)


def batch_for(variant):
    """The parts that the method needs. The last column is padding, one pixel of each row void, and each row has one tag."""
    rng = np.random.default_rng(0)
    shape, none = (ROWS, SIZE, SIZE), np.zeros(ROWS, np.int32)
    images = rng.integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    valid = np.ones(shape, bool)
    valid[:, :, -1] = False
    label = np.where(valid, rng.integers(0, len(LABELS.classes), shape), IGNORE).astype(np.int32)
    label[:, 0, 0] = IGNORE
    tags = np.tile(np.array([[1, 1, 0], [1, 0, 1]], np.float32), (ROWS // 2, 1))
    parts = {
        "labelled": Labelled(images[0], label, valid, none),
        "unlabelled": Unlabelled(images[1], valid, none),
        "tagged": Tagged(images[2], valid, tags, none),
        "pseudo": Pseudo(images[2], label, np.full(shape, 204, np.uint8), valid, none),
    }
    return Batch(**{name: parts[name] for name in METHODS[variant.split("+")[0]].needs})


@functools.cache
def trained(toy, variant, devices):
    """The compiled step and what each of the first steps leaves: (state, metrics), on the host."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    method = built(toy, variant, devices=devices)
    step = compile_step(method, TX, seed=SEED, accumulate=1, mesh=mesh)
    state, history = create_state(method, TX, SEED, replicated(mesh)), []
    state = state._replace(step=jax.device_put(jnp.int32(START), replicated(mesh)))
    for _ in range(3 if devices == 1 else 1):
        state, metrics = step(state, shard_batch(mesh, batch_for(variant)))
        history.append(copied((state, metrics)))
    return step, history


def copied(tree):
    return jax.tree.map(np.array, jax.device_get(tree))


def of_the_whole_batch(variant, term):
    return term in OF_THE_WHOLE_BATCH or f"{variant}: {term}" in OF_THE_WHOLE_BATCH


@functools.cache
def probe(toy, variant, parts):
    """(batch, share, step) -> (terms, gradients by params and by teacher), without BatchNorm and mixing.

    `share` is what the terms OF_THE_WHOLE_BATCH count.
    """
    method = built(toy, variant, normalise=False, mixing=False)
    state = first_state(method, TX, SEED)

    def loss(trained, batch, share, step):
        params, teacher = trained
        seen, key = state._replace(teacher=teacher, step=step), jax.random.key(1)
        if parts == 1:
            terms, _ = method.loss(params, seen, batch, key)
        else:
            terms, _ = accumulated_terms(params, seen, batch, key, method, parts)
        counts = {name: share if of_the_whole_batch(variant, name) else 1.0 for name in terms}
        return sum(counts[name] * term.weight * term.mean.value() for name, term in terms.items()), terms

    run = jax.jit(jax.grad(loss, has_aux=True))

    def probed(batch, share=1.0, step=START):
        batch = jax.tree.map(jnp.asarray, batch)
        gradients, terms = run((state.params, state.teacher), batch, share, jnp.int32(step))
        return {name: term.mean for name, term in terms.items()}, gradients

    return probed


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


@every_method
def test_the_first_state_is_float32_and_no_two_arrays_share_memory(make_toy_network, variant):
    state = first_state(built(make_toy_network, variant), TX, SEED)
    networks = jax.tree.leaves((state.params, state.batch_stats, state.teacher, state.memory))
    assert {leaf.dtype for leaf in networks} - {jnp.dtype("int32")} == {jnp.dtype("float32")}  # a store has counts
    places = [leaf.unsafe_buffer_pointer() for leaf in networks]
    assert len(set(places)) == len(places)


@every_method
def test_every_network_learns_and_no_teacher_does(make_toy_network, variant):
    _, (params, teacher) = probe(make_toy_network, variant, 1)(batch_for(variant))
    for name, gradient in params.items():
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient)), name
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(teacher))


@every_method
def test_networks_and_their_optimisers_have_the_names_of_the_params(make_toy_network, variant):
    method, c = built(make_toy_network, variant), config_of(variant, mixing=True)
    entry = method_entry(c)
    options = build.from_config(entry.options, c.method[entry.name], "method")
    names = set(method.networks)
    assert set(method.init(jax.random.key(0))[0]) == names
    assert set(entry.optimizers(options, optax.constant_schedule)) <= names


@every_method
def test_terms_are_called_losses(make_toy_network, variant):
    terms, _ = probe(make_toy_network, variant, 1)(batch_for(variant))
    assert all(name.endswith("loss") for name in terms)


@every_method
def test_what_lies_in_the_padding_of_an_image_has_no_influence(make_toy_network, variant):
    """Exact, as the network sees each pixel by itself; terms of a discriminator, which sees images, are left out."""
    batch = batch_for(variant)
    other = Batch(
        *(part and part._replace(image=np.where(part.valid[..., None], part.image, 255 - part.image)) for part in batch)
    )
    (terms, _), (changed, _) = (probe(make_toy_network, variant, 1)(b) for b in (batch, other))
    for name in terms.keys() - set(SEE_WHOLE_IMAGES):
        np.testing.assert_array_equal(terms[name], changed[name], err_msg=name)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "labelled" in METHODS[name.split("+")[0]].needs])
def test_a_void_pixel_is_a_pixel_left_out_of_the_supervised_loss(make_toy_network, variant):
    """With one half of the pixels void, then the other, the sums and numbers add up to those of all pixels.

    In dmt the number is that of the pixels of stored masks as well.
    """
    batch = batch_for(variant)
    half = np.arange(SIZE) < SIZE // 3

    def with_void(void):
        label = np.where(void, IGNORE, batch.labelled.label)
        return probe(make_toy_network, variant, 1)(batch._replace(labelled=batch.labelled._replace(label=label)))[0]

    whole, left, right, nothing = (
        with_void(void)["supervised_loss"] for void in (np.zeros(SIZE, bool), half, ~half, np.ones(SIZE, bool))
    )
    pixels = ROWS * (SIZE * (SIZE - 1) - 1)
    stored = pixels if variant == "dmt" else 0
    assert whole.number == pixels + stored
    assert left.number + right.number == whole.number + stored
    np.testing.assert_allclose(left.total + right.total, whole.total, rtol=1e-5)
    assert (nothing.total, nothing.number) == (0, stored)


@each_kind
def test_two_parts_of_a_batch_give_the_loss_and_the_gradient_of_the_whole(make_toy_network, variant):
    """In step 0: after its warm-up ps_mt draws another perturbation for each part."""
    batch = batch_for(variant)
    (whole, gradient), (parts, gradient_of_parts) = (
        probe(make_toy_network, variant, parts)(batch, share=0.0, step=0) for parts in (1, 2)
    )
    for name in (name for name in whole if not of_the_whole_batch(variant, name)):
        assert_close(whole[name], parts[name])
    assert_close(gradient, gradient_of_parts)


@each_kind
def test_one_and_eight_devices_agree(make_toy_network, variant):
    one, eight = (trained(make_toy_network, variant, devices)[1][0] for devices in (1, 8))
    assert_close(one, eight)


@every_method
def test_the_step_is_compiled_once_and_its_metrics_are_finite(make_toy_network, variant):
    step, history = trained(make_toy_network, variant, 1)
    assert step._cache_size() == 1
    assert [state.step for state, _ in history] == [START + 1, START + 2, START + 3]
    for metrics in (metrics for _, metrics in history):
        assert all(np.isfinite(value) for value in metrics.values())


@every_method
def test_a_run_that_goes_on_from_a_stored_state_ends_like_one_that_was_not_stopped(make_toy_network, variant):
    step, history = trained(make_toy_network, variant, 1)
    mesh = make_mesh(devices=jax.devices()[:1])
    state = jax.device_put(history[0][0], replicated(mesh))
    resumed = copied(step(state, shard_batch(mesh, batch_for(variant))))
    jax.tree.map(np.testing.assert_array_equal, resumed, history[1])


@each_kind
def test_a_frozen_encoder_stays_as_it_is_and_so_does_the_teachers(make_toy_network, variant):
    """To the last bit; and a run that goes on from the first step ends like one that was not stopped."""
    toy = functools.partial(make_toy_network, channels=64)  # enough weights for an average to be rounded
    method, c = built(toy, variant, normalise=False), config_of(variant, mixing=True)
    method = dataclasses.replace(method, network=with_frozen_encoder(method.network))
    c.model.freeze, c.optim.name = "encoder", "adamw"
    tx, batch = build.build_optimizer(c), jax.tree.map(jnp.asarray, batch_for(variant))
    step = jax.jit(functools.partial(train_step, method=method, tx=tx, seed=SEED))
    first = first_state(method, tx, SEED)._replace(step=jnp.int32(START))
    stored = copied(step(first, batch)[0])
    (last, _), (resumed, _) = (step(jax.tree.map(jnp.asarray, stored), batch) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, last, resumed)
    students = {name for name, network in method.networks.items() if network is method.network}
    assert "student" in students
    for name in students:
        encoder = first.params[name]["encoder"]["w"]
        np.testing.assert_array_equal(last.params[name]["encoder"]["w"], encoder)
    for name, teacher in last.teacher.items():
        np.testing.assert_array_equal(teacher.params["encoder"]["w"], first.teacher[name].params["encoder"]["w"])
    assert encoder.shape not in {leaf.shape for leaf in jax.tree.leaves(last.opt_state)}
    for name, parts in last.params.items():
        for part in parts.keys() - ({"encoder"} if name in students else set()):
            before, after = (jax.tree.leaves(tree[name][part]) for tree in (first.params, last.params))
            assert any(np.any(a != b) for a, b in zip(before, after, strict=True)), (name, part)


@every_method
def test_predictions_are_probabilities(make_toy_network, variant):
    method, (state, _) = built(make_toy_network, variant), trained(make_toy_network, variant, 1)[1][-1]
    student = {name: Variables(state.params[name], state.batch_stats[name]) for name in state.params}
    part = next(part for part in batch_for(variant) if part is not None)
    image = jnp.asarray(part.image, jnp.float32) / 255
    predict = jax.jit(method.predict)
    for variables in filter(None, (student, state.teacher)):
        predicted = np.asarray(predict(variables, image, jnp.asarray(part.valid)))
        assert predicted.shape == (ROWS, SIZE, SIZE, len(LABELS.classes))
        assert (predicted >= 0).all()
        np.testing.assert_allclose(predicted.sum(-1), 1, rtol=1e-5)
