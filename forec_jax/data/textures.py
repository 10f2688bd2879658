"""Procedural textures of the shapes data set: one function a kind, each a pattern f32[n,n] in [0, 1]."""

from collections.abc import Callable

import numpy as np
from PIL import Image

Pattern = Callable[[np.random.Generator, np.ndarray, np.ndarray, float], np.ndarray]


def _soft_step(wave: np.ndarray, sharpness: float = 3.0) -> np.ndarray:
    """A wave in [-1, 1] pressed towards 0 and 1 with anti-aliased edges."""
    return np.clip(0.5 + sharpness * 0.5 * wave, 0.0, 1.0)


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    return _soft_step(np.sin(2 * np.pi * frequency * x + rng.uniform(0, 2 * np.pi)))


def _checks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    phase = rng.uniform(0, 2 * np.pi, 2)
    wave = np.sin(2 * np.pi * frequency * 0.6 * x + phase[0]) * np.sin(2 * np.pi * frequency * 0.6 * y + phase[1])
    return _soft_step(wave, 6.0)


def _dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    offset = rng.uniform(0, 1, 2)
    u, v = (frequency * x + offset[0]) % 1.0 - 0.5, (frequency * y + offset[1]) % 1.0 - 0.5
    return _soft_step((0.3 - np.hypot(u, v)) * 4.0)


def _ripples(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    centre = rng.uniform(-0.4, 0.4, 2)
    return _soft_step(np.sin(2 * np.pi * frequency * np.hypot(x - centre[0], y - centre[1])), 2.0)


def _blobs(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    cells = max(3, round(1.4 * frequency))
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    smooth = np.asarray(coarse.resize((x.shape[1], x.shape[0]), Image.Resampling.BICUBIC))
    return _soft_step(smooth, 2.5)


def _gradient(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    # A ramp with a grain of its own, so that it is a texture and not the absence of one.
    ramp = np.clip(0.5 + 0.8 * x, 0, 1)
    return np.clip(ramp + rng.normal(0, 0.1, x.shape), 0, 1)


PATTERNS: dict[str, Pattern] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "ripples": _ripples,
    "blobs": _blobs,
    "gradient": _gradient,
}


def paint(rng: np.random.Generator, kind: str, size: int, colours: np.ndarray, frequency: float) -> np.ndarray:
    """A texture f32[size,size,3] in [0, 255] between two colours [2,3]; `frequency` in periods an image."""
    angle = rng.uniform(0, np.pi)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    across, down = np.meshgrid(axis, axis)
    x, y = np.cos(angle) * across + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * across
    pattern = PATTERNS[kind](rng, x, y, frequency)[..., None]
    return (colours[0] + pattern * (colours[1] - colours[0])).astype(np.float32)
