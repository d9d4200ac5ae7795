"""Copies of single files between laptop and machine: in ranges, resumable, verified, and never half there."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from deploy.errors import StepFailed, WrongUse
from deploy.pod.folder import read_json
from deploy.shell import CHUNK_BYTES, LocalShell, Shell

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Piece:
    """A range of a file, and where it goes."""

    name: str  # as a person would call it
    offset: int
    bytes: int
    place: int
    sha256: str | None


def send_pieces(shell: Shell, source: Path, part: PurePath, pieces: Sequence[Piece], progress: Progress) -> list[str]:
    done, total, hashes = 0, sum(piece.bytes for piece in pieces), []
    for piece in pieces:
        data = LocalShell().read(source, piece.offset, piece.bytes)
        hashes.append(hashlib.sha256(data).hexdigest())
        if piece.sha256 and hashes[-1] != piece.sha256:
            raise StepFailed(f"{piece.name} of {source} is not what manifest.json says: copy or make the data again")
        for at in range(0, len(data), CHUNK_BYTES):
            shell.write_at(part, piece.place + at, data[at : at + CHUNK_BYTES])
        done += piece.bytes
        progress(done, total)
    return hashes


def no_progress(done_bytes: int, all_bytes: int) -> None:
    """For small files."""


def fetch(
    shell: Shell,
    source: PurePath,
    destination: Path,
    *,
    sha256: str | None = None,
    progress: Progress = no_progress,
) -> None:
    """Copy a file of the machine to the laptop."""
    copy(shell, source, LocalShell(), destination, sha256=sha256, progress=progress)


def push(
    shell: Shell,
    source: Path,
    destination: PurePath,
    *,
    sha256: str | None = None,
    progress: Progress = no_progress,
) -> None:
    """Copy a file of the laptop to the machine."""
    copy(LocalShell(), source, shell, destination, sha256=sha256, progress=progress)


def copy(
    origin: Shell,
    source: PurePath,
    place: Shell,
    destination: PurePath,
    *,
    sha256: str | None = None,
    progress: Progress = no_progress,
) -> None:
    """One file from one machine to another. The destination changes in one step, after the bytes were verified.

    The unfinished copy is named after the hash, so another version of the file never continues it.
    """
    wanted = sha256 or origin.sha256(source)
    if place.size(destination) == origin.size(source) and place.sha256(destination) == wanted:
        return
    part = destination.with_name(f"{destination.name}.{wanted[:8]}.part")
    for _ in range(2):  # a part that another hand spoiled is thrown away, and the copy made once more from the start
        _copy_ranges(origin, source, place, part, progress)
        if place.sha256(part) == wanted:
            place.replace(part, destination)
            return
        place.remove(part)
    raise StepFailed(f"{source} is not what it should be (SHA-256 {wanted[:12]}): its copy was thrown away")


def _copy_ranges(origin: Shell, source: PurePath, place: Shell, part: PurePath, progress: Progress) -> None:
    total = origin.size(source)
    if total is None:
        raise StepFailed(f"{source} is not there any more")
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


def fetch_checkpoint(
    shell: Shell, source: PurePath, about: dict[str, Any], destination: Path, progress: Progress = no_progress
) -> None:
    """Fetch a checkpoint with the JSON beside it. The JSON is written last: a .pt without JSON is not whole.

    A checkpoint of a part of the data never takes the place of one of more of it.
    """
    note = destination.with_suffix(".json")
    _refuse_to_lose(destination, read_json(note), about)
    if read_json(note).get("sha256") != about["sha256"]:
        with contextlib.suppress(FileNotFoundError):
            note.unlink()
    fetch(shell, source, destination, sha256=about["sha256"], progress=progress)
    LocalShell().write(note, (json.dumps({**about, "file": destination.name}, indent=1) + "\n").encode("utf-8"))


def _refuse_to_lose(destination: Path, there: dict[str, Any], coming: dict[str, Any]) -> None:
    if not destination.exists() or there.get("sha256") == coming["sha256"]:
        return
    if not there and LocalShell().sha256(destination) == coming["sha256"]:
        return  # an earlier fetch that broke off before its JSON
    here, new = there.get("fraction"), float(coming["fraction"])
    if here is None and new < 1:
        raise WrongUse(
            f"{destination} is there, and nothing says how much data it saw; this checkpoint saw {new:.4g} of it: "
            "give another --to"
        )
    if here is not None and new < float(here):
        raise WrongUse(
            f"{destination} was trained on {float(here):.4g} of the data and would be replaced by a checkpoint of "
            f"{new:.4g} of it: give another --to"
        )
