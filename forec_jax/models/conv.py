"""Two-dimensional convolution that is also fast on the CPU.

XLA's CPU backend is slow at depthwise convolutions (0.7 GF/s measured), at large kernel gradients, and at dilated kernels
that reach beyond the border. `conv2d` is `lax.conv_general_dilated` on GPU and TPU; where it is lowered for the CPU it
becomes what was measured to be fastest there:

| kernel | forward | gradient of the input | gradient of the kernel |
|---|---|---|---|
| depthwise | sum of shifted products | the same | shifted products, row by row |
| 1x1, and k x k with dilation | matrix product a tap, without what it reads beyond the border | the same | the same |
| k x k, wide | `lax.conv` | `lax.conv` | as with dilation |
| k x k | `lax.conv`, below a row of zeros | the same | `lax.conv` |

Eigen runs a convolution to few channels on one thread; with a row more, which is cut off again, it takes all of them (two
cores, 3x3, 64 to 64 channels, 4 x 64 x 64: 12.4 ms, then 8.2). All of them are equal up to float32 rounding. The batch axis
always stays in the leading place, so that a batch which is sharded over it stays sharded.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")
_WIDE = 128  # channels in and out from which one matrix product a tap beats the kernel gradient of lax.conv


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


def _prefers_products(kernel: Array, geometry: _Geometry) -> bool:
    """Whether one matrix product a tap beats `lax.conv`."""
    return geometry.groups == 1 and (kernel.shape[:2] == (1, 1) or geometry.dilation > 1)


def _is_narrow(outputs: int, geometry: _Geometry) -> bool:
    """Whether Eigen would run `lax.conv` to so many channels on one thread, and a further row costs little."""
    return geometry.groups == 1 and geometry.strides == 1 and outputs < _WIDE


def _with_a_row(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    """`lax.conv` at stride 1 of the input with a row of zeros below, which gives a row of outputs too many."""
    return _lax_conv(_pad(x, ((0, 1), (0, 0))), kernel, geometry)[:, :-1]


def _forward_cpu(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    if _is_depthwise(kernel, geometry):
        return _depthwise(_pad(x, geometry.padding), kernel, geometry)
    if not _prefers_products(kernel, geometry):
        return (_with_a_row if _is_narrow(kernel.shape[3], geometry) else _lax_conv)(x, kernel, geometry)
    out = tuple(
        (n + low + high - geometry.dilation * (k - 1) - 1) // geometry.strides + 1
        for n, (low, high), k in zip(x.shape[1:3], geometry.padding, kernel.shape[:2], strict=True)
    )
    parts = [
        _pad(_product(_read(x, tap), kernel[tap.row, tap.column]), tap.beside_output(out))
        for tap in _taps(x.shape[1:3], kernel.shape[:2], out, geometry)
    ]
    return _total(parts, (x.shape[0], *out, kernel.shape[3])).astype(x.dtype)


def _dx_cpu(x: Array, kernel: Array, dy: Array, geometry: _Geometry) -> Array:
    if _is_depthwise(kernel, geometry):
        return _depthwise_dx(x, kernel, dy, geometry)
    if not _prefers_products(kernel, geometry):
        if not _is_narrow(kernel.shape[2], geometry):
            return _dx_lax(x, kernel, dy, geometry)
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        rows, columns = ((k - 1 - a, k - 1 - b) for k, (a, b) in zip(kernel.shape[:2], geometry.padding, strict=True))
        return _with_a_row(dy, turned, geometry._replace(padding=(rows, columns)))
    parts = [
        _pad(
            _product(_written(dy, tap), kernel[tap.row, tap.column].T),
            tap.beside_input(x.shape[1:3]),
            geometry.strides - 1,
        )
        for tap in _taps(x.shape[1:3], kernel.shape[:2], dy.shape[1:3], geometry)
    ]
    return _total(parts, x.shape).astype(x.dtype)


def _dkernel_cpu(x: Array, kernel: Array, dy: Array, geometry: _Geometry) -> Array:
    if _is_depthwise(kernel, geometry):
        return _depthwise_dkernel(_pad(x, geometry.padding), kernel, dy, geometry)
    wide = geometry.groups == 1 and min(kernel.shape[2:]) >= _WIDE
    if not (wide or _prefers_products(kernel, geometry)):
        return _dkernel_lax(x, kernel, dy, geometry)
    products = {
        (tap.row, tap.column): _contract_pixels(_read(x, tap), _written(dy, tap))
        for tap in _taps(x.shape[1:3], kernel.shape[:2], dy.shape[1:3], geometry)
    }
    unread = jnp.zeros(kernel.shape[2:], jnp.float32)
    window = [products.get((i, j), unread) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    return jnp.stack(window).reshape(kernel.shape).astype(kernel.dtype)


class _Span(NamedTuple):
    """Along one axis: outputs `start` to `stop`, of which the first reads input `first`, the next `step` further."""

    start: int
    stop: int
    first: int
    step: int

    @property
    def after(self) -> int:
        """The input just after the last that is read."""
        return self.first + (self.stop - self.start - 1) * self.step + 1


class _Tap(NamedTuple):
    """One entry of the kernel window, and where it reads the input itself rather than its padding."""

    row: int
    column: int
    spans: tuple[_Span, _Span]

    def beside_output(self, size: tuple[int, ...]) -> Padding:
        """The margins of its outputs in all of them."""
        (a, b) = ((s.start, n - s.stop) for s, n in zip(self.spans, size, strict=True))
        return a, b

    def beside_input(self, size: tuple[int, ...]) -> Padding:
        """The margins of what it reads in the input."""
        (a, b) = ((s.first, n - s.after) for s, n in zip(self.spans, size, strict=True))
        return a, b


def _taps(size: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...], geometry: _Geometry) -> Iterator[_Tap]:
    """The taps of a kernel that read any input at all, row by row."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows, columns = (_span(axis, at, size[axis], out[axis], geometry) for axis, at in ((0, i), (1, j)))
            if rows.stop > rows.start and columns.stop > columns.start:
                yield _Tap(i, j, (rows, columns))


