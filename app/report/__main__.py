"""Make the report of a run: python -m app.report RUNDIR

Writes report.html into the folder of a run, from the files in it, and prints its path. Training does the same when it
ends, is stopped or fails. The page needs no server and no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

from app.errors import EXIT_WRONG_USE, WrongUse
from app.files import write_text
from app.output import say
from app.report.facts import read
from app.report.page import render
from app.runtime.folder import RunFolder


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & {*argv}:
        print(__doc__)
        return 0
    try:
        if len(argv) != 1:
            raise WrongUse("give one folder of a run, such as runs/RUN; --help shows how")
        say(str(make(RunFolder(Path(argv[0])))))
    except WrongUse as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    return 0


def make(folder: RunFolder) -> Path:
    """Write the report of a run and return its path. Raises WrongUse for a folder of something else."""
    if not folder.path.is_dir():
        raise WrongUse(f"there is no folder {folder.path}; give the folder of a run, such as runs/RUN")
    write_text(folder.report, render(read(folder), folder))
    return folder.report


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
