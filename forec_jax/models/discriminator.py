"""S4GAN's discriminator (Mittal et al., TPAMI 2019), as the pure functions of `contracts.Network`."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadOutput, HeadSpec, Network, PyTree, Variables
from forec_jax.models.layers import Conv, draw_variables
from forec_jax.models.network import named_key

Array = jax.Array

SCORE = "score"
"""The discriminator's only head."""

MIN_SIZE = 16  # of an image side: four halvings leave one pixel


class _Strided(nn.Module):
    """Four 4x4 convolutions of stride 2 with LeakyReLU, channel dropout between them, and global average pooling."""

    channels: int  # of the first; each further one has twice as many
    dropout: float
    train: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B,H,W,C] -> f32[B,8*channels]."""
        for index in range(4):
            if index:
                x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not self.train)(x)
            # `last` is how a Conv gets a bias and a fan-in scale: no BatchNorm follows that would give them.
            x = Conv(
                self.channels * 2**index,
                size=4,
                strides=2,
                padding=((1, 1), (1, 1)),
                last=True,
                dtype=self.dtype,
                name=f"conv{index + 1}",
            )(x)
            x = nn.leaky_relu(x, 0.2)
        return x.astype(jnp.float32).mean((1, 2))


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
      channels: of the first convolution.
      dropout: probability to drop a channel after each of the first three convolutions, in train mode.
      compute_dtype: of activations, float32 or bfloat16. Features and scores are float32.
    """
    dtype = jnp.dtype(compute_dtype)

    def encode(
        variables: Variables, image: Array, *, valid: Array | None = None, train: bool = False, rng: Array | None = None
    ) -> tuple[Array, PyTree]:
        del valid  # training crops are not masked
        if min(image.shape[1:3]) < MIN_SIZE:
            raise ValueError(f"the discriminator needs images of {MIN_SIZE} pixels a side, not {image.shape[1:3]}")
        rngs = {"dropout": named_key(rng, "encoder")} if train and rng is not None else None
        module = _Strided(channels, dropout, train, dtype)
        features = module.apply({"params": variables.params["encoder"]}, image, rngs=rngs)
        return cast(Array, features), variables.batch_stats

    def classify(
        variables: Variables, head: str, features: Array, *, train: bool = False, rng: Array | None = None
    ) -> tuple[HeadOutput, PyTree]:
        del train, rng
        score = _Linear().apply({"params": variables.params[head]}, features)
        return HeadOutput(cast(Array, score), features), variables.batch_stats

    @jax.jit
    def init(key: Array) -> Variables:
        pair = jax.ShapeDtypeStruct((1, MIN_SIZE, MIN_SIZE, 3 + classes), jnp.float32)
        pooled = jax.ShapeDtypeStruct((1, 8 * channels), jnp.float32)
        encoder = draw_variables(_Strided(channels, dropout, False), named_key(key, "encoder"), pair)
        score = draw_variables(_Linear(), named_key(key, SCORE), pooled)
        return Variables({"encoder": encoder["params"], SCORE: score["params"]}, {"encoder": {}, SCORE: {}})

    return Network(init, encode, classify, (HeadSpec(SCORE, 1),))
