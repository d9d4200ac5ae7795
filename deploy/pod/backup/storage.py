"""Storage for copies that outlive a machine: a folder, such as a network volume, or an fsspec address.

`put` writes a file completely or not at all, then reads it back: a copy counts once its hash has been verified. `get`
reads it when the machine is gone and the run resumes elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import IO

from deploy.pod.agent import verbs
from deploy.pod.base import folder
from deploy.pod.base.checkpoints import CHUNK_BYTES, sha256


class NoPlace(Exception):
    """Why the storage cannot be used, in one sentence."""


class Folder:
    """A mounted path on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, source: IO[bytes], name: str) -> str:
        """Copy `source` to `name`; returns the sha256 of the bytes read back from there."""
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        with open(part, "wb") as writer:
            shutil.copyfileobj(source, writer, CHUNK_BYTES)
            writer.flush()
            os.fsync(writer.fileno())
            if sys.platform == "linux":  # otherwise the check would read from the page cache
                os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest = sha256(part)
        folder.replace(part, place)
        return digest

    def get(self, name: str, target: IO[bytes]) -> str:
        """Copy `name` to `target`; returns its sha256. Raises FileNotFoundError if it does not exist."""
        with open(self.path / name, "rb") as source:
            return _copy(source, target)

    def listing(self, above: str) -> dict[str, int]:
        """Return name -> bytes of each file in the folder `above`; empty if there is no such folder."""
        try:
            with os.scandir(self.path / above) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def remove(self, name: str) -> None:
        """Remove a file. Does nothing if it does not exist."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path / name)


class Bucket:
    """An object store. An object appears only when complete, so `put` needs no temporary name."""

    def __init__(self, url: str) -> None:
        scheme = url.split("://", 1)[0]
        try:
            # Imported by name: this module must work without fsspec.
            self.files, self.path = importlib.import_module("fsspec").core.url_to_fs(url)
        except ImportError as error:
            raise NoPlace(
                f"sync_to {url} needs the Python package fsspec and what it needs for {scheme}://, which are not "
                f"installed on the machine ({error}): install them there, or give a path on a volume"
            ) from error
        except ValueError as error:
            raise NoPlace(f"sync_to {url} is not an address that fsspec knows: {error}") from error

    def put(self, source: IO[bytes], name: str) -> str:
        place = self._at(name)
        self.files.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
        with self.files.open(place, "wb") as writer:
            shutil.copyfileobj(source, writer, CHUNK_BYTES)
        digest = hashlib.sha256()
        with self.files.open(place, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def get(self, name: str, target: IO[bytes]) -> str:
        with self.files.open(self._at(name), "rb") as source:
            return _copy(source, target)

    def listing(self, above: str) -> dict[str, int]:
        try:
            found = self.files.ls(self._at(above), detail=True)
        except FileNotFoundError:
            return {}
        files = [each for each in found if each.get("type") == "file" and each.get("size") is not None]
        return {str(each["name"]).rstrip("/").rsplit("/", 1)[-1]: int(each["size"]) for each in files}

    def remove(self, name: str) -> None:
        place = self._at(name)
        if self.files.exists(place):
            self.files.rm(place)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"


Place = Folder | Bucket


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def of(sync_to: str, root: Path, volume_path: str | None) -> Place:
    """Return the storage that `sync_to` names. Raises NoPlace if the copy would be lost with the machine."""
    if "://" in sync_to:
        return Bucket(sync_to)
    path = Path(sync_to).expanduser().absolute()
    refuse_the_machines_own(path, root, volume_path)
    return Folder(path)


def refuse_the_machines_own(path: Path, root: Path, volume_path: str | None) -> None:
    """Raise NoPlace if `path` is in memory or on the machine's own disk, such as after a typo or without the volume."""
    if is_below(path, volume_path):
        return
    there = path
    while not there.exists():
        there = there.parent
    in_ram = verbs.in_ram(str(there))
    if in_ram or os.stat(there).st_dev == os.stat(root).st_dev:
        what = "in memory" if in_ram else "on the machine's own disk"
        raise NoPlace(f"sync_to {path} is {what}, which is lost with the machine: is the volume mounted there?")


def is_below(path: Path, above: str | None) -> bool:
    return path.is_relative_to(Path(above).absolute()) if above else False
