"""Snapshots of the working tree, made by real git in real repositories."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import WrongUse
from deploy.pod.base.folder import remove
from deploy.shell import LocalShell
from deploy.workspace import code, worktree
from deploy.workspace.worktree import respelled
from tests.deploy.conftest import HOSTILE_NAMES, git


@pytest.fixture(params=HOSTILE_NAMES, ids=["plain-name", "hostile-name"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A repository without commits: code, an ignored file, data and results."""
    folder = tmp_path / request.param
    for name in (
        "app/größe.py",
        "app/data/a b.py",
        "data/orl/images.npy",
        "runs/r/train.log",
        "secret.key",
        "tasks.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n", encoding="utf-8")
    (folder / ".gitignore").write_text("*.key\n__pycache__/\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The machine's root."""
    return tmp_path / "machine root"


def place(tree: Path, machine: Path) -> str:
    return code.place(tree, LocalShell(), machine, code.prove(tree)[1])


def placed(machine: Path, snapshot: str) -> dict[str, str]:
    folder = machine / "code" / snapshot
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


CODE = {name: f"{name}\n" for name in ("app/größe.py", "app/data/a b.py", "tasks.py")}


def test_a_repository_that_names_only_what_is_code(tree: Path, machine: Path) -> None:
    """`*` ignores everything that no later rule includes again; git then calls the project's own folder ignored too."""
    (tree / ".gitignore").write_text("*\n!.gitignore\n!app/\n!app/*.py\n")
    facts = code.look(tree)
    assert (facts.kind, facts.changed_files) == ("git", 2)
    assert placed(machine, place(tree, machine)).keys() == {".gitignore", "app/größe.py"}


def test_a_project_inside_a_repository_that_ignores_it_is_copied(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / ".git")
    (tmp_path / ".gitignore").write_text("*\n")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    assert code.look(tree).kind == "copy"


def test_a_repository_without_commits(tree: Path, machine: Path) -> None:
    """All files that git does not ignore are code, except data and results: they never are, even if not ignored."""
    facts = code.look(tree)
    assert (facts.kind, facts.commit, facts.changed_files, facts.tree) == ("git", None, 4, None)
    snapshot = place(tree, machine)
    assert placed(machine, snapshot) == {**CODE, ".gitignore": "*.key\n__pycache__/\n"}
    assert git(tree, "status", "--porcelain", "--untracked-files=no") == ""


def test_changes_are_part_of_the_snapshot(tree: Path, machine: Path) -> None:
    """Edited, added, deleted and staged files count. The user's index and HEAD stay unchanged."""
    git(tree, "add", ".gitignore", "app", "tasks.py")
    git(tree, "commit", "--quiet", "-m", "first")
    clean = code.look(tree)
    assert (clean.changed_files, clean.tree) == (0, git(tree, "rev-parse", "HEAD^{tree}"))
    assert place(tree, machine) == clean.tree
    (tree / "tasks.py").write_text("edited\n")
    (tree / "new.py").write_text("new\n")
    (tree / "app" / "größe.py").unlink()
    (tree / "staged.py").write_text("staged\n")
    git(tree, "add", "staged.py")
    git(tree, "checkout", "--quiet", "--detach")
    before = (git(tree, "status", "--porcelain"), git(tree, "rev-parse", "HEAD"))
    facts = code.look(tree)
    assert (facts.commit, facts.changed_files, facts.tree) == (clean.commit, 4, None)
    assert placed(machine, place(tree, machine)) == {
        "app/data/a b.py": "app/data/a b.py\n", "tasks.py": "edited\n", "new.py": "new\n", "staged.py": "staged\n",
        ".gitignore": "*.key\n__pycache__/\n",
    }  # fmt: skip
    assert (git(tree, "status", "--porcelain"), git(tree, "rev-parse", "HEAD")) == before


def test_looking_writes_nothing(tree: Path) -> None:
    """Even git's index stays unchanged, which `git status` may refresh."""
    git(tree, "add", "tasks.py")
    (tree / "tasks.py").touch()
    before = {path: path.stat().st_mtime_ns for path in (tree / ".git").rglob("*")}
    code.look(tree)
    assert {path: path.stat().st_mtime_ns for path in (tree / ".git").rglob("*")} == before


def test_the_same_code_is_placed_once(tree: Path, machine: Path) -> None:
    """A second call finds the existing folder."""
    snapshot = place(tree, machine)
    marker = machine / "code" / snapshot / "marker"
    marker.write_text("")
    assert place(tree, machine) == snapshot
    assert marker.exists()
    assert {path.name for path in (machine / "code").iterdir()} == {snapshot, "repository.git"}


def test_a_project_inside_a_larger_repository(tree: Path, machine: Path) -> None:
    """Only the project's own folder is uploaded."""
    (tree / "project").mkdir()
    (tree / "project" / "tasks.py").write_text("inner\n")
    snapshot = place(tree / "project", machine)
    assert placed(machine, snapshot) == {"tasks.py": "inner\n"}
    git(tree, "add", "project")
    git(tree, "commit", "--quiet", "-m", "first")
    assert code.look(tree / "project").tree == snapshot


def test_a_folder_without_git(tree: Path, machine: Path) -> None:
    """The code folders are copied. The snapshot's name depends on their content."""
    shutil.rmtree(tree / ".git")
    assert code.look(tree).kind == "copy"
    snapshot = place(tree, machine)
    assert placed(machine, snapshot) == CODE
    assert place(tree, machine) == snapshot
    (tree / "tasks.py").write_text("edited\n")
    assert place(tree, machine) != snapshot


def test_a_forgotten_archive_is_named(tree: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large archive is refused, because every run would upload it."""
    monkeypatch.setattr(worktree, "LARGE_UNTRACKED_BYTES", 100)
    (tree / "holiday.zip").write_bytes(bytes(200))
    with pytest.raises(WrongUse, match=r"holiday\.zip"):
        place(tree, machine)


def test_only_what_the_machine_lacks_is_sent(tree: Path, machine: Path) -> None:
    """Three changed files of many are uploaded as three files. A fresh clone uploads everything again."""
    for number in range(200):
        (tree / "app" / f"module_{number}.py").write_text(hashlib.sha512(str(number).encode()).hexdigest() * 20)
    sent: list[int] = []

    class Counting(LocalShell):
        def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
            sent.append(len(arguments.get("data", b"")))
            return super().call(verb, again=again, **arguments)

    def send() -> int:
        sent.clear()
        code.place(tree, Counting(), machine, code.prove(tree)[1])
        return sum(sent)

    first = send()
    for number in range(3):
        (tree / "app" / f"module_{number}.py").write_text(f"changed {number}\n")
    assert 0 < send() < first / 20
    assert send() == 0
    remove(tree / ".sniperface")  # as in a fresh clone of the project
    (tree / "app" / "module_0.py").write_text("changed again\n")
    assert send() > first / 2


def test_a_folder_that_was_removed_on_the_machine_is_made_again(tree: Path, machine: Path) -> None:
    """The folder is restored from the repository on the machine."""
    snapshot = place(tree, machine)
    before = placed(machine, snapshot)
    shutil.rmtree(machine / "code" / snapshot)
    assert place(tree, machine) == snapshot
    assert placed(machine, snapshot) == before


def test_submodules_are_refused_in_words(tree: Path, machine: Path, tmp_path: Path) -> None:
    """Their files would be missing on the machine."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet", "--initial-branch=main")
    git(other, "commit", "--quiet", "--allow-empty", "-m", "first")
    git(tree, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "vendor")
    with pytest.raises(WrongUse, match="vendor is a git submodule"):
        place(tree, machine)


def test_a_large_file_travels_only_when_it_is_named(tree: Path, machine: Path) -> None:
    """A tracked file is no exception."""
    with open(tree / "model.onnx", "wb") as file:
        file.truncate(51 << 20)
    git(tree, "add", "model.onnx")
    with pytest.raises(WrongUse, match=r"large_files: \[model\.onnx\]"):
        place(tree, machine)
    snapshot = code.place(tree, LocalShell(), machine, code.prove(tree, large_files=("model.onnx",))[1])
    assert (machine / "code" / snapshot / "model.onnx").stat().st_size == 51 << 20


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("app/train.py", None),
        ("app/mine.py", ("app/mine.py", "app/Mine.py")),
        ("conf/a.yaml", ("conf", "Conf")),
        ("app/é.py", None),  # macOS lists é in two parts, and finds it so
    ],
)
def test_a_name_in_other_letters_than_on_the_disk(name: str, found: tuple[str, str] | None) -> None:
    there = {"": {"app", "Conf"}, "app/": {"train.py", "Mine.py", "e\u0301.py"}, "Conf/": {"a.yaml"}}
    assert respelled(name, lambda folder: there[folder]) == found


