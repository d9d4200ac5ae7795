"""The tmux commands of a run: its session's name, and how it is started, found and shown. Pure, no I/O."""

from __future__ import annotations

import re
from pathlib import PurePath

TO_START_PYTHON = "PATH LD_LIBRARY_PATH"


def session_name(run_id: str) -> str:
    """The tmux name of a run, without dots and colons: tmux takes them for separators."""
    return re.sub(r"[.:]", "_", run_id)


def start_argv(socket: str, run_id: str, argv: list[str], cwd: PurePath) -> list[str]:
    """The command that starts a session on a private tmux server, without the user's tmux settings.

    The session gets the server's environment, and from this command only what starts Python. The supervisor takes the
    rest from a private file: tmux drops large values, and a command line would show them.
    """
    settings = ["set-option", "-g", "update-environment", TO_START_PYTHON]
    settings += [";", "set-option", "-g", "history-limit", "50000"]
    session = ["new-session", "-d", "-s", session_name(run_id), "-x", "160", "-y", "50", "-c", str(cwd), "--", *argv]
    return ["tmux", "-L", socket, "-f", "/dev/null", "start-server", ";", *settings, ";", *session]


def exists_argv(socket: str, run_id: str) -> list[str]:
    """The command that succeeds while the run has a session."""
    return ["tmux", "-L", socket, "has-session", "-t", f"={session_name(run_id)}"]


def attach_argv(socket: str, run_id: str, *, write: bool) -> list[str]:
    """The command that shows the run's session, read-only unless `write`.

    With -u: a login by SSH often has no locale, and tmux would replace all letters beyond ASCII.
    """
    read_only = [] if write else ["-r"]
    return ["tmux", "-u", "-L", socket, "attach-session", *read_only, "-t", f"={session_name(run_id)}"]
