"""What masks mean, whatever tool wrote them, and the advice where they mean nothing."""

import numpy as np
import pytest
from PIL import Image

from forec_jax.contracts import IGNORE
from forec_jax.data import DataError
from forec_jax.data.remarks import Remarks
from forec_jax.data.rules import ColourRule, MaskRule

INDEX = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)


def image(pixels):
    return Image.fromarray(np.asarray(pixels))


def with_alpha(grey, alpha):
    return image(np.dstack([grey, grey, grey, np.broadcast_to(np.uint8(alpha), grey.shape)]))


@pytest.mark.parametrize(
    "mask",
    [
        image(INDEX),
        image(np.repeat(INDEX[..., None], 3, -1)),
        with_alpha(INDEX, 255),
        image(np.dstack([INDEX, np.full_like(INDEX, 255)])),
        image(INDEX.astype(np.uint16)),
        image(INDEX.astype(np.int32)),
    ],
    ids=lambda mask: mask.mode,
)
def test_indices_are_read_in_every_mode_that_holds_grey(mask):
    np.testing.assert_array_equal(MaskRule(3).label(mask, "m.png"), INDEX)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (image(np.dstack([INDEX, INDEX, INDEX[::-1]])), "the mask's mode is RGB; save class indices"),
        (with_alpha(INDEX, 254), "the mask's mode is RGBA"),
        (image(INDEX.astype(np.uint16) + 256), r"the mask holds \[256, 257, 258\]"),
        (image(INDEX.astype(np.int32) - 1), r"the mask holds \[-1\]"),
    ],
    ids=["colours", "transparent", "wide", "negative"],
)
def test_what_is_no_index_is_refused(mask, message):
    with pytest.raises(DataError, match=rf"m\.png: {message}"):
        MaskRule(3).label(mask, "m.png")


@pytest.mark.parametrize(
    ("rule", "values", "advice"),
    [
        (MaskRule(3, ()), (0, 2, 255), "If 255 means no class, write `void = 255` into classes.toml"),
        (MaskRule(3, ()), (1, 2, 3), "If the classes count from 1, write `first = 1` into classes.toml"),
        (MaskRule(3, ()), (0, 1, 3), "If the classes count from 1, write `first = 1` and `void = 0` into classes.toml"),
        (MaskRule(3, ()), (1, 3, 255), "If the classes count from 1, write `first = 1` and `void = 255` into"),
        (MaskRule(3, ()), (0, 3, 255), r"write `first = 1` and `void = \[0, 255\]` into"),
        (MaskRule(3, (0,), (1, 2, 3)), (0, 1, 255), r"If 255 means no class, write `void = \[0, 255\]` into"),
        (MaskRule(3, ()), (0, 1, 7), "Convert the mask, or complete `names` in classes.toml"),
        (
            MaskRule(2, ()),
            (0, 255),
            r"write `colours = \[\[0, 0, 0\], \[255, 255, 255\]\]` into classes.toml; where .*`void",
        ),
        (MaskRule(2, ()), (0, 1, 255), "If 255 means no class, write `void = 255` into classes.toml"),
    ],
)
def test_the_lines_that_a_class_file_lacks(rule, values, advice):
    named = MaskRule(rule.num_classes, rule.void, rule.values, class_file="classes.toml")
    with pytest.raises(DataError, match=advice):
        named.label(image(np.array([values], np.uint8)), "m.png")


def test_the_advice_is_right():
    """With the lines that it names, the mask is read."""
    rule = MaskRule(3, void=(0, 255), values=(1, 2, 3))
    assert rule.label(image(np.array([[0, 1, 3, 255]], np.uint8)), "m.png").tolist() == [[IGNORE, 0, 2, IGNORE]]


RED, GREEN = (255, 0, 0), (0, 255, 0)


def drawing(alpha):
    """A red pixel, and one that is red too and of so much alpha."""
    return image(np.array([[(*RED, 255), (*RED, alpha)]], np.uint8))


def test_transparent_is_background_aloud(caplog):
    """An eraser leaves the colour behind."""
    remarks = Remarks()
    assert ColourRule((RED, GREEN), transparent=1).label(drawing(0), "m.png", remarks).tolist() == [[0, 1]]
    remarks.report()
    assert "m.png: transparent pixels are read as background" in caplog.text
    assert ColourRule((RED, GREEN), transparent=1).label(drawing(255), "m.png").tolist() == [[0, 0]]


def test_transparency_that_means_no_class_is_refused():
    with pytest.raises(DataError, match=r'm\.png: has transparent pixels; say in the class file .*background = "NAME"'):
        ColourRule((RED, GREEN)).label(drawing(0), "m.png")
    with pytest.raises(
        DataError, match=r"m\.png: the pixel at x=1, y=0 is half transparent; export the mask without smoo"
    ):
        ColourRule((RED, GREEN), transparent=1).label(drawing(9), "m.png")
    with pytest.raises(DataError, match=r"m\.png: the mask's values have 16 bits"):
        ColourRule((RED, GREEN)).label(image(INDEX.astype(np.uint16)), "m.png")
