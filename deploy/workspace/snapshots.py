"""A snapshot of the working tree as a git tree, compared with the disk file by file before anything is sent."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.errors import WrongUse
from deploy.shell import Result
from deploy.workspace import upload_list, worktree
from deploy.workspace.worktree import FOR_SNAPSHOTS, Listing, git, joined, on_disk, path_of

# A fixed author: a commit needs one, and the user may have configured none.
NOBODY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "sniperface", "EMAIL": "sniperface@localhost"}.items()
}
LINK = b"120000"
TRIES = 3  # an editor may save while the files are read
NAMED = 5  # files in one message
BINARY_BYTES = 8000  # git looks for a zero byte in this many
IDENT = re.compile(rb"\$Id:[^$\r\n]*\$")


class Snapshots:
    """A bare repository beside the user's, with snapshots of the working tree as commits.

    New objects go there; existing ones are borrowed from the user's repository, whose index and working tree do not
    change. `store`: another folder for that repository.
    """

    def __init__(self, project: Path, excluded: Sequence[str] = (), store: Path | None = None) -> None:
        self.project = project
        self.excluded = excluded  # patterns
        self.format = worktree.object_format(project)
        name = "code.git" if self.format == "sha1" else f"code-{self.format}.git"
        self.store = store or project / ".sniperface" / name
        self.objects = {"GIT_OBJECT_DIRECTORY": str(self.store / "objects")}
        if not (self.store / "objects").is_dir():
            hashed = [] if self.format == "sha1" else [f"--object-format={self.format}"]
            git(project, "init", "--quiet", "--bare", *hashed, str(self.store))
            (self.store.parent / ".gitignore").write_text("*\n", encoding="ascii")  # keeps this folder out of git
        users = worktree.repository_path(project, "objects")
        # In a file, not in the environment: there a path with a colon, such as C:, would count as two.
        (self.store / "objects" / "info").mkdir(exist_ok=True)
        (self.store / "objects" / "info" / "alternates").write_bytes(_alternate(users))

    def take(self, listed: Listing | None = None) -> str:
        """Return the id of the working tree as it is now. `listed`: its names, if they were just listed.

        Raises WrongUse for files whose content in git's copy differs from the disk.
        """
        different: dict[str, str] = {}
        for attempt in range(TRIES):
            listed = listed if listed and not attempt else upload_list.listing(self.project, self.excluded)
            without = worktree.without_filters(self.project, listed.names)
            options = [*FOR_SNAPSHOTS, *without]
            # The user's index saves reading what has not changed. If it is wrong, the comparison shows it.
            tree = self._write(listed, options, fresh=bool(attempt or listed.hidden or without))
            different = self._different(listed, tree, options)
            if not different:
                return tree
        raise _refusal(different)

    def bundle(self, tree: str, theirs: list[str]) -> bytes:
        """Return a git bundle with the snapshot, based on the newest commit of `theirs` that is known here.

        Empty if the machine already has the snapshot's commit; complete if no commit of `theirs` is known.
        """
        ref = f"refs/snapshots/{tree}"
        base = next((commit for commit in theirs if self._git("cat-file", "-e", commit, check=False)), None)
        commit = self._git("rev-parse", "--verify", "--quiet", ref, check=False).text.strip()
        if commit and commit == base:
            return b""  # only its folder was removed
        parent = ["-p", base] if base else []
        commit = self._git("commit-tree", *parent, "-m", f"snapshot {tree}", tree, env=NOBODY).text.strip()
        self._git("update-ref", ref, commit)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=self.store) as scratch:
            file = Path(scratch) / "bundle"  # output of a program is limited to a few MiB, a snapshot is not
            self._git("bundle", "create", "--quiet", str(file), ref, *([f"^{base}"] if base else []))
            return file.read_bytes()

    def _write(self, listed: Listing, options: Sequence[str], *, fresh: bool) -> str:
        """Write a tree of the listed files. `fresh`: with an index that holds only names and modes."""
        with tempfile.TemporaryDirectory(prefix=".making-", dir=self.store) as scratch:
            index, users = Path(scratch) / "index", worktree.repository_path(self.project, "index")
            if users.exists() and not fresh:
                shutil.copy2(users, index)  # keeps the mtime, by which git knows which entries are too recent to trust
                if listed.excluded:
                    forget = ("update-index", "--force-remove", "-z", "--stdin")
                    git(
                        self.project,
                        *options,
                        *forget,
                        env={"GIT_INDEX_FILE": str(index)},
                        stdin=joined(listed.excluded),
                    )
            else:
                worktree.fresh_index(self.project, listed, index, self.objects)
            own = {**self.objects, "GIT_INDEX_FILE": str(index)}
            update = ("update-index", "--add", "--remove", "--replace", "-z", "--stdin")
            git(self.project, *options, *update, env=own, stdin=joined(listed.names))
            inside = [f"--prefix={os.fsdecode(listed.prefix)}"] if listed.prefix else []
            # With the options too: git reads files again that are as recent as the index.
            return git(self.project, *options, "write-tree", *inside, env=own).text.strip()

    def _different(self, listed: Listing, tree: str, options: Sequence[str]) -> dict[str, str]:
        """Return the names that differ between disk and tree, each with the reason."""
        entries = self._entries(tree)
        there = {name for name in listed.names if on_disk(self.project, name)}
        different = dict.fromkeys(there - entries.keys(), "is missing in git's copy")
        different |= dict.fromkeys(entries.keys() - there, "is in git's copy, but not on the disk")
        for name in sorted(there & entries.keys()):
            mode, blob = entries[name]
            at = f"--path={os.fsdecode(listed.prefix + name)}"
            checkout = [*options, "cat-file", "--filters", at, blob]
            reason = self._reason(path_of(self.project, name), mode, blob, checkout)
            different |= {name: reason} if reason else {}
        return {os.fsdecode(name): different[name] for name in sorted(different)}

    def _reason(self, path: str, mode: bytes, blob: str, checkout: Sequence[str]) -> str | None:
        """Return why a file would arrive changed; None if it would not, except for line endings of a text."""
        try:
            is_link = os.path.islink(path)
            content = os.fsencode(os.readlink(path)) if is_link else Path(path).read_bytes()
        except FileNotFoundError:
            return "changed while it was read"
        if is_link and mode != LINK:
            return "is a symbolic link, but a file in git's copy"
        try:
            return judge(
                content, blob, self.format, lambda: git(self.project, *checkout, env=self.objects, check=False).stdout
            )
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            return "is too large to compare it with git's copy: mark it -text or binary in .gitattributes"

    def _entries(self, tree: str) -> dict[bytes, tuple[bytes, str]]:
        """Return mode and object of each file of a tree, by name."""
        listed = worktree.list_files(self.project, f"--git-dir={self.store}", "ls-tree", "-r", "-z", tree)
        found = {}
        for line in filter(None, listed.stdout.split(b"\0")):
            about, name = line.split(b"\t", 1)
            mode, _, blob = about.split()
            found[name] = (mode, blob.decode("ascii"))
        return found

    def _git(self, *argv: str, env: Mapping[str, str] | None = None, check: bool = True) -> Result:
        return git(self.project, f"--git-dir={self.store}", *argv, env=env, check=check)


def judge(content: bytes, blob: str, hashed: str, checked_out: Callable[[], bytes]) -> str | None:
    """Return why the object `blob` (a hash of kind `hashed`) does not match a file's content; None if it does.

    Line endings and `$Id$` may differ, as the attributes of a text file allow. `checked_out` returns the object as git
    would write it to the disk; it is called only if nothing simpler explains the difference.
    """
    if object_id(content, hashed) == blob:
        return None
    if object_id(content.replace(b"\r\n", b"\n"), hashed) == blob:
        if b"\0" not in content[:BINARY_BYTES]:
            return None
        return "is binary, but git would convert line endings in it: mark it binary in .gitattributes"
    if _plain(checked_out()) == _plain(content):
        return None
    return "differs from git's copy: check its line in .gitattributes, or try again if it just changed"


def object_id(content: bytes, hashed: str) -> str:
    """Return git's id of a file with this content."""
    return hashlib.new(hashed, b"blob %d\0" % len(content) + content).hexdigest()


def _plain(content: bytes) -> bytes:
    return IDENT.sub(b"$Id$", content.replace(b"\r\n", b"\n"))


def _refusal(different: Mapping[str, str]) -> WrongUse:
    name, reason = next(iter(different.items()))
    more = [f"{other} {why}" for other, why in list(different.items())[1:NAMED]]
    return WrongUse(f"the code cannot be uploaded as it is on disk: {name} {reason}", evidence=more)


def _alternate(path: Path) -> bytes:
    """Return a line of git's alternates file. A name that does not fit into a line is quoted as in C."""
    name = os.fsencode(path.as_posix())
    if not name.startswith(b'"') and b"\n" not in name:
        return name + b"\n"
    quoted = name.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"' + quoted + b'"\n'
