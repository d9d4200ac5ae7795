"""What is never uploaded as code, what always is, and which patterns of `exclude:` can name files of a project."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deploy.errors import WrongUse

# Output of runs is never code, whatever the ignore file of a fresh repository lists.
NEVER_CODE = ("runs", "data", ".sniperface", ".venv")
# The job imports or reads these on the machine.
NEEDED_FOLDERS = ("app/", "conf/", "deploy/", "requirements/")
NEEDED_FILES = ("constraints.txt", "pyproject.toml", "tasks.py")
NOT_NEEDED = ("conf/deploy/",)  # targets; only the laptop reads them
DRIVE = re.compile(r"!?[A-Za-z]:[\\/]")
WINDOWS_PATH = re.compile(r"\\[A-Za-z0-9_.]")  # git's escapes, such as \# or "\ ", have no letter after the backslash
FORMAT = "give patterns as in .gitignore, relative to the project, such as exclude: [docs/, '*.ipynb']"


def refuse_patterns(project: Path, patterns: Sequence[str]) -> None:
    """Raise WrongUse for the first pattern that cannot mean files of the project."""
    for pattern in patterns:
        reason = why_wrong(pattern)
        if reason is None and _is_path_of_the_computer(project, pattern):
            reason = "is a path outside of the project"
        if reason:
            raise WrongUse(f"exclude in the target's file: {pattern!r} {reason}: {FORMAT}")


def why_wrong(pattern: str) -> str | None:
    """Return why a pattern can match no file of any project; None if it can."""
    body = pattern.removeprefix("!")
    if not pattern.isprintable():
        return "holds a character that cannot be printed"
    if not body.strip("/"):
        return "names no file"
    if pattern.startswith("#"):
        return "is a comment"
    if body.startswith("~"):
        return "is a path of your home folder"
    if DRIVE.match(pattern):
        return "is a path of this computer"
    if WINDOWS_PATH.search(body):
        return "has \\ between folders where / is needed"
    parts = body.split("/")
    if ".." in parts:
        return "leads out of the project"
    return "begins with ./, which git matches with no file" if parts[0] == "." else None


def is_needed(name: str) -> bool:
    """Whether the job needs a file of the project; `name` has / between folders."""
    if name.startswith(NOT_NEEDED) or PurePosixPath(name).suffix == ".md":
        return False
    return name in NEEDED_FILES or name.startswith(NEEDED_FOLDERS)


def _is_path_of_the_computer(project: Path, pattern: str) -> bool:
    """Whether /NAME is a folder of the computer but none of the project. /docs/ is the project's docs, as in git."""
    if not pattern.startswith("/"):
        return False
    first = pattern.split("/")[1]
    return os.path.lexists(f"/{first}") and not os.path.lexists(project / first)
