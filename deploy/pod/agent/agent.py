"""Answer the laptop's requests on a machine, over standard input and output, until the connection closes.

Nothing is installed for it: the laptop sends these modules as the first bytes (`deploy/shell/agent_program.py`).
Requests are answered in order, so the laptop may send several at once. A heartbeat every two seconds shows the laptop
that the connection is alive during a long request.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, cast

from deploy.pod.agent import ram, rendezvous, snapshots, verbs
from deploy.pod.agent.frames import GREETING, Ended, pack, unpack
from deploy.pod.base import processes

BEAT_S = 2.0  # also before the first one, which follows the greeting
EXHAUSTED = 84  # exit code: no thread can be started
# Verbs whose last argument is the body of the message.
WITH_BODY = {"run": "stdin", "write": "data", "write_at": "data", "place_snapshot": "data"}
VERBS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        verbs.run,
        verbs.lines,
        verbs.spawn,
        verbs.which,
        verbs.environment,
        verbs.environment_for,
        verbs.expand,
        verbs.hardware,
        verbs.memory_used_bytes,
        verbs.read,
        verbs.write,
        verbs.write_at,
        verbs.replace,
        verbs.truncate,
        verbs.size,
        verbs.sha256,
        verbs.hashes,
        verbs.listdir,
        verbs.remove,
        verbs.free_bytes,
        verbs.in_ram,
        verbs.clock,
        ram.user,
        ram.claim_ram,
        ram.staged_images,
        ram.free_images,
        snapshots.snapshot_state,
        snapshots.place_snapshot,
        rendezvous.open_rendezvous,
        rendezvous.reach_rendezvous,
        rendezvous.close_rendezvous,
        rendezvous.interface_of,
    )
}


def main() -> None:
    source = cast(io.BufferedReader, sys.stdin.buffer)
    out = os.dup(1)
    os.dup2(2, 1)  # a library's prints must not mix with the messages
    lock = threading.Lock()

    def send(head: dict[str, Any], body: bytes = b"") -> None:
        with lock:
            _write(out, pack(head, body))
            _write(out, body)

    # Names are UTF-8 in each program that is started, as on the laptop, whatever the login's locale is.
    os.environ["PYTHONUTF8"] = "1"
    os.umask(os.umask(0o077) | 0o002)  # other users of a host must not change the code that a job runs
    try:
        threading.Thread(target=_beat, args=(send,), daemon=True).start()
    except RuntimeError:
        sys.exit(EXHAUSTED)
    with contextlib.suppress(OSError):
        _write(out, GREETING)
        with contextlib.suppress(Ended):
            while True:
                head, body = unpack(source.readinto1)
                _answer(head, body, send)
    _leave()


def _answer(head: dict[str, Any], body: bytes, send: Callable[..., None]) -> None:
    number, verb, arguments = head["id"], head["verb"], head["args"]
    if verb in WITH_BODY:
        arguments[WITH_BODY[verb]] = body
    try:
        value = VERBS[verb](**arguments)
        if verb == "lines":
            send({"id": number, "value": _send_lines(value, number, send)})
        elif verb == "run":
            send({"id": number, "ended": [value[0], len(value[1])]}, value[1] + value[2])
        elif isinstance(value, bytes):
            send({"id": number, "bytes": True}, value)
        else:
            send({"id": number, "value": value})
    except verbs.Overdue as overdue:
        send({"id": number, "overdue": True}, overdue.output)
    except Exception as error:
        send({"id": number, "error": _told(error)})


def _told(error: Exception) -> dict[str, str]:
    """Return an error as the laptop raises it. Another than OSError would end the connection, again at each retry."""
    if not isinstance(error, OSError):
        error = OSError(errno.EINVAL, f"{type(error).__name__}: {error}")
    # By name: Windows and macOS have other numbers.
    name = errno.errorcode.get(error.errno or 0, "")
    return {"errno": name, "text": error.strerror or str(error), "path": str(error.filename or "")}


def _send_lines(lines: Generator[bytes, None, int], number: int, send: Callable[..., None]) -> int:
    """Send each line as soon as it arrives; returns the exit code."""
    while True:
        try:
            line = next(lines)
        except StopIteration as end:
            return int(end.value)
        send({"id": number, "more": True}, line)


def _beat(send: Callable[..., None]) -> None:
    with contextlib.suppress(OSError):
        while True:
            time.sleep(BEAT_S)
            send({"beat": True})
    _leave()  # the laptop disconnected while a command runs


def _leave() -> None:
    """Exit at once, as a heartbeat may be stuck in a full pipe. Kills awaited commands; spawned processes stay."""
    for pid in list(verbs.running):
        processes.kill_tree(pid)
    os._exit(0)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
