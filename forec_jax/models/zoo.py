"""Networks by keyword arguments, for code that has no config."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from forec_jax.contracts import HeadSpec, Network
from forec_jax.models.decoders import deeplab, unet
from forec_jax.models.decoders.deeplab import DeepLabOptions
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.encoders.unet import UNetOptions
from forec_jax.models.network import Form, assemble
from forec_jax.options import checked


def deeplab_network(
    *,
    encoder: str,
    heads: tuple[HeadSpec, ...],
    decoder: DeepLabOptions | None = None,
    share_aspp: bool = False,
    bn_momentum: float = 0.9,
    compute_dtype: Any = "float32",
    **options: Any,
) -> Network:
    """DeepLabV3+ on an encoder by its name.

    Args:
      encoder: "resnet50", "mobilenet_v2", ...: a key of `ENCODERS`.
      heads: as `assemble` takes them.
      decoder: its form; None for the default one.
      share_aspp: let all heads read one ASPP.
      bn_momentum: share of the old running statistics that a step keeps (flax's convention; PyTorch's 0.1 is 0.9).
      compute_dtype: of activations, float32 or bfloat16.
      **options: of the encoder, such as width, stem, output_stride (`ResNetOptions`, `DilatedOptions`).
    """
    if encoder not in ENCODERS:
        raise ValueError(f"unknown encoder {encoder!r}; one of {', '.join(ENCODERS)}")
    entry, form = ENCODERS[encoder], Form(bn_momentum, jnp.dtype(compute_dtype))
    chosen = dataclasses.replace(decoder or DeepLabOptions(), share_aspp=share_aspp)
    built = entry.build(encoder, checked(entry.options(**options), entry.name), form)
    return assemble(built, deeplab.build(chosen, form), heads)


def unet_network(
    *,
    heads: tuple[HeadSpec, ...],
    width: float = 1.0,
    align_corners: bool = True,
    last_size: int = 1,
    compute_dtype: Any = "float32",
) -> Network:
    """U-Net; see `deeplab_network`."""
    o, form = UNetOptions(width, align_corners, last_size), Form(dtype=jnp.dtype(compute_dtype))
    return assemble(ENCODERS["unet"].build("unet", o, form), unet.build(o, form), heads)
