"""Whether a machine is the one that it says it is: its host key against what is known about it."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import StepFailed, WrongUse
from deploy.machine import Address, Machine

if TYPE_CHECKING:
    from paramiko import PKey, SSHClient


def fingerprint(key: bytes) -> str:
    """As `ssh-keygen -lf` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")


class HostKeys:
    """The host keys of one machine. `seen` is a known_hosts file of our own, which the system's ssh reads too.

    1. Keys that came with the address (from the engine, or from the provider's API) are the only right ones.
    2. So is a fingerprint that the target's file pins.
    3. Else known_hosts decides, the user's or ours; a machine that neither knows is asked about once.
    """

    def __init__(self, machine: Machine, notes: Path, ask: Callable[[str], bool] | None = None) -> None:
        assert machine.address is not None
        self.machine = machine
        self.address: Address = machine.address
        self.seen = notes / "ssh" / f"{machine.name}.known_hosts"
        self.alias = f"sniperface-{machine.name}"
        self.ask = ask or _ask
        self.refused: StepFailed | WrongUse | None = None

    def prepare(self, client: SSHClient, host: str, port: int) -> None:
        """Tell the client which keys are right, and whom to ask about others."""
        known = client.get_host_keys()
        name = host if port == 22 else f"[{host}]:{port}"
        for key in self._pinned():
            known.add(name, key.get_name(), key)
        if not len(known) and not self.address.fingerprint:
            for file in (Path.home() / ".ssh" / "known_hosts", self.seen):
                self._load(client, file, name)
        client.set_missing_host_key_policy(self)

    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:  # noqa: ARG002 - Paramiko's
        """Paramiko asks this about a key that it was not told of: returning accepts it."""
        shown = fingerprint(key.asbytes())
        pinned = self.address.fingerprint
        if pinned:
            if pinned.removeprefix("SHA256:").rstrip("=") != shown.removeprefix("SHA256:"):
                raise self.changed(key)
            return
        if self.address.host_keys:
            raise self.changed(key)
        if not self.ask(f"The host key of {hostname} is not known yet: {key.get_name()} {shown}. Is it right?"):
            raise WrongUse(
                f"the host key of {hostname} is not known: if {shown} is right, write fingerprint: {shown} into the "
                "target's file in conf/deploy, or connect once with ssh"
            )

    def note(self, key: PKey) -> None:
        """Write down the key of a connection that was accepted, for the system's ssh and for the next time."""
        line = f"{self.alias} {key.get_name()} {key.get_base64()}\n"
        if not self.seen.exists() or self.seen.read_text(encoding="ascii") != line:
            self.seen.parent.mkdir(parents=True, exist_ok=True)
            self.seen.write_text(line, encoding="ascii", newline="\n")

    def changed(self, found: PKey) -> StepFailed:
        """The sentence that stops everything."""
        return StepFailed(
            f"{self.address.host} shows another host key ({fingerprint(found.asbytes())}) than the one known for it: "
            "it was set up anew, or somebody stands in between. Nothing was sent to it",
            next_command=f"remove {self.seen} and its line in ~/.ssh/known_hosts, if you know that it was set up anew",
        )

    def _pinned(self) -> list[PKey]:
        import paramiko

        keys = []
        for line in self.address.host_keys:
            words = line.split()
            keys.append(paramiko.PKey.from_type_string(words[0], base64.b64decode(words[1])))
        return keys

    def _load(self, client: SSHClient, file: Path, name: str) -> None:
        """What a file knows about this host, under its own name or under the one that we gave it."""
        import paramiko

        if not file.is_file():
            return
        try:
            known = paramiko.HostKeys(str(file))
        except (OSError, paramiko.SSHException, UnicodeDecodeError):  # one bad line must not stop everything
            return
        for kind, key in [*(known.lookup(name) or {}).items(), *(known.lookup(self.alias) or {}).items()]:
            client.get_host_keys().add(name, kind, key)


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"{question} [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
