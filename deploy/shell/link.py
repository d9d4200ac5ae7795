"""Connection to the agent on a machine, over any pair of byte streams."""

from __future__ import annotations

import errno
import itertools
import math
import threading
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any, Protocol

from deploy import border
from deploy.errors import BadAnswer, StepFailed
from deploy.pod.agent import verbs
from deploy.pod.agent.agent import EXHAUSTED, WITH_BODY
from deploy.pod.agent.frames import BODY_BYTES, GREETING, LINE_BYTES, Ended, Misspoken, exactly, lengths, pack
from deploy.shell.agent_program import LOGIN_SCRIPT, program, why_not
from deploy.shell.awake import awake_s
from deploy.shell.base import last_lines

# The agent sends a heartbeat every two seconds. A connection silent for this long counts as dead, whatever the system
# reports.
SILENCE_S = 8.0
QUEUE_BYTES = 4 << 20  # unread part of an answer in many messages; above it the machine has to wait
QUEUE_MESSAGES = 4096
# A heartbeat shows that the machine is alive, not that it will answer: each answer has its own timeout.
ANSWER_S = 60.0
LONG_ANSWER_S = 600.0  # for verbs that work on whole files or folders
LONG = {
    "hashes", "sha256", "replace", "truncate", "remove", "place_snapshot", "snapshot_state", "open_rendezvous",
    "reach_rendezvous", "hardware", "free_images",
}  # fmt: skip
SLOWEST_BYTES_PER_S = 16 << 10  # for a body on its way to the machine
LINES_SILENCE_S = 3600.0  # between two lines of a command whose output is streamed, such as mining
GREETING_LIMIT_S = 30.0  # login scripts may be slow
CHATTER_BYTES = 64 << 10  # limit of what login scripts may print before the agent's greeting


class LinkLost(StepFailed):
    """The connection broke or went silent. A retry may help."""


class Misbehaves(LinkLost):
    """The machine sends invalid messages. A retry does not help."""


class NoAnswer(LinkLost):
    """The machine sends heartbeats but did not answer in time."""


class MachineGone(StepFailed):
    """The connection broke, and the provider no longer knows the machine."""


class NoAgent(StepFailed):
    """The machine is reachable but cannot run the agent. A retry does not help."""


class Stream(Protocol):
    """Bytes to and from a program on the machine."""

    def read_into(self, view: memoryview) -> int:
        """Read 1 to len(view) bytes into `view` and return their number; 0 at the end."""

    def write(self, data: bytes | memoryview) -> None: ...

    def close(self) -> None:
        """Abort at once, from any thread. Wakes blocked readers and writers."""

    def release(self) -> None:
        """Free resources. Called when nobody reads or writes any more."""

    def exit_code(self) -> int | None:
        """Return the program's exit code if it ended by itself; None if the connection broke."""

    def complaint(self) -> list[str]:
        """Return the last lines of the program's standard error."""


def limit_of(verb: str, arguments: Mapping[str, Any], body_bytes: int) -> float:
    """Return the timeout in seconds of an answer, or of its next line, whether or not heartbeats arrive."""
    if verb == "lines":
        return LINES_SILENCE_S
    own_s = float(arguments.get("limit_s", 60)) if verb == "run" else 0.0
    return own_s + (LONG_ANSWER_S if verb in LONG else ANSWER_S) + body_bytes / SLOWEST_BYTES_PER_S


def most_of(verb: str, arguments: Mapping[str, Any]) -> int:
    """Return how many bytes may follow the JSON of an answer."""
    if verb == "read":
        limit = arguments.get("limit")
        return BODY_BYTES if limit is None else min(BODY_BYTES, limit)
    return {"run": BODY_BYTES, "lines": LINE_BYTES}.get(verb, 0)


