"""What the commands share that do one thing and then tell it in a few lines: mine, evaluate, export."""

from __future__ import annotations

import sys
from collections.abc import Callable

from app.config import manual
from app.errors import EXIT_FAILED, EXIT_WRONG_USE, Failed, WrongUse
from app.runtime.dist import is_first


def answer(argv: list[str], usage: str, work: Callable[[], tuple[str, int]]) -> int:
    """Do the work and print what it tells, or the help where argv asks for it; returns the exit code.

    The work gives what to tell and an exit code. Of what it raises, WrongUse is 2 and Failed is 1; their sentence goes
    to stderr.
    """
    where = sys.stdout
    try:
        told, exit_code = (manual(usage), 0) if {"--help", "-h"} & {*argv} else work()
    except WrongUse as error:
        told, exit_code, where = str(error), EXIT_WRONG_USE, sys.stderr
    except Failed as error:
        told, exit_code, where = str(error), EXIT_FAILED, sys.stderr
    if is_first():  # every process comes to the same end; one tells it
        print(told, file=where)
    return exit_code
