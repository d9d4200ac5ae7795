"""Code snapshots on a machine: a bare repository that takes bundles, and a folder for each snapshot, never changed.

<shelf>/repository.git     every snapshot as a commit under refs/snapshots/<id>
<shelf>/<id>/              its files; running jobs read them, so nothing is ever checked out over them
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

GIT_LIMIT_S = 300
KNOWN_COMMITS = 50  # the newest are enough to find one that the laptop has, too


class SnapshotFailed(OSError):
    """git's own words; an OSError, because that is what travels back to the laptop."""


def snapshot_state(shelf: str, snapshot: str) -> dict[str, Any]:
    """Whether the snapshot is there, else the commits that a bundle may build upon, the newest first."""
    folder = Path(shelf)
    if (folder / snapshot).is_dir():
        return {"there": True, "commits": []}
    if not (folder / "repository.git").is_dir():
        return {"there": False, "commits": []}
    listing = _git(
        folder, "for-each-ref", "--sort=-creatordate", f"--count={KNOWN_COMMITS}", "--format=%(objectname)",
        "refs/snapshots",
    )  # fmt: skip
    return {"there": False, "commits": listing.split()}


def place_snapshot(shelf: str, snapshot: str, kind: str, data: bytes) -> None:
    """Unpack a snapshot that came as a git bundle (`kind` "bundle") or as a tar archive ("tar"), in one step."""
    folder = Path(shelf)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as scratch:
        made = Path(scratch) / "tree"
        made.mkdir()
        if kind == "bundle":
            _from_bundle(folder, Path(scratch), made, snapshot, data)
        else:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                _extract(archive, made)
        # Somebody else may have put the very same snapshot there meanwhile: theirs is as good.
        with contextlib.suppress(OSError):
            os.rename(made, folder / snapshot)
    if not (folder / snapshot).is_dir():
        raise SnapshotFailed(None, f"the code could not be placed in {folder / snapshot}")


def _from_bundle(shelf: Path, scratch: Path, made: Path, snapshot: str, data: bytes) -> None:
    if not (shelf / "repository.git").is_dir():
        # Made under another name first: two laptops may come at once, and half a repository is none.
        _git(scratch, "init", "--quiet", "--bare", str(scratch / "repository.git"), inside=False)
        with contextlib.suppress(OSError):
            os.rename(scratch / "repository.git", shelf / "repository.git")
    if data:
        (scratch / "bundle").write_bytes(data)
        _git(shelf, "fetch", "--quiet", "--no-tags", str(scratch / "bundle"), "+refs/snapshots/*:refs/snapshots/*")
    own = {"GIT_INDEX_FILE": str(scratch / "index")}
    _git(shelf, "read-tree", f"refs/snapshots/{snapshot}^{{tree}}", env=own)
    _git(shelf, f"--work-tree={made}", "checkout-index", "--all", "--force", env=own, cwd=made)


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Files and folders with names inside `folder`, whatever the archive says."""
    for member in archive:
        name = Path(member.name)
        if member.isfile() and not name.is_absolute() and ".." not in name.parts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None
            with open(folder / name, "wb") as file:
                shutil.copyfileobj(source, file)


def _git(
    shelf: Path, *argv: str, env: dict[str, str] | None = None, inside: bool = True, cwd: Path | None = None
) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    where = [f"--git-dir={shelf / 'repository.git'}"] if inside else []
    try:
        done = subprocess.run(
            ["git", *where, *argv],
            cwd=cwd or shelf,
            env={**clean, "LC_ALL": "C", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=GIT_LIMIT_S,
        )
    except FileNotFoundError as error:
        raise SnapshotFailed(None, "git is not installed on the machine: apt-get install git there") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        raise SnapshotFailed(None, f"git {argv[0]} failed on the machine: {' '.join(said[-3:])}")
    return done.stdout.decode("utf-8", errors="replace")
