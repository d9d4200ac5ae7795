"""A container of our image, started with the docker command and reached with OpenSSH."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.conftest import wait_until
from tests.support.images.engine import docker
from tests.support.load import under_load

HOST_KEY = "sniperface host key: "
BAD_START = "sniperface bad start: "


@dataclass
class Machine:
    id: str
    key: Path
    known_hosts: Path

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self.id], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.stdout.decode()

    def port(self) -> int:
        return int(docker("port", self.id, "22/tcp").splitlines()[0].rpartition(":")[2])

    def is_running(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.id) == "true"

    def until_it_answers(self) -> Machine:
        """Read the host key from the log, and wait until ssh connects; ssh accepts no other key."""
        wait_until(lambda: HOST_KEY in self.log())
        [key] = {line.removeprefix(HOST_KEY) for line in self.log().splitlines() if line.startswith(HOST_KEY)}
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port()} {key}\n")
        wait_until(lambda: subprocess.run([*self.argv(), "true"], capture_output=True, check=False).returncode == 0)
        return self

    def argv(self, program: str = "ssh", *options: str) -> list[str]:
        strict = ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={self.known_hosts}"]
        alone = ["-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
        return [program, *alone, *strict, "-o", f"Port={self.port()}", *options, "root@127.0.0.1"]

    def ssh(self, command: str, *options: str, stdin: bytes = b"") -> bytes:
        """Output of a command on the machine; asserts that it succeeds."""
        argv = [*self.argv("ssh", *options), *([command] if command else [])]
        done = subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=under_load(60))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def new_key(folder: Path) -> Path:
    path = folder / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return path


@contextlib.contextmanager
def started(
    image: str, folder: Path, env: Mapping[str, str] | None = None, *options: str, command: tuple[str, ...] = ()
) -> Iterator[Machine]:
    """A container that is removed afterwards. Without PUBLIC_KEY in `env`, a new key may log in."""
    folder.mkdir(exist_ok=True)
    key = new_key(folder)
    env = {"PUBLIC_KEY": key.with_suffix(".pub").read_text(), **(env or {})}
    told = [word for name, value in env.items() for word in ("--env", f"{name}={value}")]
    made = docker("run", "--detach", "--publish", "127.0.0.1::22", *told, *options, image, *command)
    try:
        yield Machine(made, key, folder / "known_hosts")
    finally:
        docker("rm", "--force", "--volumes", made)
