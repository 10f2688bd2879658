"""Contact sheets and heat maps for reports, as plain u8 images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL_SIDE = 240
"""The longer side of a sheet's pictures, in pixels."""

_MARGIN = 4
_TITLE_HEIGHT = 18
# From low to high: every step is lighter than the last, so that the map survives grayscale print.
_HEAT = np.array([(12, 10, 40), (60, 25, 110), (135, 40, 115), (205, 75, 80), (245, 145, 50), (255, 240, 170)], float)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def heatmap(values: np.ndarray) -> np.ndarray:
    """u8[H,W,3]: float[H,W] in [0, 1] from dark violet to light yellow; values outside are clipped, nan is 0."""
    position = np.clip(np.nan_to_num(np.asarray(values, float)), 0.0, 1.0)
    anchors = np.linspace(0.0, 1.0, len(_HEAT))
    channels = [np.interp(position, anchors, _HEAT[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def fit(picture: np.ndarray, side: int) -> np.ndarray:
    """u8[h,w,3]: the picture u8[H,W,3] with its longer side `side` pixels; enlarged without smoothing, shrunk with."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize(size, resample))


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """u8[H+18,W,3]: the picture u8[H,W,3] with a line of text below it, as large as fits."""
    width = picture.shape[1]
    return np.concatenate([picture, _line(text, width, _font([text], width))])


def cell(picture: np.ndarray, text: str = "") -> np.ndarray:
    """u8[h,w,3]: a picture u8[H,W,3] at a sheet's size, with a line of text below it."""
    return captioned(fit(picture, CELL_SIDE), text)


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> np.ndarray:
    """u8[h,w,3]: rows of u8[H,W,3] images in a white grid under column titles.

    Every cell is as large as the largest image; smaller ones are centred, none is scaled. Rows may be short.
    """
    if not rows or any(len(row) > len(titles) for row in rows):
        raise ValueError("a sheet needs at least one row, and a title for every column")
    height = max(image.shape[0] for row in rows for image in row)
    width = max(image.shape[1] for row in rows for image in row)
    head = _titles(titles, width)
    body = np.full((len(rows) * (height + _MARGIN), head.shape[1], 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top = i * (height + _MARGIN) + (height - image.shape[0]) // 2
            left = _MARGIN + j * (width + _MARGIN) + (width - image.shape[1]) // 2
            body[top : top + image.shape[0], left : left + image.shape[1]] = image
    return np.concatenate([head, body])


def _titles(titles: Sequence[str], width: int) -> np.ndarray:
    """The strip above the grid, in one size for all titles, the largest that fits the cells."""
    strip = np.full((_TITLE_HEIGHT, _MARGIN + len(titles) * (width + _MARGIN), 3), 255, np.uint8)
    font = _font(titles, width)
    for j, title in enumerate(titles):
        left = _MARGIN + j * (width + _MARGIN)
        strip[:, left : left + width] = _line(title, width, font)
    return strip


def _line(text: str, width: int, font: Font) -> np.ndarray:
    """u8[18,width,3]: centred text; one too long at any size is cut, so that it does not run into the next cell."""
    piece = Image.new("RGB", (width, _TITLE_HEIGHT), "white")
    ImageDraw.Draw(piece).text((width / 2, _TITLE_HEIGHT / 2), text, fill="black", font=font, anchor="mm")
    return np.asarray(piece)


def _font(texts: Sequence[str], width: int) -> Font:
    for size in range(13, 7, -1):
        font = ImageFont.load_default(size)
        if all(font.getlength(text) <= width for text in texts):
            break
    return font