def _span(axis: int, at: int, size: int, out: int, geometry: _Geometry) -> _Span:
    step = geometry.strides
    offset = at * geometry.dilation - geometry.padding[axis][0]
    start = max(0, -(offset // step))
    stop = min(out, (size - 1 - offset) // step + 1)
    return _Span(start, stop, start * step + offset, step)


def _read(x: Array, tap: _Tap) -> Array:
    """What a tap reads of the input [N,H,W,C]."""
    rows, columns = tap.spans
    limits = (x.shape[0], rows.after, columns.after, x.shape[3])
    return lax.slice(x, (0, rows.first, columns.first, 0), limits, (1, rows.step, columns.step, 1))


def _written(y: Array, tap: _Tap) -> Array:
    """The outputs [N,H',W',D] that a tap contributes to."""
    rows, columns = tap.spans
    return y[:, rows.start : rows.stop, columns.start : columns.stop]


def _pad(x: Array, padding: Padding, interior: int = 0) -> Array:
    """Pads (or crops, where negative) rows and columns, with `interior` zeros between neighbours."""
    config = [(0, 0, 0), (*padding[0], interior), (*padding[1], interior), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _total(parts: list[Array], shape: tuple[int, ...]) -> Array:
    return sum(parts[1:], start=parts[0]) if parts else jnp.zeros(shape, jnp.float32)


def _product(x: Array, weights: Array) -> Array:
    """[N,H,W,C] times [C,D] as one matrix product; float32."""
    flat = lax.dot_general(
        x.reshape(-1, x.shape[-1]), weights, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return flat.reshape(*x.shape[:-1], weights.shape[-1])


def _contract_pixels(x: Array, dy: Array) -> Array:
    """[N,H,W,C] and [N,H,W,D] to f32[C,D], summed over the pixels of all images."""
    flat = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return lax.dot_general(*flat, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _depthwise(padded: Array, kernel: Array, geometry: _Geometry) -> Array:
    """A depthwise convolution of an input that is padded already, as a sum of shifted products."""
    kh, kw = kernel.shape[:2]
    n, height, width, channels = padded.shape
    step, dilation = geometry.strides, geometry.dilation
    reach = [(m - dilation * (k - 1) - 1) // step * step + 1 for m, k in ((height, kh), (width, kw))]
    total = jnp.zeros((), jnp.float32)
    for i in range(kh):
        for j in range(kw):
            at = (0, i * dilation, j * dilation, 0)
            seen = lax.slice(padded, at, (n, at[1] + reach[0], at[2] + reach[1], channels), (1, step, step, 1))
            total = total + seen.astype(jnp.float32) * kernel[None, None, i, j].astype(jnp.float32)
    return total.astype(padded.dtype)


def _depthwise_dx(x: Array, kernel: Array, dy: Array, geometry: _Geometry) -> Array:
    """The turned kernel over dy, whose entries lie `strides` apart."""
    margins = [
        (geometry.dilation * (k - 1) - low, n + low - (m - 1) * geometry.strides - 1)
        for k, (low, _), n, m in zip(kernel.shape[:2], geometry.padding, x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    spread = _pad(dy, (margins[0], margins[1]), geometry.strides - 1)
    return _depthwise(spread, kernel[::-1, ::-1], geometry._replace(strides=1))


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
