"""Two-dimensional convolution that is also fast on the CPU.

XLA's CPU backend is slow at depthwise convolutions (0.7 GF/s measured) and at kernel gradients (2 to 10 times slower
than a matrix product of the same size). `conv2d` is `lax.conv_general_dilated` on GPU and TPU; where it is lowered for
the CPU it becomes what was measured to be fastest there:

| kernel | forward | gradient of the input | gradient of the kernel |
|---|---|---|---|
| depthwise | sum of shifted products | the same, by output phase when strided | row by row, shifted products |
| 1x1 | matrix product | matrix product | matrix product |
| k x k, dilated | sum of shifted matrix products | the same | one matrix product a tap |
| k x k | `lax.conv` | `lax.conv` | one matrix product a tap |
| k x k, few input channels | `lax.conv` | `lax.conv` | one matrix product of patches |

All of them are equal up to float32 rounding. The batch axis is never split or merged away from its leading place, so a
batch sharded over it stays sharded.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 8  # below it, one product a tap is too thin and patches are gathered first


class _Geometry(NamedTuple):
    """The static part of a convolution."""

    strides: int
    padding: Padding
    dilation: int
    groups: int


def conv2d(
    x: Array,
    kernel: Array,
    *,
    strides: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    """Convolves (cross-correlates) images with a kernel; differentiable once in reverse mode.

    Args:
      x: [N,H,W,C], float32 or bfloat16.
      kernel: [kh,kw,C/groups,D], the dtype of `x`.
      strides: step of the window, in rows and columns alike.
      padding: zeros ((above, below), (left, right)).
      dilation: distance of the kernel's taps.
      groups: number of channel groups; `groups == C == D` is a depthwise convolution.

    Returns:
      [N,H',W',D] in the dtype of `x`; products are summed in float32.
    """
    if x.shape[-1] != kernel.shape[2] * groups:
        raise ValueError(f"{x.shape[-1]} channels do not fit a kernel of shape {kernel.shape} in {groups} groups")
    return _conv(x, kernel, _Geometry(strides, padding, dilation, groups))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    return lax.platform_dependent(
        x, kernel, cpu=partial(_forward_cpu, geometry=geometry), default=partial(_lax_conv, geometry=geometry)
    )


def _conv_fwd(x: Array, kernel: Array, geometry: _Geometry) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, geometry), (x, kernel)


def _conv_bwd(geometry: _Geometry, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    # Two calls and not one, so that the input's gradient is dropped where nobody asks for it (the first layer).
    dx, dkernel = (
        lax.platform_dependent(
            *residuals, dy, cpu=partial(cpu, geometry=geometry), default=partial(default, geometry=geometry)
        )
        for cpu, default in ((_dx_cpu, _dx_lax), (_dkernel_cpu, _dkernel_lax))
    )
    return dx, dkernel


_conv.defvjp(_conv_fwd, _conv_bwd)


# GPU and TPU: XLA's own convolution and its transposes.


def _lax_conv(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (geometry.strides,) * 2,
        geometry.padding,
        rhs_dilation=(geometry.dilation,) * 2,
        dimension_numbers=_NHWC,
        feature_group_count=geometry.groups,
    )


def _dx_lax(x: Array, kernel: Array, dy: Array, geometry: _Geometry) -> Array:
    return jax.linear_transpose(lambda v: _lax_conv(v, kernel, geometry), x)(dy)[0]


def _dkernel_lax(x: Array, kernel: Array, dy: Array, geometry: _Geometry) -> Array:
    return jax.linear_transpose(lambda v: _lax_conv(x, v, geometry), kernel)(dy)[0]


# CPU.


def _is_depthwise(kernel: Array, geometry: _Geometry) -> bool:
    return geometry.groups > 1 and kernel.shape[2] == 1 and kernel.shape[3] == geometry.groups


def _prefers_taps(kernel: Array, geometry: _Geometry) -> bool:
    """Whether a sum over the kernel's taps beats `lax.conv`."""
    if geometry.groups > 1:
        return _is_depthwise(kernel, geometry)
    return kernel.shape[:2] == (1, 1) or geometry.dilation > 1


