"""Text in the encodings and with the line ends that editors write."""

import codecs

import pytest

from forec_jax.data import DataError
from forec_jax.data.textfile import read_text


@pytest.mark.parametrize(
    "content",
    [
        b"a\xc3\xa9\nb\n",
        codecs.BOM_UTF8 + b"a\xc3\xa9\r\nb\r\n",
        b"a\xc3\xa9\rb\r",
        codecs.BOM_UTF16_LE + "a\u00e9\r\nb\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "a\u00e9\nb\n".encode("utf-16-be"),
        codecs.BOM_UTF32_LE + "a\u00e9\nb\n".encode("utf-32-le"),
    ],
)
def test_marks_and_line_ends_are_no_part_of_the_text(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == "a\u00e9\nb\n"


def test_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\ntwo\nthr\u00e9e\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt, line 3: the byte 0xe9 is no UTF-8; save the file as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_utf_16_without_a_mark_is_told(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"a\.txt: holds zero bytes, so it is no text in UTF-8"):
        read_text(tmp_path / "a.txt")
