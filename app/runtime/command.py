"""Shared main function of the commands mine, evaluate and export: help, exit codes, printing the result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from app.config import manual
from app.errors import EXIT_FAILED, EXIT_WRONG_USE, Failed, WrongUse, framed
from app.output import say


def answer(argv: list[str], usage: str, work: Callable[[], tuple[str, int]]) -> int:
    """Run `work` and print its text, or print the help if argv asks for it; returns the exit code.

    `work` returns a text and an exit code. WrongUse gives exit code 2 and Failed 1; their sentence goes to stderr.
    """
    is_first = os.environ.get("RANK", "0") == "0"  # all processes end alike; one prints, whether or not in a group
    try:
        told, exit_code = (manual(usage), 0) if {"--help", "-h"} & {*argv} else work()
    except (WrongUse, Failed) as error:
        if is_first:
            print(framed(str(error)), file=sys.stderr)
        return EXIT_WRONG_USE if isinstance(error, WrongUse) else EXIT_FAILED
    if is_first:
        say(told)
    return exit_code
