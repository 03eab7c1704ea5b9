"""Reads text files as editors of any system write them; knows nothing of what the text says."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from visual_ar.regular_file import check_regular

MOST_BYTES = 64 * 2**20
_MARKS = (  # those of UTF-32 begin with those of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PADDING = "\0\x1a"  # what stands behind the last line of files of old systems
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f]")  # no text, all but tabs, line and page ends


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Byte order marks are left out, and every line ends in a newline alone, whatever the file has.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the system does not let it be read.
        ValueError: it is no file, larger than `MOST_BYTES`, or holds something else than text.
    """
    check_regular(path, str(path), pipes=True)
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} must be text of at most {MOST_BYTES:,} bytes, got more")
    mark, coding = next((one for one in _MARKS if content.startswith(one[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(coding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(coding, "replace")
        found = f"the byte 0x{error.object[error.start]:02x}"
        raise ValueError(_refusal(path, before, found, coding)) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip(_PADDING)
    strange = _CONTROLS.search(text)
    if strange is not None:
        found = f"the character U+{ord(strange[0]):04X}"
        raise ValueError(_refusal(path, text[: strange.start()], found, coding))
    # One may stand within, where files were joined.
    return text.replace("\n\ufeff", "\n").removeprefix("\ufeff")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without the space around them.

    Raises:
        FileNotFoundError, OSError, ValueError: as `read_text`.
    """
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _refusal(path: Path, before: str, found: str, coding: str) -> str:
    line = before.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
    return f"{path} must be text in {coding.upper()}, got {found} in line {line}"
