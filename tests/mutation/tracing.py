"""Notes which lines of the mutated folders a process runs, and for which test: a file of the run names it.

Imported by every Python process that a test starts, before anything else: standard library only. A command that a test
runs in a copy of the project counts as well; a process that is killed does not.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from types import FrameType
from typing import Any

LINES: set[tuple[str, int]] = set()


def start() -> None:
    """Trace this process. A forked process begins anew."""
    LINES.clear()
    folders = tuple(f"/{folder}/" for folder in os.environ["MUTATION_FOLDERS"].split(","))
    names: dict[str, str | None] = {}

    def name_of(path: str) -> str | None:
        found = next((path.rfind(folder) for folder in folders if folder in path), -1)
        return path[found + 1 :] if found >= 0 else None

    def in_frame(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            LINES.add((str(names[frame.f_code.co_filename]), frame.f_lineno))
        return in_frame

    def at_call(frame: FrameType, *_: Any) -> Any:
        path = frame.f_code.co_filename
        if path not in names:
            names[path] = name_of(path)
        return in_frame if names[path] else None

    sys.settrace(at_call)
    threading.settrace(at_call)
    if "MUTATION_MAIN" not in os.environ or os.getpid() != int(os.environ["MUTATION_MAIN"]):
        atexit.register(write)
        end = os._exit

        def leave(code: int) -> None:
            write()
            end(code)

        os._exit = leave  # type: ignore[assignment]


def write() -> None:
    """Write what this process ran, to a file of its own."""
    if LINES:
        folder = os.environ["MUTATION_TRACE"]
        with open(os.path.join(folder, "test"), encoding="utf-8") as file:
            test = file.read()
        name = os.path.join(folder, f"{os.getpid()}-{threading.get_ident()}-{len(os.listdir(folder))}.json")
        with open(name, "w", encoding="utf-8") as out:
            json.dump({"test": test, "lines": sorted(LINES)}, out)
        LINES.clear()
