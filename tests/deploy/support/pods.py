"""An emulated pod that is a process: a real SSH server with the pod's variables, without Docker."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.pod.base import processes
from tests.deploy.support.servers import Server, asyncssh_server
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import KEY, POD_KEY, Emulator
from tests.support.emulators.runpod_pods import Line, stamp
from tests.support.emulators.runpod_state import Pod

# Limits for a computer under load: the answer to a creation waits until the process serves SSH.
PATIENT = {"request_s": 60.0, "connect_s": 30.0, "probe_s": 30.0}


class ProcessPod:
    """Serves SSH for the requested key. Its end kills its processes, as at RunPod."""

    numbers = itertools.count()

    def __init__(self, pod: Pod, folder: Path, url: str, env: Mapping[str, str] | None = None) -> None:
        """`env`: further variables of the pod, such as those of an image."""
        self.pod = pod
        self.folder = folder / f"{pod.id}-{next(self.numbers)}"
        self.bin = self.folder / "bin"
        self.bin.mkdir(parents=True)
        (self.bin / "python3").symlink_to(sys.executable)
        self.env = {
            "HOME": str(self.folder), "RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": POD_KEY, "RUNPOD_API_BASE_URL": url,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", **(env or {}), **pod.env,
        }  # fmt: skip
        self._start()

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port

    def log(self) -> list[Line]:
        at = stamp(self.pod.started)
        return [
            (at, f"sniperface host key: {self.server.host_key}"),
            (at, "sniperface hardware: gpus=1 memory_gib=62.0"),
        ]

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._stack.close()
        for pid in self._left():
            processes.kill_tree(pid)

    def _left(self) -> list[int]:
        """Processes of the pod that left the server's tree, such as its guard and tmux. Linux only."""
        mark, found = f"HOME={self.folder}\0".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def _start(self) -> None:
        self._stack = contextlib.ExitStack()
        made = asyncssh_server(self.folder, self.env, self.pod.env["PUBLIC_KEY"])
        self.server: Server = self._stack.enter_context(made)


@contextlib.contextmanager
def account_of(variables: dict[str, str], folder: Path) -> Iterator[Emulator]:
    """An emulated account whose pods are processes in `folder`, and which `variables` of a project then name."""

    def made(pod: Pod) -> ProcessPod:
        return ProcessPod(pod, folder, emulator.url, {"SNIPERFACE_PYTHON": sys.executable})

    emulator = Emulator(pods=made)
    variables |= {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY, "no_proxy": "*"}
    yield emulator
    emulator.close()
    assert breaches(emulator) == []
