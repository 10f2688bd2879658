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
