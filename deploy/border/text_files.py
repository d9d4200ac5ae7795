"""Text files of users, as the editors and shells of their systems write them."""

from __future__ import annotations

import codecs
from pathlib import Path

SAVE_AS = "save it as UTF-8 (PowerShell: Get-Content FILE | Set-Content -Encoding utf8 NEW)"
MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as `>` of Windows PowerShell begins a file


class NotText(ValueError):
    """The file is no text that can be read; says why, and what to do."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or, with a byte order mark, UTF-16; the mark is left out.

    Raises: NotText for any other encoding, OSError.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(f"it is neither UTF-8 nor UTF-16 with a byte order mark: {SAVE_AS}") from error
    if "\0" in text:
        raise NotText(f"it has zero bytes, as UTF-16 without a byte order mark has: {SAVE_AS}")
    return text
