"""An agent on a machine, and the requests to it, over any pair of byte streams."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

from deploy.errors import StepFailed
from deploy.pod import agent, folder, frames, processes, rendezvous, snapshots, verbs
from deploy.pod.agent import WITH_BODY
from deploy.pod.frames import GREETING, Ended, pack

# A beat is due every two seconds; a line that is silent for so long is dead, whatever the system thinks of it.
SILENCE_S = 8.0
GREETING_LIMIT_S = 30.0  # login scripts may be slow
CHATTER_BYTES = 64 << 10  # what a login script may print before the agent speaks
NOT_FOUND, TOO_OLD = 127, 86  # exit codes: of every command interpreter, and ours
# The command is the same in every shell: the program itself comes over the standard input. -I and -S: no module that
# happens to lie in the home folder or in an environment there is loaded, and none is looked for.
BOOTSTRAP = "python3 -IS -c 'import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))'"


class LinkLost(StepFailed):
    """The connection broke, or the other side fell silent: worth another try."""


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
    parts = {"deploy": "", "deploy.pod": ""}
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
sys.modules["deploy.pod.agent"].main()
"""
    source = text.encode("utf-8")
    return b"%d\n" % len(source) + source


class Pending:
    """An answer that is on its way."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.sent = time.monotonic()
        self.messages: queue.SimpleQueue[tuple[dict[str, Any], bytes] | None] = queue.SimpleQueue()

    def next(self) -> tuple[dict[str, Any], bytes]:
        """The next message of the answer; LinkLost when there will be none."""
        while True:
            try:
                message = self.messages.get(timeout=0.5)  # Windows would not hear Ctrl-C in a wait without a limit
            except queue.Empty:
                continue
            if message is None:
                raise LinkLost(f"the connection broke: {self.link.broken}", evidence=self.link.stream.complaint())
            return message

    def result(self) -> Any:
        """The value, or the error that the verb raised there."""
        head, body = self.next()
        return value_of(head, body)


class Link:
    """One agent. Requests are answered in order; several may be on their way, from any thread.

    Raises LinkLost when the connection breaks before the agent speaks, NoAgent when the machine cannot run it.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.heard = time.monotonic()
        self.broken: str | None = None
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
        pending = Pending(self)
        with self._lock:
            number = next(self._numbers)
            self._pending[number] = pending
            if self.broken:
                pending.messages.put(None)
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
                return value_of(head, body)
            yield body

    def fail(self, why: str) -> None:
        """Give up this link: every answer that is waited for becomes LinkLost."""
        with self._lock:
            self.broken = self.broken or why
            for pending in self._pending.values():
                pending.messages.put(None)
            self._pending.clear()
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
                raise LinkLost(f"the connection broke: {self.broken}", evidence=said)
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
                self._deliver(*frames.unpack(self._read_into))
        except Ended as ended:
            why = str(ended)
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

    def _deliver(self, head: dict[str, Any], body: bytes) -> None:
        if "id" not in head:
            return
        with self._lock:
            pending = self._pending.get(head["id"])
            if not head.get("more"):
                self._pending.pop(head["id"], None)
        if pending:
            self.round_trip_s = min(self.round_trip_s, time.monotonic() - pending.sent)
            pending.messages.put((head, body))


def value_of(head: dict[str, Any], body: bytes) -> Any:
    """The value that an answer holds; raises what the verb raised."""
    if "error" in head:
        told = head["error"]
        raise OSError(told["errno"], told["text"], told["path"] or None)
    if head.get("overdue"):
        raise verbs.Overdue(body)
    if "ended" in head:
        exit_code, split = head["ended"]
        return exit_code, body[:split], body[split:]
    return body if head.get("bytes") else head["value"]


def last_lines(text: bytes | bytearray) -> list[str]:
    return text.decode("utf-8", errors="replace").strip().splitlines()[-10:]


def _why(exit_code: int, said: Sequence[str]) -> str:
    if exit_code == NOT_FOUND:
        return "the machine is reached, but has no `python3`: install Python 3.9 or newer there"
    if exit_code == TOO_OLD:
        return f"the machine is reached, but its `python3` is {said[-1] if said else 'old'}: 3.9 or newer is needed"
    return f"the machine is reached, but `python3` does not run there: it ended with exit code {exit_code}"
