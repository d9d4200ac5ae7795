"""A hostile machine: a real SSH server whose agent gives forged answers, and a laptop with a run on it.

The agent answers truthfully, from real files below `root`, except for the verbs in `lies`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncssh

from deploy.pod.agent.agent import VERBS, WITH_BODY
from deploy.pod.agent.frames import GREETING, pack
from deploy.pod.base.folder import RunFolder, write_json
from deploy.providers.ssh import SshProvider
from deploy.runs.records import Record
from deploy.specs.machine import Machine
from tests.deploy.support.servers import make_key

PRETEND = Path(__file__).parent / "pretend"
RUN, GOOD = "r-hostile", "r-good"
USD_PER_HOUR = 2.0
ESCAPE = "\x1b]52;c;aGk=\x1b\\\x1b[2J\x9b31m\u202e"


@dataclass(frozen=True)
class Say:
    """One forged answer: a value, or raw bytes instead of a message."""

    value: Any = None
    head: dict[str, Any] | None = None  # instead of {"value": value}
    body: bytes = b""
    raw: bytes | None = None
    endless: bool = False  # repeat the message for ever


@dataclass
class Figures:
    """Counts of attacks and outcomes over a whole test file: the figures of docs/security.md."""

    lies: int = 0  # forged answers over SSH; an endless one counts once
    commands: int = 0
    attacks: int = 0  # random attacks: some forged answers, and one forged file of the run
    outside: int = 0  # files changed outside the run
    releases: int = 0
    released: int = 0
    memory_kib: dict[str, int] = field(default_factory=dict)  # attack -> peak memory above that with an honest machine

    def __str__(self) -> str:
        memory = ", ".join(f"{kib / 1024:.0f} MiB ({attack})" for attack, kib in self.memory_kib.items())
        return (
            f"hostile answers {self.lies:,}, random attacks {self.attacks:,}, commands {self.commands:,}, "
            f"files outside the run {self.outside}, released {self.released:,} of {self.releases:,}, "
            f"peak memory above normal {memory or 'not measured'}"
        )


SILENCE = None  # no answer, but heartbeats continue
Lie = Callable[[dict[str, Any]], Say | None]


@dataclass
class Hostile:
    """The server, its agent, and the verbs with forged answers."""

    root: Path
    key: Path
    host_key: str
    port: int = 0
    lies: dict[str, Lie] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    figures: Figures = field(default_factory=lambda: Figures())
    lines: list[bytes] = field(default_factory=lambda: [b"done\n"])

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.root / "runs" / RUN)

    def honest(self) -> None:
        """Reset to an honest machine: a live run with one intact checkpoint, a log and a picture."""
        self.lies.clear()
        self.asked.clear()
        self.lines = [b"done\n"]
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root / "runs" / RUN / "checkpoints").mkdir(parents=True)
        (self.root / "runs" / RUN / "mining").mkdir()
        (self.root / "runs" / RUN / "results" / "epoch_000").mkdir(parents=True)
        data = b"weights"
        note = {
            "file": "epoch_000.pt", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
            "epoch": 0, "step": 3, "epoch_complete": True, "fraction": 1.0, "eval": None, "model": {},
        }  # fmt: skip
        Path(self.run.checkpoints / "epoch_000.pt").write_bytes(data)
        write_json(Path(self.run.checkpoints / "epoch_000.json"), note)
        Path(self.run.log).write_text("hello\n")
        Path(self.run.metrics).write_text('{"event": "step", "step": 3, "epoch": 0, "time": 1.0, "seconds_left": 9}\n')
        Path(self.run.config).write_text("a: 1\n")
        Path(self.run.mining / "clusters.png").write_bytes(b"png")
        Path(self.run.path / "results" / "epoch_000" / "report.json").write_text("{}")
        self.status()

    def status(self, **told: Any) -> None:
        good = {"state": "running", "attempt": 1, "heartbeat": time.time() + 3600, "started": 1.0, "spend_usd": 0.0}
        write_json(Path(self.run.status), {**good, **told})

    async def serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Serve as the agent does, until the laptop disconnects."""
        with contextlib.suppress(asyncssh.Error, OSError, asyncio.IncompleteReadError, ValueError):
            await process.stdin.readline()  # for a shell that a login script starts
            source = int(await process.stdin.readline())
            await process.stdin.readexactly(source)
            process.stdout.write(GREETING)
            beats = asyncio.ensure_future(self._beat(process))
            try:
                while True:
                    head_bytes, body_bytes = struct.unpack(">II", await process.stdin.readexactly(8))
                    head = json.loads(await process.stdin.readexactly(head_bytes))
                    body = await process.stdin.readexactly(body_bytes) if body_bytes else b""
                    await self._answer(process, head, body)
            finally:
                beats.cancel()
        process.exit(0)

    async def _beat(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        while True:
            await asyncio.sleep(0.3)
            process.stdout.write(pack({"beat": True}))

    async def _answer(self, process: asyncssh.SSHServerProcess[bytes], head: dict[str, Any], body: bytes) -> None:
        number, verb, arguments = head["id"], head["verb"], head["args"]
        self.asked.append(verb)
        if verb in WITH_BODY:
            arguments[WITH_BODY[verb]] = body
        if verb not in self.lies:
            for part, data in self._truth(verb, arguments):
                process.stdout.write(pack({"id": number, **part}, data) + data)
            return
        said = self.lies[verb](arguments)
        self.figures.lies += 1
        if said is SILENCE:
            return
        part = {"value": said.value} if said.head is None else said.head
        message = said.raw if said.raw is not None else pack({"id": number, **part}, said.body) + said.body
        process.stdout.write(message)
        while said.endless and not process.is_closing():  # a write to a closed channel raises nothing
            await process.stdout.drain()
            process.stdout.write(message)
            # A flood of small messages is one at this pace, too, and leaves the laptop time for its own limits.
            await asyncio.sleep(0 if len(message) > 1 << 12 else 0.001)

    def _truth(self, verb: str, arguments: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
        if verb == "lines":
            yield from (({"more": True}, line) for line in self.lines)
            yield {"value": 0}, b""
        elif verb == "spawn":
            yield {"value": 1}, b""
        else:
            try:
                value = VERBS[verb](**arguments)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "")
                yield {"error": {"errno": name, "text": str(error), "path": str(error.filename or "")}}, b""
                return
            if verb == "run":
                yield {"ended": [value[0], len(value[1])]}, value[1] + value[2]
            elif isinstance(value, bytes):
                yield {"bytes": True}, value
            else:
                yield {"value": value}, b""


@contextlib.contextmanager
def hostile_machine(folder: Path) -> Iterator[Hostile]:
    """Run the server in a thread of this process."""
    public = make_key(folder / "host_key")
    make_key(folder / "id")
    made = Hostile(folder / "root", folder / "id", " ".join(public.split()[:2]))
    made.honest()
    is_there, goodbye = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    connections: list[asyncssh.SSHServerConnection] = []

    async def listen() -> None:
        server = await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[str(folder / "host_key")], process_factory=made.serve, encoding=None,
            authorized_client_keys=str(folder / "id.pub"), acceptor=connections.append,
        )  # fmt: skip
        made.port = server.get_port()
        is_there.set()
        await goodbye.wait()
        server.close()
        await server.wait_closed()
        for connection in connections:
            connection.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # a transport closes its socket in the next round of the loop

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(listen())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_there.wait(30)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(goodbye.set)
        thread.join(10)


