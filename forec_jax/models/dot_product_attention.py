"""Attention by dot products (Vaswani et al., NeurIPS 2017) that keeps no scores for the backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_UNSEEN = -1e30  # the score of a key that is not seen: its weight is 0 where any other is


def attend(query: Array, key: Array, value: Array, seen: Array | None = None) -> Array:
    """The values of all keys, weighted for each query by softmax(query . key / sqrt(D)).

    1,370 tokens make a matrix of 7.2 MiB a head, of which `jax.nn.dot_product_attention` keeps several for the backward
    pass. Here they are computed again: on a CPU head by head, so that they stay in its caches; elsewhere all heads at once.
    An NVIDIA GPU of compute capability 8 takes cuDNN's program, which never holds them, for bfloat16, without `seen`, and
    heads of a multiple of 8 channels.

    Args:
      query: [B,T,H,D], float32 or bfloat16.
      key: [B,S,H,D], the same dtype.
      value: [B,S,H,E], floating; E is D where cuDNN is taken.
      seen: bool[B,S], the keys that count; None for all.

    Returns:
      [B,T,H,E] in the dtype of `value`; scores and weights are float32.
    """
    programs = {"cpu": partial(_by_head, seen=seen), "default": partial(_all_heads, seen=seen)}
    if seen is None and query.dtype == jnp.bfloat16 and query.shape[-1] % 8 == 0 and _cudnn_can():
        programs["cuda"] = partial(jax.nn.dot_product_attention, implementation="cudnn")
    return lax.platform_dependent(query, key, value, **programs)


def _cudnn_can() -> bool:
    """Whether this process computes on GPUs that cuDNN's program is for."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    return float(device.compute_capability) >= 8


def _by_head(query: Array, key: Array, value: Array, seen: Array | None) -> Array:
    heads = tuple(jnp.moveaxis(x, 2, 0) for x in (query, key, value))
    return jnp.moveaxis(lax.map(lambda head: _one_head(*head, seen), heads), 0, 2)


def _all_heads(query: Array, key: Array, value: Array, seen: Array | None) -> Array:
    return jax.vmap(_one_head, in_axes=(2, 2, 2, None), out_axes=2)(query, key, value, seen)


@jax.checkpoint
def _one_head(query: Array, key: Array, value: Array, seen: Array | None) -> Array:
    """[B,T,D], [B,S,D], [B,S,E], bool[B,S] -> [B,T,E]."""
    scores = jnp.einsum("btd,bsd->bts", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if seen is not None:
        scores = jnp.where(seen[:, None], scores, _UNSEEN)
    # Divided by the sum after the product and not before it: E numbers a query, not S.
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("bts,bse->bte", weights.astype(value.dtype), value)
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)
