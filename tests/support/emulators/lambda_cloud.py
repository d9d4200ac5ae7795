"""Emulate Lambda Cloud on this computer: real HTTP, one account with machines, injected faults.

Requests are held against the specification of the API, version 1.10: unknown fields, a key that the account does not
know or a name of more than 64 characters are refused, and `breaches` names what a client must not send. Machines have
addresses of their own, 127.0.0.1 and up, with one SSH port, as real ones do.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Protocol

from deploy.pod.base import processes
from deploy.pod.base.folder import read_json
from deploy.providers.rented import Clock
from tests.deploy.support.servers import Server, asyncssh_server
from tests.support.emulators.server import Server as HttpServer
from tests.support.files import below
from tests.support.ports import free_port

KEY = "secret_emulated_" + "0123456789abcdef"  # in two parts: files that contain a key are not uploaded
FIELDS = {
    "region_name", "instance_type_name", "ssh_key_names", "file_system_names", "file_system_mounts", "hostname", "name",
    "image", "user_data", "tags", "firewall_rulesets",
}  # fmt: skip
REGIONS = {"us-east-1": "Virginia, USA", "us-west-1": "California, USA", "europe-central-1": "Germany"}


@dataclass
class Kind:
    """An instance type of the catalogue."""

    gpu: str
    gpus: int
    cents: int
    regions: list[str]

    def told(self, name: str) -> dict[str, Any]:
        specs = {"vcpus": 30 * self.gpus, "memory_gib": 200 * self.gpus, "storage_gib": 512, "gpus": self.gpus}
        return {
            "name": name, "description": f"{self.gpus}x {self.gpu}", "gpu_description": self.gpu,
            "price_cents_per_hour": self.cents, "specs": specs,
        }  # fmt: skip


def catalogue() -> dict[str, Kind]:
    """A small one. The cheapest type has an Arm CPU, the next has no capacity."""
    return {
        "gpu_1x_gh200": Kind("GH200 (96 GB)", 1, 49, ["us-east-1"]),
        "gpu_1x_rtx6000": Kind("Quadro RTX 6000 (24 GB)", 1, 50, []),
        "gpu_1x_a100": Kind("A100 (40 GB PCIe)", 1, 129, ["us-west-1", "us-east-1"]),
        "gpu_1x_a10": Kind("A10 (24 GB PCIe)", 1, 75, ["us-east-1", "us-west-1"]),
        "gpu_8x_a100": Kind("A100 (40 GB SXM4)", 8, 1032, ["us-east-1"]),
    }


class Vm(Protocol):
    def close(self) -> None: ...


@dataclass
class Instance:
    id: str
    name: str
    kind: str
    region: str
    key_name: str
    public_key: str
    tags: list[dict[str, str]]
    ip: str
    created: float
    boots_until: float
    status: str = "active"  # once it has booted
    cents: int | None = None  # None: as the catalogue says
    shows_at: float = 0.0  # in lists
    vm: Vm | None = None


@dataclass
class Exchange:
    method: str
    path: str
    body: Any
    status: int = 0

    @property
    def what(self) -> str:
        return f"{self.method} {self.path.removeprefix('/api/v1/')}"


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Greeter:
    """Greets like an SSH server, on the machine's address."""

    def __init__(self, instance: Instance, port: int) -> None:
        self.socket = socket.create_server((instance.ip, port))
        self._thread = threading.Thread(target=self._greet, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(5)

    def _greet(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"SSH-2.0-emulated\r\n")


class ProcessVm:
    """A machine that is a process: a real SSH server for the launched key. Its end kills its processes.

    Its Python with torch is this one, so that no test waits for pip.
    """

    def __init__(self, instance: Instance, port: int, folder: Path) -> None:
        home = folder / instance.id
        home.mkdir(parents=True)
        (home / "bin").mkdir()
        (home / "bin" / "python3").symlink_to(sys.executable)
        path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = {"HOME": str(home), "PATH": path, "SNIPERFACE_PYTHON": sys.executable}
        for name in ("LAMBDA_API_KEY", "LAMBDA_API_BASE_URL"):  # nothing of the account is on the machine
            env[name] = ""
        self.home = home
        self._stack = contextlib.ExitStack()
        made = asyncssh_server(home / "ssh", env, instance.public_key, at=(instance.ip, port))
        self.server: Server = self._stack.enter_context(made)

    def status(self, name: str) -> dict[str, Any]:
        """The newest file of this name on the machine, such as guard-status.json; {} before there is one."""
        there = (path for path in below(self.home) if path.name == name)
        found = max(there, key=lambda each: each.stat().st_mtime, default=None)
        return read_json(found) if found else {}

    def close(self) -> None:
        """End every process of the machine: its guard and its jobs have left the server's process group."""
        for each in [path for path in below(self.home) if path.name in ("guard-status.json", "status.json")]:
            told = read_json(each)
            for pid in (told.get("pid"), told.get("job_pid")):
                if pid and told.get("ended") is None:
                    processes.kill_tree(int(pid))
        self._stack.close()


@dataclass
class Emulator:
    """One account. `machines` makes what answers by SSH at a new instance's address."""

    clock: Clock = field(default_factory=Clock)
    machines: Callable[[Instance, int], Vm] = Greeter
    boot_s: float = 0.0

    def __post_init__(self) -> None:
        self.ssh_port = free_port()
        self.types = catalogue()
        self.instances: dict[str, Instance] = {}
        self.ended: list[Instance] = []
        self.keys: list[dict[str, str]] = [{"id": "k0", "name": "somebody's", "public_key": "ssh-ed25519 AAAAother x"}]
        self.exchanges: list[Exchange] = []
        self.faults: list[
            tuple[str, str]
        ] = []  # (kind, pattern of Exchange.what), each used once; 404, 429, 502, page, cut or done-cut
        self.answers: dict[str, Any] = {}  # path -> a data object sent in place of the true one
        self.refusals: list[Refusal] = []  # of the next launches
        self.next: dict[str, Any] = {}  # fields of the next instance
        self.is_active = True
        self.ends_slowly = False  # a machine that was terminated stays in lists, and cannot be terminated again
        self.is_down = False
        self.breaches: list[str] = []
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._server = HttpServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for each in self.instances.values():
            if each.vm:
                each.vm.close()

    @property
    def names(self) -> list[str]:
        """Full names of the machines that bill."""
        return [each.name for each in self.instances.values()]

    def no_room(self, times: int = 1) -> None:
        code = "instance-operations/launch/insufficient-capacity"
        self.refusals += [Refusal(400, code, "Not enough capacity to fulfill launch request.")] * times

    def count(self, what: str) -> int:
        return sum(1 for each in self.exchanges if each.what == what)

    def answer(self, exchange: Exchange, headers: Mapping[str, str]) -> Any:
        """The data of an answer. Raises Refusal."""
        if headers.get("Authorization") != f"Bearer {KEY}":
            raise Refusal(401, "global/invalid-api-key", "API key was invalid, expired, or deleted.")
        if not self.is_active:
            raise Refusal(403, "global/account-inactive", "Your account is inactive.")
        path, body = exchange.path, exchange.body
        with self._lock:
            for each in [each for each in self.instances.values() if each.status in ("terminated", "preempted")]:
                self._end(each)
            match exchange.method, path:
                case "GET", "/api/v1/instance-types":
                    return {name: self._offered(name) for name in self.types}
                case "GET", "/api/v1/instances":
                    return [self._told(each) for each in self.instances.values() if self.clock.time() >= each.shows_at]
                case "GET", _ if path.startswith("/api/v1/instances/"):
                    return self._told(self._instance(path.rpartition("/")[2]))
                case "GET", "/api/v1/ssh-keys":
                    return self.keys
                case "POST", "/api/v1/ssh-keys":
                    return self._add_key(body)
                case "POST", "/api/v1/instance-operations/launch":
                    return {"instance_ids": [self._launch(body)]}
                case "POST", "/api/v1/instance-operations/terminate":
                    self._hold(set(body) == {"instance_ids"}, "terminate takes instance_ids only")
                    found = [self._instance(each) for each in body["instance_ids"]]
                    for each in found:
                        if self.ends_slowly and each.status == "terminating":
                            raise Refusal(400, "global/unknown", "An unknown error occurred.")
                        if self.ends_slowly:
                            each.status = "terminating"
                        else:
                            self._end(each)
                    return {"terminated_instances": [{**self._told(each), "status": "terminating"} for each in found]}
        raise Refusal(404, "global/object-does-not-exist", f"no {path}")

    def _launch(self, body: Mapping[str, Any]) -> str:
        self._hold(set(body) <= FIELDS, f"launch has no fields {set(body) - FIELDS}")
        self._hold({"region_name", "instance_type_name", "ssh_key_names"} <= set(body), "launch lacks a field")
        self._hold(len(body["ssh_key_names"]) == 1, "launch takes exactly one SSH key")
        self._hold(len(body.get("name", "")) <= 64, "a name has at most 64 characters")
        for tag in body.get("tags", []):
            fits = re.fullmatch("[a-z][a-z0-9-:]+", tag["key"]) and 0 < len(tag["value"]) <= 128
            self._hold(bool(fits) and set(tag) == {"key", "value"}, f"no valid tag: {tag}")
        if self.refusals:
            raise self.refusals.pop(0)
        kind, region = self.types.get(body["instance_type_name"]), body["region_name"]
        [key_name] = body["ssh_key_names"]
        key = next((each for each in self.keys if each["name"] == key_name), None)
        if kind is None or key is None or region not in REGIONS:
            raise Refusal(404, "global/object-does-not-exist", "the type, the key or the region does not exist")
        if region not in kind.regions:
            code = "instance-operations/launch/insufficient-capacity"
            raise Refusal(400, code, "Not enough capacity to fulfill launch request.")
        number, now = next(self._numbers), self.clock.time()
        made = Instance(
            f"{number:032x}", body.get("name", ""), body["instance_type_name"], region, key_name, key["public_key"],
            body.get("tags", []), f"127.0.0.{number}", now, now + self.boot_s,
        )  # fmt: skip
        made.name = next((tag["value"] for tag in made.tags if tag["key"] == "sniperface-machine"), made.name)
        vars(made).update(self.next)
        self.next = {}
        self.instances[made.id] = made
        made.vm = self.machines(made, self.ssh_port)
        return made.id

    def _add_key(self, body: Mapping[str, Any]) -> dict[str, str]:
        self._hold(set(body) == {"name", "public_key"}, f"a key has name and public_key, not {set(body)}")
        if any(each["name"] == body["name"] for each in self.keys):
            raise Refusal(400, "global/duplicate", "a key of this name exists")
        self.keys.append({"id": f"k{len(self.keys)}", **body})
        return self.keys[-1]

    def _offered(self, name: str) -> dict[str, Any]:
        kind = self.types[name]
        regions = [{"name": each, "description": REGIONS[each]} for each in kind.regions]
        return {"instance_type": kind.told(name), "regions_with_capacity_available": regions}

    def _told(self, each: Instance) -> dict[str, Any]:
        boots = self.clock.time() < each.boots_until
        kind = self.types[each.kind].told(each.kind)
        if each.cents is not None:
            kind["price_cents_per_hour"] = each.cents
        told = {
            "id": each.id, "name": each.name[:64], "status": "booting" if boots else each.status,
            "ssh_key_names": [each.key_name], "file_system_names": [], "instance_type": kind, "tags": each.tags,
            "region": {"name": each.region, "description": REGIONS[each.region]}, "actions": {},
        }  # fmt: skip
        return told if boots else {**told, "ip": each.ip}

    def _instance(self, id: str) -> Instance:
        if id not in self.instances:
            raise Refusal(404, "global/object-does-not-exist", "Specified instance does not exist.")
        return self.instances[id]

    def _end(self, each: Instance) -> None:
        self.ended.append(self.instances.pop(each.id))
        if each.vm:
            each.vm.close()

    def _hold(self, is_right: bool, words: str) -> None:
        if not is_right:
            self.breaches.append(words)
            raise Refusal(400, "global/invalid-parameters", words)


def _handler(emulator: Emulator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(emulator.clock.time() if timestamp is None else timestamp)

        def _handle(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            exchange = Exchange(self.command, self.path, json.loads(data) if data else None)
            emulator.exchanges.append(exchange)
            found = [each for each in emulator.faults if re.search(each[1], exchange.what)][:1]
            kind = found[0][0] if found else ""
            if found:
                emulator.faults.remove(found[0])
            if emulator.is_down or kind == "cut":
                self.close_connection = True
                return
            if kind == "502":
                self._send(502, b"<html>502 Bad Gateway</html>")
                return
            if kind == "page":
                self._send(200, b"<html>Log in to this network</html>")
                return
            if kind == "404":
                self._send(
                    404, json.dumps({"error": {"code": "global/object-does-not-exist", "message": "no"}}).encode()
                )
                return
            if kind == "429":
                self._send(429, json.dumps({"error": {"code": "global/rate-limited", "message": "slower"}}).encode())
                return
            try:
                told = emulator.answer(exchange, dict(self.headers))
                status, body = 200, {"data": emulator.answers.get(exchange.path.removeprefix("/api/v1/"), told)}
            except Refusal as refusal:
                status, body = refusal.status, {"error": {"code": refusal.code, "message": refusal.message}}
            exchange.status = status
            if kind == "done-cut":
                self.close_connection = True
                return
            self._send(status, json.dumps(body).encode())

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
