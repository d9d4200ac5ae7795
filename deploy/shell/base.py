"""The interface of every machine, however it is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, StepFailed
from deploy.pod.agent.verbs import CHUNK_BYTES as CHUNK_BYTES
from deploy.specs.machine import Hardware

EVIDENCE_LINES = 10
LONGEST_LINE_BYTES = 1 << 20  # a longer line is split
EVIDENCE_CHARACTERS = 1000  # of each line kept for the error message
RUN_S = 60.0  # default timeout of a command
MOST_LOSSES = 20  # lost connections, while one command is restarted each time
HASHED_AT_ONCE = 8192  # ranges per request: their answer fits into one message

Request = tuple[str, dict[str, Any]]  # a verb and its arguments


@dataclass(frozen=True)
class Result:
    """Result of a command; true if it succeeded."""

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
        """The last lines of stderr, or of stdout if stderr is empty."""
        return last_lines(self.stderr or self.stdout)


@dataclass(frozen=True)
class Room:
    """How much fits into a folder of the machine."""

    free_bytes: int
    own_bytes: int  # in files that will be replaced
    in_ram: bool  # a file there uses memory instead of disk


@dataclass(frozen=True)
class StagedImages:
    """Images of one folder. `use`: why they cannot be removed now, such as `open`; empty if they can."""

    folder: str
    bytes: int
    use: str


class Shell:
    """Commands and files of a machine. Paths are the machine's. Every command has a timeout; none goes through a shell.

    LocalShell and SshShell add how a verb (`deploy/pod/agent/verbs.py`) reaches the machine and how its answer returns.
    """

    name = "this computer"  # in messages
    patience_s = 60.0  # how long to retry a lost connection
    give_up_at = math.inf  # deadline of every wait, by `awake.awake_s`
    silent_fix: str | None = None  # what to do if the machine never answers
    on_loss: Callable[[str], None] = staticmethod(lambda _: None)  # called when it breaks and when it is back

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        """Run a verb. `again`: it may run twice if the connection breaks before its answer.

        Raises OSError as the verb does, verbs.Overdue, and StepFailed if the machine cannot be reached.
        """
        raise NotImplementedError

    def calls(self, requests: Sequence[Request]) -> list[Any]:
        """Run several verbs in order in one round trip, each like `call` with `again`. Raises the first error."""
        answers = self.attempts(requests)
        for answer in answers:
            if isinstance(answer, OSError):
                raise answer
        return answers

    def attempts(self, requests: Sequence[Request]) -> list[Any]:
        """Run several verbs like `calls`, but all of them: the OSError of a verb is its answer."""
        return [attempt(lambda: self.call(verb, **arguments)) for verb, arguments in requests]  # noqa: B023 - called at once

    def lines(self, argv: Sequence[str], cwd: PurePath | None) -> Generator[bytes, None, int]:
        """Yield the output of a command line by line while it runs; returns its exit code."""
        raise NotImplementedError

    def terminal(self, argv: Sequence[str], *, interactive: bool = True) -> list[str]:
        """Return what to run on the laptop so that a command on the machine gets this terminal.

        Without `interactive` it gets pipes instead, which change no byte.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection. The next verb opens a new one."""

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
        """Run a command. `env` is added to the machine's environment; None removes a name. `again` as in `call`.

        Raises StepFailed after `limit_s` (default: RUN_S) and, with `check`, if the command fails.
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
        """Yield the lines of a command while it runs. Raises StepFailed with the last lines if it fails.

        `again`: the command may be restarted if the connection breaks; its lines then start over.
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

    def is_loss(self, failed: StepFailed) -> bool:  # noqa: ARG002 - subclasses use it; here no connection can be lost
        """Return whether a connection was lost, so that a retry may help."""
        return False

    def spawn(self, argv: Sequence[str], *, cwd: PurePath) -> int:
        """Start a process that outlives this one and its terminal. Returns its pid."""
        pid = self.call("spawn", again=False, argv=list(argv), cwd=str(cwd))
        return border.whole(pid, self._answer("spawn"), 0, 1 << 32)

    def which(self, program: str) -> str | None:
        found = self.call("which", program=program)
        return None if found is None else border.path_text(found, self._answer("which"))

    def hardware(self) -> Hardware:
        """Return cores and memory. `devices.ask` finds the GPUs that a job can use."""
        told, what = border.mapping(self.call("hardware"), self._answer("hardware")), self._answer("hardware")
        memory, shm = told.get("memory_bytes"), told.get("shm_bytes")
        return Hardware(
            gpus=border.whole(told.get("gpus"), f"{what}, gpus", 0, 1024),
            cores=border.whole(told.get("cores"), f"{what}, cores", 1, 1 << 16),
            memory_bytes=None if memory is None else border.size(memory, f"{what}, memory_bytes", 1 << 60),
            shm_bytes=None if shm is None else border.size(shm, f"{what}, shm_bytes", 1 << 60),
        )

    def environment(self) -> dict[str, str]:
        """Return the environment variables that a command gets on the machine."""
        return border.strings(self.call("environment"), self._answer("environment"))

    def expand(self, path: str) -> str:
        """Return a path of the machine with a leading ~ as an absolute path."""
        return border.path_text(self.call("expand", path=path), self._answer("expand"))

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
        """Read a file from an offset, at most `limit` or CHUNK_BYTES; empty past its end.

        Raises FileNotFoundError if it is missing.
        """
        limit = CHUNK_BYTES if limit is None else limit
        return self._data(self.call("read", path=str(path), offset=offset, limit=limit), limit)

    def write(self, path: PurePath, data: bytes, *, private: bool = False) -> None:
        """Replace a whole file atomically. `private`: only its owner may read it."""
        self.call("write", path=str(path), data=data, private=private)

    def write_at(self, path: PurePath, offset: int, data: bytes) -> None:
        """Write a range of a file. Creates the file and its folders if needed."""
        self.call("write_at", path=str(path), offset=offset, data=data)

    def truncate(self, path: PurePath, size: int) -> None:
        """Set the size of a file, and allocate its disk space if the system can. Creates the file if needed."""
        self.call("truncate", path=str(path), size=size)

    def replace(self, source: PurePath, destination: PurePath, *, holding: Sequence[tuple[int, int, str]] = ()) -> bool:
        """Flush `source` to disk and rename it over `destination`.

        Returns False, and renames nothing, if an (offset, length, SHA-256) of `holding` differs from `source`.
        """
        ranges = [list(each) for each in holding]
        try:
            return self.call("replace", source=str(source), destination=str(destination), holding=ranges) is True
        except FileNotFoundError:  # sent twice over a broken connection: the first request did it
            if self.size(destination) is None:
                raise
            return True

    def size(self, path: PurePath) -> int | None:
        return self.sizes(path)[0]

    def bytes_in(self, path: PurePath) -> int:
        """Return the size of a file; 0 for a missing one."""
        return self.size(path) or 0

    def sizes(self, *paths: PurePath) -> list[int | None]:
        """Return the size of each file in one round trip; None for a missing one."""
        return [self._size(told) for told in self.calls([("size", {"path": str(path)}) for path in paths])]

    def ahead(self, beginnings: Mapping[Any, int]) -> Ahead:
        """Read sizes of files and their first bytes, as many as `beginnings` says, in one round trip."""
        return Ahead(self, beginnings)

    def sha256(self, path: PurePath) -> str:
        return border.sha256(self.call("sha256", path=str(path)), self._answer("sha256"))

    def hashes(self, path: PurePath, ranges: Sequence[tuple[int, int]], *, holes: bool = False) -> list[str]:
        """Return the SHA-256 of each (offset, length) of a file; with `holes`, '' for a range never written to."""
        found: list[str] = []
        for first in range(0, len(ranges), HASHED_AT_ONCE):
            asked = [list(each) for each in ranges[first : first + HASHED_AT_ONCE]]
            told = self.call("hashes", path=str(path), ranges=asked, holes=holes)
            found += border.hashes(told, len(asked), self._answer("hashes"), holes)
        return found

    def listdir(self, path: PurePath) -> list[str]:
        """List the names in a folder; empty if it is missing. A name may hold any characters: see `border.Name`."""
        return border.names(self.call("listdir", path=str(path)), self._answer("listdir"))

    def remove(self, path: PurePath) -> None:
        """Remove a file or a folder. Succeeds if it is already gone."""
        self.call("remove", path=str(path))

    def free_bytes(self, path: PurePath) -> int:
        return border.size(self.call("free_bytes", path=str(path)), self._answer("free_bytes"), 1 << 62)

    def room(self, folder: PurePath, *files: PurePath) -> Room:
        """Return how much fits into a folder, in one round trip. `files`: their space counts in `own_bytes`."""
        place = {"path": str(folder)}
        asked = [("size", {"path": str(file)}) for file in files]
        *sizes, free, in_ram = self.calls([*asked, ("free_bytes", place), ("in_ram", place)])
        own_bytes = sum(self._size(told) or 0 for told in sizes)
        return Room(border.size(free, self._answer("free_bytes"), 1 << 62), own_bytes, in_ram is True)

    def user(self) -> str:
        """Return the user's name on the machine, as a part of a folder's name."""
        return border.user_name(self.call("user"), self._answer("user"))

    def claim_ram(self, stage_to: PurePath) -> str:
        """Make the user's own folder in a staging folder that others use too. Returns the user's name.

        Raises OSError if something of another user, or a link, has its name.
        """
        return border.user_name(self.call("claim_ram", stage_to=str(stage_to)), self._answer("claim_ram"))

    def staged_images(self, stage_to: PurePath) -> list[StagedImages]:
        """List the user's images in a staging folder that others use too, oldest first."""
        told = border.staged_images(self.call("staged_images", stage_to=str(stage_to)), self._answer("staged_images"))
        return [StagedImages(*each) for each in told]

    def free_images(self, stage_to: PurePath, folders: Sequence[str] | None = None) -> list[StagedImages]:
        """Remove the user's images that nothing uses, in `folders` or everywhere. Returns all that there were."""
        asked: dict[str, Any] = {"stage_to": str(stage_to), "folders": None if folders is None else list(folders)}
        told = border.staged_images(self.call("free_images", **asked), self._answer("free_images"))
        return [StagedImages(*each) for each in told]

    def memory_used_bytes(self) -> int:
        """Return the bytes that already count against the machine's memory limit."""
        return border.size(self.call("memory_used_bytes"), self._answer("memory_used_bytes"), 1 << 62)

    def clock(self) -> float:
        """Return the machine's time in Unix seconds, for comparison with heartbeats."""
        return border.unix_time(self.call("clock"), self._answer("clock"))

    def _size(self, told: Any) -> int | None:
        return None if told is None else border.size(told, self._answer("size"))

    def _data(self, told: Any, limit: int) -> bytes:
        if not isinstance(told, bytes) or len(told) > limit:
            raise BadAnswer(f"{self._answer('read')} is not at most {limit} bytes")
        return told

    def _answer(self, verb: str) -> str:
        """Return the name of an answer for error messages."""
        return f"{self.name}: its answer to {verb}"


