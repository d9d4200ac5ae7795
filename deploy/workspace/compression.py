"""Packed upload of images over a slow connection: packed once on the laptop, unpacked on the machine.

Programs of the app do it, because it needs their libraries: `app.packing.pack` runs here, before a machine is paid
for, `app.packing.unpack` on the machine. A packed block is kept on the laptop with a note of its hashes, and uploaded
like any file.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.errors import StepFailed, WrongUse, bootstrap_command
from deploy.pod.base.addresses import shown
from deploy.pod.base.folder import read_json
from deploy.shell import LocalShell, Shell
from deploy.shell.ranges import Piece, Progress
from deploy.shell.transfer import send_pieces
from deploy.specs.machine import Machine
from deploy.specs.settings import Settings
from deploy.workspace.sources import HERE, MACHINE, URL, Origin

NONE, LOSSLESS = "none", "lossless"
NEEDED = {"numpy": "numpy", "PIL": "pillow", "simplejpeg": "simplejpeg"}  # module and package
MIB = 1 << 20


def check_possible(kind: str) -> None:
    """Raise WrongUse if this Python cannot pack."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise WrongUse(
            f"--pack {kind} needs {' and '.join(missing)}, not installed here: start the command with "
            f"`{bootstrap_command()} …`, which installs them"
        )


def chosen_kind(
    settings: Settings, typed: str | None, origin: Origin, *, encoded: bool = False
) -> tuple[str, str | None]:
    """How images are packed for upload, and a note if the target's `pack` does not apply.

    `typed`: by --pack; None: the target's file decides, where images can be packed at all. Raises WrongUse if --pack
    does not apply.
    """
    kind = settings.target.pack or NONE if typed is None else typed
    if kind == NONE:
        return kind, None
    if encoded:
        words = "is for pixels, and images.jpegs has image files, which are small already"
    elif origin.where != HERE or settings.is_local:
        places = {HERE: "stay here", MACHINE: "are on the machine", URL: f"are at {shown(str(origin.path))}"}
        words = f"is for images of this computer that are sent to another, and these {places[origin.where]}"
    else:
        check_possible(kind)
        return kind, None
    if typed is None:
        return NONE, f"pack: {kind} of {settings.where} {words}: not packed"
    raise WrongUse(f"--pack {kind} {words}: leave it out")


