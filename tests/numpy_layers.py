"""Layers in NumPy, written from their definitions: what tests compare networks with where PyTorch is not installed."""

import numpy as np


def convolved(x, kernel, bias, *, stride=1, padding=1):
    """f64[B,H,W,C] by [k,k,C,F], with `padding` zeros around the image."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            y += x[:, i : i + stride * height : stride, j : j + stride * width : stride] @ np.asarray(kernel)[i, j]
    return y + np.asarray(bias)


def dilated(kernel, rate):
    """A 3x3 kernel [3,3,C,F] with its taps `rate` pixels apart: [2 rate + 1, 2 rate + 1, C, F], zeros between."""
    wide = np.zeros((2 * rate + 1, 2 * rate + 1, *kernel.shape[2:]))
    wide[::rate, ::rate] = kernel
    return wide


def normalised(x, scale, bias, mean, var):
    """BatchNorm in inference mode, each channel by its own numbers."""
    return (x - mean) / np.sqrt(np.asarray(var, np.float64) + 1e-5) * scale + bias


def cell_means(x, bins):
    """Means f64[B,bins,bins,C] of f64[B,h,w,C] over cells from floor(i n / bins) to below ceil((i + 1) n / bins)."""
    edges = [[(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)] for n in x.shape[1:3]]
    return np.stack([np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in edges[1]], axis=1) for a, b in edges[0]], axis=1)


def leaky(x, slope):
    """LeakyReLU."""
    return np.where(x > 0, x, slope * x)


def enlarged(x, size, align_corners):
    """Bilinear upsampling f64[B,h,w,C] -> [B,*size,C]."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        i = np.arange(new)
        at = i * (old - 1) / (new - 1) if align_corners else np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (at - low).reshape(-1, *(1,) * (x.ndim - 1 - axis))
        x = (1 - share) * np.take(x, low, axis) + share * np.take(x, high, axis)
    return x
