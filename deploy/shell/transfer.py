"""Copy files between laptop and machine: in parallel ranges, resumable, verified and atomic.

Hashes on both sides show what is already there; an interrupted copy leaves no other record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.border import Place
from deploy.errors import BadAnswer, StepFailed, WrongUse
from deploy.shell import CHUNK_BYTES, LocalShell, Shell
from deploy.shell.ranges import Fetching, Piece, Progress, Sending, Shorter, WrongPiece, no_progress

SMALL_BYTES = 1 << 20  # a smaller file is one message over the open connection
FIRST_BYTES = 64 << 10
PIECE_BYTES = 32 << 20


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
        _copy_here(shell, source, destination, sha256, progress)
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
            found = Fetching(shell, source, part, total).run(progress)
        except Shorter:
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
    """Upload a file. Otherwise as `fetch`. Raises StepFailed if the file changes, or if it does not match `sha256`."""
    here = LocalShell()
    if isinstance(shell, LocalShell):
        _copy_here(shell, source, destination, sha256, progress)
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
        sending = Sending(shell, source, part, pieces)
        try:
            hashes = sending.run(progress, size=total, is_new=begun is None)
        except WrongPiece as error:
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
            hashes = Sending(shell, source, part, pieces).run(progress)
        except WrongPiece as error:
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
        LocalShell().remove(note)
    most = border.FILE_BYTES["checkpoint"]
    sha256, expected = about["sha256"], about.get("bytes")
    fetch(shell, source, place, most_bytes=most, sha256=sha256, expected_bytes=expected, progress=progress)
    LocalShell().write(note, (json.dumps({**about, "file": destination.name}, indent=1) + "\n").encode("utf-8"))


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
    here: LocalShell, source: PurePath, destination: PurePath, sha256: str | None, progress: Progress
) -> None:
    """Copy a file on this computer."""
    wanted = sha256 or here.sha256(source)
    if here.size(destination) == here.size(source) and here.sha256(destination) == wanted:
        return
    part = _part(destination, wanted)
    for _ in range(2):  # from the start if another process changed the part
        _copy_ranges(here, source, part, progress)
        if here.sha256(part) == wanted:
            here.replace(part, destination)
            return
        here.remove(part)
    raise _wrong(source, wanted)


def _copy_ranges(here: LocalShell, source: PurePath, part: PurePath, progress: Progress) -> None:
    total, done = _size(here, source), here.size(part)
    if done is None or done > total:
        here.remove(part)
        here.write_at(part, 0, b"")
        done = 0
    while done < total:
        chunk = here.read(source, done, min(CHUNK_BYTES, total - done))
        if not chunk:
            raise StepFailed(f"{source} became shorter while it was copied")
        here.write_at(part, done, chunk)
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
