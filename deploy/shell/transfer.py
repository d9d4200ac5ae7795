"""Copy files between laptop and machine: in parallel ranges, resumable, verified and atomic.

Hashes on both sides show what is already there; an interrupted copy leaves no other record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.border import Place
from deploy.errors import BadAnswer, StepFailed, WrongUse
from deploy.shell import CHUNK_BYTES, LocalShell, Shell

Progress = Callable[[int, int], None]

SMALL_BYTES = 1 << 20  # a smaller file is one message over the open connection
FIRST_BYTES = 64 << 10
RANGE_BYTES = 1 << 20
PIECE_BYTES = 32 << 20
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


def fetch(
    shell: Shell,
    source: PurePath,
    place: Place,
    *,
    most_bytes: int = border.FILE_BYTES["result"],
    sha256: str | None = None,
    expected_bytes: int | None = None,
    progress: Progress = no_progress,
) -> None:
    """Download a file. The destination changes in one step, after the bytes were verified.

    Until then they are in a `.part` file beside it. An interrupted download resumes from it.
    Raises BadAnswer, before a byte is written, if the file is larger than `most_bytes` or not `expected_bytes` long.
    Raises StepFailed if there is no space, or if the bytes do not match `sha256`; then they are removed.
    """
    here, destination = LocalShell(), place.path
    if isinstance(shell, LocalShell):
        _copy_here(shell, source, here, destination, sha256=sha256, progress=progress)
        return
    if sha256 and here.size(destination) is not None and here.sha256(destination) == sha256:
        return
    total, data = _beginning(shell, source, most_bytes, expected_bytes)
    if total <= SMALL_BYTES:
        data = data if total == len(data) else shell.read(source, 0, total)
        if sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise _wrong(source, str(sha256))
        here.write(destination, data)
        progress(len(data), total)
        return
    wanted = sha256 or shell.hashes(source, [(0, total)])[0]  # a log may grow meanwhile
    part = _part(destination, wanted)
    _refuse_without_room(source, part, total)
    for _ in range(2):  # once more if another process changed the part meanwhile
        try:
            found = _Fetching(shell, source, part, total).run(progress)
        except _Shorter:
            here.remove(part)
            raise
        if found == wanted:
            here.replace(part, place.path)
            return
    here.remove(part)
    raise _wrong(source, wanted)


def _beginning(shell: Shell, source: PurePath, most_bytes: int, expected_bytes: int | None) -> tuple[int, bytes]:
    """Return the size of a file on the machine, checked against the limits, and its first bytes."""
    path, what = str(source), f"{shell.name}: {source.name}"
    total, data = shell.calls([("size", {"path": path}), ("read", {"path": path, "limit": FIRST_BYTES})])
    total = border.size(total, f"{what}, its size", most_bytes)
    if expected_bytes is not None and total != expected_bytes:
        raise BadAnswer(f"{what} has {total} bytes, but its JSON states {expected_bytes}: nothing was copied")
    if not isinstance(data, bytes) or len(data) > FIRST_BYTES:
        raise BadAnswer(f"{what}: the machine sent invalid data")
    return total, data


def _refuse_without_room(source: PurePath, part: Path, total: int) -> None:
    here = LocalShell()
    free, needed = here.free_bytes(part), total - (here.size(part) or 0)
    if needed > free - border.RESERVE_BYTES:
        raise StepFailed(
            f"{source.name} has {total / border.GIB:.1f} GiB, but {part.parent} has room for "
            f"{max(0, free - border.RESERVE_BYTES) / border.GIB:.1f} GiB: make room, and fetch it again"
        )


def push(
    shell: Shell,
    source: Path,
    destination: PurePath,
    *,
    sha256: str | None = None,
    progress: Progress = no_progress,
) -> None:
    """Upload a file. Otherwise as `fetch`."""
    here = LocalShell()
    if isinstance(shell, LocalShell):
        _copy_here(here, source, shell, destination, sha256=sha256, progress=progress)
        return
    total = _size(here, source)
    if total <= SMALL_BYTES:
        data = here.read(source)
        if sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise _wrong(source, str(sha256))
        shell.write(destination, data)
        progress(total, total)
        return
    # The name holds the version of the file. Its hash is known only after a full read, which happens during the upload.
    version = sha256 or hashlib.sha256(f"{source} {total} {source.stat().st_mtime_ns}".encode()).hexdigest()
    part = _part(destination, version)
    before, begun = shell.calls([("size", {"path": str(destination)}), ("size", {"path": str(part)})])
    if before == total and shell.sha256(destination) == (sha256 or here.sha256(source)):
        return
    # With a hash of the whole file it is one piece. Without, many: the machine hashes them on all its cores.
    step = total if sha256 else PIECE_BYTES
    pieces = [Piece(str(source), at, min(step, total - at), at, sha256) for at in range(0, total, step)]
    for _ in range(2):  # once more if another process changed the part meanwhile
        sending = _Sending(shell, source, part, pieces)
        try:
            hashes = sending.run(progress, size=total, is_new=begun is None)
        except _WrongPiece as error:
            shell.remove(part)
            raise _wrong(source, str(sha256)) from error
        holding = [(piece.place, piece.bytes, found) for piece, found in zip(pieces, hashes, strict=True)]
        if shell.replace(part, destination, holding=holding):
            return
        begun = total
    raise _unstable(part)


def send_pieces(
    shell: Shell,
    source: Path,
    part: PurePath,
    pieces: Sequence[Piece],
    progress: Progress = no_progress,
    wrong: str = "is not what manifest.json says: copy or make the data again",
) -> list[str]:
    """Upload ranges of a file to their places in `part`, a file on the machine that already has its full size.

    Pieces, and parts of them, that are already there are not sent again. Returns the SHA-256 of each piece, verified on
    the machine. Raises StepFailed, with the text `wrong`, if a piece does not match its `sha256`.
    """
    for _ in range(2):  # once more if another process changed the part meanwhile
        try:
            hashes = _Sending(shell, source, part, pieces).run(progress)
        except _WrongPiece as error:
            raise StepFailed(f"{error} of {source} {wrong}") from None
        if shell.hashes(part, [(piece.place, piece.bytes) for piece in pieces]) == hashes:
            return hashes
    raise _unstable(part)


def fetch_checkpoint(
    shell: Shell, source: PurePath, about: dict[str, Any], place: Place, progress: Progress = no_progress
) -> None:
    """Download a checkpoint and the JSON beside it. The JSON is written last: a .pt without JSON is incomplete.

    Raises WrongUse instead of replacing a checkpoint that was trained on more of the data.
    """
    destination = place.path
    note = destination.with_suffix(".json")
    if note.is_symlink():
        raise WrongUse(f"{note} is a symbolic link: remove it")
    there = border.read_document(note)
    _refuse_to_lose(destination, there, about)
    if there.get("sha256") != about["sha256"]:
        with contextlib.suppress(FileNotFoundError):
            note.unlink()
    most = border.FILE_BYTES["checkpoint"]
    sha256, expected = about["sha256"], about.get("bytes")
    fetch(shell, source, place, most_bytes=most, sha256=sha256, expected_bytes=expected, progress=progress)
    LocalShell().write(note, (json.dumps({**about, "file": destination.name}, indent=1) + "\n").encode("utf-8"))


class _Shorter(StepFailed):
    """The machine sent fewer bytes than it announced."""


class _WrongPiece(Exception):
    """The source does not match the hash of a piece."""


class _Sending:
    """Upload of pieces."""

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
                raise _WrongPiece(piece.name)
            self.hashes[index] = digest.hexdigest()

    def _request(self, part: Range) -> tuple[str, dict[str, Any]]:
        return "write_at", {"path": str(self.part), "offset": part.place, "data": part.data}

    def _took(self, part: Range, _: object) -> None:
        self.tally.add(part.bytes)


class _Fetching:
    """Download of a file."""

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
            raise _Shorter(f"{self.source} became shorter while it was copied")
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


def _part(destination: Any, version: str) -> Any:
    return destination.with_name(f"{destination.name}.{version[:8]}.part")


def _size(shell: Shell, path: PurePath) -> int:
    size = shell.size(path)
    if size is None:
        raise StepFailed(f"{path} no longer exists")
    return size


def _wrong(source: PurePath, wanted: str) -> StepFailed:
    return StepFailed(f"{source} does not match its SHA-256 ({wanted[:12]}): the copy was deleted")


def _unstable(part: PurePath) -> StepFailed:
    return StepFailed(f"{part} changes after it is written: another command writes to it, or its disk is faulty")


def _copy_here(
    origin: Shell,
    source: PurePath,
    place: Shell,
    destination: PurePath,
    *,
    sha256: str | None = None,
    progress: Progress = no_progress,
) -> None:
    """Copy a file on this computer."""
    wanted = sha256 or origin.sha256(source)
    if place.size(destination) == origin.size(source) and place.sha256(destination) == wanted:
        return
    part = _part(destination, wanted)
    for _ in range(2):  # from the start if another process changed the part
        _copy_ranges(origin, source, place, part, progress)
        if place.sha256(part) == wanted:
            place.replace(part, destination)
            return
        place.remove(part)
    raise _wrong(source, wanted)


def _copy_ranges(origin: Shell, source: PurePath, place: Shell, part: PurePath, progress: Progress) -> None:
    total = origin.size(source)
    if total is None:
        raise StepFailed(f"{source} no longer exists")
    done = place.size(part)
    if done is None or done > total:
        place.remove(part)
        place.write_at(part, 0, b"")
        done = 0
    while done < total:
        chunk = origin.read(source, done, min(CHUNK_BYTES, total - done))
        if not chunk:
            raise StepFailed(f"{source} became shorter while it was copied")
        place.write_at(part, done, chunk)
        done += len(chunk)
        progress(done, total)


def _refuse_to_lose(destination: Path, there: dict[str, Any], coming: dict[str, Any]) -> None:
    if not destination.exists() or there.get("sha256") == coming["sha256"]:
        return
    if not there and LocalShell().sha256(destination) == coming["sha256"]:
        return  # an earlier download broke off before its JSON
    here, new = there.get("fraction"), float(coming.get("fraction") or 0.0)
    if here is None and new < 1:
        raise WrongUse(
            f"{destination} exists, and the share of the data that it was trained on is unknown; the new checkpoint "
            f"was trained on {new:.4g} of the data: give another --to"
        )
    if here is not None and new < float(here):
        raise WrongUse(
            f"{destination} was trained on {float(here):.4g} of the data and would be replaced by a checkpoint of "
            f"{new:.4g} of it: give another --to"
        )
