"""What every machine can be asked for, whichever way it is reached."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from deploy.errors import StepFailed
from deploy.machine import Hardware
from deploy.pod.verbs import CHUNK_BYTES

__all__ = ["CHUNK_BYTES", "EVIDENCE_LINES", "Result", "Shell"]

EVIDENCE_LINES = 10


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

    How a verb gets to the machine (`deploy/pod/verbs.py`) and its answer back is what LocalShell and SshShell add.
    """

    patience_s = 60.0  # how long a lost connection is sought again
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
        limit_s: float = 60,
        check: bool = True,
        again: bool = False,
    ) -> Result:
        """`env` is added to the machine's own environment; None takes a name out. `again` as in `call`."""
        from deploy.pod.verbs import Overdue

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
        lines = self.lines(argv, cwd)
        while True:
            try:
                line = next(lines).decode("utf-8", errors="replace").rstrip("\r\n")
            except StopIteration as end:
                code = int(end.value)
                break
            except StepFailed as failed:
                if not (again and self.is_loss(failed)):
                    raise
                lines = self.lines(argv, cwd)
                continue
            seen = [*seen[1 - EVIDENCE_LINES :], line]
            yield line
        if code != 0:
            raise StepFailed(f"{name_of(argv)} failed with exit code {code}", evidence=seen)

    def is_loss(self, failed: StepFailed) -> bool:  # noqa: ARG002 - of a connection; here there is none
        """Whether a connection was lost, after which asking again may help."""
        return False

    def spawn(self, argv: Sequence[str], *, cwd: PurePath) -> int:
        """Start a process that outlives this one and its terminal; its pid."""
        return int(self.call("spawn", again=False, argv=list(argv), cwd=str(cwd)))

    def which(self, program: str) -> str | None:
        found: str | None = self.call("which", program=program)
        return found

    def hardware(self) -> Hardware:
        """Cores and memory; which GPUs a job can use is asked by `devices.ask`."""
        return Hardware(**self.call("hardware"))

    def environment(self) -> dict[str, str]:
        """Names and values that a command gets on the machine."""
        return dict(self.call("environment"))

    def expand(self, path: str) -> str:
        """A path of the machine with ~ at its beginning as an absolute one."""
        return str(self.call("expand", path=path))

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
        """Bytes of a file from an offset; empty behind its end; FileNotFoundError when it is not there."""
        data: bytes = self.call("read", path=str(path), offset=offset, limit=limit)
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
            return bool(self.call("replace", source=str(source), destination=str(destination), holding=ranges))
        except FileNotFoundError:  # asked for twice over a broken connection: the first time did it
            if self.size(destination) is None:
                raise
            return True

    def size(self, path: PurePath) -> int | None:
        size: int | None = self.call("size", path=str(path))
        return size

    def sha256(self, path: PurePath) -> str:
        return str(self.call("sha256", path=str(path)))

    def hashes(self, path: PurePath, ranges: Sequence[tuple[int, int]], *, holes: bool = False) -> list[str]:
        """SHA-256 of each (offset, length) of a file; with `holes`, '' for a range that was never written to."""
        return list(self.call("hashes", path=str(path), ranges=[list(each) for each in ranges], holes=holes))

    def listdir(self, path: PurePath) -> list[str]:
        return list(self.call("listdir", path=str(path)))

    def remove(self, path: PurePath) -> None:
        """Remove a file or a folder; removing what is gone is success."""
        self.call("remove", path=str(path))

    def free_bytes(self, path: PurePath) -> int:
        return int(self.call("free_bytes", path=str(path)))

    def in_ram(self, path: PurePath) -> bool:
        """Whether a file there would take memory instead of disk."""
        return bool(self.call("in_ram", path=str(path)))

    def memory_used_bytes(self) -> int:
        """What counts against the machine's memory limit already."""
        return int(self.call("memory_used_bytes"))

    def clock(self) -> float:
        """The machine's own time, in Unix seconds: heartbeats are compared with it."""
        return float(self.call("clock"))


def name_of(argv: Sequence[str]) -> str:
    """A command as a person would call it: `git add`, `python -m app.config`."""
    words = [Path(argv[0]).stem, *argv[1:3]]
    return " ".join(words[: 3 if words[1:2] == ["-m"] else 2])


def last_lines(output: bytes) -> list[str]:
    return output.decode("utf-8", errors="replace").strip().splitlines()[-EVIDENCE_LINES:]
