"""The command `sniperface`: find the project around the current folder, and run its command line.

Only this file is installed. The code, and the snapshot of it that a machine gets, stay in the project's git checkout,
which sets up its own virtual environment. Standard library only.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

MARKS = ("bootstrap.py", "tasks.py", "deploy", "conf")  # what the project's folder contains


def project_of(folder: Path) -> Path | None:
    """Return the project that contains the folder, or None."""
    return next((each for each in (folder, *folder.parents) if all((each / mark).exists() for mark in MARKS)), None)


def main() -> int:
    here = Path.cwd()
    project = project_of(here)
    if project is None:
        print(f"error: {here} is not in a Sniperface project: change to a clone of its repository", file=sys.stderr)
        return 2
    os.environ["SNIPERFACE_STARTED_IN"] = str(here)
    return int(runpy.run_path(str(project / "bootstrap.py"))["main"](["sniperface", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
