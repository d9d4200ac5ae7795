"""Start real SSH servers on this computer: OpenSSH's sshd, and asyncssh, which needs no system package."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base import processes
from deploy.specs.machine import Address, Machine
from tests.deploy.conftest import wait_until
from tests.support.forks import start_server
from tests.support.ports import free_port

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)


# A key exchange that resists quantum computers takes ssh 65 ms of a core, which is most of a login. Paramiko has none.
QUICK = "KexAlgorithms -sntrup*,mlkem*\n"


@dataclass
class Server:
    """A running server, with its address and keys."""

    port: int
    key: Path
    host_key: str  # "ssh-ed25519 AAAA..."
    root: Path
    process: subprocess.Popen[bytes] | None = None

    def machine(self, **address: Any) -> Machine:
        about: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": _user(),
            "key": str(self.key),
            "host_keys": (self.host_key,),
            **address,
        }
        return Machine("box", self.root, sys.executable, address=Address(**about))


def make_key(path: Path) -> str:
    """Create a key pair; returns the line of the public key."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    path.parent.mkdir(parents=True, exist_ok=True)
    key.write_private_key(str(path))
    path.chmod(0o600)
    public: str = key.export_public_key().decode().strip()
    path.with_suffix(".pub").write_text(public + "\n")
    return public


@contextlib.contextmanager
def openssh(folder: Path, port: int | None = None, more: str = "", *, quick: bool = True) -> Iterator[Server]:
    """Start OpenSSH's sshd with new keys. `more` comes first in its configuration, so it overrides the rest.

    `quick`: without the key exchanges that take long; benchmarks measure with them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    host_key = folder / "host_key"
    public = make_key(host_key) if not host_key.exists() else host_key.with_suffix(".pub").read_text().strip()
    user_key = folder / "id"
    if not user_key.exists():
        make_key(user_key)
    shutil.copy(user_key.with_suffix(".pub"), folder / "authorized_keys")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    config = folder / "sshd_config"
    config.write_text(
        f"{more}{QUICK if quick else ''}Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/sshd.pid\nStrictModes no\nPasswordAuthentication no\nUsePAM no\nPermitRootLogin yes\n"
        # Keeps login scripts of the user who runs the tests out of tests and measurements.
        f"SetEnv HOME={folder}\n"
        "MaxStartups 100\nMaxSessions 100\nSubsystem sftp internal-sftp\nUseDNS no\nLogLevel ERROR\n"
    )
    assert SSHD
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield Server(port, user_key, " ".join(public.split()[:2]), folder / "root", process)
    finally:
        processes.kill_tree(process.pid)  # with the processes of its connections
        process.communicate()


@contextlib.contextmanager
def asyncssh_server(
    folder: Path, env: Mapping[str, str] | None = None, public_key: str | None = None, at: tuple[str, int] | None = None
) -> Iterator[Server]:
    """Start asyncssh's server in its own process. Its sessions have `env`; `public_key` replaces a new pair's.

    `at`: address and port; None: a free port of 127.0.0.1. Skips the test on Windows.
    """
    if os.name == "nt":
        pytest.skip("needs POSIX: the machine is this computer")
    public = make_key(folder / "host_key")
    make_key(folder / "id")
    if public_key:
        (folder / "id.pub").write_text(f"{public_key}\n")
    argv = ["-m", "tests.deploy.support.asyncssh_server", str(folder), *map(str, at or ())]
    process = start_server(argv, {**os.environ, **(env or {})})
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        yield Server(port, folder / "id", " ".join(public.split()[:2]), folder / "root", process)
    finally:
        processes.kill_tree(process.pid)
        process.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _user() -> str:
    import getpass

    return getpass.getuser()
