"""The ways into a run's machine: a shell there, and an entry of ~/.ssh/config for other programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from deploy.errors import StepFailed, WrongUse, command
from deploy.runs import records as runs
from deploy.runs import session as reach
from deploy.runs.session import Reach
from deploy.shell import LocalShell, Shell
from deploy.shell.entry import install
from deploy.shell.ssh import SshShell
from deploy.specs.plan import family_name
from deploy.ui.screen import Screen

# A login shell in a folder, or in the home folder where that is gone. The words go through no other interpreter.
LOGIN = 'cd -- "$1" 2>/dev/null; exec "${SHELL:-/bin/sh}" -l'


@dataclass(frozen=True)
class Door:
    """A machine that is there, and where in it a user wants to be. `name`: of its run, else of its target."""

    name: str
    shell: Shell
    folder: PurePath


def ssh(project: Path, target: str, run_id: str | None) -> int:
    """Lend this terminal to a shell on the machine until the user leaves it; its exit code."""
    with _door(project, target, run_id) as door:
        if not sys.stdin.isatty():
            raise WrongUse("ssh needs a terminal", next_command=command("ssh-config") + "   (for other programs)")
        argv = ["sh", "-c", LOGIN, "sh", str(door.folder)]
        return LocalShell().foreground(door.shell.terminal(argv), cwd=project)


def ssh_config(project: Path, target: str, run_id: str | None, screen: Screen) -> dict[str, Any]:
    """Write an entry with which `ssh sniperface-RUN` works, and rsync, scp and editors over it."""
    with _door(project, target, run_id) as door:
        assert isinstance(door.shell, SshShell)
        alias = f"sniperface-{door.name}"
        file = install(Path.home(), alias, door.shell.entry(alias))
        screen.say(f"{file} has an entry for {door.shell.name}; now this works: ssh {alias}")
        screen.say(f"and: rsync -a {alias}:{door.folder}/ FOLDER; in VS Code: Remote-SSH, {alias}")
        return {"alias": alias, "file": str(file), "folder": str(door.folder)}


@contextlib.contextmanager
def _door(project: Path, target: str, run_id: str | None) -> Iterator[Door]:
    """The machine of a run; where the target has no run yet, the one that `deploy` made ready."""
    if run_id is None and not runs.every(project / "runs", target):
        with reach.target(project, target) as at:
            yield _of_target(at)
        return
    with reach.run(project, target, run_id) as reached:
        record = reached.record
        _refuse_local(reached.reach)
        if reached.machine is None:
            raise StepFailed(
                f"the machine of run {record.run_id} is not there any more; what came home is in {reached.folder.path}"
            )
        yield Door(record.run_id, reached.shell, reached.machine.path(record.run_dir))


def _of_target(at: Reach) -> Door:
    _refuse_local(at)
    name = at.settings.target.name
    found = [each for each in at.provider.list() if each.name.startswith(family_name(at.settings))]
    machine = found[0] if found else at.machine(family_name(at.settings).rstrip("-"))
    if machine is None:
        raise StepFailed(f"target '{name}' has no machine now", next_command=command(f"deploy --on {name}"))
    return Door(name, at.shell(machine), machine.root)


def _refuse_local(at: Reach) -> None:
    if at.settings.is_local:
        raise WrongUse(
            f"target '{at.settings.target.name}' is this computer, and its runs are in {at.settings.project / 'runs'}: "
            "give --on with a target that is another machine"
        )
