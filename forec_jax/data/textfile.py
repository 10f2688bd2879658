"""Text files as people and their programs write them."""

import codecs
from pathlib import Path

from forec_jax.data.source import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(file: Path) -> str:
    r"""The text of a file in UTF-8, or in what its byte order mark says; every line ends in "\n".

    Raises OSError where it cannot be read, and DataError, naming the file and the line, for another encoding.
    """
    data = file.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line, name = data[: error.start].count(b"\n") + 1, encoding.removesuffix("-sig").upper()
        raise DataError(
            f"{file}, line {line}: the byte {data[error.start]:#04x} is no {name}; "
            "save the file as UTF-8 (in an editor: Save as, Encoding)"
        ) from error
    if "\0" in text:
        raise DataError(f"{file}: holds zero bytes, so it is no text in UTF-8; save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
