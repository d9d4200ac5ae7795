"""The only package that runs commands on a machine or touches its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deploy.shell.base import CHUNK_BYTES as CHUNK_BYTES
from deploy.shell.base import EVIDENCE_LINES as EVIDENCE_LINES
from deploy.shell.base import Result as Result
from deploy.shell.base import Shell as Shell
from deploy.shell.link import LinkLost as LinkLost
from deploy.shell.link import MachineGone as MachineGone
from deploy.shell.link import Misbehaves as Misbehaves
from deploy.shell.local import LocalShell as LocalShell
from deploy.specs.machine import Machine


def load_ssh() -> None:
    """Import what an SSH connection needs, a quarter of a second, while something else is waited for."""
    from deploy.shell import connect

    connect.load()


def open_shell(machine: Machine, notes: Path, find: Callable[[], Machine | None] | None = None) -> Shell:
    """Return a shell on the machine, which connects on first use.

    `notes` is the folder for known host keys. `find` looks the machine up again after a lost connection, because ports
    and addresses change.
    """
    if machine.is_here:
        return LocalShell()
    from deploy.shell.ssh import SshShell  # Fabric takes a third of a second to import

    return SshShell(machine, notes, find)
