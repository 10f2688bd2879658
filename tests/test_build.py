import jax
import numpy as np
from safetensors.numpy import load_file

from forec_jax.build import build_network
from forec_jax.config import defaults
from forec_jax.contracts import HeadSpec
from forec_jax.models.weightfile import Origin, write_variables


def test_a_network_starts_from_the_weights_that_the_config_names(tmp_path):
    c = defaults()
    c.model.update({"encoder": "resnet18", "width": 1 / 16})
    c.model.decoder.update({"channels": 8, "low_level_channels": 4})
    heads = (HeadSpec("segmentation", 3), HeadSpec("reconstruction", 3))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(build_network(c, heads[:1]).init, jax.random.key(0))
    stored = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    write_variables(tmp_path / "a.safetensors", stored, Origin("resnet18", "7x7", "torchvision", "0" * 64))
    c.model.weights = str(tmp_path / "a.safetensors")
    first = build_network(c, heads).init(jax.random.key(0))
    assert set(first.params) == {"encoder", "segmentation", "reconstruction"}
    for name, value in load_file(c.model.weights).items():
        leaf = first._asdict()
        for step in name.split("/"):
            leaf = leaf[step]
        np.testing.assert_array_equal(leaf, value)
