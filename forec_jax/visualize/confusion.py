"""A confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from forec_jax.evaluation.metrics import row_shares
from forec_jax.visualize.sheets import Font, heatmap

_NAMED, _MANY = 40, 14  # a cell's side in pixels where numbers fit in, and in larger matrices, which have none
_MOST_NAMED = 40  # classes
_MARGIN, _CAPTION = 8, 22  # pixels
_EMPTY = (225, 225, 225)  # of a class without a pixel


def confusion_picture(confusion: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """u8[h,w,3]: int[K,K], truth by prediction, each row as shares of its pixels; the lighter a cell, the larger its share.

    Up to 40 classes the shares are written in percent. A row is grey where no pixel is of its class.
    """
    shares = row_shares(confusion)
    cell = _NAMED if len(names) <= _MOST_NAMED else _MANY
    font = ImageFont.load_default(12 if cell == _NAMED else 10)
    short = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    room = max(int(font.getlength(name)) for name in short) + 2 * _MARGIN
    left, top, side = room, _CAPTION + room, cell * len(names)

    picture = Image.new("RGB", (max(left + side + _MARGIN, 320), top + side + _MARGIN), "white")
    colours = np.where(np.isnan(shares)[..., None], np.array(_EMPTY, np.uint8), heatmap(shares))
    picture.paste(Image.fromarray(colours.repeat(cell, axis=0).repeat(cell, axis=1)), (left, top))
    draw = ImageDraw.Draw(picture)
    caption = "rows: ground truth; columns: prediction; % of a row's pixels"
    draw.text((_MARGIN, _CAPTION / 2), caption, fill="black", font=ImageFont.load_default(11), anchor="lm")
    for k, name in enumerate(short):
        middle = cell * k + cell // 2
        draw.text((left - _MARGIN, top + middle), name, fill="black", font=font, anchor="rm")
        column = _upright(name, room, cell, font)
        picture.paste(column, (left + cell * k, top - room))
    if cell == _NAMED:
        _write_shares(draw, shares, (left, top), font)
    return np.asarray(picture)


def _upright(text: str, height: int, width: int, font: Font) -> Image.Image:
    """A text that is read from below, ending `_MARGIN` pixels above the lower border."""
    line = Image.new("RGB", (height, width), "white")
    ImageDraw.Draw(line).text((_MARGIN, width / 2), text, fill="black", font=font, anchor="lm")
    return line.transpose(Image.Transpose.ROTATE_90)


def _write_shares(draw: ImageDraw.ImageDraw, shares: np.ndarray, corner: tuple[int, int], font: Font) -> None:
    """Writes f64[K,K] into the cells in percent; nothing where a share is 0 or unknown."""
    for row, column in np.argwhere(np.nan_to_num(shares) > 0).tolist():
        share = shares[row, column]
        middle = corner[0] + _NAMED * column + _NAMED / 2, corner[1] + _NAMED * row + _NAMED / 2
        text = "<0.1" if share < 0.0005 else f"{100 * share:.1f}" if share < 0.9995 else "100"
        draw.text(middle, text, fill="black" if share > 0.5 else "white", font=font, anchor="mm")
