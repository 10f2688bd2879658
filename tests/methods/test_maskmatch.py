"""MaskMatch: what is hidden, who labels it at which scales, and what the two views weigh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.augment import NoMixing, hide_patches
from forec_jax.contracts import IMAGENET_MEAN, Batch, Labelled, Unlabelled
from forec_jax.methods import Auxiliary
from forec_jax.methods.maskmatch import MaskMatch
from forec_jax.methods.parts.heads import class_probabilities
from forec_jax.methods.parts.views import apart, unchanged
from forec_jax.training import first_state

TX = optax.sgd(0.1)
KEY = jax.random.key(3)
FILL = np.float32(IMAGENET_MEAN)


def batch(size=8):
    rng = np.random.default_rng(0)
    shape, none = (2, size, size), np.zeros(2, np.int32)
    images = rng.integers(0, 190, (2, *shape, 3), dtype=np.uint8)
    label, valid = rng.integers(0, 3, shape).astype(np.int32), np.ones(shape, bool)
    return Batch(Labelled(images[0], label, valid, none), Unlabelled(images[1], valid, none))


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_student_sees_a_strong_view_and_a_masked_one_and_tasks_aim_at_whole_images(witness, view):
    options = {"visible": 0.5, "patch": 4, "masked_view": view, "scales": (1.0,)}
    task = (Auxiliary(1.0, witness),)
    method = MaskMatch(witness.network, witness.colour, NoMixing(), task, colour_labelled=False, **options)
    given = batch()
    witness.watch(method, given)
    labelled, weak, strong = (
        witness.weak(given.labelled),
        witness.weak(given.unlabelled),
        witness.strong(given.unlabelled),
    )
    np.testing.assert_allclose(witness.teacher, [weak], atol=1e-6)
    np.testing.assert_allclose(witness.student[0], labelled, atol=1e-6)
    seen, masked = (np.asarray(rows) for rows in apart(witness.student[1], 2))
    np.testing.assert_allclose(seen, strong, atol=1e-6)
    hidden = (masked == FILL).all(-1)
    np.testing.assert_array_equal(hidden.sum((1, 2)), [32, 32])  # two of four patches of 16 pixels
    whole = {"weak": weak, "strong": strong}[view]
    np.testing.assert_allclose(masked[~hidden], whole[~hidden], atol=1e-6)
    (target,) = witness.targets
    np.testing.assert_allclose(target[:2], labelled, atol=1e-6)
    np.testing.assert_allclose(target[2:], np.repeat(weak, 2, axis=0), atol=1e-6)


def test_both_views_are_asked_for_the_label_of_every_pixel(make_toy_network):
    """An oracle in NumPy, without colours: the cross-entropy of the whole and of the masked image, a fifth of it masked."""
    options = {"threshold": 0.4, "patch": 4, "visible": 0.5, "masked_share": 0.2, "scales": (1.0,)}
    weights = {"supervised_weight": 0.5, "unsupervised_weight": 0.5}
    method = MaskMatch(make_toy_network(normalise=False), unchanged, NoMixing(), **weights, **options)
    state, given = first_state(method, TX, seed=0), jax.tree.map(jnp.asarray, batch())
    terms, _ = jax.jit(method.loss)(state.params, state, given, KEY)

    image = jnp.asarray(given.unlabelled.image, jnp.float32) / 255
    mask_key = jax.random.split(jax.random.split(KEY, 6)[2], 3)[2]
    p, of_masked = (
        np.asarray(class_probabilities(method.network, state.teacher["student"], seen))
        for seen in (image, hide_patches(mask_key, image, 4, 0.5))
    )
    kept = p.max(-1) > 0.4
    assert 0 < kept.mean() < 1
    for name, said, weight in (("unsupervised_loss", p, 0.4), ("masked_loss", of_masked, 0.1)):
        error = -np.log(np.take_along_axis(said, p.argmax(-1)[..., None], -1)[..., 0])
        assert float(terms[name].weight) == pytest.approx(weight)
        np.testing.assert_allclose(terms[name].mean.value(), np.where(kept, error, 0).mean(), rtol=1e-5)
    assert set(terms) == {"supervised_loss", "unsupervised_loss", "masked_loss"}
    assert terms["supervised_loss"].weight == 0.5


def test_what_lies_in_the_padding_reaches_no_label_at_any_scale(make_toy_network):
    method = MaskMatch(make_toy_network()._replace(multiple=4), unchanged, NoMixing(), scales=(0.5, 1.0, 1.5))
    teacher, part = method.network.init(KEY), batch().unlabelled
    valid = np.broadcast_to(np.arange(8) < 5, (2, 8, 8))
    one, other = (
        method.taught_at_scales(
            teacher, part._replace(valid=valid, image=np.where(valid[..., None], part.image, padding).astype(np.uint8))
        )
        for padding in (0, 255)
    )
    np.testing.assert_array_equal(one, other)
    plain = class_probabilities(method.network, teacher, jnp.asarray(part.image, jnp.float32) / 255)
    assert np.abs(np.asarray(one - plain))[:, :, :5].max() > 0.01  # other scales say something else
