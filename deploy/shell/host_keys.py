"""Verify the identity of a machine: compare its host key with what is known about it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import border
from deploy.border.text_files import NotText, read_text
from deploy.errors import StepFailed, WrongUse
from deploy.pod.base import folder
from deploy.specs.machine import Address, Machine

if TYPE_CHECKING:
    from paramiko import PKey, SSHClient

MACHINE_NAME = re.compile(r"[A-Za-z0-9._-]+")


def fingerprint(key: bytes) -> str:
    """Return a key's fingerprint as `ssh-keygen -lf` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")


class HostKeys:
    """The host keys of one machine. `seen` is a known_hosts file of our own, which the system's ssh reads too.

    1. If keys came with the address (from the engine, or from the provider's API), only they are accepted.
    2. If the target's file pins a fingerprint, only its key is accepted.
    3. Otherwise known_hosts decides, the user's or ours. If neither knows the machine, the user is asked once. For a
       machine that was just created, the first key is accepted without a question.

    For a gateway on the way to the machine, known_hosts decides.
    """

    def __init__(self, machine: Machine, notes: Path, ask: Callable[[str], bool] | None = None) -> None:
        assert machine.address is not None
        self.machine = machine
        self.address: Address = machine.address
        name = border.Name(machine.name, "the provider", like=MACHINE_NAME)
        self.seen = notes / "ssh" / f"{name}.known_hosts"
        self.alias = f"sniperface-{name}"
        self.ask = ask or _ask
        self._gateways: dict[str, PKey] = {}

    def prepare(self, client: SSHClient, host: str, port: int) -> None:
        """Give the client the accepted keys, and a policy for others."""
        name, known = name_of(host, port), client.get_host_keys()
        for key in self._pinned():
            known.add(name, key.get_name(), key)
        if not self.address.host_keys and not self.address.fingerprint:
            for _, key in _lines(_users_file(), name, self.alias) or _lines(self.seen, self.alias):
                known.add(name, key.get_name(), key)
        client.set_missing_host_key_policy(_Policy(self._judge))

    def prepare_gateway(self, client: SSHClient, host: str, port: int, called: str) -> None:
        """Do the same for a gateway, which has the name `called` in the user's configuration."""
        name = name_of(host, port)
        for _, key in _lines(_users_file(), name) or _lines(self.seen, name):
            client.get_host_keys().add(name, key.get_name(), key)
        client.set_missing_host_key_policy(_Policy(partial(self._judge_gateway, called)))

    def note(self, key: PKey) -> None:
        """Store the keys of an accepted connection, for the system's ssh and for the next time."""
        keys = {self.alias: key, **self._gateways}
        kept = [(name, old) for name, old in _lines(self.seen) if name not in keys and name != self.alias]
        lines = [f"{name} {each.get_name()} {each.get_base64()}\n" for name, each in [*kept, *keys.items()]]
        text = "".join(lines).encode("ascii")
        if not self.seen.exists() or self.seen.read_bytes() != text:
            folder.private_folder(self.seen.parent.parent)
            folder.private_folder(self.seen.parent)
            folder.write_bytes(self.seen, text, mode=0o600)

    def changed(self, host: str, found: PKey) -> StepFailed:
        """Return the error for a wrong host key."""
        if self.address.host_keys or self.address.fingerprint:
            known, advice = "the key that its provider reported" if self.address.host_keys else "the pinned key", None
        else:
            known = "the known key"
            advice = f'ssh-keygen -R "{host}"' if _lines(_users_file(), host, self.alias) else ""
            if _lines(self.seen, self.alias):
                ours = f"remove {self.seen}, if you know that the machine was reinstalled"
                advice = f"{advice}   (and {ours})" if advice else ours
        return StepFailed(
            f"{host} has another host key ({fingerprint(found.asbytes())}) than {known}: the machine was "
            "reinstalled, or the connection is intercepted; nothing was sent to it",
            next_command=advice,
        )

    def _judge(self, host: str, key: PKey) -> None:
        """Raise an error if a key that the client does not know is not acceptable."""
        pinned = self.address.fingerprint
        if self.address.host_keys:
            raise self.changed(host, key)
        if not pinned and self.address.first_use:
            return
        if not pinned:
            self._question(host, key, f"write fingerprint: {fingerprint(key.asbytes())} into the target's file")
        elif pinned.removeprefix("SHA256:").rstrip("=") != fingerprint(key.asbytes()).removeprefix("SHA256:"):
            raise self.changed(host, key)

    def _judge_gateway(self, called: str, host: str, key: PKey) -> None:
        shown = f"the gateway {called} ({host})" if called != host else f"the gateway {host}"
        self._question(shown, key, f"connect once with ssh {called} and confirm the key")
        self._gateways[host] = key

    def _question(self, host: str, key: PKey, otherwise: str) -> None:
        shown = fingerprint(key.asbytes())
        if not self.ask(f"The host key of {host} is not known yet: {key.get_name()} {shown}. Is it right?"):
            raise WrongUse(f"the host key of {host} is not known: if {shown} is right, {otherwise}")

    def _pinned(self) -> list[PKey]:
        keys = [key for line in self.address.host_keys if (key := _parse(line.split()[:2])) is not None]
        if self.address.host_keys and not keys:
            raise StepFailed(
                f"none of the host keys reported for {self.address.host} has a supported type",
                evidence=self.address.host_keys,
            )
        return keys


class _Policy:
    """Paramiko's policy for unknown keys. Returning accepts the key."""

    def __init__(self, judge: Callable[[str, PKey], None]) -> None:
        self.judge = judge

    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:  # noqa: ARG002 - Paramiko's
        self.judge(hostname, key)


def name_of(host: str, port: int) -> str:
    """Return the name of a host in known_hosts."""
    return host if port == 22 else f"[{host}]:{port}"


def _users_file() -> Path:
    return Path.home() / ".ssh" / "known_hosts"


def _text(file: Path) -> str:
    """Read a known_hosts file, also one that PowerShell wrote (`ssh-keyscan … >`). Undecodable lines hold no key."""
    try:
        return read_text(file)
    except NotText:
        return file.read_text(encoding="utf-8", errors="replace")


def _lines(file: Path, *names: str) -> list[tuple[str, PKey]]:
    """Return the (name, key) pairs of a known_hosts file, for these hosts or for all. Bad lines are skipped."""
    return [(name, key) for name, key in _every_line(file) if not names or any(_is(name, each) for each in names)]


def _every_line(file: Path) -> Iterator[tuple[str, PKey]]:
    if not file.is_file():
        return
    for line in _text(file).splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith(("#", "@")):
            key = _parse(words[1:3])
            if key is not None:
                for name in words[0].split(","):
                    yield name, key


def _is(pattern: str, name: str) -> bool:
    """Return whether an entry names this host. Names may be hashed; wildcards are not supported."""
    if not pattern.startswith("|1|"):
        return pattern == name
    import paramiko

    try:
        return bool(paramiko.HostKeys.hash_host(name, pattern) == pattern)
    except (ValueError, binascii.Error):
        return False


def _parse(words: list[str]) -> PKey | None:
    """Parse a public key; None if Paramiko does not know its kind or cannot read it."""
    import paramiko

    try:
        return paramiko.PKey.from_type_string(words[0], base64.b64decode(words[1]))
    except (paramiko.SSHException, paramiko.UnknownKeyType, ValueError, IndexError):
        return None


def _ask(question: str) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    print(f"{question} [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
