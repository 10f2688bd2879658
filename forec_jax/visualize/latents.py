"""Latent images: what single channels before a head's last convolution look like, and which of them know a class."""

import numpy as np

from forec_jax.visualize.sheets import sheet


def channel_correlation(latent: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """f64[D]: Pearson correlation of each channel of float[h,w,D] with bool[h,w], in [-1, 1].

    0 where a channel or the mask is constant.
    """
    channels = _centred(np.asarray(latent, np.float64).reshape(-1, latent.shape[-1]))
    target = _centred(np.asarray(mask, np.float64).reshape(-1, 1))[:, 0]
    scale = np.linalg.norm(channels, axis=0) * np.linalg.norm(target)
    return np.where(scale > 0, target @ channels / np.where(scale > 0, scale, 1.0), 0.0)


def top_channels(correlation: np.ndarray, count: int) -> np.ndarray:
    """int[count]: the channels of the largest absolute correlation, strongest first, ties by index."""
    return np.argsort(-np.abs(correlation), kind="stable")[:count]


def latent_image(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """u8[height,width,3]: a channel float[h,w], darkest to brightest over its own range, enlarged without smoothing."""
    channel = np.asarray(channel, np.float64)
    low, high = channel.min(), channel.max()
    grey = np.rint(255 * (channel - low) / (high - low if high > low else 1.0)).astype(np.uint8)
    y = np.arange(height) * channel.shape[0] // height
    x = np.arange(width) * channel.shape[1] // width
    return np.repeat(grey[y][:, x, None], 3, axis=-1)


def latent_sheet(latent: np.ndarray, mask: np.ndarray, count: int = 4, size: int = 128) -> np.ndarray:
    """u8[...,3]: a mask bool[h,w] and the `count` channels of float[h,w,D] that follow it most, with correlations.

    The longer side of each picture is `size` pixels.
    """
    scale = size / max(mask.shape)
    height, width = (max(1, round(n * scale)) for n in mask.shape)
    correlation = channel_correlation(latent, mask)
    best = top_channels(correlation, count)
    pictures = [mask, *(latent[..., c] for c in best)]
    titles = ["class", *(f"{c}: {correlation[c]:+.2f}" for c in best)]
    return sheet([[latent_image(picture, height, width) for picture in pictures]], titles)


def _centred(values: np.ndarray) -> np.ndarray:
    """Columns less their mean; exactly zero where a column is constant, which rounding in the mean would miss."""
    return np.where(np.ptp(values, axis=0) > 0, values - values.mean(axis=0), 0.0)
