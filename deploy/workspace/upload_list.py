"""List the files to upload: those that git lists, without those that `exclude:` of the target names.

Git matches the patterns as in .gitignore.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from deploy.errors import WrongUse
from deploy.workspace import worktree
from deploy.workspace.exclude import is_needed, refuse_patterns
from deploy.workspace.worktree import Listing, file_bytes, git, joined


def listing(project: Path, patterns: Sequence[str]) -> Listing:
    """List the files to upload as `worktree.listing` does, without those that the patterns exclude.

    Raises WrongUse for a wrong pattern, and for one that excludes a file that the job needs.
    """
    refuse_patterns(project, patterns)
    listed = worktree.listing(project)
    if not patterns:
        return listed
    folders = [name.rstrip(b"/") for name in (*listed.submodules, *listed.nested)]
    out = _matched(project, listed.names, folders, patterns)
    needed = next((name for name in listed.names if name in out and is_needed(os.fsdecode(name))), None)
    if needed:
        guilty = next((each for each in patterns if _matched(project, [needed], [], [each])), patterns[0])
        raise WrongUse(
            f"exclude in the target's file: {guilty!r} excludes {os.fsdecode(needed)}, which the job needs: "
            f"add '!{os.fsdecode(needed)}' after it, or exclude less, such as docs/"
        )
    entries = [entry for entry in listed.entries if entry.split(b"\t", 1)[1].removeprefix(listed.prefix) not in out]
    return replace(
        listed,
        tracked=_without(listed.tracked, out),
        names=_without(listed.names, out),
        hidden=_without(listed.hidden, out),
        submodules=_without(listed.submodules, out),
        nested=tuple(name for name in listed.nested if name.rstrip(b"/") not in out),
        entries=tuple(entries),
        excluded=tuple(name for name in listed.names if name in out),
    )


def size(project: Path, listed: Listing) -> tuple[int, int]:
    """Return how many files on the disk are excluded, and their bytes."""
    sizes = [about for name in listed.excluded if (about := file_bytes(project, name)) is not None]
    return len(sizes), sum(sizes)


def _matched(
    project: Path, files: Sequence[bytes], folders: Sequence[bytes], patterns: Sequence[str]
) -> frozenset[bytes]:
    """Ask git which names the patterns match. An index of only these names makes git treat all of them alike."""
    own = git(project, "rev-parse", "--absolute-git-dir").stdout.rstrip(b"\n")
    blob = b"1" * (40 if worktree.object_format(project) == worktree.OLD_FORMAT else 64)
    with tempfile.TemporaryDirectory(prefix="sniperface-") as scratch:
        lines = Path(scratch) / "exclude"
        lines.write_bytes(b"".join(os.fsencode(pattern) + b"\n" for pattern in patterns))
        env = {
            "GIT_DIR": os.fsdecode(own),
            "GIT_WORK_TREE": str(project.absolute()),
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
        }
        entries = [
            *(b"100644 " + blob + b"\t" + name for name in files),
            *(b"160000 " + blob + b"\t" + name for name in folders),
        ]
        git(project, "update-index", "-z", "--index-info", env=env, stdin=joined(entries))
        words = ("ls-files", "-z", "--cached", "--ignored", f"--exclude-from={lines}")
        told = worktree.list_files(project, *words, env=env)
    return frozenset(filter(None, told.stdout.split(b"\0")))


def _without(names: Iterable[bytes], out: frozenset[bytes]) -> tuple[bytes, ...]:
    return tuple(name for name in names if name not in out)
