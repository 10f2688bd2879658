import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from forec_jax.augment import NoMixing
from forec_jax.contracts import Variables
from forec_jax.methods import Supervised
from forec_jax.models import filled
from forec_jax.parallel import make_mesh, replicated
from forec_jax.training import create_state, first_state
from forec_jax.training.state import state_program

TX = optax.sgd(0.1, momentum=0.9)


def test_pretrained_weights_are_arguments_of_the_program_and_not_part_of_it(make_toy_network):
    network = make_toy_network()
    weights = Variables({"encoder": {"w": np.arange(12, dtype=np.float32).reshape(3, 4) + 0.123}}, {"encoder": {}})
    network = network._replace(init=functools.partial(start, network.init, weights))
    method = Supervised(network=network, colour=lambda key, image, valid: image, mixing=NoMixing())

    make, arguments = state_program(method, TX, seed=0)
    assert any(np.array_equal(argument, weights.params["encoder"]["w"]) for argument in arguments)
    assert "1.230000e-01" not in jax.jit(make).lower(arguments).as_text()
    ours = create_state(method, TX, 0, replicated(make_mesh(devices=jax.devices()[:1])))
    expected = jax.jit(lambda: first_state(method, TX, 0))()
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    np.testing.assert_array_equal(ours.teacher["student"].params["encoder"]["w"], weights.params["encoder"]["w"])


def start(init, weights, key):
    """As a network with pretrained weights starts."""
    return filled(jax.tree.map(jnp.asarray, init(key)), weights)
