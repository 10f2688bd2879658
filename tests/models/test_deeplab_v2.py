"""DeepLabV2's decoder: parallel dilated convolutions from the last map to the classes, added up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolved, dilated, enlarged

from forec_jax.contracts import HeadSpec
from forec_jax.models import assemble, count_parameters
from forec_jax.models.decoders.deeplab_v2 import DeepLabV2Options, build
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.layers import draw_variables
from forec_jax.models.network import Form

SIZE = (33, 48)
HEADS = (HeadSpec("segmentation", 21), HeadSpec("representation", 5, upsample=False, reads="segmentation"))


def network(encoder="resnet18", **options):
    entry = ENCODERS[encoder]
    return assemble(entry.build(encoder, entry.options(**options), Form()), build(DeepLabV2Options(), Form()), HEADS)


@pytest.mark.parametrize("align_corners", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_equals_a_numpy_oracle(align_corners):
    rates = (1, 2, 5)
    head = build(DeepLabV2Options(rates, align_corners), Form()).head(HeadSpec("segmentation", 3))(False)
    low, x = (jnp.asarray(np.random.default_rng(0).normal(size=s), jnp.float32) for s in ((2, 9, 12, 4), (2, 5, 6, 7)))
    variables = jax.tree.map(lambda leaf: leaf + 0.1, draw_variables(head, jax.random.key(0), low, x, SIZE, None))
    output, latent = head.apply(variables, low, x, SIZE, None)
    layers = [variables["params"][f"atrous{index}"] for index in (1, 2, 3)]
    scores = sum(
        convolved(x, dilated(np.asarray(layer["kernel"]), rate), layer["bias"], padding=rate)
        for layer, rate in zip(layers, rates, strict=True)
    )
    np.testing.assert_allclose(output, enlarged(scores, SIZE, align_corners), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(latent, x)  # what enters the last convolution


def test_the_published_head_has_1_548_372_parameters():
    """Four kernels of 3 x 3 x 2048 x 21, each with 21 biases. A head that reads another has the same of its own."""
    parts = count_parameters(jax.eval_shape(network("resnet101").init, jax.random.key(0)).params)
    assert parts["segmentation"] == 4 * (9 * 2048 * 21 + 21) == 1_548_372
    assert parts["representation"] == 4 * (9 * 2048 * 5 + 5)


def test_sizes_and_a_padded_image_is_the_image_alone():
    net = network(width=0.125, output_stride=8)
    variables = net.init(jax.random.key(0))

    @jax.jit
    def predict(image, valid=None):
        features, _ = net.encode(variables, image, valid=valid)
        return [net.decode(variables, head.name, features)[0].output for head in HEADS]

    alone = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 75, 101, 3)), jnp.float32)
    padded = jnp.full((1, 96, 128, 3), 0.7).at[:, :75, :101].set(alone)
    valid = jnp.zeros((1, 96, 128), bool).at[:, :75, :101].set(True)
    (expected, small), (ours, few) = predict(alone), predict(padded, valid)
    assert (expected.shape, small.shape) == ((1, 75, 101, 21), (1, 10, 13, 5))
    np.testing.assert_allclose(few[:1, :10, :13], small, atol=1e-4 * float(jnp.abs(small).max()))
    np.testing.assert_allclose(ours[:, :75, :101], expected, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.slow
def test_gradients_are_finite_and_reach_every_kernel():
    net = network(width=0.125)
    variables = net.init(jax.random.key(0))
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 33, 33, 3)), jnp.float32)

    @jax.jit
    @jax.grad
    def slope(params):
        features, _ = net.encode(variables._replace(params=params), image, train=True)
        found, _ = net.decode(variables._replace(params=params), "segmentation", features, train=True)
        return jnp.mean(jnp.square(found.output - 1))

    found = slope(variables.params)
    for name in ("encoder", "segmentation"):
        for leaf in jax.tree.leaves(found[name]):
            assert jnp.isfinite(leaf).all()
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found["segmentation"]))
