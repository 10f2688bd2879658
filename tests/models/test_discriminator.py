import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolved, leaky

from forec_jax.contracts import Variables
from forec_jax.models import discriminator_network

CLASSES = 3
NETWORK = discriminator_network(CLASSES, channels=4)


@functools.partial(jax.jit, static_argnames="train")
def run(variables, pair, train=False, rng=None):
    features, _ = NETWORK.encode(variables, pair, train=train, rng=rng)
    head, _ = NETWORK.decode(variables, "score", features, train=train, rng=rng)
    return head


def pairs(size=(33, 48)):
    return np.random.default_rng(0).uniform(size=(2, *size, 3 + CLASSES)).astype(np.float32)


def judged():
    """Parameters whose biases are not zero, and what the network says with them."""
    variables = NETWORK.init(jax.random.key(0))
    shifted = jax.tree.map(lambda leaf: leaf + 0.02, variables.params)
    return shifted, run(Variables(shifted, variables.batch_stats), jnp.asarray(pairs()))


def test_it_equals_a_numpy_oracle():
    """Four 4x4 convolutions of stride 2 with LeakyReLU 0.2, the mean over the image, a linear score."""
    shifted, head = judged()
    x = pairs()
    for index in range(1, 5):
        layer = shifted["encoder"][f"conv{index}"]
        x = leaky(convolved(x, layer["kernel"], layer["bias"], stride=2), 0.2)
    last = shifted["score"]["last"]
    np.testing.assert_allclose(head.latent, x.mean((1, 2)), rtol=1e-4, atol=1e-6)
    score = x.mean((1, 2)) @ np.asarray(last["kernel"])[0, 0, :, 0] + np.asarray(last["bias"])
    np.testing.assert_allclose(head.output, score, rtol=1e-4, atol=1e-5)


def test_channels_are_dropped_behind_each_of_the_first_three_convolutions():
    """With kernels of ones each convolution adds up what is left of 1, 2 and 4 channels, each of which counts twice.

    So the features are 2 n1 * (2 n2 / 2) * (2 n3 / 4) times those of inference, n the numbers of channels left.
    """
    network = discriminator_network(CLASSES, channels=1, dropout=0.5)
    variables = network.init(jax.random.key(0))
    ones = {
        name: {"kernel": jnp.ones_like(layer["kernel"]) / 16, "bias": jnp.zeros_like(layer["bias"])}
        for name, layer in variables.params["encoder"].items()
    }
    variables = variables._replace(params=variables.params | {"encoder": ones})
    pair = jnp.ones((1024, 16, 16, 3 + CLASSES))
    encode = jax.jit(network.encode, static_argnames="train")
    still, dropped = encode(variables, pair)[0], encode(variables, pair, train=True, rng=jax.random.key(0))[0]
    found = set(np.round(np.asarray(dropped / still)[:, 0], 3).tolist())
    assert found == {n1 * n2 * n3 for n1 in (0, 2) for n2 in (0, 1, 2) for n3 in (0, 0.5, 1, 1.5, 2)}


def test_it_equals_the_published_layers_in_pytorch():
    torch = pytest.importorskip("torch")
    shifted, head = judged()
    x = torch.tensor(pairs()).permute(0, 3, 1, 2)
    for index in range(1, 5):
        layer = {k: torch.tensor(np.array(v)) for k, v in shifted["encoder"][f"conv{index}"].items()}
        x = torch.nn.functional.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], stride=2, padding=1)
        x = torch.nn.functional.leaky_relu(x, 0.2)
    pooled = x.mean((2, 3))
    last = {k: torch.tensor(np.array(v)) for k, v in shifted["score"]["last"].items()}
    np.testing.assert_allclose(head.latent, pooled.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        head.output, (pooled @ last["kernel"][0, 0, :, 0] + last["bias"]).numpy(), rtol=1e-4, atol=1e-5
    )
    assert head.latent.shape == (2, 32)


def test_dropout_follows_the_key_in_train_mode_alone():
    variables, pair = NETWORK.init(jax.random.key(0)), jnp.asarray(pairs((16, 16)))
    still = run(variables, pair).output
    one, again, other = (run(variables, pair, train=True, rng=jax.random.key(k)).output for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert not np.allclose(one, still)


def test_images_that_would_vanish_are_an_error():
    with pytest.raises(ValueError, match="16 pixels"):
        NETWORK.encode(NETWORK.init(jax.random.key(0)), jnp.zeros((1, 12, 40, 3 + CLASSES)))
