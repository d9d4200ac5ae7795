"""The working tree as an exact, immutable snapshot on the machine: what git tracks, plus what it does not ignore."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import StepFailed, WrongUse
from deploy.machine import Machine
from deploy.plan import CodeFacts
from deploy.shell import LocalShell, Result

# What a run makes is never code, whatever the ignore file of a fresh repository says.
NEVER_CODE = ("runs", "data", ".sniperface", ".venv")
CODE_WITHOUT_GIT = ("app", "conf", "deploy", "benchmarks", "tasks.py", "pyproject.toml", "constraints.txt")
LARGE_UNTRACKED_BYTES = 64 << 20
GIT_LIMIT_S = 300


def look(project: Path) -> CodeFacts:
    """Commit and number of changed files, without writing anything, not even git's index."""
    if not _is_repository(project):
        return CodeFacts(kind="copy", commit=None, changed_files=0, tree=None)
    head = _git(project, "rev-parse", "--verify", "--quiet", "HEAD", check=False)
    commit = head.text.strip() if head else None
    listing = _git(
        project,
        "status",
        "--porcelain=v1",
        "-z",
        "--no-renames",
        "--untracked-files=all",
        "--",
        ".",
        *_excluded(),
    )
    changed = listing.stdout.count(b"\0")
    tree = _git(project, "rev-parse", "HEAD:./").text.strip() if commit and not changed else None
    return CodeFacts(kind="git", commit=commit, changed_files=changed, tree=tree)


def place(project: Path, machine: Machine) -> str:
    """Put a snapshot of the project's code under `<root>/code/<id>`, unless it is there; returns the id."""
    shelf = Path(machine.root) / "code"
    shelf.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=shelf) as scratch:
        if _is_repository(project):
            snapshot = _from_git(project, Path(scratch), shelf)
        else:
            snapshot = _from_copy(project, Path(scratch))
        if not (shelf / snapshot).exists():
            # Somebody else may have put the very same snapshot there meanwhile: theirs is as good.
            with contextlib.suppress(FileExistsError, OSError):
                os.rename(Path(scratch) / "tree", shelf / snapshot)
        if not (shelf / snapshot).is_dir():
            raise StepFailed(f"the code could not be placed in {shelf / snapshot}")
    return snapshot


def _from_git(project: Path, scratch: Path, shelf: Path) -> str:
    """A tree made from an index of its own, so the user's index and working tree stay as they are."""
    _refuse_large(project)
    index = scratch / "index"
    users = project / _git(project, "rev-parse", "--git-path", "index").text.rstrip("\n")
    if users.exists():
        shutil.copyfile(users, index)
    own = {"GIT_INDEX_FILE": str(index)}
    files = b"".join(name + b"\0" for name in _listed(project, "--cached", "--others", "--exclude-standard"))
    _git(project, "update-index", "--add", "--remove", "--replace", "-z", "--stdin", env=own, stdin=files)
    prefix = _git(project, "rev-parse", "--show-prefix").text.rstrip("\n")
    tree = _git(project, "write-tree", *([f"--prefix={prefix}"] if prefix else []), env=own).text.strip()
    if not (shelf / tree).exists():
        own = {"GIT_INDEX_FILE": str(scratch / "index-of-tree")}
        _git(project, "read-tree", tree, env=own)
        # From the top of the repository: `checkout-index` in a sub-folder would leave out what is above it.
        top = Path(_git(project, "rev-parse", "--show-toplevel").text.rstrip("\n"))
        _git(top, "checkout-index", "--all", "--force", f"--prefix={scratch / 'tree'}{os.sep}", env=own)
    return tree


def _from_copy(project: Path, scratch: Path) -> str:
    """Where there is no git: the code folders, named by the hash of their content."""
    digest = hashlib.sha256()
    for file in _code_files(project):
        name = file.relative_to(project).as_posix()
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        target = scratch / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return f"copy-{digest.hexdigest()[:40]}"


def _code_files(project: Path) -> list[Path]:
    files: list[Path] = []
    for name in CODE_WITHOUT_GIT:
        path = project / name
        files += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sorted(file for file in files if "__pycache__" not in file.parts)


def _refuse_large(project: Path) -> None:
    """A forgotten video or archive in the folder would travel with every run."""
    names = [os.fsdecode(name) for name in _listed(project, "--others", "--exclude-standard")]
    sizes = {name: (project / name).lstat().st_size for name in names if (project / name).exists()}
    if sum(sizes.values()) > LARGE_UNTRACKED_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise WrongUse(
            f"{sum(sizes.values()) >> 20} MiB of files are neither tracked nor ignored by git and would be taken for "
            f"code, the largest is {largest}: add it to .gitignore"
        )


def _listed(project: Path, *which: str) -> list[bytes]:
    """File names as git knows them, each once; a repository inside this one (a name ending in a slash) is not ours."""
    names = _git(project, "ls-files", "-z", *which, "--", ".", *_excluded()).stdout.split(b"\0")
    return [name for name in dict.fromkeys(names) if name and not name.endswith(b"/")]


def _is_repository(project: Path) -> bool:
    if LocalShell().which("git") is None:
        return False
    inside = _git(project, "rev-parse", "--is-inside-work-tree", check=False)
    if b"dubious ownership" in inside.stderr:
        raise WrongUse(
            f"git does not trust {project}, because it belongs to another user",
            evidence=inside.complaint,
            next_command=f'git config --global --add safe.directory "{project.as_posix()}"',
        )
    if inside.text.strip() != "true":
        return False
    # A project that merely lies in somebody else's repository, ignored there, is not under version control.
    return not _git(project, "check-ignore", "--quiet", ".", check=False)


def _excluded() -> list[str]:
    return [f":(exclude){name}" for name in NEVER_CODE]


def _git(
    project: Path, *argv: str, env: Mapping[str, str] | None = None, stdin: bytes = b"", check: bool = True
) -> Result:
    # A hook, or an editor, may have pointed git somewhere else by environment.
    clean = {name: None for name in os.environ if name.startswith("GIT_")}
    return LocalShell().run(
        ["git", *argv],
        cwd=project,
        env={**clean, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **(env or {})},
        stdin=stdin,
        limit_s=GIT_LIMIT_S,
        check=check,
    )
