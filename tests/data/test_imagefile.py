"""Which files are opened, how they are turned, and how large they are decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from forec_jax.data import DataError
from forec_jax.data.decode import decode_image, decode_mask, decode_photo
from forec_jax.data.imagefile import FORMATS, open_image
from forec_jax.data.remarks import Remarks
from forec_jax.data.rules import MaskRule

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def encoded(pixels, kind, **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_format_is_known_by_its_content(kind):
    np.testing.assert_array_equal(decode_image(encoded(PIXELS, kind, lossless=True), "a.jpg"), PIXELS)


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "ICO", "SGI", "EPS", "PDF", "JPEG2000"])
def test_other_formats_of_pillow_are_refused(kind):
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded .*; replace the file by a PNG, JPEG, BMP"):
        decode_image(encoded(PIXELS, kind), "a.png")


def test_no_picture_starts_another_program(monkeypatch):
    """Pillow hands EPS to Ghostscript."""
    started = []
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *a, **k: started.append(a) or 1 / 0)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    postscript = encoded(PIXELS, "EPS")
    with pytest.raises(ZeroDivisionError):
        Image.open(io.BytesIO(postscript)).load()
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded \(it is PostScript\)"):
        decode_image(postscript, "a.png")
    assert len(started) == 1
    assert "EPS" not in FORMATS


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "it is empty"),
        (b"\0\0\0\x18ftypheic", "HEIC or AVIF"),
        (b"%PDF-1.4", "it is PDF"),
        (b"?" * 9, "of no"),
    ],
)
def test_a_word_on_what_is_no_picture(data, what):
    with pytest.raises(DataError, match=rf"a\.png: cannot be decoded \(.*{what}"):
        decode_image(data, "a.png")


def exif(*entries):
    """The bytes of an EXIF block, of (tag, type, count, 4 bytes)."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + body + struct.pack("<I", 0)


QUARTER = (0x112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (exif(QUARTER), (9, 6)),
        (exif(QUARTER, (0x11A, 2, 3, b"72\0\0")), (9, 6)),  # a resolution that is a text
        (exif(QUARTER, (0x128, 2, 2, b"2\0\0\0")), (9, 6)),
        (exif(QUARTER, (0x8769, 4, 1, struct.pack("<I", 10**6))), (9, 6)),  # leads out of the file
        (exif((0x112, 2, 2, b"6\0\0\0")), (6, 9)),
        (exif((0x112, 3, 1, struct.pack("<HH", 99, 0))), (6, 9)),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", (6, 9)),
        (b"Exif\0\0XX", (6, 9)),
        (b"Exif\0\0", (6, 9)),
    ],
)
def test_damaged_metadata_ends_no_reading(block, shape):
    assert decode_image(encoded(PIXELS, "JPEG", exif=block), "a.jpg").shape == (*shape, 3)


@pytest.mark.parametrize("block", [b"XX" + exif(QUARTER)[8:], exif(QUARTER)[6:-9], b""])
def test_damaged_metadata_of_a_png_ends_no_reading(block):
    content = b"eXIf" + block
    chunk = struct.pack(">I", len(block)) + content + struct.pack(">I", zlib.crc32(content))
    whole = encoded(PIXELS, "PNG")
    assert decode_image(whole[:33] + chunk + whole[33:], "a.png").size == PIXELS.size


# A cross in a corner, as EXIF's orientations store it: what each gives upright is the first.
UPRIGHT = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
STORED = {
    1: UPRIGHT,
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[3, 6], [2, 5], [1, 4]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[4, 1], [5, 2], [6, 3]],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_becomes_upright(kind, orientation):
    tag = Image.Exif()
    tag[0x112] = orientation
    photo = decode_photo(encoded(np.array(STORED[orientation], np.uint8), kind, exif=tag), "a")
    np.testing.assert_array_equal(photo.pixels[..., 0], UPRIGHT)
    assert (photo.size, photo.orientation) == ((2, 3), orientation)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_photograph_is_decoded_at_the_size_asked_for(kind, orientation):
    """400 x 240, smooth: halved, or reduced by the decoder and then scaled, it is nearly the same."""
    ramp = np.linspace(0, 255, 400)[None] * np.linspace(0.2, 1, 240)[:, None]
    tag = Image.Exif()
    tag[0x112] = orientation
    data = encoded(np.repeat(ramp[..., None].astype(np.uint8), 3, -1), kind, exif=tag)
    photo, whole = decode_photo(data, "a", 100), decode_image(data, "a")
    size = (60, 100) if orientation == 1 else (100, 60)
    assert photo.pixels.shape == (*size, 3)
    assert photo.size == whole.shape[:2]
    expected = Image.fromarray(whole).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(photo.pixels.astype(int), np.asarray(expected).astype(int), atol=4)
    assert decode_photo(data, "a", 400).pixels.shape == whole.shape


@pytest.mark.parametrize(("kind", "size"), [("JPEG", (200, 120)), ("PNG", (400, 240))])
def test_a_jpeg_is_decoded_at_a_part_of_its_size(kind, size):
    opened = open_image(encoded(np.zeros((240, 400, 3), np.uint8), kind), "a", 180)
    assert opened.image.size == size
    assert opened.size == (240, 400)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    """A PNG whose header claims 20,000 x 20,000 pixels, and which holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    claim = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
    )
    with pytest.raises(DataError, match=r"a\.png: too many pixels .*; scale it down, or cut it into tiles"):
        decode_image(claim, "a.png")


def test_grey_of_16_bits_is_refused_with_its_range():
    with pytest.raises(
        DataError, match=r"a\.png: .*16 bits or more \(mode I;16, here 7 to 4095\).*scale all images from"
    ):
        decode_image(encoded(np.array([[7, 4095]], np.uint16), "PNG"), "a.png")


def test_a_transparent_colour_of_a_palette_is_refused():
    image = Image.fromarray(PIXELS).convert("P")
    with pytest.raises(DataError, match=r"a\.png: has transparent pixels"):
        decode_image(encoded(image, "PNG", transparency=image.getpixel((0, 0))), "a.png")


def test_only_the_first_page_is_read_aloud(caplog):
    remarks = Remarks()
    pages = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(decode_photo(data, "a.tif", remarks=remarks).pixels, PIXELS)
    remarks.report()
    assert "a.tif: holds several pages, of which the first alone is read" in caplog.text


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("WEBP", {"lossless": False}), ("WEBP", {"lossless": False, "exif": exif(QUARTER)}),
     ("TIFF", {"compression": "jpeg"})],
)  # fmt: skip
def test_a_format_that_changes_pixels_is_no_mask_whatever_its_name(kind, options):
    data = encoded(np.zeros((6, 9), np.uint8), kind, **options)
    with pytest.raises(DataError, match=r"a\.png: .* changes the values of a mask.*; export the mask as PNG"):
        decode_mask(data, "a.png", (6, 9), MaskRule(2))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("WEBP", {"lossless": True}), ("WEBP", {"lossless": True, "exif": exif()}), ("TIFF", {"compression": "tiff_lzw"}),
     ("BMP", {}), ("GIF", {}), ("PNG", {})],
)  # fmt: skip
def test_a_format_without_loss_is_a_mask_whatever_its_name(kind, options):
    mask = np.arange(54, dtype=np.uint8).reshape(6, 9) % 3
    data = encoded(mask, kind, **options)
    np.testing.assert_array_equal(decode_mask(data, "a.jpg", (6, 9), MaskRule(3)), mask)
