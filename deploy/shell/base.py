"""What every machine can be asked for, whichever way it is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, StepFailed
from deploy.pod.agent.verbs import CHUNK_BYTES
from deploy.specs.machine import Hardware

__all__ = ["CHUNK_BYTES", "EVIDENCE_LINES", "Result", "Shell"]

EVIDENCE_LINES = 10
LONGEST_LINE_BYTES = 1 << 20  # a longer one comes in pieces
EVIDENCE_CHARACTERS = 1000  # of each line that is kept until the command ends
RUN_S = 60.0  # of a command that a machine runs, unless it is given longer
MOST_LOSSES = 20  # of a connection, while one command is started again and again
HASHED_AT_ONCE = 8192  # ranges in one request: the answer has room in one message


@dataclass(frozen=True)
class Result:
    """How a command ended; true when it succeeded."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    def __bool__(self) -> bool:
        return self.exit_code == 0

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", errors="replace")

    @property
    def complaint(self) -> list[str]:
        """The last lines that the command said, on either stream."""
        return last_lines(self.stderr or self.stdout)


class Shell:
    """Paths belong to the machine; every command has a limit; no command goes through a command interpreter.

    How a verb gets to the machine (`deploy/pod/agent/verbs.py`) and its answer back is what LocalShell and SshShell
    add.
    """

    name = "this computer"  # in messages
    patience_s = 60.0  # how long a lost connection is sought again
    give_up_at = math.inf  # by the monotonic clock: beyond it nothing is waited for, whatever the machine does
    on_loss: Callable[[str], None] = staticmethod(lambda _: None)  # told when it breaks, and when it is back

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        """Have a verb carried out. `again`: it may be asked for twice, should the connection break before its answer.

        Raises OSError as the verb does, verbs.Overdue, and StepFailed when the machine cannot be reached.
        """
        raise NotImplementedError

    def calls(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """Several verbs, in order, in one round trip; each as `call` with `again`, and the first error is raised."""
        return [self.call(verb, **arguments) for verb, arguments in requests]

    def lines(self, argv: Sequence[str], cwd: PurePath | None) -> Generator[bytes, None, int]:
        """What a command says, line by line while it runs; returns its exit code."""
        raise NotImplementedError

    def terminal(self, argv: Sequence[str]) -> list[str]:
        """What to run on the laptop for a command that gets this terminal there."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the connection; the next verb makes a new one."""

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: PurePath | None = None,
        env: Mapping[str, str | None] | None = None,
        stdin: bytes = b"",
        limit_s: float | None = None,
        check: bool = True,
        again: bool = False,
    ) -> Result:
        """`env` is added to the machine's own environment; None takes a name out. `again` as in `call`.

        Raises StepFailed after `limit_s` (default: RUN_S).
        """
        from deploy.pod.agent.verbs import Overdue

        limit_s = RUN_S if limit_s is None else limit_s
        place = None if cwd is None else str(cwd)
        arguments = {"argv": list(argv), "cwd": place, "env": dict(env or {}), "stdin": stdin, "limit_s": limit_s}
        try:
            exit_code, stdout, stderr = self.call("run", again=again, **arguments)
        except FileNotFoundError as error:
            raise StepFailed(f"{argv[0]} was not found") from error
        except Overdue as overdue:
            raise StepFailed(
                f"{name_of(argv)} did not end within {limit_s:g} s", evidence=last_lines(overdue.output)
            ) from None
        result = Result(tuple(argv), exit_code, stdout, stderr)
        if check and not result:
            raise StepFailed(f"{name_of(argv)} failed with exit code {exit_code}", evidence=result.complaint)
        return result

    def stream(self, argv: Sequence[str], *, cwd: PurePath | None = None, again: bool = False) -> Iterator[str]:
        """The lines of a command while it runs; raises StepFailed with the last of them when it fails.

        `again`: the command may be started once more when the connection breaks; its lines then begin anew.
        """
        seen: list[str] = []
        lines, losses = _whole_lines(self.lines(argv, cwd)), 0
        while True:
            try:
                line = next(lines)
            except StopIteration as end:
                code = border.whole(end.value, self._answer("lines"), -(1 << 32), 1 << 32)
                break
            except StepFailed as failed:
                losses += 1
                if not (again and losses < MOST_LOSSES and self.is_loss(failed)):
                    raise
                lines = _whole_lines(self.lines(argv, cwd))
                continue
            seen = [*seen[1 - EVIDENCE_LINES :], border.cut(line, EVIDENCE_CHARACTERS)]
            yield line
        if code != 0:
            raise StepFailed(f"{name_of(argv)} failed with exit code {code}", evidence=seen)

    def is_loss(self, failed: StepFailed) -> bool:  # noqa: ARG002 - of a connection; here there is none
        """Whether a connection was lost, after which asking again may help."""
        return False

    def spawn(self, argv: Sequence[str], *, cwd: PurePath) -> int:
        """Start a process that outlives this one and its terminal; its pid."""
        pid = self.call("spawn", again=False, argv=list(argv), cwd=str(cwd))
        return border.whole(pid, self._answer("spawn"), 0, 1 << 32)

    def which(self, program: str) -> str | None:
        found = self.call("which", program=program)
        return None if found is None else border.path_text(found, self._answer("which"))

    def hardware(self) -> Hardware:
        """Cores and memory; which GPUs a job can use is asked by `devices.ask`."""
        told, what = border.mapping(self.call("hardware"), self._answer("hardware")), self._answer("hardware")
        memory, shm = told.get("memory_bytes"), told.get("shm_bytes")
        return Hardware(
            gpus=border.whole(told.get("gpus"), f"{what}, gpus", 0, 1024),
            cores=border.whole(told.get("cores"), f"{what}, cores", 1, 1 << 16),
            memory_bytes=None if memory is None else border.size(memory, f"{what}, memory_bytes", 1 << 60),
            shm_bytes=None if shm is None else border.size(shm, f"{what}, shm_bytes", 1 << 60),
        )

    def environment(self) -> dict[str, str]:
        """Names and values that a command gets on the machine."""
        return border.strings(self.call("environment"), self._answer("environment"))

    def expand(self, path: str) -> str:
        """A path of the machine with ~ at its beginning as an absolute one."""
        return border.path_text(self.call("expand", path=path), self._answer("expand"))

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
        """Bytes of a file from an offset, at most `limit` or CHUNK_BYTES; empty behind its end.

        Raises FileNotFoundError when it is not there.
        """
        limit = CHUNK_BYTES if limit is None else limit
        data = self.call("read", path=str(path), offset=offset, limit=limit)
        if not isinstance(data, bytes) or len(data) > limit:
            raise BadAnswer(f"{self._answer('read')} is not at most {limit} bytes")
        return data

    def write(self, path: PurePath, data: bytes, *, private: bool = False) -> None:
        """Replace a whole file in one step; a `private` one is for its owner alone."""
        self.call("write", path=str(path), data=data, private=private)

    def write_at(self, path: PurePath, offset: int, data: bytes) -> None:
        """Write a range of a file, which is made, with its folders, when it is not there."""
        self.call("write_at", path=str(path), offset=offset, data=data)

    def truncate(self, path: PurePath, size: int) -> None:
        """Give a file this size, with room behind it where the system can promise that; it is made if need be."""
        self.call("truncate", path=str(path), size=size)

    def replace(self, source: PurePath, destination: PurePath, *, holding: Sequence[tuple[int, int, str]] = ()) -> bool:
        """Flush `source` to disk and rename it over `destination`; not when it does not hold, for each (offset, length,
        SHA-256), what it says, and then the answer is no."""
        ranges = [list(each) for each in holding]
        try:
            return self.call("replace", source=str(source), destination=str(destination), holding=ranges) is True
        except FileNotFoundError:  # asked for twice over a broken connection: the first time did it
            if self.size(destination) is None:
                raise
            return True

    def size(self, path: PurePath) -> int | None:
        size = self.call("size", path=str(path))
        return None if size is None else border.size(size, self._answer("size"))

    def sha256(self, path: PurePath) -> str:
        return border.sha256(self.call("sha256", path=str(path)), self._answer("sha256"))

    def hashes(self, path: PurePath, ranges: Sequence[tuple[int, int]], *, holes: bool = False) -> list[str]:
        """SHA-256 of each (offset, length) of a file; with `holes`, '' for a range that was never written to."""
        found: list[str] = []
        for first in range(0, len(ranges), HASHED_AT_ONCE):
            asked = [list(each) for each in ranges[first : first + HASHED_AT_ONCE]]
            told = self.call("hashes", path=str(path), ranges=asked, holes=holes)
            found += border.hashes(told, len(asked), self._answer("hashes"), holes)
        return found

    def listdir(self, path: PurePath) -> list[str]:
        """The names in a folder; none where there is no such folder. A name may be anything: see `border.Name`."""
        return border.names(self.call("listdir", path=str(path)), self._answer("listdir"))

    def remove(self, path: PurePath) -> None:
        """Remove a file or a folder; removing what is gone is success."""
        self.call("remove", path=str(path))

    def free_bytes(self, path: PurePath) -> int:
        return border.size(self.call("free_bytes", path=str(path)), self._answer("free_bytes"), 1 << 62)

    def in_ram(self, path: PurePath) -> bool:
        """Whether a file there would take memory instead of disk."""
        return self.call("in_ram", path=str(path)) is True

    def memory_used_bytes(self) -> int:
        """What counts against the machine's memory limit already."""
        return border.size(self.call("memory_used_bytes"), self._answer("memory_used_bytes"), 1 << 62)

    def clock(self) -> float:
        """The machine's own time, in Unix seconds: heartbeats are compared with it."""
        return border.number(self.call("clock"), self._answer("clock"), 0, 1e11)

    def _answer(self, verb: str) -> str:
        """In messages."""
        return f"{self.name}: its answer to {verb}"


def _whole_lines(pieces: Generator[bytes, None, Any]) -> Generator[str, None, Any]:
    """Lines as text, put together from pieces; returns what `pieces` returns."""
    line = bytearray()
    while True:
        try:
            line += next(pieces)
        except StopIteration as end:
            if line:
                yield _text_of(line)
            return end.value
        if line.endswith(b"\n") or len(line) > LONGEST_LINE_BYTES:
            yield _text_of(line)
            line = bytearray()


def _text_of(line: bytearray) -> str:
    return line.decode("utf-8", errors="replace").rstrip("\r\n")


def name_of(argv: Sequence[str]) -> str:
    """A command as a person would call it: `git add`, `python -m app.config`."""
    words = [Path(argv[0]).stem, *argv[1:3]]
    return " ".join(words[: 3 if words[1:2] == ["-m"] else 2])


def last_lines(output: bytes) -> list[str]:
    return output.decode("utf-8", errors="replace").strip().splitlines()[-EVIDENCE_LINES:]
