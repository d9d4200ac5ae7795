"""Shared by benchmarks of file transfers: a server on this computer, a connection with a round trip, random bytes.

Files lie in RAM where possible, so that the connection is measured and not a disk. Every peer runs with its defaults.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from deploy.shell import Shell, open_shell
from tests.deploy.support.proxy import Proxy, proxy
from tests.deploy.support.servers import Server, openssh

ROUND_TRIP_S = 0.1
MIB = 1 << 20


@dataclass
class Moving:
    """A folder on both ends of a connection; `shell` is already connected, as it is in every command."""

    folder: Path
    server: Server
    line: Proxy
    shell: Shell

    def file(self, name: str, size: int) -> Path:
        """Write a file of random bytes, so that no two MiB are equal."""
        path = self.folder / name
        with open(path, "wb") as file:
            for at in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - at)))
        return path

    def scp(self, source: Path, destination: Path, *, back: bool = False) -> None:
        here, there = (destination, source) if back else (source, destination)
        far = f"127.0.0.1:{there}"
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        words = [far, str(here)] if back else [str(here), far]
        subprocess.run(
            ["scp", "-q", "-P", str(self.line.port), "-i", str(self.server.key), *options, *words], check=True
        )
        destination.unlink()


@contextmanager
def moving(round_trip_s: float = ROUND_TRIP_S) -> Iterator[Moving]:
    ram = Path("/dev/shm")  # noqa: S108 - where the product stages data
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as text:
        folder = Path(text)
        with openssh(folder / "server", quick=False) as server, proxy(server.port, round_trip_s / 2) as line:
            # Without a delay the proxy is bypassed: it costs a copy of every byte.
            port = line.port if round_trip_s else server.port
            line.port = port
            shell = open_shell(server.machine(port=port), folder / "notes")
            shell.clock()
            yield Moving(folder, server, line, shell)
            shell.close()
