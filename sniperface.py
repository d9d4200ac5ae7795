"""The command `sniperface`: find the project, and run its command line.

The project is the clone around the current folder, else the clone that this script was installed from.

Only this file is installed. The code, and the snapshot of it that a machine gets, stay in the project's git checkout,
which sets up its own virtual environment. Standard library only.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

MARKS = ("bootstrap.py", "tasks.py", "deploy", "conf")  # what the project's folder contains


def project_of(folder: Path) -> Path | None:
    """Return the project that contains the folder, or None."""
    return next((each for each in (folder, *folder.parents) if all((each / mark).exists() for mark in MARKS)), None)


def installed_from() -> Path | None:
    """Return the folder that pip, pipx or uv installed this script from, as they record it; None if unknown."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        recorded = json.loads(distribution("sniperface").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return None
    address = urlsplit(str(recorded.get("url", "")) if isinstance(recorded, dict) else "")
    host = f"//{address.netloc}" if address.netloc else ""  # of a network drive
    return Path(url2pathname(host + address.path)) if address.scheme == "file" else None


def main() -> int:
    here = Path.cwd()
    origin = installed_from()
    project = project_of(here) or (project_of(origin) if origin else None)
    if project is None:
        moved = f", and {origin}, which sniperface was installed from, is none any more" if origin else ""
        print(
            f"error: {here} is not in a Sniperface project{moved}: change to a clone of its repository", file=sys.stderr
        )
        return 2
    os.environ["SNIPERFACE_STARTED_IN"] = str(here)
    return int(runpy.run_path(str(project / "bootstrap.py"))["main"](["sniperface", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
