"""The snapshot of the working tree, made by real git in real repositories."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from deploy import code
from deploy.errors import WrongUse
from deploy.machine import Machine

from .conftest import HOSTILE_NAMES, git


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
def machine(tmp_path: Path) -> Machine:
    return Machine("m", "local", tmp_path / "machine root", sys.executable)


def placed(machine: Machine, snapshot: str) -> dict[str, str]:
    folder = Path(machine.root) / "code" / snapshot
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


CODE = {name: f"{name}\n" for name in ("app/größe.py", "app/data/a b.py", "tasks.py")}


def test_a_repository_without_commits(tree: Path, machine: Machine) -> None:
    """What git does not ignore is code; data and results never are, even where nothing ignores them."""
    facts = code.look(tree)
    assert (facts.kind, facts.commit, facts.changed_files, facts.tree) == ("git", None, 4, None)
    snapshot = code.place(tree, machine)
    assert placed(machine, snapshot) == {**CODE, ".gitignore": "*.key\n__pycache__/\n"}
    assert git(tree, "status", "--porcelain", "--untracked-files=no") == ""


def test_changes_are_part_of_the_snapshot(tree: Path, machine: Machine) -> None:
    """Edited, added, deleted and staged files; the user's index and HEAD stay as they are."""
    git(tree, "add", ".gitignore", "app", "tasks.py")
    git(tree, "commit", "--quiet", "-m", "first")
    clean = code.look(tree)
    assert (clean.changed_files, clean.tree) == (0, git(tree, "rev-parse", "HEAD^{tree}"))
    assert code.place(tree, machine) == clean.tree
    (tree / "tasks.py").write_text("edited\n")
    (tree / "new.py").write_text("new\n")
    (tree / "app" / "größe.py").unlink()
    (tree / "staged.py").write_text("staged\n")
    git(tree, "add", "staged.py")
    git(tree, "checkout", "--quiet", "--detach")
    before = (git(tree, "status", "--porcelain"), git(tree, "rev-parse", "HEAD"))
    facts = code.look(tree)
    assert (facts.commit, facts.changed_files, facts.tree) == (clean.commit, 4, None)
    assert placed(machine, code.place(tree, machine)) == {
        "app/data/a b.py": "app/data/a b.py\n", "tasks.py": "edited\n", "new.py": "new\n", "staged.py": "staged\n",
        ".gitignore": "*.key\n__pycache__/\n",
    }  # fmt: skip
    assert (git(tree, "status", "--porcelain"), git(tree, "rev-parse", "HEAD")) == before


def test_looking_writes_nothing(tree: Path) -> None:
    """Not even git's index, which `git status` likes to refresh."""
    git(tree, "add", "tasks.py")
    (tree / "tasks.py").touch()
    before = {path: path.stat().st_mtime_ns for path in (tree / ".git").rglob("*")}
    code.look(tree)
    assert {path: path.stat().st_mtime_ns for path in (tree / ".git").rglob("*")} == before


def test_the_same_code_is_placed_once(tree: Path, machine: Machine) -> None:
    """A second call finds it there."""
    snapshot = code.place(tree, machine)
    marker = Path(machine.root) / "code" / snapshot / "marker"
    marker.write_text("")
    assert code.place(tree, machine) == snapshot
    assert marker.exists()
    assert [path.name for path in (Path(machine.root) / "code").iterdir()] == [snapshot]


def test_a_project_inside_a_larger_repository(tree: Path, machine: Machine) -> None:
    """Only the project's own folder travels."""
    (tree / "project").mkdir()
    (tree / "project" / "tasks.py").write_text("inner\n")
    snapshot = code.place(tree / "project", machine)
    assert placed(machine, snapshot) == {"tasks.py": "inner\n"}
    git(tree, "add", "project")
    git(tree, "commit", "--quiet", "-m", "first")
    assert code.look(tree / "project").tree == snapshot


def test_a_folder_without_git(tree: Path, machine: Machine) -> None:
    """The code folders are copied, under a name made from their content."""
    shutil.rmtree(tree / ".git")
    assert code.look(tree).kind == "copy"
    snapshot = code.place(tree, machine)
    assert placed(machine, snapshot) == CODE
    assert code.place(tree, machine) == snapshot
    (tree / "tasks.py").write_text("edited\n")
    assert code.place(tree, machine) != snapshot


def test_a_forgotten_archive_is_named(tree: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would travel with every run."""
    monkeypatch.setattr(code, "LARGE_UNTRACKED_BYTES", 100)
    (tree / "holiday.zip").write_bytes(bytes(200))
    with pytest.raises(WrongUse, match=r"holiday\.zip"):
        code.place(tree, machine)
