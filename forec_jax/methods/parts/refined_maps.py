"""Class activation maps of a classifier of tags, refined to logits of all classes by attention (PseudoSeg)."""

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, HeadOutput, Network, PyTree, Variables
from forec_jax.methods.parts.heads import run_heads
from forec_jax.methods.parts.tags import TAGS, activations, at_cells
from forec_jax.models import resize
from forec_jax.models.attention import REFINED, Seen


def refined_maps(
    network: Network,
    attention: Variables,
    tags: HeadOutput,
    bias: Array,
    shown: Array,
    valid: Array,
    *,
    train: bool,
) -> tuple[Array, PyTree]:
    """The attention's logits f32[b,H,W,K] of images, and its new batch_stats; no gradient reaches `tags`.

    Grad-CAM of a class whose logit is a mean of scores is the map of these without the classifier's bias.

    Args:
        network: an attention network.
        attention: its variables.
        tags: what the classifier says of each cell, and its features.
        bias: f32[C], the classifier's; see `bias_of_tags`.
        shown: bool[b,C], the classes that are in an image.
        valid: bool[b,H,W], False in the padding.
        train: whether BatchNorm normalises by the batch.
    """
    inside = at_cells(valid, (tags.output.shape[1], tags.output.shape[2]))
    maps = activations(tags.output - bias[None, None, None], shown, inside)
    features = jnp.where(inside[..., None], tags.latent, jnp.zeros((), tags.latent.dtype))
    seen = jax.lax.stop_gradient(Seen(features, maps, inside))
    features, _ = network.encode(attention, seen, train=train)
    head, stats = network.decode(attention, REFINED, features, train=train)
    return resize(head.output, (valid.shape[1], valid.shape[2]), align_corners=True), stats


def bias_of_tags(network: Network, variables: Variables) -> Array:
    """What the classifier of tags says f32[C] of features that are all 0; without gradient."""

    def encoded(image: Array) -> PyTree:
        return network.encode(variables, image, train=False, rng=None)[0]

    features = jax.eval_shape(encoded, _an_image(network))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), features)
    tags, _ = network.decode(jax.lax.stop_gradient(variables), TAGS, nothing, train=False, rng=None)
    return tags.output[0, 0, 0]


def depth_of_tags(network: Network) -> int:
    """How many channels the features have that the classifier of tags reads."""

    def latent(key: Array, image: Array) -> Array:
        outputs, _ = run_heads(network, network.init(key), image, (TAGS,), train=False, rng=key)
        return outputs[TAGS].latent

    depth: int = jax.eval_shape(latent, jax.random.key(0), _an_image(network)).shape[-1]
    return depth


def _an_image(network: Network) -> jax.ShapeDtypeStruct:
    """The shape of the smallest image that a network takes."""
    return jax.ShapeDtypeStruct((1, network.multiple, network.multiple, 3), jnp.float32)
