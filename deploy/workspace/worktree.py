"""Find the files that are uploaded with a run, through git, and refuse those that cannot or should not be uploaded."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import StepFailed, WrongUse, quoted
from deploy.pod.agent.frames import BODY_BYTES
from deploy.shell import LocalShell, Result
from deploy.workspace.exclude import NEVER_CODE

LARGE_FILE_BYTES = 50 << 20
LARGE_UNTRACKED_BYTES = 64 << 20
GIT_LIMIT_S = 300
NAMED_FOLDERS = 3  # in one message
OLD_FORMAT = "sha1"
GITLINK = b"160000 "
# core.safecrlf and core.fsmonitor serve the user's repository. In a snapshot, only the disk counts.
FOR_SNAPSHOTS = ("-c", "core.safecrlf=false", "-c", "core.fsmonitor=false")
# The user's hooks serve his own commits. `git -c` sets the same variable; git before 2.31 knows no GIT_CONFIG_COUNT.
# git 3 makes repositories of SHA-256 unless it is told.
OURS = {"GIT_CONFIG_PARAMETERS": "'core.hooksPath=/dev/null'", "GIT_DEFAULT_HASH": OLD_FORMAT}
NO_DRIVER = {b"unspecified", b"unset", b"set"}


@dataclass(frozen=True)
class Listing:
    """File names as git lists them, relative to the project. Git ignores changes of `hidden` files."""

    tracked: tuple[bytes, ...]
    names: tuple[bytes, ...]  # tracked files, and those that git neither tracks nor ignores
    hidden: tuple[bytes, ...]
    submodules: tuple[bytes, ...]
    nested: tuple[bytes, ...]  # untracked folders with their own repository
    prefix: bytes  # path of the project in its repository, with a trailing slash, or empty
    entries: tuple[bytes, ...]  # of the user's index, as `update-index --index-info` reads them
    excluded: tuple[bytes, ...] = ()  # names that `exclude:` leaves out of all the others


def listing(project: Path) -> Listing:
    """List the tracked files, and untracked files that git does not ignore and that no run made."""
    prefix = git(project, "rev-parse", "--show-prefix").stdout.rstrip(b"\n")
    tracked, hidden, submodules, entries = [], [], [], []
    for line in _listed(project, "--cached", "-v", "--stage"):
        flag, (about, name) = line[:1], line[2:].split(b"\t", 1)
        if about.startswith(GITLINK):
            submodules.append(name)
            continue
        tracked.append(name)
        entries.append(about + b"\t" + prefix + name)
        if flag == b"S" or flag.islower():
            hidden.append(name)
    untracked = _listed(project, "--others", "--exclude-standard", "--", ".", *excluded())
    files = [name for name in untracked if not name.endswith(b"/")]
    return Listing(
        tracked=tuple(dict.fromkeys(tracked)),
        names=tuple(dict.fromkeys([*tracked, *files])),
        hidden=tuple(hidden),
        submodules=tuple(name for name in submodules if os.fsdecode(name).split("/")[0] not in NEVER_CODE),
        nested=tuple(name for name in untracked if name.endswith(b"/")),
        prefix=prefix,
        entries=tuple(entries),
    )


def on_disk(project: Path, name: bytes) -> bool:
    """Return whether a file or a symbolic link of this name exists; False for a folder."""
    return file_bytes(project, name) is not None


def file_bytes(project: Path, name: bytes) -> int | None:
    """Return the size of a file, or of a symbolic link itself; None if there is neither."""
    try:
        about = os.lstat(path_of(project, name))
    except OSError:
        return None
    return None if stat.S_ISDIR(about.st_mode) else about.st_size


def path_of(project: Path, name: bytes) -> str:
    return os.path.join(project, os.fsdecode(name))


def refuse(project: Path, listed: Listing, large_files: Sequence[str]) -> None:
    """Raise WrongUse for the first entry that cannot be uploaded, or is too large to upload with every run."""
    for name in map(os.fsdecode, listed.submodules):
        raise WrongUse(
            f"{name} is a git submodule, and submodules are not uploaded: add its files to this repository, or list "
            f"it in the target's file if the run does not need it: exclude: [{name}/]"
        )
    for folder in (os.fsdecode(nested).rstrip("/") for nested in listed.nested):
        raise WrongUse(
            f"{folder} contains its own git repository, so its files would be missing on the machine: list "
            f"{folder}/ in .gitignore if the run does not need it, or remove {folder}/.git to upload its files"
        )
    _refuse_respelled(project, listed)
    _refuse_large(project, listed, large_files)


def _refuse_respelled(project: Path, listed: Listing) -> None:
    """Raise WrongUse for a file that was renamed in upper and lower case only, where the disk and git ignore that.

    The machine would get the old name, and its Python finds modules by the exact one.
    """

    @functools.cache
    def names_in(folder: str) -> frozenset[str]:
        return frozenset(each.name for each in (project / folder).iterdir())

    for name in listed.names:
        found = respelled(os.fsdecode(name), names_in) if on_disk(project, name) else None
        if found:
            raise WrongUse(
                f"{found[1]} is {found[0]} to git, and would arrive under that name: remove the old name from git",
                next_command=f"git rm -r --cached {quoted(found[0])}",
            )


def respelled(name: str, names_in: Callable[[str], Collection[str]]) -> tuple[str, str] | None:
    """PURE: return the first part of an existing file's path that its folder lists in other letters, and how it does.

    None if the folders list each part as it is. `names_in`: the names in a folder of the project; "" is the project.
    """
    folder = ""
    for part in name.split("/"):
        there = names_in(folder)
        if part not in there:
            other = next((each for each in there if each.casefold() == part.casefold()), None)
            return (folder + part, folder + other) if other else None
        folder += f"{part}/"
    return None


def _refuse_large(project: Path, listed: Listing, meant: Sequence[str]) -> None:
    """Raise WrongUse for large files: every run would upload a forgotten video or archive."""
    told = ((os.fsdecode(name), file_bytes(project, name)) for name in listed.names)
    sizes = {name: size for name, size in told if size is not None}
    for name, size in sizes.items():
        if size > LARGE_FILE_BYTES and name not in meant:
            raise WrongUse(
                f"{name} has {size >> 20} MiB and would be uploaded with the code: list it in .gitignore, or "
                f"in the target's file: exclude: [{name}] keeps it here, large_files: [{name}] uploads it"
            )
    tracked = set(map(os.fsdecode, listed.tracked))
    untracked = {name: size for name, size in sizes.items() if name not in tracked and name not in meant}
    if sum(untracked.values()) > LARGE_UNTRACKED_BYTES:
        largest = max(untracked, key=lambda name: untracked[name])
        raise WrongUse(
            f"{sum(untracked.values()) >> 20} MiB of files are neither tracked nor ignored by git and would be "
            f"uploaded as code; the largest is {largest}: add it to .gitignore"
        )


def without_filters(project: Path, names: Sequence[bytes]) -> list[str]:
    """Return git options that disable the clean filters of these files (Git LFS, git-crypt).

    A filter would put a pointer into the snapshot, and the machine cannot turn it back into the file.
    """
    told = git(project, "check-attr", "-z", "--stdin", "filter", stdin=joined(names))
    drivers = sorted({*told.stdout.split(b"\0")[2::3]} - NO_DRIVER)
    options = []
    for driver in map(os.fsdecode, drivers):
        for setting in ("clean=", "smudge=", "process=", "required=false"):
            options += ["-c", f"filter.{driver}.{setting}"]
    return options


def fresh_index(project: Path, listed: Listing, index: Path, env: Mapping[str, str] | None = None) -> None:
    """Write the names and modes of the user's index to `index`, without its flags and times.

    Git then reads every file again: skip-worktree, assume-unchanged, a file system monitor or equal times hide nothing.
    """
    own = {**(env or {}), "GIT_INDEX_FILE": str(index)}
    git(project, "update-index", "-z", "--index-info", env=own, stdin=joined(listed.entries))


def joined(names: Iterable[bytes]) -> bytes:
    """Join names in the format that git reads with -z."""
    return b"".join(name + b"\0" for name in names)


def object_format(project: Path) -> str:
    """Return the hash of the user's repository: sha1 or sha256. A git without this query has sha1 only."""
    told = git(project, "rev-parse", "--show-object-format", check=False).text.strip()
    return told if told == "sha256" else OLD_FORMAT


