"""Eight virtual CPU devices and one compilation cache for every test, set before JAX reads them; a toy network."""

import atexit
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

# One for this process, pytest-xdist's workers and the commands that tests start, and for no longer than they last.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="forec_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Most of the time goes into compiling programs that run for a moment, so in one piece and with few of LLVM's passes. XLA's
# older code generator takes a fifth less of it than the newer one does, and some of LLVM's optimisations: without them it
# makes 8 devices differ from one. Releases after jax 0.10 have no older one, and stop at a flag that they do not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true "
    + (
        "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
        if metadata.version("jaxlib").startswith("0.10.")
        else "--xla_backend_optimization_level=0"
    ),
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.contracts import HeadOutput, HeadSpec, Network, Variables
from forec_jax.models.layers import channelwise
from forec_jax.training import first_state

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")  # a broadcast that nobody wrote is mostly a mistake

LONGEST = (
    "test_every_method.py",
    "test_killed.py",
    "test_cli.py",
    "test_golden.py",
    "test_network.py",
    "test_devices.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


MOST_MAPS = 10_000
"""Parts of memory that a process of tests may have mapped after a file. Linux gives it 65,530; it dies if it needs more."""


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    """Lets go of compiled programs, of which each has a few maps of its own, where a process has collected many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()


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
            return jnp.tanh(features - channelwise(mean)), {**stats, "encoder": {"mean": moved}}
        return jnp.tanh(features - channelwise(stats["encoder"]["mean"])), stats

    def classify(variables, head, features, *, train, rng):
        return HeadOutput(features @ variables.params[head]["w"], features), variables.batch_stats

    return Network(init, encode, classify, heads)


@pytest.fixture(scope="session")
def make_toy_network():
    return toy_network


def fixed_network(pixels, heads=(HeadSpec("segmentation", 2),)):
    """A network whose heads say f32[pixels,channels] of every row, their parameter "says", whatever the image."""

    def init(key):
        said = {head.name: {"says": jnp.zeros((pixels, head.channels))} for head in heads}
        return Variables({"encoder": {}, **said}, {"encoder": {}})

    def encode(variables, image, *, valid=None, train, rng):
        return image, variables.batch_stats

    def classify(variables, head, features, *, train, rng):
        says = variables.params[head]["says"][None, None]
        return HeadOutput(
            jnp.broadcast_to(says, (*features.shape[:3], says.shape[-1])), features
        ), variables.batch_stats

    return Network(init, encode, classify, heads)


@pytest.fixture
def make_fixed_network():
    return fixed_network


def weak(part):
    """The images of a part of a batch as they are."""
    return part.image / np.float32(255)


def strong(part):
    """The same images with the colour change of `Witness`."""
    return np.clip(weak(part) + 0.25, 0, 1)


class Witness:
    """A toy network, a colour change that shows, and an auxiliary task; notes what the networks and the task are shown."""

    head, memory = HeadSpec("witness", 1), ()
    weak, strong = staticmethod(weak), staticmethod(strong)

    def __init__(self):
        self.student, self.teacher, self.targets = [], [], []
        plain = toy_network((HeadSpec("segmentation", 3), self.head))

        def encode(variables, image, *, valid=None, train, rng):
            (self.student if train else self.teacher).append(image)
            return plain.encode(variables, image, valid=valid, train=train, rng=rng)

        self.network = plain._replace(encode=encode)

    @staticmethod
    def colour(key, image, valid):
        """A quarter brighter."""
        return jnp.clip(image + 0.25, 0, 1)

    def loss(self, outputs, views, key, memory):
        """As a task: no loss."""
        self.targets.append(views.image)
        return {}, {}, memory

    def watch(self, method, batch):
        """Takes the loss of a batch once."""

        def shown(batch):
            state = first_state(method, optax.sgd(0.1), seed=0)
            method.loss(state.params, state, batch, jax.random.key(0))
            return self.student, self.teacher, self.targets

        self.student, self.teacher, self.targets = jax.jit(shown)(batch)


@pytest.fixture
def witness():
    return Witness()