def _forward_cpu(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    if not _prefers_taps(kernel, geometry):
        return _lax_conv(x, kernel, geometry)
    return _sum_over_taps(_pad(x, geometry.padding), kernel, geometry).astype(x.dtype)


def _dx_cpu(x: Array, kernel: Array, dy: Array, geometry: _Geometry) -> Array:
    if not _prefers_taps(kernel, geometry):
        return _dx_lax(x, kernel, dy, geometry)
    turned = kernel if _is_depthwise(kernel, geometry) else kernel.swapaxes(2, 3)
    if kernel.shape[:2] == (1, 1) and geometry.groups == 1:
        dx = _tap_product(dy, turned[0, 0])
        return _spread(dx, x.shape, geometry).astype(x.dtype)
    # A convolution with the turned kernel over dy, whose entries lie `strides` apart.
    kh, kw = kernel.shape[:2]
    margins = [
        (geometry.dilation * (k - 1) - low, n + low - (m - 1) * geometry.strides - 1)
        for k, (low, _), n, m in zip((kh, kw), geometry.padding, x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    spread = _pad(dy, (margins[0], margins[1]), geometry.strides - 1)
    return _sum_over_taps(spread, turned[::-1, ::-1], geometry._replace(strides=1)).astype(x.dtype)


def _dkernel_cpu(x: Array, kernel: Array, dy: Array, geometry: _Geometry) -> Array:
    padded = _pad(x, geometry.padding)
    if _is_depthwise(kernel, geometry):
        return _depthwise_dkernel(padded, kernel, dy, geometry)
    if geometry.groups > 1:
        return _dkernel_lax(x, kernel, dy, geometry)
    taps = _taps(padded, kernel.shape[:2], dy.shape[1:3], geometry.strides, geometry.dilation)
    if kernel.shape[2] < _FEW_CHANNELS:
        taps = [jnp.concatenate(taps, axis=-1)]
    products = [_contract_pixels(tap, dy) for tap in taps]
    return jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)


def _pad(x: Array, padding: Padding, interior: int = 0) -> Array:
    """Pads (or crops, where negative) rows and columns, with `interior` zeros between neighbours."""
    config = [(0, 0, 0), (*padding[0], interior), (*padding[1], interior), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _spread(dx: Array, shape: tuple[int, ...], geometry: _Geometry) -> Array:
    """Puts the gradients of a 1x1 convolution back where its strided window had read them."""
    margins = [
        (-low, n + low - (m - 1) * geometry.strides - 1)
        for (low, _), n, m in zip(geometry.padding, shape[1:3], dx.shape[1:3], strict=True)
    ]
    return _pad(dx, (margins[0], margins[1]), geometry.strides - 1)


def _taps(padded: Array, kernel: tuple[int, ...], out: tuple[int, ...], strides: int, dilation: int) -> list[Array]:
    """What each tap of a kernel (row by row) sees of the padded input: kh * kw arrays [N,H',W',C]."""
    n, _, _, c = padded.shape
    reach = [(m - 1) * strides + 1 for m in out]
    return [
        lax.slice(padded, (0, i, j, 0), (n, i + reach[0], j + reach[1], c), (1, strides, strides, 1))
        for i in range(0, kernel[0] * dilation, dilation)
        for j in range(0, kernel[1] * dilation, dilation)
    ]


def _sum_over_taps(padded: Array, kernel: Array, geometry: _Geometry) -> Array:
    """The convolution of an input that is padded already, as a sum of shifted products; float32."""
    kh, kw = kernel.shape[:2]
    sides = zip(padded.shape[1:3], (kh, kw), strict=True)
    out = tuple((m - geometry.dilation * (k - 1) - 1) // geometry.strides + 1 for m, k in sides)
    product: Callable[[Array, Array], Array] = _scale_channels if geometry.groups > 1 else _tap_product
    taps = _taps(padded, (kh, kw), out, geometry.strides, geometry.dilation)
    total = product(taps[0], kernel[0, 0])
    for index, tap in enumerate(taps[1:], start=1):
        total = total + product(tap, kernel[index // kw, index % kw])
    return total


def _scale_channels(x: Array, weights: Array) -> Array:
    return x.astype(jnp.float32) * weights[0].astype(jnp.float32)


def _tap_product(x: Array, weights: Array) -> Array:
    """[N,H,W,C] times [C,D] as one matrix product."""
    flat = lax.dot_general(
        x.reshape(-1, x.shape[-1]), weights, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return flat.reshape(*x.shape[:-1], weights.shape[-1])


def _contract_pixels(x: Array, dy: Array) -> Array:
    """[N,H,W,C] and [N,H,W,D] to [C,D], summed over the pixels of all images."""
    flat = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return lax.dot_general(*flat, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _depthwise_dkernel(padded: Array, kernel: Array, dy: Array, geometry: _Geometry) -> Array:
    """Kernel gradient of a depthwise convolution.

    XLA's CPU reductions over (N, H, W) do not vectorise, sums of products do: rows are added up one after another into
    kh * kw maps [N,W',C], small enough for the cache, and only those are reduced. Running over rows rather than images
    leaves a sharded batch alone.
    """
    kh, kw = kernel.shape[:2]
    n, rows, width, channels = dy.shape
    reach = (width - 1) * geometry.strides + 1

    def add_row(row: int, sums: list[Array]) -> list[Array]:
        gradient = lax.dynamic_index_in_dim(dy, row, 1, keepdims=False).astype(jnp.float32)
        result = []
        for i in range(kh):
            at = row * geometry.strides + i * geometry.dilation
            line = lax.dynamic_index_in_dim(padded, at, 1, keepdims=False).astype(jnp.float32)
            for j in range(kw):
                start = j * geometry.dilation
                seen = lax.slice_in_dim(line, start, start + reach, geometry.strides, axis=1)
                result.append(sums[i * kw + j] + seen * gradient)
        return result

    zeros = [jnp.zeros((n, width, channels), jnp.float32)] * (kh * kw)
    sums = lax.fori_loop(0, rows, add_row, zeros)
    return jnp.stack([s.sum((0, 1)) for s in sums]).reshape(kernel.shape).astype(kernel.dtype)
