"""Image files as Pillow holds them: known by their content, of few formats, upright, and no larger than is needed."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from forec_jax.data.remarks import Remarks
from forec_jax.data.shrink import shrunk_size
from forec_jax.data.source import DataError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")
"""What is opened. Pillow knows more formats, and starts another program for one of them (EPS)."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""How names of images end, in small letters. Which format a file has, its content says."""

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a photograph of each orientation upright; 1 is upright."""

_OTHER_FORMATS = {b"%!PS": "PostScript", b"%PDF": "PDF", b"<svg": "SVG", b"<?xm": "XML", b"RIFF": "no WebP"}
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")


class ImageFile(NamedTuple):
    """A decoded image file."""

    image: Image.Image  # upright
    size: tuple[int, int]  # height and width of the whole image, upright; `image` may be smaller
    orientation: int  # the tag by which it was turned, 1 to 8; 1: not at all
    lossy: bool  # its format changes pixels a little
    pages: bool  # it holds more images than the first, which is this one


def read_file(file: str | Path) -> bytes:
    """The bytes of a file. Raises DataError, naming it, where it cannot be read."""
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); repair or remove it") from error


def open_image(data: bytes, file: str, longest_side: int = 0) -> ImageFile:
    """The image in `data`. With `longest_side` a JPEG of far more pixels is decoded at a half, a quarter or an eighth.

    The reduced image is still larger than asked for; `fit` does the rest. Metadata that is damaged is taken for none.
    Raises DataError, naming `file`, where it is of no format in FORMATS, broken, or of more pixels than Pillow allows
    (179 million; `PIL.Image.MAX_IMAGE_PIXELS` is half of them), which is checked before it is decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        orientation, size, pages = _orientation(image), image.size, _has_pages(image)
        lossy = _is_lossy(image, data)
        if longest_side:
            image.draft(None, shrunk_size(*size, longest_side))
        image.load()
    except Image.DecompressionBombError as error:
        raise DataError(f"{file}: too many pixels ({error}); scale it down, or cut it into tiles") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{file}: cannot be decoded ({_what_it_is(data)}); {_REPLACE}") from error
    except Exception as error:  # Pillow's readers have many kinds for a damaged file
        raise DataError(f"{file}: cannot be decoded ({error}); {_REPLACE}") from error
    turned = image if image.format == "TIFF" else turn(image, orientation)  # Pillow turns a TIFF by itself
    turns_back = orientation >= 5 and image.format != "TIFF"
    return ImageFile(turned, size if turns_back else size[::-1], orientation, lossy, pages)


_REPLACE = f"replace the file by a {', '.join(FORMATS)} file, or remove it and its line in any list"


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """The image as viewers show it, whose EXIF orientation is 1 to 8."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _orientation(image: Image.Image) -> int:
    """The orientation tag; 1 where there is none, or nobody can read it."""
    try:
        tag = image.getexif().get(_ORIENTATION)
    except Exception:  # the pixels are read whatever metadata lies beside them
        return 1
    return tag if isinstance(tag, int) and tag in _TURNS else 1


def _has_pages(image: Image.Image) -> bool:
    return image.format in ("TIFF", "GIF") and bool(getattr(image, "is_animated", False))


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    match image.format:
        case "TIFF":
            return image.info.get("compression") in _LOSSY_TIFF
        case "WEBP":
            return _webp_is_lossy(data)
        case _:
            return image.format in ("JPEG", "MPO")


def _webp_is_lossy(data: bytes) -> bool:
    """Whether the first picture among a WebP's chunks is of the lossy kind."""
    at = 12
    while (kind := data[at : at + 4]) not in (b"", b"VP8 ", b"VP8L"):
        at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
    return kind != b"VP8L"


def _what_it_is(data: bytes) -> str:
    """A few words on bytes that are no image of FORMATS."""
    if not data:
        return "it is empty"
    if data[4:8] == b"ftyp":
        return "it is a video, HEIC or AVIF, which are not read"
    kind = _OTHER_FORMATS.get(data[:4])
    return f"it is {kind}" if kind else "of no known format"


def to_rgb(opened: ImageFile, file: str, remarks: Remarks | None = None) -> Image.Image:
    """The image in RGB: grey is repeated, an alpha or other fourth channel is dropped, with a remark where it is not full.

    Colours of 16 bits keep their upper 8, as in every viewer. Raises DataError, naming `file`, for grey values of more
    than 8 bits (which range of them is black to white is unknown) and for a transparent colour of a palette.
    """
    image = opened.image
    if image.mode.startswith(("I", "F")):
        low, high = image.getextrema()
        raise DataError(
            f"{file}: its values have 16 bits or more (mode {image.mode}, here {low} to {high}), and which of them are "
            "black and white is not known; scale all images from one range to 0-255 and save them as 8-bit images"
        )
    if is_transparent(image):
        if "A" not in image.getbands():
            raise DataError(
                f"{file}: has transparent pixels, whose colour is not defined; put it on a background and save as RGB"
            )
        if remarks is not None:
            remarks.add(
                "a fourth channel (transparency, infrared) is dropped, and the colours are used as they are", file
            )
    if opened.pages and remarks is not None:
        remarks.add("holds several pages, of which the first alone is read", file)
    return image if image.mode == "RGB" else image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    return image.has_transparency_data and alpha_of(image).min() < 255


def alpha_of(image: Image.Image) -> np.ndarray:
    """u8[h,w], 255 where opaque."""
    return np.asarray(image.convert("RGBA").getchannel("A"))


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image in RGB or grey at a height and width: bilinear, with anti-aliasing; itself where it has them."""
    return image if image.size == size[::-1] else image.resize(size[::-1], Image.Resampling.BILINEAR)


def encode_like(pixels: np.ndarray, lossy: bool) -> bytes:
    """A file of u8[h,w,3] or u8[h,w]: a JPEG of high quality where its original lost pixels too, otherwise a PNG."""
    buffer = io.BytesIO()
    if lossy:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
