"""Run one command on a run's machine, in its checkout, with its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from deploy.commands.enter import door_of_target
from deploy.errors import StepFailed, WrongUse
from deploy.runs import session
from deploy.runs.situation import Situation
from deploy.shell import LocalShell, Shell
from deploy.ui.screen import Screen
from deploy.workspace.environment import settle

NOT_FOUND = 127  # as shells say it
OF_THE_JOB = "SNIPERFACE_"  # variables that only the supervised job understands
# Enter the folder, put the environment's programs first, then become `env`, which sets the variables.
IN_PLACE = 'cd -- "$1" && PATH="$2:$PATH" && export PATH && shift 2 && exec env "$@"'


def execute(project: Path, target: str, run_id: str | None, words: Sequence[str], screen: Screen) -> int:
    """Run the words after `--` where the run is, or on the target's machine if it has no run. Returns the exit code.

    Output, input and exit code are those of the command. Raises WrongUse without a command.
    Raises StepFailed if the run's machine is gone.
    """
    if not words or not words[0].strip():
        raise WrongUse("exec needs a command after --, such as exec -- nvidia-smi")
    situation = Situation(project)
    if run_id is None and not situation.of(target):
        with session.target(project, target, situation) as at:
            if at.settings.is_local:
                return _here(words, project, PurePath(sys.executable), {}, screen)
            door = door_of_target(at)
            return _there(door.shell, words, door.folder, settle(door.machine, door.shell, project).python, {}, project)
    with session.run(project, target, run_id, situation=situation) as reached:
        plan = reached.read_plan()
        machine = reached.need_machine()
        own = {name: value for name, value in plan["env"].items() if not name.startswith(OF_THE_JOB)}
        folder, python = machine.path(plan["cwd"]), plan["argv"][0]
        if machine.is_here:
            return _here(words, Path(folder), PurePath(python), own, screen)
        return _there(reached.shell, words, folder, python, own, project)


def _here(words: Sequence[str], folder: Path, python: PurePath, env: Mapping[str, str], screen: Screen) -> int:
    if not folder.is_dir():
        raise StepFailed(f"the checkout of the run is gone: {folder}")
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    try:
        code = LocalShell().foreground(words, cwd=folder, env={**env, "PATH": path})
    except FileNotFoundError:
        screen.complain(f"{words[0]}: there is no such program on this computer")
        return NOT_FOUND
    return code if code >= 0 else 128 - code  # ended by a signal


def _there(
    shell: Shell, words: Sequence[str], folder: PurePath, python: str, env: Mapping[str, str], project: Path
) -> int:
    programs = str(type(folder)(python).parent)  # of the machine's path type: a Windows laptop must keep its slashes
    variables = [f"{name}={value}" for name, value in env.items()]
    argv = ["sh", "-c", IN_PLACE, "sh", str(folder), programs, *variables, *words]
    is_watched = sys.stdin.isatty() and sys.stdout.isatty()
    return LocalShell().foreground(shell.terminal(argv, interactive=is_watched), cwd=project)