def repository_path(project: Path, name: str) -> Path:
    """Return the path of a file in the user's git folder. A worktree shares most of them with others."""
    return project / os.fsdecode(git(project, "rev-parse", "--git-path", name).stdout.rstrip(b"\n"))


def is_repository(project: Path) -> bool:
    """Whether the folder is in a git repository. Raises WrongUse if git does not trust it."""
    if LocalShell().which("git") is None:
        return False
    inside = git(project, "rev-parse", "--is-inside-work-tree", "--show-prefix", check=False)
    if b"dubious ownership" in inside.stderr:
        raise WrongUse(
            f"git does not trust {project}, because it belongs to another user",
            evidence=inside.complaint,
            next_command=f"git config --global --add safe.directory {quoted(project.as_posix())}",
        )
    is_inside, _, prefix = inside.text.partition("\n")
    if is_inside != "true":
        return False
    # A project inside another repository that ignores it is not under version control. A repository's own rules, such
    # as * and !app/, are about the files in it.
    return not prefix.strip() or not git(project, "check-ignore", "--quiet", ".", check=False)


def excluded() -> list[str]:
    return [f":(exclude){name}" for name in NEVER_CODE]


def git(
    project: Path, *argv: str, env: Mapping[str, str] | None = None, stdin: bytes = b"", check: bool = True
) -> Result:
    # A hook or an editor may have pointed git elsewhere through the environment.
    clean = {name: None for name in os.environ if name.startswith("GIT_")}
    return LocalShell().run(
        ["git", *argv],
        cwd=project,
        env={**clean, **OURS, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **(env or {})},
        stdin=stdin,
        limit_s=GIT_LIMIT_S,
        check=check,
    )


def list_files(project: Path, *argv: str, env: Mapping[str, str] | None = None) -> Result:
    """Run a git command that lists files. Raises WrongUse if its output is larger than a program's may be."""
    try:
        return git(project, *argv, env=env)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
    named = ", ".join(_untracked_folders(project))
    raise WrongUse(
        "this folder has too many files to upload them with each run: their list in git is larger than "
        f"{BODY_BYTES >> 20} MiB: list what is not code in .gitignore{f' ({named})' if named else ''}, or keep it in "
        "another folder"
    )


def _untracked_folders(project: Path) -> list[str]:
    """Return some folders without any tracked file, which git names without their content."""
    try:
        told = git(project, "ls-files", "-z", "--others", "--exclude-standard", "--directory", "--", ".", *excluded())
    except OSError:
        return []
    return [os.fsdecode(name) for name in told.stdout.split(b"\0") if name.endswith(b"/")][:NAMED_FOLDERS]


def _listed(project: Path, *which: str) -> list[bytes]:
    told = list_files(project, *FOR_SNAPSHOTS, "ls-files", "-z", *which)
    if b"could not open directory" in told.stderr:
        raise StepFailed(
            "git cannot read a folder of the project, so its files would be missing", evidence=told.complaint
        )
    return [name for name in dict.fromkeys(told.stdout.split(b"\0")) if name]
