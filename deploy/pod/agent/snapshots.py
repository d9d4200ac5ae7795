"""Code snapshots on a machine: a bare repository that receives bundles, and one folder per snapshot, never changed.

<shelf>/repository.git     every snapshot as a commit under refs/snapshots/<id>; repository-sha256.git for SHA-256 ids
<shelf>/<id>/              its files; running jobs read them, so nothing is checked out over them
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.pod.base.folder import replace, write_bytes

if TYPE_CHECKING:
    import tarfile

GIT_LIMIT_S = 300
NEW_FORMAT, NEW_LENGTH = "sha256", 64  # of git's newer ids; SHA-1 ids have 40 letters
# Whatever this machine's user has configured for other repositories: line endings, hooks, other addresses, protocols.
NO_SETTINGS = {"HOME": os.devnull, "XDG_CONFIG_HOME": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1"}
# On Windows, where this is the laptop, git has no such home. Its installer sets autocrlf.
ON_WINDOWS = ("core.autocrlf=false", "core.eol=lf", "core.longpaths=true")
OLD_FORMAT = {"GIT_DEFAULT_HASH": "sha1"}  # git 3 makes repositories of SHA-256 unless it is told
KNOWN_COMMITS = 50  # enough to find one that the laptop has too
COMPILED = "app/*/__pycache__/*.nb[ci]"  # by numba, which needs seconds in each process of a job


class SnapshotFailed(OSError):
    """An error message, mostly git's. An OSError, because the agent sends those back to the laptop."""


def snapshot_state(shelf: str, snapshot: str) -> dict[str, Any]:
    """Return whether the snapshot exists; if not, the commits that a bundle may build on, newest first."""
    folder = Path(shelf)
    if (folder / snapshot).is_dir():
        return {"there": True, "commits": []}
    repository = _repository(folder, snapshot)
    if not repository.is_dir():
        return {"there": False, "commits": []}
    listing = _git(
        repository, "for-each-ref", "--sort=-creatordate", f"--count={KNOWN_COMMITS}", "--format=%(objectname)",
        "refs/snapshots",
    )  # fmt: skip
    return {"there": False, "commits": listing.split()}


def place_snapshot(shelf: str, snapshot: str, kind: str, data: bytes) -> None:
    """Unpack a snapshot atomically from a git bundle (`kind` "bundle") or a tar archive ("tar").

    Raises SnapshotFailed.
    """
    import tarfile  # here, or each agent would start later
    import tempfile

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
        with contextlib.suppress(OSError):
            _bring_compiled(folder, made)
        # Another laptop may have placed the same snapshot meanwhile; the content is identical.
        with contextlib.suppress(OSError):
            replace(made, folder / snapshot)
    if not (folder / snapshot).is_dir():
        raise SnapshotFailed(None, f"the code could not be placed in {folder / snapshot}")


def _from_bundle(shelf: Path, scratch: Path, made: Path, snapshot: str, data: bytes) -> None:
    repository = _repository(shelf, snapshot)
    if not repository.is_dir():
        # Made under another name and renamed: two laptops may do this at once, and half a repository is unusable.
        fresh = scratch / "repository.git"
        hashed = [f"--object-format={NEW_FORMAT}"] if len(snapshot) == NEW_LENGTH else []
        _git(None, "init", "--quiet", "--bare", *hashed, str(fresh), cwd=scratch)
        # Filters are off: a filter configured on this machine, such as Git LFS, would contact a server.
        (fresh / "info").mkdir(exist_ok=True)
        (fresh / "info" / "attributes").write_text("* -filter\n", encoding="ascii")
        with contextlib.suppress(OSError):
            replace(fresh, repository)
    if data:
        (scratch / "bundle").write_bytes(data)
        _git(repository, "fetch", "--quiet", "--no-tags", str(scratch / "bundle"), "+refs/snapshots/*:refs/snapshots/*")
    own = {"GIT_INDEX_FILE": str(scratch / "index")}
    _git(repository, "read-tree", f"refs/snapshots/{snapshot}^{{tree}}", env=own)
    _git(repository, f"--work-tree={made}", "checkout-index", "--all", "--force", env=own, cwd=made)


def _bring_compiled(shelf: Path, made: Path) -> None:
    """Copy what numba compiled in the newest snapshot. Its index has a hash of each file: it compiles what differs."""
    newest = max((path for path in shelf.iterdir() if (path / "app").is_dir()), key=os.path.getmtime, default=shelf)
    for file in newest.glob(COMPILED):
        place = made / file.relative_to(newest)
        if place.parents[1].is_dir():
            write_bytes(place, file.read_bytes(), durable=False)  # numba cannot read half a file


def _repository(shelf: Path, snapshot: str) -> Path:
    """Return the repository for this snapshot's kind of id: a git repository has either SHA-1 or SHA-256 ids."""
    return shelf / (f"repository-{NEW_FORMAT}.git" if len(snapshot) == NEW_LENGTH else "repository.git")


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Extract regular files whose names stay inside `folder`; skips all other members."""
    for member in archive:
        name = Path(member.name)
        if member.isfile() and not name.is_absolute() and ".." not in name.parts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None
            with open(folder / name, "wb") as file:
                shutil.copyfileobj(source, file)


def _git(repository: Path | None, *argv: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    settings, options = ({}, ON_WINDOWS) if sys.platform == "win32" else (NO_SETTINGS, ())
    where = [*(word for each in options for word in ("-c", each)), *([f"--git-dir={repository}"] if repository else [])]
    try:
        done = subprocess.run(
            ["git", *where, *argv],
            cwd=cwd or repository,
            env={**clean, **settings, **OLD_FORMAT, "LC_ALL": "C", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=GIT_LIMIT_S,
        )
    except FileNotFoundError as error:
        raise SnapshotFailed(None, "git is not installed on the machine: apt-get install git there") from error
    except PermissionError as error:
        git = shutil.which("git", os.F_OK) or "git"
        raise SnapshotFailed(
            None, f"{git} on the machine is not executable by this user ({error.strerror}): chmod a+rx {git} there"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        raise SnapshotFailed(None, f"git {argv[0]} failed on the machine: {' '.join(said[-3:])}")
    return done.stdout.decode("utf-8", errors="replace")
