"""Which colour is which class, as a strip under a sheet."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from forec_jax.contracts import IGNORE
from forec_jax.data import Labels
from forec_jax.visualize.palettes import colourise

# In pixels: a line's height, a colour's side, and the space between a colour, its name and the next one.
_LINE, _SWATCH, _GAP = 20, 12, 6


def with_legend(picture: np.ndarray, labels: Labels, shown: Iterable[np.ndarray]) -> np.ndarray:
    """u8[h,W,3]: the picture u8[H,W,3] over the colours and names of the classes that the maps `shown` hold."""
    found = sorted({int(k) for index in shown for k in np.unique(index)})
    return np.concatenate([picture, legend(labels, picture.shape[1], found)])


def legend(labels: Labels, width: int, classes: Sequence[int] | None = None) -> np.ndarray:
    """u8[h,width,3]: a square of its colour and its name for each of `classes` (None: all), in as many lines as it takes.

    IGNORE is called void; indices that are no class are left out.
    """
    names = dict(enumerate(labels.classes)) | {IGNORE: "void, unknown"}
    chosen = [k for k in (range(len(labels.classes)) if classes is None else classes) if k in names]
    font = ImageFont.load_default(12)
    places = _places([_SWATCH + 3 * _GAP + int(font.getlength(names[k])) for k in chosen], width)
    height = _LINE * (1 + max((line for line, _ in places), default=0))
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    for k, (line, left) in zip(chosen, places, strict=True):
        top = _LINE * line + (_LINE - _SWATCH) // 2
        colour = tuple(map(int, colourise(np.array([[k]]), labels.palette)[0, 0]))
        draw.rectangle((left, top, left + _SWATCH - 1, top + _SWATCH - 1), fill=colour, outline="grey")
        draw.text((left + _SWATCH + _GAP, _LINE * line + _LINE / 2), names[k], fill="black", font=font, anchor="lm")
    return np.asarray(strip)


def _places(widths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Line and left border of items, one after the other; an item that does not fit begins the next line."""
    places, line, left = [], 0, _GAP
    for wanted in widths:
        if left > _GAP and left + wanted > width:
            line, left = line + 1, _GAP
        places.append((line, left))
        left += wanted
    return places
