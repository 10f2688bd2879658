"""The second half of a head whose decoder's first half leaves nothing but the last convolution: PSPNet's and SegFormer's."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from forec_jax.contracts import HeadSpec
from forec_jax.models.layers import Conv, ConvNorm, resize_valid
from forec_jax.models.network import Form

Array = jax.Array


class Classifier(nn.Module):
    """Dropout and the last 1x1 convolution; a head that reads another's map has a 3x3 one before them."""

    head: HeadSpec
    form: Form
    width: int  # channels of the map that is classified
    dropout: float  # of these channels
    align_corners: bool  # of the resize to the image
    train: bool

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], valid: Array | None) -> tuple[Array, Array]:
        """[B,h,w,C] -> f32[B,*size,channels] (or [B,h,w,channels]), [B,h,w,width]."""
        dtype = self.form.dtype
        if self.head.reads:
            own = ConvNorm(self.width, self.train, 3, momentum=self.form.momentum, dtype=dtype, name="own")
            x = own(x, valid)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not self.train)(x)
        output = Conv(self.head.channels, last=True, dtype=dtype, name="last")(x).astype(jnp.float32)
        if self.head.upsample:
            output = resize_valid(output, size, valid, self.align_corners)
        return output, x
