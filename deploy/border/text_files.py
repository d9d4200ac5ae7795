"""Read text files of users in the encodings that their editors and shells write."""

from __future__ import annotations

import codecs
from pathlib import Path

SAVE_AS = "save it as UTF-8 (PowerShell: Get-Content FILE | Set-Content -Encoding utf8 NEW)"
MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # `>` in Windows PowerShell writes one at the start of a file


class NotText(ValueError):
    """The file is not readable text. The message gives the reason and a fix."""


def read_text(path: Path) -> str:
    """Read a file in UTF-8 or, with a byte order mark, UTF-16. Drops the mark.

    Raises NotText for any other encoding, OSError when the file cannot be read.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(f"it is neither UTF-8 nor UTF-16 with a byte order mark: {SAVE_AS}") from error
    if "\0" in text:
        raise NotText(f"it contains NUL bytes, as UTF-16 without a byte order mark does: {SAVE_AS}")
    return text