class Ahead:
    """Sizes and first bytes of files, as they were when this was made. It asks the shell for everything else."""

    def __init__(self, shell: Shell, beginnings: Mapping[Any, int]) -> None:
        self.shell = shell
        self.beginnings = dict(beginnings)
        asked: list[Request] = [("size", {"path": str(path)}) for path in beginnings]
        asked += [("read", {"path": str(path), "offset": 0, "limit": limit}) for path, limit in beginnings.items()]
        told = shell.attempts(asked)
        self._sizes = dict(zip(beginnings, told, strict=False))
        self._data = dict(zip(beginnings, told[len(beginnings) :], strict=True))

    def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes:
        """Read like a shell."""
        limit = CHUNK_BYTES if limit is None else limit
        if offset or self.beginnings.get(path) != limit:
            return self.shell.read(path, offset, limit)
        return self.shell._data(_or_raise(self._data[path]), limit)

    def size(self, path: Any) -> int | None:
        if path not in self._sizes:
            return self.shell.size(path)
        return self.shell._size(_or_raise(self._sizes[path]))

    def ahead(self, beginnings: Mapping[Any, int]) -> Ahead:
        return Ahead(self.shell, beginnings)


def attempt(ask: Callable[[], Any]) -> Any:
    """Return the answer to `ask`, or its OSError."""
    try:
        return ask()
    except OSError as error:
        return error


def _or_raise(answer: Any) -> Any:
    if isinstance(answer, OSError):
        raise answer
    return answer


def _whole_lines(pieces: Generator[bytes, None, Any]) -> Generator[str, None, Any]:
    """Join pieces into lines of text; returns what `pieces` returns."""
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
    """Return a short name of a command: `git add`, `python -m app.config`."""
    words = [Path(argv[0]).stem, *argv[1:3]]
    return " ".join(words[: 3 if words[1:2] == ["-m"] else 2])


def last_lines(output: bytes | bytearray) -> list[str]:
    return output.decode("utf-8", errors="replace").strip().splitlines()[-EVIDENCE_LINES:]
