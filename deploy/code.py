"""The working tree as an exact, immutable snapshot on the machine: what git tracks, plus what it does not ignore."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath

from deploy import border, leaks
from deploy.errors import StepFailed, WrongUse
from deploy.plan import CodeFacts
from deploy.shell import LocalShell, Result, Shell

# What a run makes is never code, whatever the ignore file of a fresh repository says.
NEVER_CODE = ("runs", "data", ".sniperface", ".venv")
CODE_WITHOUT_GIT = (
    "app",
    "conf",
    "deploy",
    "benchmarks",
    "tasks.py",
    "pyproject.toml",
    "constraints.txt",
    "requirements",
)
LARGE_FILE_BYTES = 50 << 20
LARGE_UNTRACKED_BYTES = 64 << 20
GIT_LIMIT_S = 300
# Everybody's snapshot of the same files upon the same commit is the same commit.
NOBODY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "sniperface", "EMAIL": "sniperface@localhost"}.items()
}


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
    untracked = tuple(sorted(os.fsdecode(line[3:]) for line in listing.stdout.split(b"\0") if line[:2] == b"??"))
    tree = _git(project, "rev-parse", "HEAD:./").text.strip() if commit and not changed else None
    return CodeFacts(kind="git", commit=commit, changed_files=changed, tree=tree, untracked=untracked)


def check(project: Path, allowed: tuple[str, ...], secrets: Mapping[str, str]) -> tuple[str, ...]:
    """Refuse files that look like credentials, before anything is noted or paid for. Returns tracked ones to warn of.

    `allowed`: names or patterns of files that are meant to travel. `secrets`: names and values a run may be given.
    """
    if not _is_repository(project):
        names = [file.relative_to(project).as_posix() for file in _code_files(project)]
        return leaks.refuse(leaks.find(project, names, secrets), set(), allowed)
    tracked, listed = _travelling(project)
    found = leaks.find(project, map(os.fsdecode, listed), secrets)
    return leaks.refuse(found, set(map(os.fsdecode, tracked)), allowed)


def _travelling(project: Path) -> tuple[list[bytes], list[bytes]]:
    """Names of tracked files, and of all that a snapshot holds."""
    tracked = _listed(project, "--cached")
    return tracked, [*dict.fromkeys([*tracked, *_listed(project, "--others", "--exclude-standard")])]


def place(
    project: Path,
    shell: Shell,
    root: PurePath,
    large_files: tuple[str, ...] = (),
    allowed: tuple[str, ...] = (),
    secrets: Mapping[str, str] | None = None,
) -> str:
    """Put a snapshot of the project's code under `<root>/code/<id>` on the machine, unless it is there; returns the id.

    Only what the machine lacks is sent: a bundle upon the newest snapshot that both sides have. `large_files` are
    names of files over 50 MB that are meant to travel, `allowed` and `secrets` are those of `check`.
    """
    check(project, allowed, secrets or {})
    shelf = str(root / "code")
    if _is_repository(project):
        snapshots = Snapshots(project)
        tree = snapshots.take(large_files)
        is_there, commits = _state(shell, shelf, tree)
        if not is_there:
            _send(shell, shelf, tree, "bundle", snapshots.bundle(tree, commits))
        return tree
    snapshot, archive = _copy(project)
    if not _state(shell, shelf, snapshot)[0]:
        _send(shell, shelf, snapshot, "tar", archive)
    return snapshot


def _state(shell: Shell, shelf: str, snapshot: str) -> tuple[bool, list[str]]:
    told = shell.call("snapshot_state", shelf=shelf, snapshot=snapshot)
    return border.snapshot_state(told, f"{shell.name}: its snapshots")


def _send(shell: Shell, shelf: str, snapshot: str, kind: str, data: bytes) -> None:
    try:
        shell.call("place_snapshot", shelf=shelf, snapshot=snapshot, kind=kind, data=data)
    except OSError as error:
        raise StepFailed(str(error.strerror or error)) from error


class Snapshots:
    """A bare repository beside the user's, with snapshots of the working tree as commits.

    New objects go there, the user's are borrowed, so the user's repository, index and working tree stay as they are.
    """

    def __init__(self, project: Path) -> None:
        self.project = project
        self.store = project / ".sniperface" / "code.git"
        self.objects = {"GIT_OBJECT_DIRECTORY": str(self.store / "objects")}
        if not (self.store / "objects").is_dir():
            _git(project, "init", "--quiet", "--bare", str(self.store))
            (self.store.parent / ".gitignore").write_text("*\n", encoding="ascii")  # nothing here is anybody's to add
        users = _path_of(project, "objects")
        # As a file and not in the environment: a name with a colon, or C:, would be two names there.
        (self.store / "objects" / "info").mkdir(exist_ok=True)
        (self.store / "objects" / "info" / "alternates").write_bytes(os.fsencode(users.as_posix()) + b"\n")

    def take(self, large_files: tuple[str, ...]) -> str:
        """The id of the working tree as it is now."""
        tracked, names = _travelling(self.project)
        _refuse_submodules(self.project)
        _refuse_large(self.project, [os.fsdecode(name) for name in names], set(map(os.fsdecode, tracked)), large_files)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=self.store) as scratch:
            index = Path(scratch) / "index"
            if _path_of(self.project, "index").exists():  # with its times: what has not changed is not read again
                shutil.copyfile(_path_of(self.project, "index"), index)
            own = {**self.objects, "GIT_INDEX_FILE": str(index)}
            listing = b"".join(name + b"\0" for name in names)
            update = ("update-index", "--add", "--remove", "--replace", "-z", "--stdin")
            _git(self.project, *update, env=own, stdin=listing)
            prefix = _git(self.project, "rev-parse", "--show-prefix").text.rstrip("\n")
            return _git(self.project, "write-tree", *([f"--prefix={prefix}"] if prefix else []), env=own).text.strip()

    def bundle(self, tree: str, theirs: list[str]) -> bytes:
        """A git bundle with the snapshot, thin upon the newest commit of `theirs` that is known here; empty if none."""
        ref = f"refs/snapshots/{tree}"
        base = next((commit for commit in theirs if self._git("cat-file", "-e", commit, check=False)), None)
        commit = self._git("rev-parse", "--verify", "--quiet", ref, check=False).text.strip()
        if commit and commit == base:
            return b""  # the machine has the commit, and only its folder was removed
        parent = ["-p", base] if base else []
        commit = self._git("commit-tree", *parent, "-m", f"snapshot {tree}", tree, env=NOBODY).text.strip()
        self._git("update-ref", ref, commit)
        return self._git("bundle", "create", "--quiet", "-", ref, *([f"^{base}"] if base else [])).stdout

    def _git(self, *argv: str, env: Mapping[str, str] | None = None, check: bool = True) -> Result:
        return _git(self.project, f"--git-dir={self.store}", *argv, env=env, check=check)


def _copy(project: Path) -> tuple[str, bytes]:
    """Where there is no git: the code folders as a tar archive, named by the hash of their content."""
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


def _code_files(project: Path) -> list[Path]:
    files: list[Path] = []
    for name in CODE_WITHOUT_GIT:
        path = project / name
        files += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sorted(file for file in files if "__pycache__" not in file.parts)


def _refuse_submodules(project: Path) -> None:
    """Their files are in another repository, so the snapshot would name them without holding them."""
    for line in _git(project, "ls-files", "-z", "--stage", "--", ".", *_excluded()).stdout.split(b"\0"):
        if line.startswith(b"160000 "):
            name = os.fsdecode(line.split(b"\t", 1)[1])
            raise WrongUse(
                f"{name} is a git submodule, and code travels without submodules: put its files into this repository, "
                f"or take it out (git rm --cached {name}) and list it in .gitignore"
            )


def _refuse_large(project: Path, names: list[str], tracked: set[str], meant: tuple[str, ...]) -> None:
    """A forgotten video or archive in the folder would travel with every run."""
    sizes = {name: (project / name).lstat().st_size for name in names if os.path.lexists(project / name)}
    for name, size in sizes.items():
        if size > LARGE_FILE_BYTES and name not in meant:
            raise WrongUse(
                f"{name} has {size >> 20} MiB and would travel with the code: list it in .gitignore, or, if it is "
                f"meant to travel, name it in the target's file: large_files: [{name}]"
            )
    untracked = {name: size for name, size in sizes.items() if name not in tracked and name not in meant}
    if sum(untracked.values()) > LARGE_UNTRACKED_BYTES:
        largest = max(untracked, key=lambda name: untracked[name])
        raise WrongUse(
            f"{sum(untracked.values()) >> 20} MiB of files are neither tracked nor ignored by git and would be "
            f"taken for code, the largest is {largest}: add it to .gitignore"
        )


def _listed(project: Path, *which: str) -> list[bytes]:
    """File names as git knows them, each once; a repository inside this one (a name ending in a slash) is not ours."""
    names = _git(project, "ls-files", "-z", *which, "--", ".", *_excluded()).stdout.split(b"\0")
    return [name for name in dict.fromkeys(names) if name and not name.endswith(b"/")]


def _path_of(project: Path, name: str) -> Path:
    """Where git keeps something of the user's repository; a worktree shares most of it with others."""
    return project / _git(project, "rev-parse", "--git-path", name).text.rstrip("\n")


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
