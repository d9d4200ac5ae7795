"""Send and receive byte ranges of files: over parallel connections, and only the ranges that are missing.

`transfer` makes whole files of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from deploy.errors import StepFailed
from deploy.shell import LocalShell, Shell

Progress = Callable[[int, int], None]

RANGE_BYTES = 1 << 20
HASHED_AT_ONCE = 4096  # ranges per request


def no_progress(done_bytes: int, all_bytes: int) -> None:
    """Ignore progress, for small files."""


@dataclass(frozen=True)
class Piece:
    """`bytes` bytes at `offset` of one file, for `place` in another. `name` is for error messages."""

    name: str
    offset: int
    bytes: int
    place: int
    sha256: str | None = None  # None: any content of the source is right
    source: str | None = None  # set if the pieces of one transfer come from several files


@dataclass(frozen=True)
class Range:
    """A part of a piece, small enough to hold in memory and to send again."""

    place: int
    bytes: int
    data: Any = b""


class Shorter(StepFailed):
    """The machine sent fewer bytes than it announced."""


class WrongPiece(Exception):
    """The source does not match the hash of a piece."""


class Sending:
    """Upload of pieces into `part`. Raises StepFailed and WrongPiece in `run`."""

    def __init__(self, shell: Shell, source: Path, part: PurePath, pieces: Sequence[Piece]) -> None:
        self.shell = shell
        self.source = source
        self.part = part
        self.pieces = pieces
        self.hashes = [""] * len(pieces)
        self.there: dict[int, list[str]] = {}  # of partly uploaded pieces: the hash of each range
        self.tally = _Tally(sum(piece.bytes for piece in pieces))

    def run(self, progress: Progress, *, size: int | None = None, is_new: bool = False) -> list[str]:
        """Upload what is missing; returns each piece's hash. `size`: resize the part first. `is_new`: it is empty."""
        with _lanes(self.shell, self.tally.all_bytes) as carry:
            if size is not None:
                self.shell.truncate(self.part, size)
            if not is_new:
                self._look()
            carry(self._ranges(), self._request, self._took, lambda: self.tally.tell(progress))
        return self.hashes

    def _look(self) -> None:
        """Find what the machine has: whole pieces first, then the ranges of partly uploaded ones."""
        there = self.shell.hashes(self.part, [(piece.place, piece.bytes) for piece in self.pieces], holes=True)
        for index, (piece, found) in enumerate(zip(self.pieces, there, strict=True)):
            if found and found == piece.sha256:
                self.hashes[index] = found
                self.tally.add(piece.bytes)
            elif found:
                ranges = [(piece.place + at, size) for at, size in _split(piece.bytes)]
                self.there[index] = self.shell.hashes(self.part, ranges, holes=True)

    def _ranges(self) -> Iterator[Range]:
        """Yield what to send, in order. Pieces are hashed on the way, so they are read once."""
        for index, piece in enumerate(self.pieces):
            if self.hashes[index]:
                continue
            digest = hashlib.sha256()
            there = self.there.get(index)
            with open(piece.source or self.source, "rb") as file:
                file.seek(piece.offset)
                for number, (at, size) in enumerate(_split(piece.bytes)):
                    data = file.read(size)
                    if len(data) < size:
                        raise StepFailed(f"{file.name} ends inside {piece.name}: copy or make it again")
                    digest.update(data)
                    if there and there[number] == hashlib.sha256(data).hexdigest():
                        self.tally.add(size)
                    else:
                        yield Range(piece.place + at, size, data)
            if piece.sha256 not in (None, digest.hexdigest()):
                raise WrongPiece(piece.name)
            self.hashes[index] = digest.hexdigest()

    def _request(self, part: Range) -> tuple[str, dict[str, Any]]:
        return "write_at", {"path": str(self.part), "offset": part.place, "data": part.data}

    def _took(self, part: Range, _: object) -> None:
        self.tally.add(part.bytes)


class Fetching:
    """Download of a file into `part`. Raises Shorter in `run`."""

    def __init__(self, shell: Shell, source: PurePath, part: Path, size: int) -> None:
        self.shell = shell
        self.source = source
        self.part = part
        self.size = size
        self.tally = _Tally(size)
        self.lock = threading.Lock()

    def run(self, progress: Progress) -> str:
        """Download what is missing; returns the SHA-256 of the result."""
        with _lanes(self.shell, self.size) as carry:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            right = self._right()
            descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            with open(descriptor, "r+b") as self.file:
                if os.fstat(descriptor).st_size > self.size:
                    self.file.truncate(self.size)
                carry(self._missing(right), self._request, self._took, lambda: self.tally.tell(progress))
        return LocalShell().sha256(self.part)

    def _right(self) -> set[int]:
        """Return the offsets of ranges that an earlier download completed, by hashes on both sides, in batches."""
        here = LocalShell()
        right: set[int] = set()
        whole = _split(min(here.size(self.part) or 0, self.size) // RANGE_BYTES * RANGE_BYTES)
        while some := list(islice(whole, HASHED_AT_ONCE)):
            there = here.hashes(self.part, some, holes=True)
            found = [(each, its) for each, its in zip(some, there, strict=True) if its]
            wanted = self.shell.hashes(self.source, [each for each, _ in found]) if found else []
            right |= {each[0] for (each, its), other in zip(found, wanted, strict=True) if its == other}
        return right

    def _missing(self, right: set[int]) -> Iterator[Range]:
        for at, size in _split(self.size):
            if at in right:
                self.tally.add(size)
            else:
                yield Range(at, size)

    def _request(self, part: Range) -> tuple[str, dict[str, Any]]:
        return "read", {"path": str(self.source), "offset": part.place, "limit": part.bytes}

    def _took(self, part: Range, value: bytes) -> None:
        if not isinstance(value, bytes) or len(value) != part.bytes:
            raise Shorter(f"{self.source} became shorter while it was copied")
        with self.lock:
            self.file.seek(part.place)
            self.file.write(value)
        self.tally.add(part.bytes)


class _Tally:
    """Bytes done by many threads, reported by one."""

    def __init__(self, all_bytes: int) -> None:
        self.all_bytes = all_bytes
        self.done_bytes = 0
        self.told = -1
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        with self.lock:
            self.done_bytes += count

    def tell(self, progress: Progress) -> None:
        if self.done_bytes != self.told:
            self.told = self.done_bytes
            progress(self.told, self.all_bytes)


@contextlib.contextmanager
def _lanes(shell: Shell, all_bytes: int) -> Iterator[Callable[..., None]]:
    """Yield a function that transfers ranges. Its connections open while the caller looks for what is missing."""
    from deploy.shell.lanes import Lanes, count_for
    from deploy.shell.ssh import SshShell

    if isinstance(shell, SshShell):
        with Lanes[Range](shell, count_for(all_bytes, shell.link().round_trip_s)) as lanes:
            yield lanes.carry
    else:
        yield partial(_carry_here, shell)


def _carry_here(
    shell: Shell,
    ranges: Iterator[Range],
    request: Callable[[Range], tuple[str, dict[str, Any]]],
    took: Callable[[Range, Any], None],
    report: Callable[[], None],
) -> None:
    for each in ranges:
        verb, arguments = request(each)
        took(each, shell.call(verb, **arguments))
        report()
    report()


def _split(size: int) -> Iterator[tuple[int, int]]:
    """Return (offset, bytes) of each range in `size` bytes."""
    return ((at, min(RANGE_BYTES, size - at)) for at in range(0, size, RANGE_BYTES))
