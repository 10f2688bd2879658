"""PSPNet's decoder: means over grids of cells as PyTorch's adaptive pooling, beside the map, and a convolution of all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import cell_means, convolved, enlarged, normalised

from forec_jax.contracts import HeadSpec
from forec_jax.models import assemble, count_parameters
from forec_jax.models.decoders.pspnet import PSPNetOptions, _cell_means, build
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.layers import draw_variables
from forec_jax.models.network import Form

SIZE = (33, 48)
HEADS = (HeadSpec("segmentation", 21), HeadSpec("representation", 256, upsample=False, reads="segmentation"))


def network(encoder="resnet18", options=None, **form):
    entry = ENCODERS[encoder]
    decoder = build(options or PSPNetOptions(), Form())
    return assemble(entry.build(encoder, entry.options(**form), Form()), decoder, HEADS)


def unsettled(variables):
    """Other numbers than those that a network starts with, variances above 0."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32), variables)


@pytest.mark.parametrize(("bins", "n"), [(1, 5), (2, 5), (3, 7), (6, 5), (6, 21)])
def test_cells_by_pytorchs_rule(bins, n):
    """5 pixels in 2 cells: 0-2 and 2-4, the middle one in both; in 6 cells: 0, 0-1, 1-2, 2-3, 3-4, 4."""
    x = np.random.default_rng(0).normal(size=(2, n, n + 2, 3)).astype(np.float32)
    np.testing.assert_allclose(_cell_means(jnp.asarray(x), bins, None), cell_means(x, bins), rtol=1e-5, atol=1e-6)
    if (bins, n) == (2, 5):
        first = x[0, :3, :4, 0].mean()
        np.testing.assert_allclose(_cell_means(jnp.asarray(x), bins, None)[0, 0, 0, 0], first, rtol=1e-5)


@pytest.mark.parametrize("align_corners", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_equals_a_numpy_oracle(align_corners):
    options = PSPNetOptions((1, 2, 6), 5, align_corners=align_corners)
    decoder, rng = build(options, Form()), np.random.default_rng(0)
    low, x = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 9, 12, 4), (2, 5, 7, 6)))
    fusion, head = decoder.fuse(False), decoder.head(HeadSpec("segmentation", 3))(False)
    fusing = unsettled(draw_variables(fusion, jax.random.key(0), low, x, SIZE, None))
    fused = fusion.apply(fusing, low, x, SIZE, None)
    classifying = unsettled(draw_variables(head, jax.random.key(1), fused, SIZE, None))
    output, latent = head.apply(classifying, fused, SIZE, None)

    def layer(name, x, padding=0):
        params, stats = fusing["params"][name], fusing["batch_stats"][name]["norm"]
        y = convolved(x, params["conv"]["kernel"], 0, padding=padding)
        return np.maximum(
            normalised(y, *(np.asarray(v) for v in (*scale_bias(params), stats["mean"], stats["var"]))), 0
        )

    def scale_bias(params):
        return params["norm"]["scale"], params["norm"]["bias"]

    levels = [np.asarray(x)]
    for index, bins in enumerate((1, 2, 6), start=1):
        assert fusing["params"][f"level{index}"]["conv"]["kernel"].shape == (1, 1, 6, 2)  # a third of the channels
        means = layer(f"level{index}", cell_means(np.asarray(x), bins))
        levels.append(np.broadcast_to(means, (2, 5, 7, 2)) if bins == 1 else enlarged(means, (5, 7), align_corners))
    expected = layer("bottleneck", np.concatenate(levels, -1), padding=1)
    np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(latent, fused)
    last = classifying["params"]["last"]
    scores = convolved(expected, last["kernel"], last["bias"], padding=0)
    np.testing.assert_allclose(output, enlarged(scores, SIZE, align_corners), rtol=1e-4, atol=1e-5)


def test_the_published_head_has_23_084_565_parameters():
    """Four 1x1 kernels of 2048 x 512, one 3x3 of 4096 x 512, BatchNorm's pairs, and the last layer's 512 x 21 + 21."""
    parts = count_parameters(jax.eval_shape(network("resnet101").init, jax.random.key(0)).params)
    levels, bottleneck = 4 * (2048 * 512 + 1024), 9 * 4096 * 512 + 1024
    assert parts["segmentation"] == levels + bottleneck + 512 * 21 + 21 == 23_084_565
    # A head that reads what another fuses: a 3x3 convolution with BatchNorm, and the last one.
    assert parts["representation"] == 9 * 512 * 512 + 1024 + 512 * 256 + 256


def test_sizes_and_a_padded_image_is_the_image_alone():
    """Each image has cells of its own: over its valid area, and its means are spread over that alone."""
    net = network(options=PSPNetOptions(channels=16), width=0.125, output_stride=8)
    variables = unsettled(net.init(jax.random.key(0)))

    @jax.jit
    def predict(image, valid=None):
        features, _ = net.encode(variables, image, valid=valid)
        return [net.decode(variables, head.name, features)[0].output for head in HEADS]

    alone = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 75, 101, 3)), jnp.float32)
    padded = jnp.full((2, 96, 128, 3), 0.7).at[:, :75, :101].set(alone)
    valid = jnp.zeros((2, 96, 128), bool).at[0, :75, :101].set(True).at[1].set(True)
    (expected, small), (ours, few) = predict(alone), predict(padded, valid)
    assert (expected.shape, small.shape) == ((1, 75, 101, 21), (1, 10, 13, 256))
    np.testing.assert_allclose(few[:1, :10, :13], small, atol=1e-4 * float(jnp.abs(small).max()))
    np.testing.assert_allclose(ours[:1, :75, :101], expected, atol=1e-4 * float(jnp.abs(expected).max()))
    assert not np.allclose(ours[1:, :75, :101], expected, atol=1e-2)


@pytest.mark.slow
def test_gradients_are_finite_and_dropout_takes_whole_channels():
    net = network(options=PSPNetOptions(channels=64, dropout=0.5), width=0.125)
    variables = net.init(jax.random.key(0))
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 33, 33, 3)), jnp.float32)

    @jax.jit
    def slope(params):
        def loss(params):
            now = variables._replace(params=params)
            features, _ = net.encode(now, image, train=True, rng=jax.random.key(1))
            found, stats = net.decode(now, "segmentation", features, train=True, rng=jax.random.key(1))
            return jnp.mean(jnp.square(found.output - 1)), (found.latent, stats)

        return jax.grad(loss, has_aux=True)(params)

    found, (latent, stats) = slope(variables.params)
    for name in ("encoder", "segmentation"):
        for leaf in jax.tree.leaves(found[name]):
            assert jnp.isfinite(leaf).all()
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found["segmentation"]))
    for layer in ("level1", "level4", "bottleneck"):
        assert (stats["segmentation"][layer]["norm"]["mean"] != 0).any()
    gone = np.asarray((latent == 0).all((1, 2)))
    assert 0.25 < gone.mean() < 0.75
