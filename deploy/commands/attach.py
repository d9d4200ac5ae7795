"""Connect this terminal to the live tmux session of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.errors import StepFailed, WrongUse, command
from deploy.runs import job, session
from deploy.shell import LocalShell


def attach(project: Path, target: str, run_id: str | None, *, write: bool) -> int:
    """Connect this terminal to the live session until the user leaves it. Returns tmux's exit code.

    Raises StepFailed for a run without tmux, WrongUse without a terminal.
    """
    with session.run(project, target, run_id) as reached:
        run_id, instead = reached.record.run_id, command(f"logs --follow --run {reached.record.run_id}")
        if reached.record.session == "detached":
            raise StepFailed(
                f"run {run_id} has no terminal, because tmux was missing or did not start on its machine: before the "
                "next run, install tmux (apt-get install tmux, or brew install tmux; not on Windows), or see what "
                "`tmux new` says there",
                next_command=instead,
            )
        argv = job.attach_argv(reached.shell, reached.settings.tmux_socket, reached.folder, write=write)
        if not sys.stdin.isatty():
            raise WrongUse("attach needs a terminal", next_command=instead)
        return LocalShell().foreground(reached.shell.terminal(argv), cwd=project, without=("TMUX",))
