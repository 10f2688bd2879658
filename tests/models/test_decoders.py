"""DeepLabV2 and PSPNet against references written from the papers, and on padded images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders import deeplab_v2, pspnet
from forec_jax.models.decoders.pspnet import adaptive_mean
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.encoders.resnet import ResNetOptions
from forec_jax.models.network import Features, Form, ImageSize, assemble, count_parameters

DECODERS = {
    "deeplab_v2": deeplab_v2.build(deeplab_v2.DeepLabV2Options(rates=(1, 2)), Form()),
    "pspnet": pspnet.build(pspnet.PspNetOptions(bins=(1, 2, 3), channels=4), Form()),
}
HEADS = (HeadSpec("segmentation", 3), HeadSpec("small", 2, upsample=False))


def network_of(decoder, width=1 / 32, heads=HEADS, variant="resnet18"):
    return assemble(
        ENCODERS[variant].build(variant, ResNetOptions(width=width, output_stride=8), Form()), decoder, heads
    )


@pytest.mark.parametrize(
    ("decoder", "number"),
    [
        (deeplab_v2.build(deeplab_v2.DeepLabV2Options(), Form()), 4 * (9 * 2048 * 21 + 21)),
        (
            pspnet.build(pspnet.PspNetOptions(), Form()),
            4 * (2048 * 512 + 2 * 512) + 9 * 4096 * 512 + 2 * 512 + 512 * 21 + 21,
        ),
    ],
    ids=["deeplab_v2", "pspnet"],
)
def test_the_published_decoders_have_their_parameters(decoder, number):
    network = network_of(decoder, 1.0, (HeadSpec("segmentation", 21),), "resnet101")
    counted = count_parameters(jax.eval_shape(network.init, jax.random.key(0)).params)
    assert counted["segmentation"] == number


def features_of(rng, height, width, channels):
    low, high = (rng.normal(size=(1, height, width, channels)).astype(np.float32) for _ in range(2))
    return Features((low, high), ImageSize(height, width), None)


def dilated(x, kernel, bias, rate):
    """A 3x3 convolution with zeros beyond the border, pixel by pixel."""
    height, width, _ = x.shape
    y = np.zeros((height, width, kernel.shape[-1])) + bias
    for i, j, u, v in np.ndindex(height, width, 3, 3):
        row, column = i + (u - 1) * rate, j + (v - 1) * rate
        if 0 <= row < height and 0 <= column < width:
            y[i, j] += x[row, column] @ kernel[u, v]
    return y


def test_deeplab_v2_adds_up_its_dilated_convolutions():
    rng = np.random.default_rng(0)
    features = features_of(rng, 5, 6, 3)
    module = DECODERS["deeplab_v2"].head(HeadSpec("segmentation", 2))(False)
    inputs = (*features.maps, (5, 6), None)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), module.init(jax.random.key(0), *inputs))
    output, latent = module.apply(variables, *inputs)
    params = variables["params"]
    expected = sum(
        dilated(features.maps[1][0], params[f"atrous{n}"]["kernel"], params[f"atrous{n}"]["bias"], n) for n in (1, 2)
    )
    np.testing.assert_allclose(output[0], expected, atol=1e-4)
    np.testing.assert_array_equal(latent, features.maps[1])


@pytest.mark.parametrize(("bins", "extent"), [(1, (5, 7)), (2, (5, 7)), (3, (4, 5)), (6, (4, 7))])
def test_bins_are_means_of_parts_that_may_share_pixels(bins, extent):
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 2)).astype(np.float32)
    found = adaptive_mean(jnp.asarray(x), jnp.array([extent]), bins)
    for i, j in np.ndindex(bins, bins):
        (top, bottom), (left, right) = (
            (int(np.floor(k * n / bins)), int(np.ceil((k + 1) * n / bins))) for k, n in zip((i, j), extent, strict=True)
        )
        np.testing.assert_allclose(found[0, i, j], x[0, top:bottom, left:right].mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_pspnet_puts_the_pyramid_beside_the_map():
    """In inference mode with fresh statistics BatchNorm changes nothing but by its epsilon."""
    rng = np.random.default_rng(0)
    features = features_of(rng, 4, 4, 6)
    module = DECODERS["pspnet"].fuse(False)
    inputs = (*features.maps, (4, 4), None)
    variables = module.init(jax.random.key(0), *inputs)
    variables = variables | {"params": jax.tree.map(lambda leaf: abs(rng.normal(size=leaf.shape)), variables["params"])}
    fused = module.apply(variables, *inputs)
    high = features.maps[1]
    np.testing.assert_array_equal(fused[..., :6], high)
    params = variables["params"]["level1"]
    mean = high[0].mean((0, 1)) @ params["conv"]["kernel"][0, 0] / np.sqrt(1 + 1e-5)
    expected = np.maximum(mean * params["norm"]["scale"] + params["norm"]["bias"], 0)
    np.testing.assert_allclose(fused[0, ..., 6:8], np.broadcast_to(expected, (4, 4, 2)), rtol=1e-5)
    assert fused.shape == (1, 4, 4, 12)


@pytest.mark.parametrize("name", DECODERS)
def test_a_padded_image_gives_the_result_of_the_image_alone(name):
    network = network_of(DECODERS[name])
    variables = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    image = rng.random((1, 96, 96, 3), np.float32)
    valid = np.zeros((1, 96, 96), bool)
    valid[:, :56, :73] = True

    def outputs(image, valid=None):
        features, _ = network.encode(variables, image, valid=valid)
        return network.decode(variables, "segmentation", features)[0].output

    padded, alone = jax.jit(outputs)(image, valid), jax.jit(outputs)(image[:, :56, :73])
    np.testing.assert_allclose(padded[:, :56, :73], alone, atol=1e-4)
    assert np.ptp(np.asarray(alone)) > 1e-2


@pytest.mark.parametrize("name", DECODERS)
def test_heads_are_trained_and_may_stay_small(name):
    network = network_of(DECODERS[name])
    variables = network.init(jax.random.key(0))
    image = np.random.default_rng(0).random((2, 33, 33, 3), np.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        now = variables._replace(params=params)
        features, stats = network.encode(now, image, train=True)
        total = jnp.zeros(())
        for head, size in (("segmentation", 33), ("small", 5)):
            found, stats = network.decode(
                now._replace(batch_stats=stats), head, features, train=True, rng=jax.random.key(1)
            )
            assert found.output.shape[1:3] == (size, size)
            total += jnp.square(found.output).mean()
        return total

    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient(variables.params)))