class Priced(SshProvider):
    """The same host as if it were rented: it has a price, and disappears once it is released."""

    released: list[str] = []  # noqa: RUF012 - shared by all instances: each command creates one

    def find(self, name: str) -> Machine | None:
        return None if name in self.released else self._priced(name)

    def list(self) -> list[Machine]:
        return [] if self.released else [self._priced("sniperface-laptop-bad-r")]

    def release(self, machine: Machine) -> None:
        self.released.append(machine.name)

    def _priced(self, name: str) -> Machine:
        return replace(self._machine(name), usd_per_hour=USD_PER_HOUR, created=time.time() - 1800)


def make_laptop(folder: Path, machine: Hostile) -> Path:
    """A project with a run on the hostile machine (target `bad`), and one on this computer (target `local`)."""
    shutil.copytree(PRETEND, folder, ignore=shutil.ignore_patterns("__pycache__"))
    targets = folder / "conf" / "deploy"
    targets.mkdir(parents=True)
    bad = {
        "provider": "ssh", "host": "127.0.0.1", "port": machine.port, "key": str(machine.key),
        "fingerprint": fingerprint_of(machine.host_key), "root": str(machine.root), "python": sys.executable,
        "secrets": [],
    }  # fmt: skip
    (targets / "bad.yaml").write_text(json.dumps(bad))
    (targets / "local.yaml").write_text(json.dumps({"provider": "local", "root": ".sniperface/local"}))
    local = folder / ".sniperface" / "local" / "runs" / GOOD
    add_run(folder, RUN, "bad", "ssh", str(machine.run.path), "sniperface-laptop-bad-r")
    add_run(folder, GOOD, "local", "local", str(local), "local")
    now = time.time() + 3600
    write_json(local / "status.json", {"state": "running", "attempt": 1, "heartbeat": now, "step": 7, "epoch": 0})
    return folder


def add_run(project: Path, run_id: str, target: str, provider: str, run_dir: str, machine: str) -> None:
    record = Record(
        run_id, target, provider, "running", 1, "2026-01-01T00:00:00+00:00", None, 1.0, "iresnet", run_dir, machine,
        session="detached",
    )  # fmt: skip
    write_json(project / "runs" / run_id / "run.json", asdict(record))
    plan = {"epochs": 5, "grace_s": 0.2, "argv": [sys.executable], "cwd": "/", "limits": {}, "nodes": 1}
    plan |= {"data_path": "/dev/shm/images.npy", "request": {}}
    write_json(project / "runs" / run_id / "plan.json", plan)


def fingerprint_of(host_key: str) -> str:
    import base64

    from deploy.shell.host_keys import fingerprint

    return fingerprint(base64.b64decode(host_key.split()[1]))
