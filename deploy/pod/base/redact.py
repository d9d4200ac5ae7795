"""Read a run's secrets, and mask them in everything written about the run."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MASK = "[secret]"
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
SHORTEST = 6  # characters; masking shorter values would mask half of every text


def take(path: Path) -> dict[str, str]:
    """Read a secrets file and delete it, so that the secrets exist only in memory. Returns {} if it is unreadable."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        values = {}
    with contextlib.suppress(OSError):
        os.unlink(path)
    return {str(name): str(value) for name, value in values.items()} if isinstance(values, dict) else {}


def of_environment(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables whose names match SECRET_NAME."""
    return [value for name, value in environment.items() if SECRET_NAME.search(name)]


def pieces(values: Iterable[str]) -> list[str]:
    """Return the strings to mask, longest first: each value, and each line of a multi-line value."""
    found = {piece for value in values for piece in (value, *value.splitlines())}
    return sorted((piece for piece in found if len(piece.strip()) >= SHORTEST), key=len, reverse=True)


class Redactor:
    """Mask secrets in a string, or in the strings of a mapping, list or tuple."""

    def __init__(self, values: Iterable[str]) -> None:
        found = pieces(values)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None

    def __call__(self, value: Any) -> Any:
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self._pattern.sub(MASK, value)
        if isinstance(value, Mapping):
            return {key: self(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(each) for each in value]
        return value
