"""Write paths for people."""

from __future__ import annotations

from pathlib import Path, PurePath


def near(path: str | PurePath) -> str:
    """A path for messages: relative to the current folder if it is below that, as README writes paths."""
    try:
        return Path(path).relative_to(Path.cwd()).as_posix()
    except (OSError, ValueError):  # elsewhere, or the current folder is gone
        return str(path)
