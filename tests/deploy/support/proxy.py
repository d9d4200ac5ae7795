"""A TCP proxy with a delay, limited bandwidth and injected faults.

It runs as a separate process, so that it takes no time from what is measured.

    python -m tests.deploy.support.proxy PORT DELAY_S BYTES_PER_S

It prints its port, then answers each command on standard input with its counters as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.ports import free_port

READ_BYTES = 256 << 10
QUEUE_BYTES = 64 << 20  # in flight per direction; more than any TCP window, so it never limits a stream


class Proxy:
    """Controls the proxy process from a test."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def cut(self) -> None:
        """Stop all traffic without closing connections."""
        self._say("cut")

    def restore(self) -> None:
        """Undo `cut` and `refuse`; data in flight arrives."""
        self._say("restore")

    def drop(self) -> None:
        """Close all current connections."""
        self._say("drop")

    def refuse(self) -> None:
        """Accept no new connections until `restore`."""
        self._say("refuse")

    def counters(self) -> dict[str, int]:
        """Bytes to (`up`) and from (`down`) the server; `connections` accepted so far; connections `open` now."""
        return self._say("count")

    def _say(self, word: str) -> dict[str, int]:
        assert self.process.stdin
        assert self.process.stdout
        print(word, file=self.process.stdin, flush=True)
        told: dict[str, int] = json.loads(self.process.stdout.readline())
        return told


@contextlib.contextmanager
def proxy(port: int, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> Iterator[Proxy]:
    """Start a proxy to a port of this computer.

    `delay_s` applies one way. `bytes_per_s` applies each way, shared by all connections; 0 means no limit.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.deploy.support.proxy", str(port), str(delay_s), str(bytes_per_s)],
        cwd=Path(__file__).parents[3], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        yield Proxy(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


class Way:
    """One direction of a connection: the data read, and when it is due at the other end."""

    def __init__(self, source: socket.socket, name: str) -> None:
        self.source = source
        self.name = name
        self.target: socket.socket | None = None
        self.queue: deque[tuple[float, memoryview]] = deque()
        self.queued = 0
        self.ended = False  # the source is at its end
        self.shut = False  # the end is passed on to the target
        self.blocked = False


class Line:
    """The proxy process: its state and event loop."""

    def __init__(self, port: int, delay_s: float, bytes_per_s: float) -> None:
        self.server = port
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self.read_bytes = max(4096, min(READ_BYTES, int(bytes_per_s * 0.01))) if bytes_per_s else READ_BYTES
        # With a limited bandwidth, senders get at most a quarter of a second ahead, per connection.
        self.queue_bytes = max(64 << 10, int(bytes_per_s / 4)) if bytes_per_s else QUEUE_BYTES
        self.free_at = {"up": 0.0, "down": 0.0}  # when the next byte may go; connections share the bandwidth
        self.selector = selectors.DefaultSelector()
        self.waiting: list[tuple[float, socket.socket]] = []  # accepted; the first packet is in flight
        self.pairs: list[tuple[Way, Way]] = []
        self.events: dict[socket.socket, int] = {}
        self.is_cut = False
        self.counters = {"up": 0, "down": 0, "connections": 0}
        self.listener: socket.socket | None = None
        self.port = free_port()  # also after a refusal, when it listens again
        self.listen()
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, "command")
        print(self.port, flush=True)

    def listen(self) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", self.port))
        self.listener.listen(64)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, "accept")

    def run(self) -> None:
        while True:
            ready = self.selector.select(self.patience())
            for key, events in ready:
                if key.data == "command":
                    self.obey()
                elif key.data == "accept":
                    self.accept()
                else:
                    source, target = key.data
                    if events & selectors.EVENT_READ:
                        self.read(source)
                    if events & selectors.EVENT_WRITE:
                        target.blocked = False
            if self.is_cut:
                continue
            now = time.monotonic()
            for due, client in [each for each in self.waiting if each[0] <= now]:
                self.waiting.remove((due, client))
                self.join(client)
            for pair in list(self.pairs):
                for way in pair:
                    self.write(way, now)
                if all(way.shut for way in pair):
                    self.close(pair)
            self.watch()

    def patience(self) -> float | None:
        """Seconds until the next data is due; None if only an event can change that."""
        if self.is_cut:
            return None
        dues = [due for due, _ in self.waiting]
        dues += [way.queue[0][0] for pair in self.pairs for way in pair if way.queue and not way.blocked]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def obey(self) -> None:
        word = sys.stdin.readline().strip()
        if not word:
            raise SystemExit
        if word == "cut":
            self.is_cut = True
        elif word == "restore":
            self.is_cut = False
            if self.listener is None:
                self.listen()
        elif word == "drop":
            for pair in list(self.pairs):
                self.close(pair)
            for _, client in self.waiting:
                client.close()
            self.waiting.clear()
        elif word == "refuse" and self.listener is not None:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.listener = None
        self.watch()
        print(json.dumps({**self.counters, "open": len(self.pairs)}), flush=True)

    def accept(self) -> None:
        assert self.listener
        client, _ = self.listener.accept()
        self.counters["connections"] += 1
        self.waiting.append((time.monotonic() + 2 * self.delay_s, client))

    def join(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.server))
        except OSError:
            client.close()
            return
        up, down = Way(client, "up"), Way(server, "down")
        up.target, down.target = server, client
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pairs.append((up, down))

    def read(self, way: Way) -> None:
        if self.is_cut:
            return
        try:
            data = way.source.recv(self.read_bytes)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic()
        if not data:
            way.ended = True
            way.queue.append((now + self.delay_s, memoryview(b"")))
            return
        self.counters[way.name] += len(data)
        start = now
        if self.bytes_per_s:
            start = max(now, self.free_at[way.name]) + len(data) / self.bytes_per_s
            self.free_at[way.name] = start
        way.queue.append((start + self.delay_s, memoryview(data)))
        way.queued += len(data)

    def write(self, way: Way, now: float) -> None:
        assert way.target
        while way.queue and way.queue[0][0] <= now and not way.blocked:
            due, data = way.queue[0]
            try:
                if not data:
                    way.shut = True
                    way.target.shutdown(socket.SHUT_WR)
                count = way.target.send(data) if data else 0
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                    way.blocked = True
                    return
                way.shut = way.ended = True
                way.queue.clear()
                return
            way.queued -= count
            if count == len(data):
                way.queue.popleft()
            else:
                way.queue[0] = (due, data[count:])

    def watch(self) -> None:
        """Register sockets for reads while the queue has room, and for writes after a full one; none while cut."""
        for up, down in self.pairs:
            for source, target in ((up, down), (down, up)):  # one socket's two directions: from it, to it
                events = 0
                if not self.is_cut:
                    if not source.ended and source.queued < self.queue_bytes:
                        events |= selectors.EVENT_READ
                    if target.blocked:
                        events |= selectors.EVENT_WRITE
                self.set_events(source.source, events, (source, target))

    def set_events(self, sock: socket.socket, events: int, data: Any) -> None:
        before = self.events.get(sock, 0)
        if events == before:
            return
        if not before:
            self.selector.register(sock, events, data)
        elif events:
            self.selector.modify(sock, events, data)
        else:
            self.selector.unregister(sock)
        self.events[sock] = events

    def close(self, pair: tuple[Way, Way]) -> None:
        self.pairs.remove(pair)
        for way in pair:
            self.set_events(way.source, 0, None)
            self.events.pop(way.source, None)
            way.source.close()


if __name__ == "__main__":
    Line(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])).run()
