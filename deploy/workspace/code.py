"""The working tree as an exact, immutable snapshot on the machine: tracked files, and untracked ones not ignored."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.errors import StepFailed, WrongUse
from deploy.shell import Shell
from deploy.specs.facts import CodeFacts
from deploy.workspace import leaks, upload_list, worktree
from deploy.workspace.exclude import NEVER_CODE
from deploy.workspace.snapshots import Snapshots
from deploy.workspace.worktree import FOR_SNAPSHOTS, Listing, excluded, git, is_repository, on_disk

CODE_WITHOUT_GIT = (
    *("app", "conf", "deploy", "benchmarks", "requirements"),
    *("tasks.py", "pyproject.toml", "constraints.txt"),
)


def look(project: Path, excluded_by: tuple[str, ...] = ()) -> CodeFacts:
    """Return the commit and the number of changed files. Writes nothing, not even git's index.

    `excluded_by`: patterns of files that are not uploaded.
    """
    if not is_repository(project):
        _refuse_without_git(excluded_by)
        return CodeFacts(kind="copy", commit=None, changed_files=0, tree=None, left_out=_left_out(project))
    head = git(project, "rev-parse", "--verify", "--quiet", "HEAD", check=False)
    commit = head.text.strip() if head else None
    listed = upload_list.listing(project, excluded_by)
    out = frozenset(listed.excluded)
    absent = {name for name in listed.hidden if not on_disk(project, name)}  # of a sparse checkout
    lines = filter(None, _status(project, listed).split(b"\0"))
    states = [(line[:2], name) for line in lines if (name := line[3:].removeprefix(listed.prefix)) not in out]
    changed = sum(name not in absent for _, name in states)
    untracked = tuple(sorted(os.fsdecode(name) for state, name in states if state == b"??"))
    is_head = commit and not changed and not absent and not out
    tree = git(project, "rev-parse", "HEAD:./").text.strip() if is_head else None
    left_out = tuple(sorted(map(os.fsdecode, absent)))
    facts = CodeFacts("git", commit, changed_files=changed, tree=tree, untracked=untracked, left_out=left_out)
    if not excluded_by:
        return facts
    files, total = upload_list.size(project, listed)
    return replace(facts, excluded_files=files, excluded_bytes=total)


def is_sent(project: Path, name: str, excluded_by: tuple[str, ...] = ()) -> bool:
    """Whether a file or folder, with / between folders, is uploaded as code; `exclude:` and ignored files are not."""
    names: Iterable[str]
    if is_repository(project):
        listed = upload_list.listing(project, excluded_by).names
        names = (os.fsdecode(each) for each in listed if on_disk(project, each))
    else:
        names = _code_names(project)
    return any(each == name or each.startswith(f"{name}/") for each in names)


def _refuse_without_git(excluded_by: tuple[str, ...]) -> None:
    if excluded_by:
        raise WrongUse(
            "exclude in the target's file needs git, and this folder is no git repository: make one with "
            "`git init`, or remove exclude"
        )


def _status(project: Path, listed: Listing) -> bytes:
    """Return `git status` for the files on disk, including files whose changes git was told to ignore."""
    words = ("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all", "--", ".", *excluded())
    if not listed.hidden:
        return worktree.list_files(project, *FOR_SNAPSHOTS, *words).stdout
    with tempfile.TemporaryDirectory(prefix="sniperface-") as scratch:
        index = Path(scratch) / "index"
        worktree.fresh_index(project, listed, index)
        return worktree.list_files(project, *FOR_SNAPSHOTS, *words, env={"GIT_INDEX_FILE": str(index)}).stdout


def check(
    project: Path,
    allowed: tuple[str, ...],
    secrets: Mapping[str, str],
    large_files: tuple[str, ...] = (),
    excluded_by: tuple[str, ...] = (),
) -> tuple[tuple[str, ...], Listing | None]:
    """Refuse files that must not or cannot be uploaded, before anything is recorded or paid for.

    Returns tracked files to warn about, and the listing of files to upload; None without git. `allowed`: names or
    patterns of files that look like credentials and are uploaded anyway. `large_files`: names of files over 50 MB that
    are uploaded anyway. `secrets`: names and values that a run may get. `excluded_by`: patterns of files that are not
    uploaded.
    """
    if not is_repository(project):
        _refuse_without_git(excluded_by)
        names = _code_names(project)
        return leaks.refuse(leaks.find(project, names, secrets), set(), allowed), None
    listed = upload_list.listing(project, excluded_by)
    worktree.refuse(project, listed, large_files)
    found = leaks.find(project, map(os.fsdecode, listed.names), secrets)
    return leaks.refuse(found, set(map(os.fsdecode, listed.tracked)), allowed), listed


def prove(
    project: Path,
    allowed: tuple[str, ...] = (),
    secrets: Mapping[str, str] | None = None,
    large_files: tuple[str, ...] = (),
    excluded_by: tuple[str, ...] = (),
) -> tuple[tuple[str, ...], str | None]:
    """Check the files as `check` does, and take the snapshot without sending it.

    Returns the tracked files to warn about, and the snapshot's id; None without git. Raises WrongUse for a file that
    would arrive changed.
    """
    warned, listed = check(project, allowed, secrets or {}, large_files, excluded_by)
    return warned, Snapshots(project, excluded_by).take(listed) if listed else None


def preview(project: Path, excluded_by: tuple[str, ...] = ()) -> str | None:
    """Return the id that `prove` would return now; None without git. Writes nothing into the project.

    Raises WrongUse for a file that would arrive changed.
    """
    if not is_repository(project):
        return None
    with tempfile.TemporaryDirectory(prefix="sniperface-") as scratch:
        return Snapshots(project, excluded_by, Path(scratch) / "code.git").take()


def place(project: Path, shell: Shell, root: PurePath, tree: str | None) -> str:
    """Upload a snapshot of the code to `<root>/code/<id>` unless the machine has it. Returns the id.

    Only what the machine lacks is sent: a bundle based on the newest snapshot that both sides have. `tree`: the
    snapshot that `prove` took; None without git.
    """
    shelf = str(root / "code")
    if tree:
        is_there, commits = _state(shell, shelf, tree)
        if not is_there:
            _send(shell, shelf, tree, "bundle", Snapshots(project).bundle(tree, commits))
        return tree
    snapshot, archive = _copy(project)
    if not _state(shell, shelf, snapshot)[0]:
        _send(shell, shelf, snapshot, "tar", archive)
    return snapshot


def _state(shell: Shell, shelf: str, snapshot: str) -> tuple[bool, list[str]]:
    told = _asked(shell, "snapshot_state", shelf=shelf, snapshot=snapshot)
    return border.snapshot_state(told, f"{shell.name}: its snapshots")


def _send(shell: Shell, shelf: str, snapshot: str, kind: str, data: bytes) -> None:
    _asked(shell, "place_snapshot", shelf=shelf, snapshot=snapshot, kind=kind, data=data)


def _asked(shell: Shell, verb: str, **arguments: Any) -> Any:
    try:
        return shell.call(verb, **arguments)
    except OSError as error:
        # A full disk names no file; git's own words name theirs.
        place = error.filename or (arguments["shelf"] if error.errno else None)
        where = f"{place}: " if place else ""
        raise StepFailed(f"the code cannot be placed on {shell.name}: {where}{error.strerror or error}") from error


def _copy(project: Path) -> tuple[str, bytes]:
    """Without git: pack the code folders as a tar archive, named by the hash of their content."""
    digest = hashlib.sha256()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for file in _code_files(project):
            name, content = file.relative_to(project).as_posix(), file.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return f"copy-{digest.hexdigest()[:40]}", packed.getvalue()


def _code_names(project: Path) -> list[str]:
    return [file.relative_to(project).as_posix() for file in _code_files(project)]


def _code_files(project: Path) -> list[Path]:
    files: list[Path] = []
    for name in CODE_WITHOUT_GIT:
        path = project / name
        files += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sorted(
        file
        for file in files  # without caches of Python, and hidden ones of editors and of macOS
        if not any(name == "__pycache__" or name[0] == "." for name in file.relative_to(project).parts)
    )


def _left_out(project: Path) -> tuple[str, ...]:
    """Return names beside the code folders that are not uploaded, except hidden files and output of runs."""
    known = {*CODE_WITHOUT_GIT, *NEVER_CODE, "__pycache__"}
    return tuple(sorted(each.name for each in project.iterdir() if each.name not in known and each.name[0] != "."))