def test_a_module_renamed_in_case_only_arrives_as_it_is_on_the_disk(tree: Path, machine: Path) -> None:
    """Where git ignores case, it knows the old name only, and Python on the machine would not find the module."""
    git(tree, "add", ".")
    (tree / "tasks.py").rename(tree / "x")
    (tree / "x").rename(tree / "Tasks.py")
    if (tree / "tasks.py").exists():
        with pytest.raises(WrongUse, match=r"^Tasks\.py is tasks\.py to git") as caught:
            place(tree, machine)
        git(tree, *str(caught.value.next_command).replace('"', "").split()[1:])
    names = placed(machine, place(tree, machine)).keys()
    assert {"Tasks.py", "tasks.py"} & names == {"Tasks.py"}


def test_windows_line_endings_arrive_as_the_attributes_say(tree: Path, machine: Path) -> None:
    """A script with CR line ends would not run on the machine. The executable mode is kept, where the disk has one."""
    (tree / ".gitattributes").write_bytes(b"* text=auto eol=lf\r\n")
    (tree / "run.sh").write_bytes(b"#!/bin/sh\r\necho hello\r\n")
    (tree / "run.sh").chmod(0o755)
    git(tree, "config", "core.autocrlf", "true")
    place_of = machine / "code" / place(tree, machine) / "run.sh"
    assert place_of.read_bytes() == b"#!/bin/sh\necho hello\n"
    assert os.name == "nt" or place_of.stat().st_mode & 0o111
