"""`exclude:` keeps files of the project out of the snapshot: real git, real folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.shell import LocalShell
from deploy.workspace import code, exclude
from tests.deploy.conftest import HOSTILE_NAMES, git

FILES = {
    "app/train.py": "train\n",
    "app/notes.md": "notes\n",
    "conf/config.yaml": "a: 1\n",
    "conf/deploy/lab.yaml": "provider: ssh\n",
    "deploy/pod/x.py": "x\n",
    "docs/a.md": "docs\n",
    "docs/deep/größe.png": "picture\n",
    "tests/test_x.py": "test\n",
    "a b's $HOME.ipynb": "notebook\n",
    "tasks.py": "tasks\n",
}


@pytest.fixture(params=HOSTILE_NAMES, ids=["plain-name", "hostile-name"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A repository in which `tests/` is not tracked and everything else is committed."""
    folder = tmp_path / request.param
    fill(folder)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", *(name for name in FILES if not name.startswith("tests/")))
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def placed(tree: Path, *patterns: str, machine: str = "machine") -> set[str]:
    """Names of the files that arrive on the machine."""
    root = tree.parent / machine
    folder = root / "code" / code.place(tree, LocalShell(), root, code.prove(tree, excluded_by=patterns)[1])
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("patterns", "left_out"),
    [
        (["docs/"], {"docs/a.md", "docs/deep/größe.png"}),
        (["/docs"], {"docs/a.md", "docs/deep/größe.png"}),
        (["größe.png"], {"docs/deep/größe.png"}),
        (["docs/**/*.png"], {"docs/deep/größe.png"}),
        (["docs/*", "!docs/a.md"], {"docs/deep/größe.png"}),
        (["*.md"], {"docs/a.md", "app/notes.md"}),
        (["tests/", "*.ipynb"], {"tests/test_x.py", "a b's $HOME.ipynb"}),
        (["conf/deploy/"], {"conf/deploy/lab.yaml"}),
        (["deep"], {"docs/deep/größe.png"}),
        (["DOCS/", "nothing"], set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",  # a set's order differs between processes
)
def test_patterns_mean_what_they_mean_in_gitignore(tree: Path, patterns: list[str], left_out: set[str]) -> None:
    """For tracked and untracked files alike. The plan counts them, and git's own index does not change."""
    before = git(tree, "status", "--porcelain")
    facts = code.look(tree, tuple(patterns))
    assert placed(tree, *patterns) == FILES.keys() - left_out
    assert facts.excluded_files == len(left_out)
    assert facts.excluded_bytes == sum((tree / name).stat().st_size for name in left_out)
    assert (tree / "docs" / "a.md").exists()
    assert git(tree, "status", "--porcelain") == before


def test_changes_of_an_excluded_file_change_no_snapshot(tree: Path) -> None:
    first = code.prove(tree, excluded_by=("docs/", "tests/"))[1]
    (tree / "docs" / "a.md").write_text("edited\n")
    (tree / "docs" / "deep" / "größe.png").unlink()
    (tree / "tests" / "new.py").write_text("new\n")
    facts = code.look(tree, ("docs/", "tests/"))
    assert (facts.changed_files, facts.untracked, facts.excluded_files) == (0, (), 3)
    assert code.prove(tree, excluded_by=("docs/", "tests/"))[1] == first
    (tree / "app" / "train.py").write_text("edited\n")
    assert code.prove(tree, excluded_by=("docs/", "tests/"))[1] != first


@pytest.mark.parametrize("patterns", [(), ("docs/", "tests/")], ids=["all", "without-excluded"])
def test_a_preview_is_the_id_of_the_snapshot_and_writes_nothing(tree: Path, patterns: tuple[str, ...]) -> None:
    """Of a clean tree, and of one with changed, new and removed files."""
    for change in (False, True):
        if change:
            (tree / "app" / "train.py").write_text("changed\n", encoding="utf-8")
            (tree / "app" / "new.py").write_text("new\n", encoding="utf-8")
            (tree / "conf" / "deploy" / "lab.yaml").unlink()
        before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
        told = code.preview(tree, patterns)
        assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
        assert told == code.prove(tree, excluded_by=patterns)[1]


def test_without_git_there_is_no_preview(tmp_path: Path) -> None:
    fill(tmp_path)
    assert code.preview(tmp_path) is None


def test_without_patterns_the_snapshot_is_the_commit(tree: Path) -> None:
    shutil.rmtree(tree / "tests")
    assert code.look(tree).tree == placed_id(tree) == git(tree, "rev-parse", "HEAD^{tree}")
    assert code.look(tree).excluded_files is None


def placed_id(tree: Path, *patterns: str) -> str | None:
    return code.prove(tree, excluded_by=patterns)[1]


def test_a_snapshot_with_excludes_is_compared_with_the_disk(tree: Path) -> None:
    """A hidden change travels, and a file that would arrive changed is refused unless it is excluded."""
    git(tree, "update-index", "--assume-unchanged", "app/train.py")
    (tree / "app" / "train.py").write_text("hidden edit\n")
    assert "docs/a.md" not in placed(tree, "docs/")
    root = tree.parent / "machine" / "code"
    assert [each.read_text() for each in root.glob("*/app/train.py")] == ["hidden edit\n"]
    (tree / ".gitattributes").write_text("*.dat text\n")
    (tree / "x.dat").write_bytes(b"\0\r\n")
    with pytest.raises(WrongUse, match=r"x\.dat is binary"):
        code.prove(tree, excluded_by=("docs/",))
    assert placed_id(tree, "docs/", "*.dat")


def test_what_cannot_be_uploaded_may_be_excluded(tree: Path) -> None:
    """A repository inside the project, a large file and a key: excluded, each is neither refused nor sent."""
    (tree / "vendor").mkdir()
    git(tree / "vendor", "init", "--quiet")
    with open(tree / "video.mp4", "wb") as file:
        file.truncate(51 << 20)
    (tree / "my.pem").write_text("key\n")
    for patterns, match in (
        ([], "vendor contains its own git repository"),
        (["vendor/"], r"exclude: \[video.mp4\]"),
        (["vendor/", "*.mp4"], r"my\.pem"),
    ):
        with pytest.raises(WrongUse, match=match):
            code.prove(tree, excluded_by=tuple(patterns))
    assert placed(tree, "vendor/", "*.mp4", "my.pem") == FILES.keys()


def test_a_submodule_may_be_excluded(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet", "--initial-branch=main")
    git(other, "commit", "--quiet", "--allow-empty", "-m", "first")
    git(tree, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "vendor")
    with pytest.raises(WrongUse, match=r"vendor is a git submodule.* exclude: \[vendor/\]"):
        placed(tree)
    assert placed(tree, "vendor/") == FILES.keys() | {".gitmodules"}


def test_a_project_inside_a_larger_repository(tmp_path: Path) -> None:
    """Patterns are relative to the project, not to the repository."""
    fill(tmp_path / "mono" / "project")
    (tmp_path / "mono" / "docs").mkdir()
    git(tmp_path / "mono", "init", "--quiet")
    git(tmp_path / "mono", "add", "--all")
    git(tmp_path / "mono", "commit", "--quiet", "-m", "first")
    assert placed(tmp_path / "mono" / "project", "/docs/") == FILES.keys() - {"docs/a.md", "docs/deep/größe.png"}


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("../other", "leads out of the project"),
        ("docs/../..", "leads out of the project"),
        ("./docs", "begins with ./"),
        ("~/secret", "home folder"),
        ("C:\\data", "path of this computer"),
        ("C:/data", "path of this computer"),
        ("docs\\old", "where / is needed"),
        ("/", "names no file"),
        ("!", "names no file"),
        ("#docs", "is a comment"),
        ("a\nb", "cannot be printed"),
        ("docs/", None),
        ("!docs/keep", None),
        ("\\#odd", None),
        ("...", None),
    ],
)
def test_the_judgement_of_a_pattern(pattern: str, why: str | None) -> None:
    told = exclude.why_wrong(pattern)
    assert told is None if why is None else told is not None and why in told


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        (["app/"], "'app/' excludes app/train.py, which the job needs"),
        (["docs/", "*.py"], r"'\*\.py' excludes app/train.py"),
        (["conf"], "'conf' excludes conf/config.yaml"),
        (["*"], "excludes app/train.py"),
        (["tasks.py"], "excludes tasks.py"),
        (["/etc/passwd"], "is a path outside of the project.*such as exclude:"),
    ],
    ids=str,
)
def test_a_pattern_that_breaks_the_job_is_refused(tree: Path, patterns: list[str], named: str) -> None:
    for judged in (code.look, lambda tree, told: code.check(tree, (), {}, (), told)):
        with pytest.raises(WrongUse, match=named):
            judged(tree, tuple(patterns))


def test_without_git_there_is_nobody_to_match_the_patterns(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(WrongUse, match=r"needs git.*git init"):
        code.look(tmp_path, ("docs/",))
    with pytest.raises(WrongUse, match="needs git"):
        code.prove(tmp_path, excluded_by=("docs/",))
