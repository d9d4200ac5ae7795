"""Shared main function of the commands mine, evaluate and export: help, exit codes, printing the result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from app.config import manual
from app.errors import EXIT_FAILED, EXIT_WRONG_USE, Failed, WrongUse, framed


def answer(argv: list[str], usage: str, work: Callable[[], tuple[str, int]]) -> int:
    """Run `work` and print its text, or print the help if argv asks for it; returns the exit code.

    `work` returns a text and an exit code. WrongUse gives exit code 2 and Failed 1; their sentence goes to stderr.
    """
    where = sys.stdout
    try:
        told, exit_code = (manual(usage), 0) if {"--help", "-h"} & {*argv} else work()
    except WrongUse as error:
        told, exit_code, where = framed(str(error)), EXIT_WRONG_USE, sys.stderr
    except Failed as error:
        told, exit_code, where = framed(str(error)), EXIT_FAILED, sys.stderr
    if os.environ.get("RANK", "0") == "0":  # all processes end alike; one prints, whether or not it is in a group
        print(told, file=where)
    return exit_code
