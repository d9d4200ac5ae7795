"""Images in RAM on a host that several people use: each has a folder of his own in the staging folder.

The staging folder may be writable by everybody, such as /dev/shm. No link in it is followed, and no file in it that
belongs to another user is read, written or removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

IMAGES = ("images.npy", "images.jpegs")
FILES = (
    *IMAGES,
    *(f"{name}.part" for name in IMAGES),
    "offsets.npy",
    "labels.npy",
    "train_labels.npy",
    "manifest.json",
)
COPYING_S = 60.0  # a partial file that was written so recently belongs to a copy that goes on
MANIFEST_BYTES = 8 << 20
OPEN, COPYING = "open", "copying"  # why images are in use; "" if they are not


def user() -> str:
    """Return the name of this process's user, or its number if the name cannot be part of a file's name."""
    if sys.platform == "win32":
        return re.sub(r"[^A-Za-z0-9._-]", "_", os.environ.get("USERNAME", "")) or "user"
    import pwd

    number = os.geteuid()
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(number).pw_name
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            return name
    return f"uid{number}"


def own_folder(stage_to: str) -> Path:
    """Return the folder of this user in the staging folder."""
    return Path(stage_to, f"sniperface-{user()}")


def claim_ram(stage_to: str) -> str:
    """Make the user's own folder, readable by nobody else, and return the user's name.

    Raises OSError for a link, for a file, and for a folder of another user.
    """
    place = own_folder(stage_to)
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o700)
    found = os.lstat(place)
    if not stat.S_ISDIR(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "a file"
        raise OSError(errno.ENOTDIR, f"it is {what}, not a folder", str(place))
    if not _is_own(found):
        raise PermissionError(errno.EACCES, "it belongs to another user", str(place))
    if sys.platform != "win32" and found.st_mode & 0o077:
        os.chmod(place, 0o700)
    return user()


def staged_images(stage_to: str) -> list[list[Any]]:
    """List this user's images as [folder, bytes, use], oldest first. `use` is OPEN, COPYING or empty.

    Images of earlier versions are directly in the staging folder, or in a folder of a fraction there.
    """
    folders = list(_folders(stage_to))
    open_files = _open_files() if folders else set()
    now, found = time.time(), []
    for folder in folders:
        files = [(path, about) for path in _files(folder) if (about := _own_file(path))]
        fresh = any(path.name.endswith(".part") and now - about.st_mtime < COPYING_S for path, about in files)
        is_open = any((about.st_dev, about.st_ino) in open_files for _, about in files)
        size = sum(_bytes_on_disk(about) for _, about in files)
        newest = max((about.st_mtime for _, about in files), default=0.0)
        found.append((newest, [str(folder), size, OPEN if is_open else COPYING if fresh else ""]))
    return [told for _, told in sorted(found)]


def free_images(stage_to: str, folders: Sequence[str] | None = None) -> list[list[Any]]:
    """Remove images of this user that nothing uses; None: all of them. Returns all, like `staged_images` before.

    Files that staging did not make stay, and so do folders that still hold some.
    """
    found = staged_images(stage_to)
    for folder, _, use in found:
        if not use and (folders is None or folder in folders):
            _remove(Path(folder), stage_to)
    if _is_own_folder(own_folder(stage_to)):
        with contextlib.suppress(OSError):  # images are left in it
            os.rmdir(own_folder(stage_to))
    return found


def _remove(folder: Path, stage_to: str) -> None:
    if folder.parent == own_folder(stage_to):
        shutil.rmtree(folder)
        return
    for path in _files(folder):
        if _own_file(path):
            os.unlink(path)
    if folder != Path(stage_to):
        with contextlib.suppress(OSError):  # it holds other files
            os.rmdir(folder)


def _folders(stage_to: str) -> Iterator[Path]:
    """Yield the folders with images of this user: all in his own folder, and those of earlier versions."""
    own, shared = own_folder(stage_to), Path(stage_to)
    if _is_own_folder(own):
        yield from _own_folders(own)
    if _was_staged(shared):
        yield shared
    for folder in _own_folders(shared):
        if folder != own and _was_staged(folder):
            yield folder


def _own_folders(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(parent)):
            if _is_own_folder(parent / name):
                yield parent / name


def _is_own_folder(path: Path) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and _is_own(found)


def _was_staged(folder: Path) -> bool:
    """Whether a folder has a manifest of this user that staging wrote: with the images' `source`."""
    path = folder / "manifest.json"
    if not _own_file(path):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            value = json.loads(file.read(MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "source" in value and "block_rows" in value


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in FILES]


def _own_file(path: Path) -> os.stat_result | None:
    """Return facts about a regular file of this user; None for anything else."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) and _is_own(found) else None


def _bytes_on_disk(found: os.stat_result) -> int:
    if sys.platform == "win32":
        return found.st_size
    return found.st_blocks * 512


def _is_own(found: os.stat_result) -> bool:
    return sys.platform == "win32" or found.st_uid == os.geteuid()


def _open_files() -> set[tuple[int, int]]:
    """Return device and inode of the files that processes of this user have open or mapped. Needs Linux's /proc."""
    found: set[tuple[int, int]] = set()
    if sys.platform == "win32":
        return found
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for link in os.scandir(process / "fd"):
                with contextlib.suppress(OSError):
                    about = os.stat(link.path)
                    found.add((about.st_dev, about.st_ino))
        with contextlib.suppress(OSError):
            for line in (process / "maps").read_text(errors="replace").splitlines():
                words = line.split(maxsplit=5)
                if len(words) == 6 and words[4] != "0":
                    major, _, minor = words[3].partition(":")
                    found.add((os.makedev(int(major, 16), int(minor, 16)), int(words[4])))
    return found
