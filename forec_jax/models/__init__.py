"""Networks: dilated encoders, DeepLabV3+ decoders, and the convolution and resizing that they are made of."""

from forec_jax.models.attention import attention_network
from forec_jax.models.conv import conv2d
from forec_jax.models.convert import convert
from forec_jax.models.critic import corrector, dense_critic, flaw_detector, pixel_discriminator
from forec_jax.models.decoders.deeplab import U2PL, DeepLabOptions
from forec_jax.models.discriminator import discriminator_network
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.layers import valid_extent
from forec_jax.models.naming import WeightsError
from forec_jax.models.network import Features, ImageSize, assemble, count_parameters
from forec_jax.models.pretrained import filled, fitting_weights, load_weights
from forec_jax.models.resize import resize
from forec_jax.models.zoo import deeplab_network, unet_network

__all__ = [
    "ENCODERS",
    "U2PL",
    "DeepLabOptions",
    "Features",
    "ImageSize",
    "WeightsError",
    "assemble",
    "attention_network",
    "conv2d",
    "convert",
    "corrector",
    "count_parameters",
    "deeplab_network",
    "dense_critic",
    "discriminator_network",
    "filled",
    "fitting_weights",
    "flaw_detector",
    "load_weights",
    "pixel_discriminator",
    "resize",
    "unet_network",
    "valid_extent",
]
