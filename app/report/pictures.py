"""Pictures of a report: contact sheets made smaller, and checked JPEGs of pairs."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from pathlib import Path
from typing import Any

SHEET_BYTES = 16 << 20  # of a file that is read
SHEET_PIXELS = 2000  # longest side in the report
JPEG_QUALITY = 72
PAIR_BYTES = 64 << 10
SHEET = re.compile(r"epoch_(\d{1,6})\.png")


def sheets(folder: Path) -> list[dict[str, Any]]:
    """The first and the newest contact sheet of a run, each with the number of epochs trained before it."""
    try:
        found = sorted((int(name[1]), path) for path in folder.iterdir() if (name := SHEET.fullmatch(path.name)))
    except OSError:
        return []
    chosen = dict([found[0], found[-1]]) if found else {}
    made = [{"epoch": epoch, "jpeg": _smaller(path)} for epoch, path in chosen.items()]
    return [each for each in made if each["jpeg"]]


def _smaller(path: Path) -> str:
    """A picture as JPEG in base64; '' if it cannot be read."""
    from PIL import Image

    file = io.BytesIO()
    try:
        if path.stat().st_size > SHEET_BYTES:
            return ""
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                small = picture.convert("RGB")
        small.thumbnail((SHEET_PIXELS, SHEET_PIXELS))
        small.save(file, "JPEG", quality=JPEG_QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return ""
    return base64.b64encode(file.getvalue()).decode("ascii")


def jpeg(value: object) -> str:
    """Check a JPEG in base64; '' for anything else."""
    if not isinstance(value, str) or len(value) > PAIR_BYTES:
        return ""
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return value if data.startswith(b"\xff\xd8\xff") else ""
