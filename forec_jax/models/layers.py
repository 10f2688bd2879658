"""What the encoders and the decoder share: convolution, BatchNorm, max-pooling, and masks for padded images."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from forec_jax.models.conv import Padding, conv2d
from forec_jax.models.resize import resize

Array = jax.Array


def draw_variables(module: nn.Module, key: Array, *inputs: Any) -> dict[str, Any]:
    """A module's initial variables: kernels are normal with the standard deviation that the module says.

    Args:
      module: made of this file's layers.
      key: a random key.
      *inputs: arguments of the module's call; arrays may be `jax.ShapeDtypeStruct`.
    """
    return draw_kernels(key, module.lazy_init(key, *inputs))


def draw_kernels(key: Array, variables: Any) -> dict[str, Any]:
    """The variables of Linen's `init`, whose kernels hold their standard deviation, with normal kernels.

    All kernels are cut from one draw. (A draw for each compiles for half a minute on a CPU.)
    """
    leaves, structure = jax.tree.flatten_with_path(variables)
    sizes = [leaf.size if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    # The barrier keeps XLA from drawing everything again for each kernel.
    noise = lax.optimization_barrier(jax.random.normal(key, (sum(sizes),)))
    drawn, start = [], 0
    for (_, leaf), size in zip(leaves, sizes, strict=True):
        drawn.append(leaf * noise[start : start + size].reshape(leaf.shape) if size else leaf)
        start += size
    return jax.tree.unflatten(structure, drawn)


def keep_valid(x: Array, valid: Array | None) -> Array:
    """Zeroes features [B,h,w,C] in the padding, so that a window sees there what it sees beyond a border.

    `valid` is bool[B,H,W] at the image's size, a multiple of the features'; None leaves everything as it is.
    """
    if valid is None:
        return x
    return jnp.where(_at_features(valid, x)[..., None], x, jnp.zeros((), x.dtype))


def valid_extent(valid: Array, stride: int) -> Array:
    """i32[B,2]: rows and columns of the valid top-left rectangle of bool[B,H,W] at a feature map's stride."""
    rows, columns = valid[:, :, 0].sum(1), valid[:, 0, :].sum(1)
    return -(-jnp.stack([rows, columns], axis=1).astype(jnp.int32) // stride)


def patch_extent(valid: Array, patch: int) -> Array:
    """i32[B,2]: rows and columns of patches that the valid part of bool[B,H,W] is resized to: the nearest, 1 at least.

    UniMatch V2 evaluates so: an image of H x W is resized to round(H / 14) * 14 x round(W / 14) * 14.
    """
    return jnp.maximum((2 * valid_extent(valid, 1) + patch) // (2 * patch), 1)


def within(extent: Array, size: tuple[int, int]) -> Array:
    """bool[B,h,w]: the top-left i32[B,2] rows and columns of maps of a size; of `valid_extent` the inverse."""
    rows = jnp.arange(size[0])[None, :, None] < extent[:, 0, None, None]
    columns = jnp.arange(size[1])[None, None, :] < extent[:, 1, None, None]
    return rows & columns


def resize_valid(x: Array, size: tuple[int, int], valid: Array | None, align_corners: bool) -> Array:
    """Features [B,h,w,C] at another size, bilinearly; with `valid` (as in `keep_valid`) those of the valid area alone."""
    if valid is None:
        return resize(x, size, align_corners=align_corners)
    before, after = (valid_extent(valid, valid.shape[1] // height) for height in (x.shape[1], size[0]))
    return resize(x, size, align_corners=align_corners, extent_in=before, extent_out=after)


def mean_pixel(x: Array, valid: Array | None) -> Array:
    """Mean over the (valid) pixels of [B,h,w,C] -> [B,1,1,C], summed in float32."""
    if valid is None:
        return x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)
    weight = _at_features(valid, x)[..., None].astype(jnp.float32)
    total = (x.astype(jnp.float32) * weight).sum((1, 2), keepdims=True)
    return (total / jnp.maximum(weight.sum((1, 2), keepdims=True), 1.0)).astype(x.dtype)


def _at_features(valid: Array, x: Array) -> Array:
    stride = valid.shape[1] // x.shape[1]
    return valid[:, ::stride, ::stride]


def max_pool(x: Array) -> Array:
    """3x3 max-pooling at stride 2 of non-negative features [B,H,W,C] -> [B,ceil(H/2),ceil(W/2),C].

    The border is padded with zeros, which win over nothing that a ReLU leaves. Rows first, then columns: on the CPU six
    maxima of slices are much faster than XLA's window reduction and its gradient. (Ties share their gradient; after a
    ReLU nearly all ties are at zero, where it is lost anyway.)
    """
    for axis in (1, 2):
        size = (x.shape[axis] + 1) // 2
        margins = [(0, 0)] * 4
        margins[axis] = (1, 1)
        padded = jnp.pad(x, margins)
        slices = [lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis=axis) for i in range(3)]
        x = jnp.maximum(jnp.maximum(slices[0], slices[1]), slices[2])
    return x


def average_pool(x: Array, strides: int, valid: Array | None) -> Array:
    """2x2 means of [B,H,W,C] -> [B,ceil(H/strides),ceil(W/strides),C], as in the shortcuts of timm's ResNet-D.

    At stride 2 a window that reaches over the border averages what is inside; at stride 1 (dilated layers) it takes
    zeros there. `valid` as in `keep_valid`.
    """
    x = keep_valid(x, valid)
    total = _window_sum(x.astype(jnp.float32), strides)
    if strides == 1:
        return (total / 4).astype(x.dtype)
    inside = jnp.ones((1, *x.shape[1:3]), bool) if valid is None else _at_features(valid, x)
    number = _window_sum(inside[..., None].astype(jnp.float32), strides)
    return (total / jnp.maximum(number, 1)).astype(x.dtype)


def _window_sum(x: Array, strides: int) -> Array:
    """Sums over 2x2 windows with zeros at the bottom and the right."""
    for axis in (1, 2):
        reach = (x.shape[axis] - 1) // strides * strides + 1
        margins = [(0, 0)] * 4
        margins[axis] = (0, 1)
        padded = jnp.pad(x, margins)
        first, second = (lax.slice_in_dim(padded, i, i + reach, strides, axis=axis) for i in range(2))
        x = first + second
    return x


def same_padding(size: int, dilation: int = 1) -> Padding:
    """Equal margins that keep the size of the image at stride 1 (and give ceil(n / 2) at stride 2)."""
    margin = dilation * (size // 2)
    return (margin, margin), (margin, margin)


class Conv(nn.Module):
    """`conv2d` with a float32 kernel, computed in `dtype`; `padding` None keeps the size.

    Features outside `valid` are zeroed before every kernel larger than 1x1. A `last` layer has a bias.
    The kernel that Linen's `init` makes is filled with its standard deviation: `draw_variables` draws the values.
    """

    features: int
    size: int = 1
    strides: int = 1
    dilation: int = 1
    depthwise: bool = False
    padding: Padding | None = None
    last: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        """[B,H,W,C] -> [B,H',W',features] in `dtype`."""
        groups = x.shape[-1] if self.depthwise else 1
        shape: Sequence[int] = (self.size, self.size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", nn.initializers.constant(self._deviation(shape)), shape, jnp.float32)
        if self.size > 1:
            x = keep_valid(x, valid)
        padding = same_padding(self.size, self.dilation) if self.padding is None else self.padding
        y = conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=padding,
            dilation=self.dilation,
            groups=groups,
        )
        if self.last:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + channelwise(bias).astype(y.dtype)
        return y

    def _deviation(self, shape: Sequence[int]) -> float:
        """He et al. (ICCV 2015) by fan-out as torchvision's ResNet; LeCun's fan-in for last layers.

        With few output channels, fan-out would make a last layer's outputs and its first gradients huge. The fan of a
        depthwise kernel is its window.
        """
        window, inputs, outputs = self.size**2, shape[2], shape[3]
        if self.last:
            return (window * inputs) ** -0.5
        return (2.0 / (window * (1 if self.depthwise else outputs))) ** 0.5


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy, ICML 2015), computed in float32 whatever the dtype of its input.

    In train mode mean and variance are taken over the whole batch axis: of a batch that is sharded over devices, over
    all of them (no axis names: XLA adds the collectives). `momentum` is flax's convention: the share of the old running
    value (0.9 is PyTorch's 0.1). As in PyTorch, the batch is normalised with the biased variance, and the running
    variance takes the unbiased one.
    """

    train: bool
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B,H,W,C] -> the same shape and dtype."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not self.train:
            return normalise(x, running_mean.value, running_var.value, scale, bias, self.epsilon)
        y, mean, var = batch_normalise(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self._move(running_mean.value, mean)
            running_var.value = self._move(running_var.value, unbiased)
        return y

    def _move(self, old: Array, new: Array) -> Array:
        return self.momentum * old + (1.0 - self.momentum) * new


def channelwise(values: Array) -> Array:
    """f32[C] as [1,1,1,C], to meet the channels of [B,H,W,C]."""
    return values[None, None, None]


def normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """[B,H,W,C] by its channels' mean and variance, then times `scale` plus `bias`, all f32[C]; in the dtype of `x`."""
    factor = scale * lax.rsqrt(var + epsilon)
    shift = bias - mean * factor
    return (x.astype(jnp.float32) * channelwise(factor) + channelwise(shift)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_normalise(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """`normalise` by the batch's own mean and (biased) variance, which come back too, without gradients of their own.

    The gradient is written out, because automatic differentiation would read the whole batch once more to sum up the
    distances from the mean, a sum that is zero. It is in terms of `x` and not of these distances, which XLA would keep.
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean((0, 1, 2))
    # Two passes: E[x^2] - E[x]^2 would cancel where a channel hardly varies, as pooled features do at first.
    var = jnp.square(wide - channelwise(mean)).mean((0, 1, 2))
    return normalise(x, mean, var, scale, bias, epsilon), mean, var


def _batch_normalise_fwd(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, var = batch_normalise(x, scale, bias, epsilon)
    return (y, mean, var), (x, scale, mean, var)


def _batch_normalise_bwd(
    epsilon: float, residuals: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    x, scale, mean, var = residuals
    dy = cotangents[0].astype(jnp.float32)
    count = x.size // x.shape[-1]
    inverse = lax.rsqrt(var + epsilon)
    wide = x.astype(jnp.float32)
    dbias = dy.sum((0, 1, 2))
    dscale = inverse * ((dy * wide).sum((0, 1, 2)) - mean * dbias)
    slope = inverse * dscale / count
    constant = mean * slope - dbias / count
    dx = channelwise(scale * inverse) * (dy - wide * channelwise(slope) + channelwise(constant))
    return dx.astype(x.dtype), dscale, dbias


batch_normalise.defvjp(_batch_normalise_fwd, _batch_normalise_bwd)


class ConvNorm(nn.Module):
    """A convolution without bias, BatchNorm, and an activation: "relu", "relu6" or "none"."""

    features: int
    train: bool
    size: int = 1
    strides: int = 1
    dilation: int = 1
    depthwise: bool = False
    padding: Padding | None = None
    activation: str = "relu"
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        """[B,H,W,C] -> [B,H',W',features] in `dtype`."""
        x = Conv(
            self.features,
            self.size,
            self.strides,
            self.dilation,
            self.depthwise,
            self.padding,
            dtype=self.dtype,
            name="conv",
        )(x, valid)
        x = BatchNorm(self.train, self.epsilon, self.momentum, name="norm")(x)
        return {"relu": nn.relu, "relu6": nn.relu6, "none": lambda v: v}[self.activation](x)
