"""Emulate RunPod on this computer: real HTTP, both APIs, a log stream, one account with pods, injected faults.

python -m tests.support.emulators.runpod --port 8999 --pods docker
RUNPOD_API_BASE_URL=http://127.0.0.1:8999 RUNPOD_API_KEY=any invoke deploy --on runpod
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from deploy.pod.watchdog.release import BASE_URL_VARIABLE
from deploy.providers.rented import Clock
from tests.support.emulators import contract, runpod_graphql, runpod_rest
from tests.support.emulators.runpod_pods import (
    Container,
    DockerNetwork,
    Greeter,
    Machine,
    Network,
    remove_leftovers,
    stamp,
)
from tests.support.emulators.runpod_state import NO_ROOM, Account, Pod, Refusal
from tests.support.emulators.server import Server

KEY = "rpa_" + "EMULATED0KEY0NEVER0SHOWN"  # in two parts: files that contain a key are not uploaded
POD_KEY = "rpa_EMULATED0KEY0OF0A0POD"  # RunPod gives each pod a key, for requests about itself
KEY_VARIABLE = "RUNPOD_API_KEY"
PER_MINUTE = 60
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass
class Exchange:
    """One request and its answer, as sent over the wire, without the key."""

    time: float
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    fault: str = ""
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""

    @property
    def what(self) -> str:
        """`POST /v2/pods`, or `POST /graphql podTerminate`."""
        fields = re.search(rb"{\s*(\w+)", json.loads(self.body)["query"].encode()) if self.path == "/graphql" else None
        return f"{self.method} {self.path}" + (f" {fields[1].decode()}" if fields else "")


@dataclass
class Fault:
    """A failed answer. `done`: the request is executed first. `late`: no answer until the client has given up."""

    kind: str  # 429 or another status, 502, cut, done-cut, done-late
    on: str  # a pattern for Exchange.what
    times: int
    retry_after_s: int = 0


class Emulator:
    def __init__(
        self,
        *,
        clock: Clock | None = None,
        pods: str | Callable[[Pod], Machine] = "none",
        boot_s: float = 0.0,
        port: int = 0,
        image: str | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """`host`: for pods that terminate themselves, an address that containers reach, such as gateway()."""
        self.clock = clock or Clock()
        makers: dict[str, Callable[[Pod], Machine]] = {
            "none": lambda pod: Greeter(pod, self.clock, self.ssh_late_s, with_keys=self.prints_keys),
            "docker": lambda pod: Container(pod, image, self.given_to_pods, self.folders),
        }
        self.folders: dict[str, Path] = {}  # network volume -> folder
        networks = DockerNetwork if pods == "docker" else Network
        self.account = Account(self.clock, makers[pods] if isinstance(pods, str) else pods, boot_s, networks)
        self.exchanges: list[Exchange] = []
        self.faults: list[Fault] = []
        # What changes the JSON of an answer on its way: a pattern for Exchange.what, and a function.
        self.spoilt: list[tuple[str, Callable[[Any], Any]]] = []
        self.ssh_late_s = 0.0
        self.prints_keys = True
        self.holds_streams = True  # as RunPod does: a log stream never ends, it only falls silent
        self.cut_log_after: list[int] = []  # numbers of lines, for the next streams
        self.keys = {KEY, POD_KEY}
        self.pod_key_may = ".*"  # a pattern for Exchange.what: other requests with the key of a pod are refused
        self.closing = threading.Event()
        self._down = False
        self._server = Server((host, port), _handler(self))
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.account.close()

    # Faults

    def unplug(self) -> None:
        """Accept no more connections."""
        self._server.shutdown()
        self._server.server_close()

    def no_room(self, times: int) -> None:
        """Refuse the next `times` creations for lack of capacity."""
        self.refuse(400, NO_ROOM, times)

    def refuse(self, status: int, detail: str, times: int = 1) -> None:
        self.account.refusals += [(status, detail)] * times

    def fail(self, kind: str, on: str = ".*", times: int = 1, retry_after_s: int = 0) -> None:
        self.faults.append(Fault(kind, on, times, retry_after_s))

    def down(self, is_down: bool = True) -> None:
        self._down = is_down

    def next_pod(self, **oddities: Any) -> None:
        """Set fields of the next pod.

        Any of: zero_gpus, memory_gib, ends, vanishes_after_s, appears_after_s (in lists), usd_per_hour, boot_s, locked,
        bad_start, system, stays, is_closed, has_container, publishes. For a placement that differs from the request:
        cuda, data_center, gpu, gpu_count. `tests.support.emulators.hosts` has complete hosts.
        """
        self.account.oddities.append(oddities)

    def next_cluster(self, **oddities: Any) -> None:
        """Set appears_after_s (in lists), ranks_after_s, vanishes_after_s, data_center, type of the next cluster."""
        self.account.cluster_oddities.append(oddities)

    def preempt(self, name: str) -> None:
        self.account.preempt(self.pod(name))

    def restart(self, name: str) -> None:
        self.account.restart(self.pod(name))

    def volume(self, volume_id: str, data_center: str, folder: Path) -> None:
        """Add a network volume, stored in a folder of this computer; it outlives its pods."""
        about = {"name": volume_id, "size": 50, "dataCenter": data_center, "type": "HIGH_PERFORMANCE"}
        self.account.volumes[volume_id] = about
        self.folders[volume_id] = folder

    # Observations

    @property
    def given_to_pods(self) -> dict[str, str]:
        """Variables with which a pod can query and terminate itself."""
        return {KEY_VARIABLE: POD_KEY, BASE_URL_VARIABLE: self.url}

    def pod(self, name: str) -> Pod:
        return next(pod for pod in self.account.all() if pod.name == name)

    @property
    def names(self) -> list[str]:
        """Names of single pods, then of clusters."""
        alone = [pod.name for pod in self.account.all() if pod.cluster is None]
        return [*alone, *(cluster.name for cluster in self.account.all_clusters())]

    def counts(self) -> Counter[str]:
        return Counter(exchange.what for exchange in self.exchanges)

    def most_calls_a_minute(self) -> int:
        times = [exchange.time for exchange in self.exchanges]
        return max((sum(1 for each in times if start <= each < start + 60) for start in times), default=0)

    # Answers

    def answer(self, exchange: Exchange, key: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of every answer except the log stream."""
        recent = sum(1 for each in self.exchanges if each.time > exchange.time - 60)
        headers = {
            "RateLimit": f'"minute";r={max(PER_MINUTE - recent, 0)};t=60',
            "RateLimit-Policy": f'"minute";q={PER_MINUTE};w=60',
        }
        problem = {"Content-Type": "application/problem+json"}
        if key not in self.keys:
            status, body = runpod_rest.problem(401, "missing bearer token" if not key else "invalid API key")
            return status, problem, json.dumps(body).encode()
        if recent > PER_MINUTE:
            status, body = runpod_rest.problem(429, "rate limit exceeded for the minute window")
            return status, {**problem, **headers, "Retry-After": "60"}, json.dumps(body).encode()
        if key == POD_KEY and not re.search(self.pod_key_may, exchange.what):
            status, body = runpod_rest.problem(403, "this key may not do that")
            return status, {**problem, **headers}, json.dumps(body).encode()
        if exchange.path == "/graphql":
            status, body = runpod_graphql.answer(self.account, exchange.body)
            return status, {"Content-Type": "application/json"}, json.dumps(body).encode()
        status, body = runpod_rest.answer(
            self.account, exchange.method, exchange.path, exchange.query, exchange.headers, exchange.body
        )
        kind = {"Content-Type": "application/json"} if status < 300 else problem
        return status, {**kind, **headers}, b"" if body is None else json.dumps(body).encode()

    def fault(self, exchange: Exchange) -> Fault | None:
        if self._down:
            return Fault("cut", "", 1)
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.on, exchange.what):
                fault.times -= 1
                return fault
        return None

    def sent(self, exchange: Exchange) -> bytes:
        """The body of an answer as it is sent."""
        body = exchange.answer
        for on, change in self.spoilt:
            if re.search(on, exchange.what) and body:
                body = json.dumps(change(json.loads(body))).encode()
        return body

    def lines(self, pod_id: str) -> list[tuple[str, str, str]]:
        """Log lines as time, text and source: those of host and container, by time."""
        pod = self.account.find(pod_id)
        printed = pod.machine.log() if pod.machine and pod.has_container else []
        told = [(stamp(time), text, "system") for time, text in pod.host_lines(self.clock.time())]
        return sorted([*told, *((ts, text, "container") for ts, text in printed)], key=lambda line: line[0])

    def events(self, exchange: Exchange) -> Callable[[int], list[bytes]]:
        """Return a function that gives the events from line n on, without those before `since` or above `tail`."""
        pod_id = contract.parameters_of_path(exchange.path)["id"]
        query = exchange.query
        first = len(self.lines(pod_id))
        begin = max(first - int(query.get("tail", 100)), 0)

        def from_line(number: int) -> list[bytes]:
            found = []
            for at, (ts, text, source) in enumerate(self.lines(pod_id)):
                since = query.get("since", "")
                if at < number or (ts[:19] < since[:19] if since else at < begin):
                    continue
                data = json.dumps({"source": source, "line": text, "ts": ts}, ensure_ascii=False)
                found.append(f"id: {ts}\ndata: {data}\n\n".encode())
            return found

        return from_line


