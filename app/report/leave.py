"""Make a run's report in a process of its own, so that no fault of it can end or delay the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from app.runtime.folder import RunFolder

LIMIT_S = 120.0
LIMIT_AFTER_STOP_S = 20.0  # the launcher kills what has not ended a minute after its request to stop
CODE = Path(__file__).parents[2]


def leave(folder: RunFolder, *, limit_s: float = LIMIT_S) -> str:
    """Make the report of a run and return a line that says where it is, or why there is none. Raises nothing."""
    argv = [sys.executable, "-m", "app.report", str(folder.path.absolute())]
    try:
        done = subprocess.run(
            argv,
            cwd=CODE,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s,
            check=False,
            start_new_session=True,  # torchrun ends the process groups of its ranks as soon as one rank fails
        )
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        return f"no report: it was not ready after {limit_s:.0f} s; make it: python -m app.report {folder.path}"
    except (OSError, ValueError) as error:
        return f"no report: {error}"
    if done.returncode:
        return f"no report: {why[0] if why else f'it ended with {done.returncode}'}"
    return f"report: {folder.report}"
