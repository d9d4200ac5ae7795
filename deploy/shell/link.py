"""An agent on a machine, and the requests to it, over any pair of byte streams."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from deploy import border
from deploy.errors import BadAnswer, StepFailed
from deploy.pod.agent import agent, frames, rendezvous, snapshots, verbs
from deploy.pod.agent.agent import WITH_BODY
from deploy.pod.agent.frames import BODY_BYTES, GREETING, LINE_BYTES, Ended, Misspoken, exactly, lengths, pack
from deploy.pod.base import folder, processes

# A beat is due every two seconds; a line that is silent for so long is dead, whatever the system thinks of it.
SILENCE_S = 8.0
QUEUE_BYTES = 4 << 20  # of an answer in many messages that nobody has taken yet; then the machine has to wait
QUEUE_MESSAGES = 4096
# A beat says that the machine lives, not that it will ever answer: each answer has a limit of its own.
ANSWER_S = 60.0
LONG_ANSWER_S = 600.0  # of verbs that work on whole files or folders
LONG = {
    "hashes", "sha256", "replace", "truncate", "remove", "place_snapshot", "snapshot_state", "open_rendezvous",
    "reach_rendezvous", "hardware",
}  # fmt: skip
SLOWEST_BYTES_PER_S = 16 << 10  # of a body on its way to the machine
LINES_SILENCE_S = 3600.0  # between two lines of a command that tells them as they come, such as one that mines
GREETING_LIMIT_S = 30.0  # login scripts may be slow
CHATTER_BYTES = 64 << 10  # what a login script may print before the agent speaks
NOT_FOUND, TOO_OLD = 127, 86  # exit codes: of every command interpreter, and ours
# The command is the same in every shell: the program itself comes over the standard input. -I and -S: no module that
# happens to lie in the home folder or in an environment there is loaded, and none is looked for.
BOOTSTRAP = "python3 -IS -c 'import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))'"


class LinkLost(StepFailed):
    """The connection broke, or the other side fell silent: worth another try."""


class Misbehaves(LinkLost):
    """The machine is reached, and what it sends is no answer: asking again would not help."""


class NoAnswer(LinkLost):
    """The machine lives, by its beats, and did not answer in time."""


class MachineGone(StepFailed):
    """The connection broke, and its provider knows no such machine any more."""


class NoAgent(StepFailed):
    """The machine is reached, but cannot run the agent: it will not be able to a second later."""


class Stream(Protocol):
    """Bytes to and from a program on the machine."""

    def read_into(self, view: memoryview) -> int:
        """Fill 1 to len(view) bytes; 0 at the end."""

    def write(self, data: bytes | memoryview) -> None: ...

    def close(self) -> None:
        """Break it off, at once and from any thread: whoever reads or writes is woken."""

    def release(self) -> None:
        """Free what it holds; called when nobody reads or writes any more."""

    def exit_code(self) -> int | None:
        """The program's own, when it ended by itself; None when the connection broke."""

    def complaint(self) -> list[str]:
        """The last lines of the program's standard error."""


def program() -> bytes:
    """The agent with everything it needs, as source text that a bare Python runs."""
    parts = {"deploy": "", "deploy.pod": "", "deploy.pod.base": "", "deploy.pod.agent": ""}
    for module in (frames, folder, processes, verbs, snapshots, rendezvous, agent):
        parts[module.__name__] = Path(str(module.__file__)).read_text(encoding="utf-8")
    text = f"""
import sys, types
if sys.version_info < (3, 9):
    sys.stderr.write(sys.version.split()[0])
    sys.exit({TOO_OLD})
for name, source in {parts!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    exec(compile(source, name, "exec"), module.__dict__)
sys.modules["deploy.pod.agent.agent"].main()
"""
    source = text.encode("utf-8")
    return b"%d\n" % len(source) + source


def limit_of(verb: str, arguments: Mapping[str, Any], body_bytes: int) -> float:
    """How many seconds an answer, or the next line of one, may take, beats or not."""
    if verb == "lines":
        return LINES_SILENCE_S
    own_s = float(arguments.get("limit_s", 60)) if verb == "run" else 0.0
    return own_s + (LONG_ANSWER_S if verb in LONG else ANSWER_S) + body_bytes / SLOWEST_BYTES_PER_S


