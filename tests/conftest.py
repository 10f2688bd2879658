"""Eight virtual CPU devices and one compilation cache for every test, set before JAX reads them; a toy network."""

import atexit
import os
import shutil
import tempfile

# One for this process, pytest-xdist's workers and the commands that tests start, and for no longer than they last.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="forec_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import pytest

from forec_jax.contracts import HeadOutput, HeadSpec, Network, Variables

jax.config.update("jax_num_cpu_devices", 8)

TOY_CHANNELS = 4


def toy_network(heads=(HeadSpec("segmentation", 3),), normalise=True, channels=TOY_CHANNELS):
    """A network of two matrices a head, with a BatchNorm-like mean in the encoder if `normalise`."""

    def init(key):
        params = {"encoder": {"w": jax.random.normal(key, (3, channels))}}
        for number, head in enumerate(heads):
            head_key = jax.random.fold_in(key, number)
            params[head.name] = {"w": jax.random.normal(head_key, (channels, head.channels))}
        return Variables(params, {part: {"mean": jnp.zeros(channels)} for part in params})

    def encode(variables, image, *, valid=None, train, rng):
        features = image @ variables.params["encoder"]["w"]
        stats = variables.batch_stats
        if normalise and train:
            mean = features.mean((0, 1, 2))
            moved = 0.9 * stats["encoder"]["mean"] + 0.1 * mean
            return jnp.tanh(features - mean), {**stats, "encoder": {"mean": moved}}
        return jnp.tanh(features - stats["encoder"]["mean"]), stats

    def decode(variables, head, features, *, train, rng):
        return HeadOutput(features @ variables.params[head]["w"], features), variables.batch_stats

    return Network(init, encode, decode, heads)


@pytest.fixture
def make_toy_network():
    return toy_network