class Pending:
    """A pending answer."""

    def __init__(self, link: Link, verb: str = "", limit_s: float = math.inf, most_bytes: int = 0) -> None:
        self.link = link
        self.verb = verb
        self.limit_s = limit_s
        self.most_bytes = most_bytes
        self.sent = awake_s()
        self._messages: deque[tuple[dict[str, Any], bytes]] = deque()
        self._bytes = 0
        self._is_over = False
        self._changed = threading.Condition()

    def put(self, head: dict[str, Any], body: bytes) -> None:
        """Add a message. Called by the listening thread; blocks while the queue is full."""
        with self._changed:
            while self._bytes > QUEUE_BYTES or len(self._messages) > QUEUE_MESSAGES:
                if self.link.broken:
                    return
                self.link.heard = awake_s()  # this side is slow, not the machine
                self._changed.wait(0.5)
            self._messages.append((head, body))
            self._bytes += len(body)
            self._changed.notify_all()

    def end(self) -> None:
        """Mark that no more messages will come."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def next(self) -> tuple[dict[str, Any], bytes]:
        """Return the next message. Raises LinkLost if none will come, NoAnswer after the timeout."""
        with self._changed:
            while not self._messages:
                if self._is_over:
                    kind = Misbehaves if self.link.misbehaves else LinkLost
                    raise kind(f"the connection broke: {self.link.broken}", evidence=self.link.stream.complaint())
                until = min(self.sent + self.limit_s, self.link.give_up_at)
                if awake_s() > until:
                    break
                self._changed.wait(0.5)  # on Windows, Ctrl-C cannot interrupt a wait without a timeout
            else:
                message = self._messages.popleft()
                self._bytes -= len(message[1])
                if message[0].get("more"):
                    self.sent = awake_s()
                self._changed.notify_all()
                return message
        waited_s = awake_s() - self.sent
        self.link.fail(f"no answer to {self.verb} within {waited_s:.0f} s")
        raise NoAnswer(f"the machine is connected, but did not answer {self.verb} within {waited_s:.0f} s")

    def result(self) -> Any:
        """Return the value, or raise the error that the verb raised on the machine."""
        head, body = self.next()
        return self.link.value_of(self.verb, head, body)


class Link:
    """Connection to one agent. Requests are answered in order; several may be in flight, from any thread.

    Raises LinkLost if the connection breaks before the agent's greeting, NoAgent if the machine cannot run the agent.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.heard = awake_s()
        self.broken: str | None = None
        self.misbehaves = False  # broken because the machine sent invalid data
        self.give_up_at = math.inf  # deadline of every wait, in seconds awake
        self.round_trip_s = GREETING_LIMIT_S  # the shortest so far, including the agent's work
        self._chatter = bytearray()
        self._left = bytearray()
        self._exit_code: int | None = None
        self._numbers = itertools.count()
        self._pending: dict[int, Pending] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._greeted = threading.Event()
        self._ended = threading.Event()
        for work in (self._listen, self._watch):
            threading.Thread(target=work, daemon=True, name=f"agent {work.__name__}").start()
        try:
            with self._sending:
                self._write(program())
            self._await_greeting()
        except BaseException:
            self.fail("given up")
            raise

    def submit(self, verb: str, **arguments: Any) -> Pending:
        """Send a request without waiting for the answer."""
        body = arguments.pop(WITH_BODY[verb], b"") if verb in WITH_BODY else b""
        pending = Pending(self, verb, limit_of(verb, arguments, len(body)), most_of(verb, arguments))
        with self._lock:
            number = next(self._numbers)
            self._pending[number] = pending
            if self.broken:
                pending.end()
        with self._sending:
            self._write(pack({"id": number, "verb": verb, "args": arguments}, body))
            if body:
                self._write(body)
        return pending

    def lines(self, verb: str, **arguments: Any) -> Generator[bytes, None, Any]:
        """Send a request whose answer comes in many messages. Yields their bodies; returns the value."""
        pending = self.submit(verb, **arguments)
        while True:
            head, body = pending.next()
            if not head.get("more"):
                return self.value_of(verb, head, body)
            yield body

    def fail(self, why: str) -> None:
        """Give up this link. Every pending answer raises LinkLost."""
        with self._lock:
            self.broken = self.broken or why
            given_up = list(self._pending.values())
            self._pending.clear()
        for pending in given_up:
            pending.end()
        self._ended.set()
        self.stream.close()

    def close(self) -> None:
        """Close the link. The agent exits at the end of its input."""
        self.fail("closed")

    def _await_greeting(self) -> None:
        limit_s = awake_s() + GREETING_LIMIT_S
        while not self._greeted.wait(0.2) and not self.broken:
            if awake_s() > limit_s:
                self.fail("no greeting")
                raise LinkLost(
                    f"the machine accepts the login, but `python3` did not answer within {GREETING_LIMIT_S:.0f} s: "
                    f"{LOGIN_SCRIPT} may wait for input or start another program",
                    evidence=[*last_lines(self._chatter), *self.stream.complaint()],
                )
        if self.broken:
            if len(self._chatter) > CHATTER_BYTES:
                raise NoAgent("a login script on the machine prints too much text", evidence=last_lines(self._chatter))
            said = [*last_lines(self._chatter), *self.stream.complaint()]
            if self._exit_code == EXHAUSTED:
                raise LinkLost("the machine lets this user start no further thread: see `ulimit -u` there")
            if self._exit_code is None:
                raise (Misbehaves if self.misbehaves else LinkLost)(
                    f"the connection broke: {self.broken}", evidence=said
                )
            raise NoAgent(why_not(self._exit_code, said), evidence=said)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self.stream.write(data)
        except (OSError, EOFError, ValueError) as error:
            self.fail(str(error) or type(error).__name__)

    def _read_into(self, view: memoryview) -> int:
        if self._left:
            count = min(len(view), len(self._left))
            view[:count] = self._left[:count]
            del self._left[:count]
            return count
        count = self.stream.read_into(view)
        self.heard = awake_s()
        return count

    def _listen(self) -> None:
        try:
            self._skip_chatter()
            self._greeted.set()
            while True:
                self._deliver()
        except Ended as ended:
            why = str(ended)
        except Misspoken as misspoken:
            self.misbehaves = True
            why = f"the machine sent an invalid message ({misspoken})"
        except (OSError, EOFError, ValueError) as error:
            why = str(error) or type(error).__name__
        if not self._greeted.is_set():
            self._exit_code = self.stream.exit_code()  # before the stream is closed
        self.fail(why)
        with self._sending:  # a descriptor closed during a write in another thread may already be another file
            self.stream.release()

    def _watch(self) -> None:
        """Detect silence. Threads that wait for an answer or on a full pipe cannot do it."""
        while not self._ended.wait(0.5):
            if self._greeted.is_set() and awake_s() - self.heard > SILENCE_S:
                self.fail(f"no heartbeat for {SILENCE_S:.0f} s")

    def _skip_chatter(self) -> None:
        """Skip what login scripts print before the greeting. Bytes read past the greeting are kept."""
        view = memoryview(bytearray(4096))
        while (at := self._chatter.find(GREETING)) < 0:
            if len(self._chatter) > CHATTER_BYTES:
                raise Ended("too much text before the agent's greeting")
            count = self._read_into(view)
            if not count:
                raise Ended("the program ended before the agent's greeting")
            self._chatter += view[:count]
        self._left = self._chatter[at + len(GREETING) :]

    def _deliver(self) -> None:
        """Read one message and pass it to its pending answer. Raises Misspoken for an invalid message."""
        head_bytes, body_bytes = lengths(self._read_into)
        try:
            frame = border.frame(exactly(self._read_into, head_bytes))
        except BadAnswer as error:
            raise Misspoken(error.message) from error
        if frame.number is None:
            if body_bytes:
                raise Misspoken("a heartbeat with a body")
            return
        pending = self._awaited(frame.number, frame.more)
        if body_bytes > pending.most_bytes:
            raise Misspoken(f"{body_bytes} bytes in an answer to {pending.verb}")
        body = exactly(self._read_into, body_bytes)
        if not frame.more:  # only now: a connection that breaks inside the body ends the wait for it
            with self._lock:
                self._pending.pop(frame.number, None)
        self.round_trip_s = min(self.round_trip_s, awake_s() - pending.sent)
        pending.put(frame.head, body)

    def _awaited(self, number: int, more: bool) -> Pending:
        with self._lock:
            pending = self._pending.get(number)
        if pending is None:
            raise Ended("closed") if self.broken else Misspoken("an answer without a request")
        if more and pending.verb != "lines":
            raise Misspoken(f"a partial answer to {pending.verb}")
        return pending

    def value_of(self, verb: str, head: dict[str, Any], body: bytes) -> Any:
        """Return the value of an answer in the form of its verb.

        Raises OSError and verbs.Overdue as the verb did, and Misbehaves for an answer in another form.
        """
        if "error" in head:
            told = head["error"]
            if not isinstance(told, dict) or not isinstance(told.get("errno"), str):
                raise self._misspoken("an error without a name")
            try:
                words, path = (border.text(told.get(key) or "", "an error", 300) for key in ("text", "path"))
            except BadAnswer as error:
                raise self._misspoken("an error without text") from error
            number = getattr(errno, told["errno"], None) if told["errno"] in errno.errorcode.values() else None
            raise OSError(number, words, path or None)
        if verb == "run":
            if head.get("overdue"):
                raise verbs.Overdue(body)
            ended = head.get("ended")
            if not isinstance(ended, list) or not all(type(each) is int for each in ended) or len(ended) != 2:
                raise self._misspoken("an answer to run without an exit code")
            exit_code, split = ended
            return exit_code, body[: max(0, split)], body[max(0, split) :]
        if verb == "read":
            if head.get("bytes") is not True:
                raise self._misspoken("an answer to read without bytes")
            return body
        if "value" not in head:
            raise self._misspoken("an answer without a value")
        return head["value"]

    def _misspoken(self, what: str) -> Misbehaves:
        self.misbehaves = True
        self.fail(f"the machine sent an invalid message ({what})")
        return Misbehaves(f"the connection broke: {self.broken}")
