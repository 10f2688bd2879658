"""Which features heads read, and whose statistics move, with a network that counts."""

import jax
import jax.numpy as jnp
import pytest

from forec_jax.contracts import HeadOutput, HeadSpec, Network, Variables
from forec_jax.methods.parts.heads import decode_heads, run_heads

HEADS = (HeadSpec("segmentation", 3), HeadSpec("other", 3), HeadSpec("reader", 3, reads="segmentation"))
NUMBERS = {"segmentation": 10, "other": 20}


def counting_network():
    """Fused features are the image plus the owner's number; a head's statistic counts what was fused for it."""

    def encode(variables, image, *, valid=None, train, rng):
        return image, variables.batch_stats

    def fuse(variables, head, features, *, train, rng):
        stats = variables.batch_stats
        return features + NUMBERS[head], {**stats, head: stats[head] + float(features)}

    def classify(variables, head, fused, *, train, rng):
        stats = variables.batch_stats
        return HeadOutput(fused, fused), {**stats, f"{head} classified": stats[f"{head} classified"] + 1}

    return Network(None, encode, classify, HEADS, fuse=fuse)


def first():
    """Statistics of nothing."""
    names = [head.name for head in HEADS]
    return Variables({}, dict.fromkeys([*NUMBERS, *(f"{name} classified" for name in names)], 0))


def test_every_owner_fuses_once_and_every_head_classifies():
    outputs, stats = run_heads(
        counting_network(), first(), 1, ("segmentation", "other", "reader"), train=True, rng=None
    )
    assert {head: output.output for head, output in outputs.items()} == {"segmentation": 11, "other": 21, "reader": 11}
    assert stats == {"segmentation": 1, "other": 1} | {f"{head.name} classified": 1 for head in HEADS}


@pytest.mark.parametrize("order", [("segmentation", "reader"), ("reader", "segmentation")])
def test_a_reader_sees_the_features_that_it_is_given_and_moves_nobodys_statistics(order):
    features = {"segmentation": 5, "reader": 1}
    outputs, stats = decode_heads(
        counting_network(), first(), {head: features[head] for head in order}, train=True, rng=None
    )
    assert (outputs["segmentation"].output, outputs["reader"].output) == (15, 11)
    assert stats["segmentation"] == 5


def test_a_reader_alone_has_its_owner_fuse():
    outputs, stats = run_heads(counting_network(), first(), 1, ("reader",), train=True, rng=None)
    assert (outputs["reader"].output, stats["segmentation"]) == (11, 1)


def test_decoding_is_fusing_and_classifying(make_toy_network):
    network = make_toy_network()
    variables, features = network.init(jax.random.key(0)), jnp.ones((1, 2, 2, 4))
    decoded, _ = network.decode(variables, "segmentation", features)
    classified, _ = network.classify(variables, "segmentation", features, train=False, rng=None)
    assert (decoded.output == classified.output).all()
    _, stats = counting_network().decode(first(), "segmentation", 2)
    assert (stats["segmentation"], stats["segmentation classified"]) == (2, 1)
