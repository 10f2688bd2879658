"""S4GAN's discriminator (Mittal et al., TPAMI 2019), as the pure functions of `contracts.Network`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import Network
from forec_jax.models.critic import critic
from forec_jax.models.layers import Conv

Array = jax.Array

MIN_SIZE = 16  # of an image side: four halvings leave one pixel


class _Linear(nn.Module):
    """A linear function of pooled features."""

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """f32[B,D] -> f32[B]."""
        return Conv(1, last=True, name="last")(features[:, None, None])[:, 0, 0, 0]


def discriminator_network(
    classes: int, *, channels: int = 64, dropout: float = 0.5, compute_dtype: Any = jnp.float32
) -> Network:
    """Tells ground truth from predictions, an image at a time.

    `encode` takes [B,H,W,3+classes]: the image in [0, 1] with the one-hot truth or the predicted probabilities behind it,
    and gives the pooled features f32[B,8*channels]. `decode` of the head "score" gives the logit f32[B] that the row is
    ground truth, with the pooled features as latent. There is no BatchNorm: batch_stats are empty.

    Args:
      classes: of the segmentation.
      channels: of the first of four convolutions of stride 2; each further one has twice as many.
      dropout: probability to drop a channel after each of the first three convolutions, in train mode.
      compute_dtype: of activations, float32 or bfloat16. Features and scores are float32.
    """
    layers = tuple((channels * 2**number, 2) for number in range(4))
    return critic(
        3 + classes,
        layers,
        _pooled,
        _Linear(),
        dropout=dropout,
        smallest=MIN_SIZE,
        compute_dtype=compute_dtype,
    )


def _pooled(maps: Array, image: Array) -> Array:
    """The mean of each channel over the image, f32[B,C]."""
    del image
    return maps.astype(jnp.float32).mean((1, 2))