@dataclass(frozen=True)
class Packing:
    """How the blocks of a data set are packed, and where they are kept."""

    kind: str
    images: Path
    folder: Path
    shape: tuple[int, ...]  # of an image
    blocks: Mapping[int, Piece]  # by number: offset in the source, place in the staged file

    @property
    def mark(self) -> str:
        """Suffix of the data set's id: lossy images are another data set."""
        return "" if self.kind == LOSSLESS else f"-{self.kind}"

    @cached_property
    def notes(self) -> dict[int, dict[str, Any]]:
        """Size and hashes of each block that is already packed."""
        found = {number: self._note(number) for number in self.blocks}
        return {number: note for number, note in found.items() if note}

    @property
    def missing(self) -> list[int]:
        return [number for number in self.blocks if number not in self.notes]

    @property
    def bytes(self) -> int | None:
        """Bytes to upload; None while a block is not packed yet."""
        return None if self.missing else sum(note["packed_bytes"] for note in self.notes.values())

    def hashes(self, which: str) -> list[str]:
        """Return `original_sha256`, or `unpacked_sha256`, of each block."""
        return [self.notes[number][which] for number in self.blocks]

    @property
    def words(self) -> str:
        before = sum(piece.bytes for piece in self.blocks.values())
        after = self.bytes
        size = "" if after is None else f", {after / MIB:,.1f} MiB instead of {before / MIB:,.1f}"
        loss = "nothing is lost" if self.kind == LOSSLESS else "lossy: another data set than the original"
        return f"as {self.kind} ({loss}){size}"

    def make(self, project: Path, progress: Progress) -> None:
        """Pack the missing blocks, on all cores. Raises StepFailed if the disk does not keep them."""
        blocks = [
            {
                "name": self.blocks[number].name,
                "file": self._file(number).name,
                "offset": self.blocks[number].offset,
                "bytes": self.blocks[number].bytes,
                "sha256": self.blocks[number].sha256,
            }
            for number in self.missing
        ]
        order = {
            "images": str(self.images),
            "kind": self.kind,
            "shape": self.shape,
            "folder": str(self.folder),
            "blocks": blocks,
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "packing.json"
            file.write_text(json.dumps(order), encoding="utf-8")
            _run(LocalShell(), [sys.executable, "-m", "app.packing.pack", str(file)], project, progress)
        del self.__dict__["notes"]
        if self.missing:
            raise StepFailed(f"{self.folder} lacks blocks just after they were packed: its disk is full, or faulty")

    def send(self, shell: Shell, machine: Machine, code: PurePath, part: PurePath, progress: Progress) -> list[str]:
        """Upload the blocks and unpack them into `part`, which already has its full size.

        Packed blocks are on the machine's disk, not in RAM. Returns the SHA-256 of each unpacked block.
        Raises StepFailed without room there.
        """
        pieces: list[Piece] = []
        for number, piece in self.blocks.items():
            note, file = self.notes[number], self._file(number)
            place = pieces[-1].place + pieces[-1].bytes if pieces else 0
            pieces.append(
                Piece(f"packed {piece.name}", 0, note["packed_bytes"], place, note["packed_sha256"], str(file))
            )
        there = packed_file(machine)
        try:
            shell.truncate(there, pieces[-1].place + pieces[-1].bytes)
        except OSError as error:
            words = f"{there.parent} has no room for {(self.bytes or 0) / MIB:,.1f} MiB of packed images"
            raise StepFailed(f"{words} ({error.strerror}): make room there, or give --pack none") from error
        spoiled = f"changed after it was packed: remove {self.folder}, and run the same command again"
        send_pieces(shell, self.folder, there, pieces, progress, spoiled)
        order = machine.root / "unpacking.json"
        value = {
            "packed": str(there),
            "part": str(part),
            "kind": self.kind,
            "shape": self.shape,
            "pieces": [self._unpacking(number, piece) for number, piece in zip(self.blocks, pieces, strict=True)],
        }
        shell.write(order, json.dumps(value).encode("utf-8"))
        _run(shell, [machine.python, "-m", "app.packing.unpack", str(order)], code, progress)
        return self.hashes("unpacked_sha256")

    def _unpacking(self, number: int, packed: Piece) -> dict[str, Any]:
        return {
            "name": self.blocks[number].name,
            "offset": packed.place,
            "bytes": packed.bytes,
            "sha256": packed.sha256,
            "place": self.blocks[number].place,
            "rows": self.blocks[number].bytes // math.prod(self.shape),
            "unpacked_sha256": self.notes[number]["unpacked_sha256"],
        }

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05}.pack"

    def _note(self, number: int) -> dict[str, Any]:
        """Return the note of a block if it is complete and of these images; else an empty one."""
        file = self._file(number)
        note = read_json(file.with_suffix(".json"))
        there = file.exists() and file.stat().st_size == note.get("packed_bytes")
        known = self.blocks[number].sha256
        return note if there and known in (None, note["original_sha256"]) else {}


def packed_file(machine: Machine) -> PurePath:
    """Return the file of packed blocks on a machine, used until they are unpacked."""
    return machine.root / "packed" / "blocks"


def _run(shell: Shell, argv: Sequence[str], folder: PurePath, progress: Progress) -> None:
    """Run a program of the app that prints its progress as JSON. Raises StepFailed with its last lines if it fails."""
    for line in shell.stream(argv, cwd=folder):
        if line.startswith("{"):
            said = border.progress(line, f"{shell.name}: {argv[2]}")
            progress(said["done_bytes"], said["all_bytes"])