def _handler(emulator: Emulator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # header and body are two writes; Nagle would delay each answer by 40 ms

        def handle_one(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            headers = {name: value for name, value in self.headers.items() if name != "Authorization"}
            exchange = Exchange(
                emulator.clock.time(), self.command, url.path, dict(parse_qsl(url.query)),
                {**headers, "Authorization": "Bearer ***"}, body,
            )  # fmt: skip
            emulator.exchanges.append(exchange)
            fault = emulator.fault(exchange)
            exchange.fault = fault.kind if fault else ""
            if fault and self._failed(fault, exchange, key):
                return
            if url.path.endswith("/logs") and key in emulator.keys:
                self._stream(exchange)
            else:
                self._send(exchange, *emulator.answer(exchange, key))

        do_GET = do_POST = do_DELETE = do_PATCH = handle_one  # noqa: N815

        def _failed(self, fault: Fault, exchange: Exchange, key: str) -> bool:
            if fault.kind.startswith("done"):
                emulator.answer(exchange, key)
            if fault.kind.endswith("late"):
                emulator.closing.wait(60)
            if fault.kind.endswith(("cut", "late")):
                self.close_connection = True
            elif fault.kind == "502":
                self._send(exchange, 502, {"Content-Type": "text/html"}, HTML)
            else:
                status, body = runpod_rest.problem(int(fault.kind), "rate limit exceeded for the minute window")
                headers = {"Content-Type": "application/problem+json", "Retry-After": str(fault.retry_after_s)}
                self._send(exchange, status, headers, json.dumps(body).encode())
            return True

        def _send(self, exchange: Exchange, status: int, headers: dict[str, str], body: bytes) -> None:
            exchange.status, exchange.answer_headers, exchange.answer = status, headers, body
            body = emulator.sent(exchange)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, exchange: Exchange) -> None:
            problems = contract.problems_of_query("GET", exchange.path, exchange.query, exchange.headers)
            try:
                from_line = emulator.events(exchange)
            except Refusal:
                problems = ["no such pod"]
            if problems:
                status, body = runpod_rest.problem(404 if problems == ["no such pod"] else 422, "; ".join(problems))
                self._send(exchange, status, {"Content-Type": "application/problem+json"}, json.dumps(body).encode())
                return
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            exchange.status, exchange.answer_headers = 200, headers
            self.send_response(200)
            for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
                self.send_header(name, value)
            self.end_headers()
            left = emulator.cut_log_after.pop(0) if emulator.cut_log_after else None
            sent: list[bytes] = []
            try:
                while True:
                    asked = time.monotonic()
                    for event in from_line(0)[len(sent) :]:
                        if left == len(sent):
                            self.close_connection = True
                            return
                        self._chunk(event[:7])  # chunks may split an event anywhere
                        self._chunk(event[7:])
                        sent.append(event)
                    if not emulator.holds_streams:
                        self.wfile.write(b"0\r\n\r\n")
                        return
                    # To read the log of a container is a process, which takes cores from the machine that starts.
                    if emulator.closing.wait(max(0.02, 5 * (time.monotonic() - asked))):
                        return
            except (OSError, Refusal):
                self.close_connection = True

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(emulator.clock.time() if timestamp is None else timestamp)

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    return Handler


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8999)
    parser.add_argument("--pods", choices=["none", "docker"], default="docker")
    parser.add_argument("--image", help="which image a pod is, whatever is asked for")
    parser.add_argument("--boot-s", type=float, default=3.0, help="how long a pod is STARTING")
    parser.add_argument("--clean", action="store_true", help="only remove containers that an earlier one left behind")
    told = parser.parse_args()
    if told.clean:
        remove_leftovers()
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    emulator = Emulator(pods=told.pods, port=told.port, boot_s=told.boot_s, image=told.image)
    emulator.keys = _Any()  # type: ignore[assignment]
    print(f"RUNPOD_API_BASE_URL={emulator.url}   (any key will do; Ctrl-C ends it and its pods)", flush=True)
    shown = 0
    try:
        while True:
            time.sleep(0.2)
            while shown < len(emulator.exchanges) and emulator.exchanges[shown].status:
                print(emulator.exchanges[shown].status, emulator.exchanges[shown].what, flush=True)
                shown += 1
    except KeyboardInterrupt:
        emulator.close()
    return 0


class _Any:
    def __contains__(self, key: object) -> bool:
        return bool(key)


if __name__ == "__main__":
    sys.exit(main())
