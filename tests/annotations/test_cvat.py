"""files/cvat.xml has the form that CVAT's documentation gives for "CVAT for images 1.1"."""

import pytest
from annotated import FILES, labels, photo

from forec_jax.annotations.cvat import read_cvat
from forec_jax.annotations.photos import Photos
from forec_jax.data import DataError
from forec_jax.data.remarks import Remarks


@pytest.fixture
def read(tmp_path):
    photo(tmp_path / "images" / "a.png", 6, 8)
    photo(tmp_path / "images" / "b.png", 6, 8)

    def read(*changes, **options):
        text = (FILES / "cvat.xml").read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "annotations.xml").write_text(text)
        return labels("cvat", tmp_path / "annotations.xml", tmp_path / "images", **options)

    return read


BELOW = ["........", ".cccc...", ".ccccdd.", ".ccccdd.", "...dddd.", "........"]


def test_shapes_lie_in_the_order_of_their_layers(read, caplog):
    """The box comes later and lies below; of the mask's box the first pixel is outside, two inside, one out, one in."""
    remarks = Remarks()
    found = read(remarks=remarks)
    assert found == {"a.png": ["....dd.d", *BELOW[1:]], "b.png": ["........"] * 6}
    remarks.report()
    assert "a.png: an object is a points, which has no area; it is left out" in caplog.text
    assert read(('z_order="1"', 'z_order="0"'))["a.png"][2:4] == [".ccdddd."] * 2


def test_a_mask_goes_along_rows(read):
    mask = (
        'rle="1, 2, 1, 1" left="3" top="0" width="5" height="1"',
        'rle="1, 3" left="0" top="0" width="2" height="2"',
    )
    assert read(mask)["a.png"][:2] == [".d......", "ddccc..."]


def test_a_box_may_be_turned_and_an_ellipse_drawn(read):
    """A box of 4 x 2 that is turned by 90 degrees is one of 2 x 4 about the same centre. The ellipse
    is 2 * sqrt(1 - 1 / 1.7**2) = 1.6 wide where y is 1 from its centre: its pixels' centres are 1.5 from there."""
    box = (
        'xtl="3.00" ytl="2.00" xbr="7.00" ybr="5.00"',
        'xtl="2.00" ytl="2.00" xbr="6.00" ybr="4.00" rotation="90.00"',
    )
    assert read(box, ('z_order="0"', 'z_order="3"'))["a.png"][1:5] == [".ccdd...", ".ccdd...", ".ccdd...", "...dd..."]
    ellipse = ('<box label="dog"', '<ellipse label="dog" cx="5" cy="3.5" rx="2" ry="1.7"'), ("</box>", "</ellipse>")
    assert read(*ellipse, ('z_order="1"', 'z_order="-1"'))["a.png"][2:5] == [".ccdddd.", ".ccdddd.", "...dddd."]


def test_classes_are_those_of_the_file(read, tmp_path):
    read()
    assert read_cvat(tmp_path, Photos(tmp_path / "images"), Remarks()).classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"annotations\.xml: the labels dog are used and not listed"):
        read(("<name>dog</name>", "<name>frog</name>"))


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>\n<annotations>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>\n<annotations>'


@pytest.mark.parametrize("start", [BOMB, OUTSIDE, '<!DOCTYPE a SYSTEM "http://example.org/a.dtd">\n<annotations>'])
def test_entities_are_not_read(read, start):
    with pytest.raises(DataError, match=r"annotations\.xml: has a document type or entities"):
        read(("<annotations>", start), ("<name>cat</name>", "<name>&b;</name>"))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("</annotations>", "", "is no XML"),
        ("<annotations>", '<annotations><track id="0"/>', 'is "CVAT for video"'),
        ('encoding="utf-8"', 'encoding="nothing"', "is no XML"),
        ('width="8"', 'width="-8"', "has no name, or no size"),
        ('width="8"', 'width="1e99"', "width='1e99' of <image> is no number of pixels"),
        ('xtl="3.00"', 'xtl="nan"', "xtl='nan' of <box> is no number"),
        ("1.00,1.00;", "1.00;", "a polygon's points are"),
        ("1.00,1.00;", "inf,1.00;", "a polygon's points are"),
        ('rle="1, 2, 1, 1"', 'rle="1, 2, 1"', "run lengths do not add up to 5x1"),
        ('rle="1, 2, 1, 1"', 'rle=""', "a mask's rle is no list"),
        (
            'left="3" top="0" width="5" height="1"',
            'left="3" top="0" width="50000" height="50000"',
            "a mask's box is 50000x50000",
        ),
        ('<box label="dog"', '<box label=""', "a box has no label"),
    ],
)
def test_what_is_wrong_is_named(read, before, after, says):
    with pytest.raises(DataError, match=rf"annotations\.xml: .*{says}"):
        read((before, after))
