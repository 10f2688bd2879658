import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolved, enlarged, leaky

from forec_jax.contracts import HeadSpec
from forec_jax.models import count_parameters, unet_network
from forec_jax.models.encoders.unet import halved

HEADS = (HeadSpec("segmentation", 2), HeadSpec("image_lets", 6))


def small():
    network = unet_network(heads=HEADS, width=0.0625)
    return network, network.init(jax.random.key(0))


def predict(network, variables, image, valid=None, head="segmentation"):
    features, _ = network.encode(variables, image, valid=valid)
    return network.decode(variables, head, features)[0]


def test_the_papers_network_has_the_papers_channels():
    network = unet_network(heads=HEADS)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    encoder = variables.params["encoder"]
    assert encoder["level0_1"]["kernel"].shape == (3, 3, 3, 64)
    assert encoder["bottom_1"]["kernel"].shape == (3, 3, 512, 1024)
    assert encoder["bottom_2"]["kernel"].shape == (3, 3, 1024, 512)
    decoder = variables.params["segmentation"]
    assert decoder["level3_1"]["kernel"].shape == (3, 3, 512 + 512, 512)
    assert decoder["level0_1"]["kernel"].shape == (3, 3, 64 + 64, 64)
    # 2x2 pooling four times: the bottom of 64 pixels is 4.
    features, _ = jax.eval_shape(network.encode, variables, jnp.zeros((1, 64, 64, 3)))
    assert features.high.shape == (1, 4, 4, 512)
    convolutions = (3 * 64, 64 * 64, 64 * 128, 128**2, 128 * 256, 256**2, 256 * 512, 512**2, 512 * 1024, 1024 * 512)
    biases = 2 * (64 + 128 + 256 + 512) + 1024 + 512
    assert count_parameters(variables.params)["encoder"] == 9 * sum(convolutions) + biases


@pytest.mark.parametrize(("align_corners", "last_size"), [(True, 1), pytest.param(False, 3, marks=pytest.mark.slow)])
def test_it_equals_a_numpy_oracle(align_corners, last_size):
    """Two convolutions a level with LeakyReLU 0.01, max-pooling down, upsampling and the level's map on the way up."""
    network = unet_network(heads=HEADS, width=1 / 64, align_corners=align_corners, last_size=last_size)
    variables = jax.tree.map(lambda leaf: leaf + 0.02, network.init(jax.random.key(0)))  # biases that are not zero
    image = np.random.default_rng(0).uniform(size=(2, 32, 48, 3)).astype(np.float32)
    found = predict(network, variables, jnp.asarray(image), head="image_lets")

    def apply(part, name, x):
        layer = variables.params[part][name]
        return leaky(convolved(x, layer["kernel"], layer["bias"]), 0.01)

    x, skips = image, []
    for level in range(4):
        for index in (1, 2):
            x = apply("encoder", f"level{level}_{index}", x)
        skips.append(x)
        x = x.reshape(2, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
    x = apply("encoder", "bottom_2", apply("encoder", "bottom_1", x))
    for level in (3, 2, 1, 0):
        x = np.concatenate([enlarged(x, skips[level].shape[1:3], align_corners), skips[level]], axis=-1)
        for index in (1, 2):
            x = apply("image_lets", f"level{level}_{index}", x)
    last = variables.params["image_lets"]["last"]
    expected = convolved(x, last["kernel"], last["bias"], padding=last_size // 2)
    np.testing.assert_allclose(found.latent, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.output, expected, rtol=1e-4, atol=1e-5)


def test_the_last_convolutions_of_the_published_network():
    network = unet_network(heads=HEADS, last_size=3)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    last = [variables.params[head.name]["last"] for head in HEADS]
    assert sum(leaf.size for leaf in jax.tree.leaves(last)) == 4616
    assert sum(count_parameters(variables.params).values()) == 29_831_624 + 4616 - 520


@pytest.mark.parametrize(("align_corners", "last_size"), [pytest.param(True, 1, marks=pytest.mark.slow), (False, 3)])
def test_padding_changes_nothing(align_corners, last_size):
    network = unet_network(heads=HEADS, width=0.0625, align_corners=align_corners, last_size=last_size)
    variables = network.init(jax.random.key(0))
    alone = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 75, 101, 3)), jnp.float32)
    padded = jnp.full((1, 96, 128, 3), 0.7).at[:, :75, :101].set(alone)
    valid = jnp.zeros((1, 96, 128), bool).at[:, :75, :101].set(True)
    run = jax.jit(lambda *a: predict(network, variables, *a).output)
    expected, ours = run(alone), run(padded, valid)
    np.testing.assert_allclose(ours[:, :75, :101], expected, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.slow
def test_signals_keep_their_size_through_the_network():
    """Nothing normalises: an initialisation by another fan would make them vanish or explode."""
    network = unet_network(heads=HEADS, width=0.25)
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 64, 64, 3)), jnp.float32)
    output = predict(network, network.init(jax.random.key(0)), image).latent
    assert 0.03 < float(jnp.std(output)) < 3


def test_any_size_comes_back():
    network, variables = small()
    image = jax.ShapeDtypeStruct((2, 33, 47, 3), jnp.float32)
    shape = jax.eval_shape(lambda v, x: predict(network, v, x, head="image_lets"), variables, image).output.shape
    assert shape == (2, 33, 47, 6)


def test_pooling_takes_what_is_inside_even_where_it_is_negative():
    x = jnp.array([[1.0, -5.0, -3.0], [0.0, -6.0, -2.0], [-9.0, -8.0, -7.0]])[None, :, :, None]
    np.testing.assert_array_equal(halved(x, None)[0, :, :, 0], [[1, -2], [-8, -7]])
    valid = jnp.array([[[True, True, False], [True, True, False], [False, False, False]]])
    np.testing.assert_array_equal(halved(x, valid)[0, :, :, 0], [[1, 0], [0, 0]])


def test_a_head_that_reads_another_reads_the_encoder_as_nothing_is_fused():
    network = unet_network(heads=(HEADS[0], HeadSpec("reader", 3, reads="segmentation")), width=0.0625)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    assert sorted(variables.params["reader"]) == sorted(variables.params["segmentation"])

    def features(variables, image):
        found, _ = network.encode(variables, image)
        return found, network.fuse(variables, "reader", found)[0], network.decode(variables, "reader", found)[0].output

    encoded, fused, output = jax.eval_shape(features, variables, jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.map(lambda m: m.shape, encoded.maps) == jax.tree.map(lambda m: m.shape, fused.maps)
    assert output.shape == (1, 32, 32, 3)


def test_heads_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="tags is not one"):
        unet_network(heads=(HeadSpec("tags", 2, linear=True),))
