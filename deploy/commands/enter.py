"""Open a shell on a run's machine, or write an entry in ~/.ssh/config for other programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from deploy.errors import StepFailed, WrongUse, command
from deploy.runs import session
from deploy.runs.session import Reach
from deploy.runs.situation import Situation
from deploy.shell import LocalShell, Shell
from deploy.shell.entry import install
from deploy.shell.ssh import SshShell
from deploy.specs.machine import Machine
from deploy.ui.screen import Screen

# Start a login shell in a folder, or in the home folder if that is gone. No other interpreter parses these words.
LOGIN = 'cd -- "$1" 2>/dev/null; exec "${SHELL:-/bin/sh}" -l'


@dataclass(frozen=True)
class Door:
    """A running machine and the folder to enter. `name` is the run's or, without a run, the target's."""

    name: str
    shell: Shell
    folder: PurePath
    machine: Machine


def ssh(project: Path, target: str, run_id: str | None) -> int:
    """Open a shell on the machine in this terminal; returns its exit code. Raises WrongUse without a terminal."""
    with _door(project, target, run_id) as door:
        if not sys.stdin.isatty():
            entry = command("ssh-config" + (f" --run {run_id}" if run_id else f" --on {target}"))
            raise WrongUse("ssh needs a terminal", next_command=f"{entry}   (for other programs)")
        argv = ["sh", "-c", LOGIN, "sh", str(door.folder)]
        return LocalShell().foreground(door.shell.terminal(argv), cwd=project)


def ssh_config(project: Path, target: str, run_id: str | None, screen: Screen) -> dict[str, Any]:
    """Write an entry in ~/.ssh/config, so that `ssh sniperface-RUN` reaches the machine."""
    with _door(project, target, run_id) as door:
        assert isinstance(door.shell, SshShell)
        alias = f"sniperface-{door.name}"
        file = install(Path.home(), alias, door.shell.entry(alias))
        screen.say(f"{file} has an entry for {door.shell.name}: log in with ssh {alias}; the folder is {door.folder}")
        return {"alias": alias, "file": str(file), "folder": str(door.folder)}


@contextlib.contextmanager
def _door(project: Path, target: str, run_id: str | None) -> Iterator[Door]:
    """The machine of a run or, if the target has no run yet, the machine that `deploy` prepared."""
    situation = Situation(project)
    if run_id is None and not situation.of(target):
        with session.target(project, target, situation) as at:
            yield door_of_target(at)
        return
    with session.run(project, target, run_id, situation=situation) as reached:
        record = reached.record
        _refuse_local(reached.reach)
        machine = reached.need_machine()
        yield Door(record.run_id, reached.shell, machine.path(record.run_dir), machine)


def door_of_target(at: Reach) -> Door:
    """The machine of a target, in its root. Raises StepFailed if there is none now, and WrongUse for this computer."""
    _refuse_local(at)
    name = at.settings.target.name
    machine = at.machine_of_target()
    if machine is None:
        raise StepFailed(f"target '{name}' has no machine now", next_command=command(f"deploy --on {name}"))
    shell = at.shell(machine)
    return Door(name, shell, machine.path(shell.expand(str(machine.root))), machine)


def _refuse_local(at: Reach) -> None:
    if at.settings.is_local:
        raise WrongUse(
            f"target '{at.settings.target.name}' is this computer, and its runs are in {at.settings.project / 'runs'}: "
            "give --on with a target that is another machine"
        )
