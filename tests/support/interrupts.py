"""An exception at each line of a function, one after the other, as Ctrl-C may come at any of them."""

from __future__ import annotations

import inspect
import itertools
import linecache
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def at_each_line(
    functions: tuple[Callable[..., Any], ...],
    is_time: Callable[[], bool],
    act: Callable[[], object],
    raised: type[BaseException] = KeyboardInterrupt,
) -> Iterator[int]:
    """Call `act` again and again; the n-th line of these functions that runs while `is_time` raises.

    Yields n after each such call, and ends with the call that had no such line.
    """
    codes = {inspect.unwrap(each).__code__ for each in functions}
    for number in itertools.count():
        passed = itertools.count()

        def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
            if frame.f_code not in codes:
                return None
            # Python hears no signal at a `try:`, which does nothing.
            does_nothing = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == "try:"
            if event in ("call", "line") and not does_nothing and is_time() and next(passed) == number:  # noqa: B023
                raise raised
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            act()
        except raised:
            pass
        else:
            return
        finally:
            sys.settrace(before)
        yield number