def most_of(verb: str, arguments: Mapping[str, Any]) -> int:
    """How many bytes may follow the JSON of an answer."""
    if verb == "read":
        limit = arguments.get("limit")
        return BODY_BYTES if limit is None else min(BODY_BYTES, limit)
    return {"run": BODY_BYTES, "lines": LINE_BYTES}.get(verb, 0)


class Pending:
    """An answer that is on its way."""

    def __init__(self, link: Link, verb: str = "", limit_s: float = math.inf, most_bytes: int = 0) -> None:
        self.link = link
        self.verb = verb
        self.limit_s = limit_s
        self.most_bytes = most_bytes
        self.sent = time.monotonic()
        self._messages: deque[tuple[dict[str, Any], bytes]] = deque()
        self._bytes = 0
        self._is_over = False
        self._changed = threading.Condition()

    def put(self, head: dict[str, Any], body: bytes) -> None:
        """Called by the listening thread, which waits here while too much is waiting to be taken."""
        with self._changed:
            while self._bytes > QUEUE_BYTES or len(self._messages) > QUEUE_MESSAGES:
                if self.link.broken:
                    return
                self.link.heard = time.monotonic()  # it is this side that is slow
                self._changed.wait(0.5)
            self._messages.append((head, body))
            self._bytes += len(body)
            self._changed.notify_all()

    def end(self) -> None:
        """There will be no more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def next(self) -> tuple[dict[str, Any], bytes]:
        """The next message of the answer; LinkLost when there will be none, or when its time is over."""
        with self._changed:
            while not self._messages:
                if self._is_over:
                    kind = Misbehaves if self.link.misbehaves else LinkLost
                    raise kind(f"the connection broke: {self.link.broken}", evidence=self.link.stream.complaint())
                until = min(self.sent + self.limit_s, self.link.give_up_at)
                if time.monotonic() > until:
                    break
                self._changed.wait(0.5)  # Windows would not hear Ctrl-C in a wait without a limit
            else:
                message = self._messages.popleft()
                self._bytes -= len(message[1])
                if message[0].get("more"):
                    self.sent = time.monotonic()
                self._changed.notify_all()
                return message
        waited_s = time.monotonic() - self.sent
        self.link.fail(f"no answer to {self.verb} within {waited_s:.0f} s")
        raise NoAnswer(f"the machine is there, and did not answer to {self.verb} within {waited_s:.0f} s")

    def result(self) -> Any:
        """The value, or the error that the verb raised there."""
        head, body = self.next()
        return self.link.value_of(self.verb, head, body)


class Link:
    """One agent. Requests are answered in order; several may be on their way, from any thread.

    Raises LinkLost when the connection breaks before the agent speaks, NoAgent when the machine cannot run it.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.heard = time.monotonic()
        self.broken: str | None = None
        self.misbehaves = False  # it broke because of what the machine sent
        self.give_up_at = math.inf  # by the monotonic clock: nothing is waited for beyond it
        self.round_trip_s = GREETING_LIMIT_S  # the shortest so far, the agent's work included
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
        """A request whose answer comes in many messages; returns its value."""
        pending = self.submit(verb, **arguments)
        while True:
            head, body = pending.next()
            if not head.get("more"):
                return self.value_of(verb, head, body)
            yield body

    def fail(self, why: str) -> None:
        """Give up this link: every answer that is waited for becomes LinkLost."""
        with self._lock:
            self.broken = self.broken or why
            given_up = list(self._pending.values())
            self._pending.clear()
        for pending in given_up:
            pending.end()
        self._ended.set()
        self.stream.close()

    def close(self) -> None:
        """The agent ends when it sees the end of its input."""
        self.fail("closed")

    def _await_greeting(self) -> None:
        limit_s = time.monotonic() + GREETING_LIMIT_S
        while not self._greeted.wait(0.2) and not self.broken:
            if time.monotonic() > limit_s:
                self.fail(f"no answer within {GREETING_LIMIT_S:.0f} s")
        if self.broken:
            if len(self._chatter) > CHATTER_BYTES:
                raise NoAgent("a login script on the machine prints without end", evidence=last_lines(self._chatter))
            said = [*last_lines(self._chatter), *self.stream.complaint()]
            if self._exit_code is None:
                raise (Misbehaves if self.misbehaves else LinkLost)(
                    f"the connection broke: {self.broken}", evidence=said
                )
            raise NoAgent(_why(self._exit_code, said), evidence=said)

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
        self.heard = time.monotonic()
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
            why = f"the machine does not speak our language ({misspoken})"
        except (OSError, EOFError, ValueError) as error:
            why = str(error) or type(error).__name__
        if not self._greeted.is_set():
            self._exit_code = self.stream.exit_code()  # before it is broken off
        self.fail(why)
        with self._sending:  # a descriptor that is closed while another thread writes to it may be another file by then
            self.stream.release()

    def _watch(self) -> None:
        """Silence is noticed here: those who wait for an answer, or for a full pipe to be emptied, cannot look."""
        while not self._ended.wait(0.5):
            if self._greeted.is_set() and time.monotonic() - self.heard > SILENCE_S:
                self.fail(f"no sign of life for {SILENCE_S:.0f} s")

    def _skip_chatter(self) -> None:
        """What login scripts print stands before the greeting; what was read beyond it is kept."""
        view = memoryview(bytearray(4096))
        while (at := self._chatter.find(GREETING)) < 0:
            if len(self._chatter) > CHATTER_BYTES:
                raise Ended("too much text before the agent's first word")
            count = self._read_into(view)
            if not count:
                raise Ended("it ended before the agent's first word")
            self._chatter += view[:count]
        self._left = self._chatter[at + len(GREETING) :]

    def _deliver(self) -> None:
        """Read one message, and hand it to who waits for it. What is no message of ours raises Misspoken."""
        head_bytes, body_bytes = lengths(self._read_into)
        try:
            frame = border.frame(exactly(self._read_into, head_bytes))
        except BadAnswer as error:
            raise Misspoken(error.message) from error
        if frame.number is None:
            if body_bytes:
                raise Misspoken("a beat with a body")
            return
        pending = self._awaited(frame.number, frame.more)
        if body_bytes > pending.most_bytes:
            raise Misspoken(f"{body_bytes} bytes as an answer to {pending.verb}")
        body = exactly(self._read_into, body_bytes)
        self.round_trip_s = min(self.round_trip_s, time.monotonic() - pending.sent)
        pending.put(frame.head, body)

    def _awaited(self, number: int, more: bool) -> Pending:
        with self._lock:
            pending = self._pending.get(number) if more else self._pending.pop(number, None)
        if pending is None:
            raise Ended("closed") if self.broken else Misspoken("an answer to nothing")
        if more and pending.verb != "lines":
            raise Misspoken(f"half an answer to {pending.verb}")
        return pending

    def value_of(self, verb: str, head: dict[str, Any], body: bytes) -> Any:
        """The value that an answer holds, in the form that the verb has; raises what the verb raised."""
        if "error" in head:
            told = head["error"]
            if not isinstance(told, dict) or not isinstance(told.get("errno", ""), int | None):
                raise self._misspoken("an error without a number")
            try:
                words, path = (border.text(told.get(key) or "", "an error", 300) for key in ("text", "path"))
            except BadAnswer as error:
                raise self._misspoken("an error without words") from error
            raise OSError(told["errno"], words, path or None)
        if verb == "run":
            if head.get("overdue"):
                raise verbs.Overdue(body)
            ended = head.get("ended")
            if not isinstance(ended, list) or not all(type(each) is int for each in ended) or len(ended) != 2:
                raise self._misspoken("an end without an exit code")
            exit_code, split = ended
            return exit_code, body[: max(0, split)], body[max(0, split) :]
        if verb == "read":
            if head.get("bytes") is not True:
                raise self._misspoken("no bytes as an answer to read")
            return body
        if "value" not in head:
            raise self._misspoken("an answer without a value")
        return head["value"]

    def _misspoken(self, what: str) -> Misbehaves:
        self.misbehaves = True
        self.fail(f"the machine does not speak our language ({what})")
        return Misbehaves(f"the connection broke: {self.broken}")


def last_lines(text: bytes | bytearray) -> list[str]:
    return text.decode("utf-8", errors="replace").strip().splitlines()[-10:]


def _why(exit_code: int, said: Sequence[str]) -> str:
    if exit_code == NOT_FOUND:
        return "the machine is reached, but has no `python3`: install Python 3.9 or newer there"
    if exit_code == TOO_OLD:
        return f"the machine is reached, but its `python3` is {said[-1] if said else 'old'}: 3.9 or newer is needed"
    return f"the machine is reached, but `python3` does not run there: it ended with exit code {exit_code}"
