"""Print what a command tells, also if nobody reads it any more."""

from __future__ import annotations

import errno
import os
import sys


def say(text: str, *, end: str = "\n") -> None:
    """Print `text` at once. Where the reader is gone, as after `| head`, the work goes on without output.

    Letters that the encoding of the output lacks are escaped. On Windows, a file or a pipe has that of the country.
    """
    encoding = sys.stdout.encoding or "ascii"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)
    except OSError as error:
        is_gone = isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL)
        if not is_gone:  # Windows calls a pipe without a reader an invalid argument
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at its end


def plural(count: int, one: str, more: str = "") -> str:
    """Return `1 image`, `2 images`; `more` for a noun that does not just add an s."""
    return f"{count} {one if count == 1 else more or one + 's'}"
