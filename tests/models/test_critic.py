import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolved, enlarged, leaky

from forec_jax.contracts import Variables
from forec_jax.models import corrector, flaw_detector, pixel_discriminator

CLASSES = 3


def drawn(network):
    """Parameters whose biases and scales are not those of the start."""
    variables = network.init(jax.random.key(0))
    return variables._replace(params=jax.tree.map(lambda leaf: leaf + 0.02, variables.params))


def score(network, variables, image, train=False):
    def run(variables, image):
        features, stats = network.encode(variables, image, train=train)
        head, stats = network.decode(variables._replace(batch_stats=stats), "score", features, train=train)
        return head.output, stats

    return jax.jit(run)(variables, jnp.asarray(image))


def images(channels, size):
    return np.random.default_rng(0).uniform(size=(2, *size, channels)).astype(np.float32)


def last(variables, x, size):
    """The last convolution, resized with its corners on the image's."""
    layer = variables.params["score"]["last"]
    small = convolved(x, layer["kernel"], layer["bias"], stride=2)
    assert min(small.shape[1:3]) == 2
    return enlarged(small, size, align_corners=True)


def test_the_pixel_discriminator_equals_a_numpy_oracle():
    """Five 4x4 convolutions of stride 2, LeakyReLU 0.2 between them."""
    network = pixel_discriminator(CLASSES, channels=2)
    variables, x = drawn(network), images(CLASSES, (72, 80))
    found, _ = score(network, variables, x)
    for number in range(1, 5):
        layer = variables.params["encoder"][f"conv{number}"]
        x = leaky(convolved(x, layer["kernel"], layer["bias"], stride=2), 0.2)
    assert x.shape[-1] == 16
    np.testing.assert_allclose(found, last(variables, x, (72, 80)), rtol=1e-4, atol=1e-5)


def normalised(x, params, half):
    """The first half of the channels by the batch, with scale and bias; the others image by image."""
    out = np.empty_like(x)
    first, second = x[..., :half], x[..., half:]
    out[..., :half] = (first - first.mean((0, 1, 2))) / np.sqrt(first.var((0, 1, 2)) + 1e-5)
    out[..., :half] = out[..., :half] * np.asarray(params["scale"]) + np.asarray(params["bias"])
    mean, var = (f((1, 2), keepdims=True) for f in (second.mean, second.var))
    out[..., half:] = (second - mean) / np.sqrt(var + 1e-5)
    return out


def test_the_flaw_detector_equals_a_numpy_oracle():
    """Strides 2, 2, 1, 2, 1, 2, 1, each normalised before LeakyReLU 0.2, and one of stride 2 to the map."""
    network = flaw_detector(CLASSES, channels=2)
    variables, x = drawn(network), images(3 + CLASSES, (104, 120))
    found, stats = score(network, variables, x, train=True)
    for number, stride in enumerate((2, 2, 1, 2, 1, 2, 1), start=1):
        own = variables.params["encoder"]
        layer = own[f"conv{number}"]
        assert set(layer) == {"kernel"}  # a bias would do nothing
        x = convolved(x, layer["kernel"], 0.0, stride=stride)
        x = leaky(normalised(x, own[f"norm{number}"]["batch"], x.shape[-1] // 2), 0.2)
    assert x.shape[1:] == (4, 5, 16)
    np.testing.assert_allclose(found, last(variables, x, (104, 120)), rtol=1e-3, atol=1e-3)
    before = variables.batch_stats["encoder"]["norm1"]["batch"]
    assert not np.allclose(stats["encoder"]["norm1"]["batch"]["mean"], before["mean"])
    still = score(network, variables, images(3 + CLASSES, (104, 120)))[1]
    jax.tree.map(np.testing.assert_array_equal, still, variables.batch_stats)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16)])
@pytest.mark.parametrize("build", [pixel_discriminator, flaw_detector, corrector])
def test_images_of_any_size_are_judged(build, size):
    network, channels = build(CLASSES, channels=1), CLASSES if build is pixel_discriminator else 3 + CLASSES
    variables = Variables(*jax.eval_shape(network.init, jax.random.key(0)))
    image = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    features, _ = jax.eval_shape(lambda v, x: network.encode(v, x, train=True), variables, image)
    head, _ = jax.eval_shape(lambda v, f: network.decode(v, "score", f), variables, features)
    assert head.output.shape == (2, *size, network.heads[0].channels)
    assert network.heads[0].channels == (CLASSES + 1 if build is corrector else 1)


def test_the_corrector_is_a_flaw_detector_with_a_map_for_each_class_and_one_more():
    """The last kernel's first map alone makes the flaw detector's score."""
    detector, network = flaw_detector(CLASSES, channels=2), corrector(CLASSES, channels=2)
    variables, x = drawn(network), images(3 + CLASSES, (40, 48))
    one = jax.tree.map(lambda leaf: leaf[..., :1], variables.params["score"])
    found, _ = score(network, variables, x, train=True)
    first, _ = score(detector, variables._replace(params=variables.params | {"score": one}), x, train=True)
    np.testing.assert_allclose(found[..., :1], first, rtol=1e-4, atol=1e-5)
    assert len(np.unique(found[0, 0, 0])) == CLASSES + 1


@pytest.mark.parametrize(("halvings", "side"), [(5, 1), (2, 10), (0, 56)])
def test_fewer_halvings_leave_more_of_a_small_image(halvings, side):
    network = flaw_detector(CLASSES, channels=1, halvings=halvings)
    variables = Variables(*jax.eval_shape(network.init, jax.random.key(0)))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3 + CLASSES), jnp.float32)
    features, _ = jax.eval_shape(lambda v, x: network.encode(v, x), variables, image)
    before_the_last = {5: 2, 2: 11, 0: 57}[halvings]
    assert features.high.shape == (1, before_the_last, before_the_last, 8)
    assert _last_side(before_the_last, halvings == 5) == side


def _last_side(side, halved):
    return (side + 2 - 4) // (2 if halved else 1) + 1
