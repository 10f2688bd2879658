"""Latent images: what single channels before a head's last convolution look like, and which of them know a class.

A reconstruction is a weighted sum of the channels that enter the decoder's last 1x1 convolution (FOrec, section 4.3.1).
How well a channel knows a class is its Pearson correlation with the class's mask over an image's pixels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from forec_jax.contracts import IGNORE


class BestChannel(NamedTuple):
    """The channel that follows a class most, over several images."""

    correlation: float  # in [-1, 1], on images that had no part in choosing the channel
    channels: tuple[int, int]  # as chosen on the first half of the images and on the second
    images: int  # that show the class


def of_image(grid: np.ndarray, size: tuple[int, ...], padded_height: int) -> np.ndarray:
    """The part of a padded image's map [h,w,D] that the image of `size` covers. A map's stride may be no whole number."""
    stride = padded_height / grid.shape[0]
    return grid[: int(np.ceil(size[0] / stride)), : int(np.ceil(size[1] / stride))]


def channel_correlation(latent: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """f64[D]: Pearson correlation of each channel of float[...,D] with bool[...], in [-1, 1].

    0 where a channel or the mask is constant.
    """
    channels = _centred(np.asarray(latent, np.float64).reshape(-1, latent.shape[-1]))
    target = _centred(np.asarray(mask, np.float64).reshape(-1, 1))[:, 0]
    scale = np.linalg.norm(channels, axis=0) * np.linalg.norm(target)
    return np.where(scale > 0, target @ channels / np.where(scale > 0, scale, 1.0), 0.0)


def class_correlations(latent: np.ndarray, label: np.ndarray) -> dict[int, np.ndarray]:
    """The correlation f64[D] of the channels of float[h,w,D] with each class that a label [H,W] shows a part of.

    The label is read where the latent's pixels have their centres; IGNORE is left out. A class that fills the whole image,
    or none of those pixels, is not there.
    """
    sampled = sample_label(label, *latent.shape[:2])
    known = sampled != IGNORE
    present = np.unique(sampled[known])
    if len(present) < 2:
        return {}
    return {int(k): channel_correlation(latent[known], sampled[known] == k) for k in present}


def sample_label(label: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height,width]: the label [H,W] at the centres of a coarser grid's cells."""
    y = (2 * np.arange(height) + 1) * label.shape[0] // (2 * height)
    x = (2 * np.arange(width) + 1) * label.shape[1] // (2 * width)
    return label[y][:, x]


def best_channels(images: Sequence[Mapping[int, np.ndarray]]) -> dict[int, BestChannel]:
    """For each class that at least two images show: how strongly its best channel follows it, without hindsight.

    `images` holds `class_correlations` image by image. The images that show a class are split into two halves, by turns.
    The channel of the largest mean correlation (by size) on one half is scored on the other: its mean there, times
    the sign it had where it was chosen; the two directions are averaged. The best of D channels on the very images that
    are scored would look good by chance alone; this is about 0 for channels that know nothing, and it may be negative.
    """
    classes = sorted({k for image in images for k in image})
    found = {k: np.stack([image[k] for image in images if k in image]) for k in classes}
    return {k: _crossed(rows) for k, rows in found.items() if len(rows) > 1}


def _crossed(rows: np.ndarray) -> BestChannel:
    """Chooses on one half of f64[n,D] and scores on the other, both ways."""
    halves = rows[::2].mean(axis=0), rows[1::2].mean(axis=0)
    first, second = (int(top_channels(half, 1)[0]) for half in halves)
    scores = np.sign(halves[0][first]) * halves[1][first], np.sign(halves[1][second]) * halves[0][second]
    return BestChannel(float(np.mean(scores)), (first, second), len(rows))


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


def _centred(values: np.ndarray) -> np.ndarray:
    """Columns less their mean; exactly zero where a column is constant, which rounding in the mean would miss."""
    return np.where(np.ptp(values, axis=0) > 0, values - values.mean(axis=0), 0.0)
