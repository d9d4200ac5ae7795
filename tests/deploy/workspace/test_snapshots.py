"""A snapshot contains the files as they are on disk, whatever git hides, converts or omits; otherwise it is refused."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import StepFailed, WrongUse
from deploy.pod.agent import verbs
from deploy.pod.agent.snapshots import place_snapshot
from deploy.shell import LocalShell
from deploy.workspace import code, snapshots
from tests.deploy.conftest import Project, git

ON_POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX file modes and names")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit of two files."""
    return repository(tmp_path / "tree")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return tmp_path / "machine"


def repository(folder: Path, *init: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "tasks.py").write_text("print('hello')\n")
    (folder / "conf.yaml").write_text("a: 1\n")
    git(folder, "init", "--quiet", "--initial-branch=main", *init)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def arrived(tree: Path, machine: Path) -> Path:
    """Upload the code, and return its folder on the machine."""
    return machine / "code" / code.place(tree, LocalShell(), machine, code.prove(tree)[1])


LOOP = """
from numba import njit
@njit(cache=True)
def loop(count):
    return count + {number}
if __name__ == "__main__":
    print(loop(1), sum(loop.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_what_numba_compiled_serves_the_next_snapshot(tree: Path, machine: Path) -> None:
    """It compiles again where the file differs. A snapshot without such files takes none."""
    (tree / "app" / "mining").mkdir(parents=True)
    loops = [tree / "app" / "mining" / f"{name}.py" for name in ("same", "other")]
    for number, expected in ((1, [["2", "0"], ["2", "0"]]), (2, [["2", "1"], ["3", "0"]])):
        for file, added in zip(loops, (1, number), strict=True):
            file.write_text(LOOP.format(number=added))
        places = [arrived(tree, machine) / file.relative_to(tree) for file in loops]
        told = [subprocess.check_output([sys.executable, place], text=True).split() for place in places]
        assert told == expected
    shutil.rmtree(tree / "app" / "mining")
    assert not (arrived(tree, machine) / "app").exists()


@pytest.mark.parametrize("edited", [True, False], ids=["edited", "as committed"])
@pytest.mark.parametrize("flag", ["--skip-worktree", "--assume-unchanged"])
def test_a_file_whose_changes_git_hides_travels_as_it_is(tree: Path, machine: Path, flag: str, edited: bool) -> None:
    """The plan counts an edited file as changed, and the user's flag stays."""
    git(tree, "update-index", flag, "conf.yaml")
    if edited:
        (tree / "conf.yaml").write_text("a: 22\n")
    before = git(tree, "ls-files", "-v")
    facts = code.look(tree)
    assert facts.changed_files == edited
    folder = arrived(tree, machine)
    assert (folder / "conf.yaml").read_text() == ("a: 22\n" if edited else "a: 1\n")
    assert facts.tree == (None if edited else folder.name)
    assert git(tree, "ls-files", "-v") == before


def test_a_change_that_left_time_and_size_as_they_were_travels(tree: Path, machine: Path) -> None:
    """git's own index would treat such a file as unchanged."""
    git(tree, "config", "core.trustctime", "false")
    file = tree / "conf.yaml"
    git(tree, "update-index", "--refresh")
    times = file.stat()
    file.write_text("a: 2\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (arrived(tree, machine) / "conf.yaml").read_text() == "a: 2\n"


def test_a_sparse_checkout_travels_as_it_is_and_names_what_is_missing(tree: Path, machine: Path) -> None:
    (tree / "sub").mkdir()
    (tree / "sub" / "big.py").write_text("x\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "second")
    git(tree, "sparse-checkout", "set", "--no-cone", "/*", "!/sub/")
    assert not (tree / "sub").exists()
    facts = code.look(tree)
    assert (facts.changed_files, facts.tree, facts.left_out) == (0, None, ("sub/big.py",))
    assert sorted(each.name for each in arrived(tree, machine).iterdir()) == ["conf.yaml", "tasks.py"]


@pytest.mark.parametrize("required", ["false", "true"])
def test_a_file_behind_a_filter_travels_as_it_is_here(
    tree: Path, machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, required: str
) -> None:
    """As with Git LFS, no filter of either computer changes the file, even if the filter's program is missing."""
    (tree / ".gitattributes").write_text("*.bin filter=fake diff=fake -text\n")
    git(tree, "config", "filter.fake.clean", "sha256sum" if required == "false" else "no-such-program")
    git(tree, "config", "filter.fake.required", required)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text('[filter "fake"]\n\tsmudge = no-such-program\n\trequired = true\n')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    content = bytes(range(256)) * 4
    (tree / "model.bin").write_bytes(content)
    assert (arrived(tree, machine) / "model.bin").read_bytes() == content


def test_a_file_that_a_filter_stored_as_a_pointer_travels_whole(tree: Path, machine: Path) -> None:
    """The file is tracked and unchanged, so git's index has the pointer with the file's times."""
    (tree / ".gitattributes").write_text("*.bin -text filter=fake\n")
    git(tree, "config", "filter.fake.clean", "sha256sum")
    (tree / "model.bin").write_bytes(b"weights\r\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "second")
    stored = git(tree, "cat-file", "blob", "HEAD:model.bin").split()[0]
    assert stored == hashlib.sha256(b"weights\r\n").hexdigest()
    assert (arrived(tree, machine) / "model.bin").read_bytes() == b"weights\r\n"


def test_a_repository_inside_the_project_is_refused_by_name(tree: Path, machine: Path) -> None:
    """Its files would be missing on the machine. If git ignores it, it is left out."""
    repository(tree / "vendored")
    with pytest.raises(WrongUse, match="vendored contains its own git repository"):
        code.check(tree, (), {})
    (tree / ".gitignore").write_text("vendored/\n")
    assert not (arrived(tree, machine) / "vendored").exists()
    (tree / ".gitignore").unlink()
    (tree / "vendored" / ".git").rename(tree.parent / "taken out")
    assert (arrived(tree, machine) / "vendored" / "tasks.py").exists()


def test_a_repository_added_without_its_files_is_refused_by_name(tree: Path) -> None:
    repository(tree / "vendored")
    git(tree, "add", "vendored")
    with pytest.raises(WrongUse, match="vendored is a git submodule"):
        code.check(tree, (), {})


def test_what_is_committed_under_data_travels_as_it_is_here(tree: Path, machine: Path) -> None:
    """Runs and data are not code, but a file that is committed there is."""
    (tree / "data").mkdir()
    (tree / "data" / "names.txt").write_text("first\n")
    git(tree, "add", "data")
    git(tree, "commit", "--quiet", "-m", "second")
    (tree / "data" / "names.txt").write_text("second\n")
    (tree / "data" / "images.npy").write_text("not code\n")
    folder = arrived(tree, machine)
    assert [each.read_text() for each in (folder / "data").iterdir()] == ["second\n"]


def test_a_file_that_git_ignores_or_exclude_names_is_not_sent(tree: Path) -> None:
    """A machine would be rented for a run that does not find it there."""
    (tree / ".gitignore").write_text("/*.onnx\n")
    (tree / "data").mkdir()
    for name in ("teacher.onnx", "new.bin", "data/committed.bin", "data/other.bin"):
        (tree / name).write_text("1")
    git(tree, "add", "data/committed.bin")
    sent = {name for name in ("new.bin", "conf.yaml", "data", "data/committed.bin") if code.is_sent(tree, name)}
    assert sent == {"new.bin", "conf.yaml", "data", "data/committed.bin"}
    for name in ("teacher.onnx", "data/other.bin", "dat", "..", ".", "absent", "data\\committed.bin"):
        assert not code.is_sent(tree, name)
    assert not code.is_sent(tree, "new.bin", ("*.bin",))
    (tree / "conf.yaml").unlink()
    assert not code.is_sent(tree, "conf.yaml")


def test_a_repository_of_sha256(tmp_path: Path, machine: Path) -> None:
    """The code is sent whole, then as a difference. A SHA-1 repository on the same machine stays intact."""
    old = arrived(repository(tmp_path / "old"), machine)
    tree = repository(tmp_path / "tree", "--object-format=sha256")
    first = arrived(tree, machine)
    assert len(first.name) == 64
    (tree / "conf.yaml").write_text("a: 2\n")
    second = arrived(tree, machine)
    assert [(each / "conf.yaml").read_text() for each in (old, first, second)] == ["a: 1\n", "a: 1\n", "a: 2\n"]


@ON_POSIX
def test_sha1_where_git_takes_sha256_by_default(tree: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As git 3 does on the laptop and on the machine."""
    real = shutil.which("git")
    newer = tree.parent / "bin" / "git"
    newer.parent.mkdir()
    newer.write_text(f'#!/bin/sh\nexport GIT_DEFAULT_HASH="${{GIT_DEFAULT_HASH-sha256}}"\nexec {real} "$@"\n')
    newer.chmod(0o755)
    monkeypatch.setenv("PATH", str(newer.parent), prepend=os.pathsep)
    assert (arrived(tree, machine) / "conf.yaml").read_text() == "a: 1\n"


@ON_POSIX
@pytest.mark.parametrize(
    "settings",
    [
        "[core]\n autocrlf = true\n",
        "[core]\n attributesFile = ~/attributes\n",
        "[core]\n hooksPath = ~/hooks\n",
        "[protocol]\n allow = never\n",
        '[url "https://nowhere.invalid/"]\n insteadOf = /\n',
    ],
)
def test_settings_for_the_users_own_repositories_change_nothing(
    tree: Path, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    """Neither those of the laptop's user nor those of the machine's."""
    hook = tmp_path / "hooks" / "reference-transaction"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    (tmp_path / "attributes").write_text("* text eol=crlf\n")
    (tmp_path / ".gitconfig").write_text(settings)
    old = tmp_path / "bin" / "git"  # before 2.31
    old.parent.mkdir()
    old.write_text(f'#!/bin/sh\nunset GIT_CONFIG_COUNT\nexec {shutil.which("git")} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (arrived(tree, machine) / "conf.yaml").read_bytes() == b"a: 1\n"


@ON_POSIX
@pytest.mark.parametrize("name", ["nl\nx", '"quoted"', "back\\slash\nand\ttab", '"begins\nwith a quote'])
def test_a_folder_whose_name_is_more_than_a_line(tmp_path: Path, machine: Path, name: str) -> None:
    """git lists borrowed repositories one per line; an unquoted newline would hide the user's objects."""
    tree = repository(tmp_path / name / "project")
    assert (arrived(tree, machine) / "conf.yaml").read_text() == "a: 1\n"
    assert code.look(tree).tree == code.place(tree, LocalShell(), machine, code.prove(tree)[1])


def test_a_guard_against_lost_line_ends_is_the_users_own(tree: Path, machine: Path) -> None:
    """core.safecrlf protects the user's files, and a snapshot does not change them."""
    git(tree, "config", "core.safecrlf", "true")
    git(tree, "config", "core.autocrlf", "input")
    (tree / "run.sh").write_bytes(b"#!/bin/sh\r\nx\r\n")
    assert (arrived(tree, machine) / "run.sh").read_bytes() == b"#!/bin/sh\nx\n"


def test_what_was_proven_travels_whatever_is_saved_afterwards(tree: Path, machine: Path) -> None:
    """All machines of a command get the code that was checked, without a second check."""
    (tree / "conf.yaml").write_text("a: 3\n")
    _, proven = code.prove(tree)
    (tree / "conf.yaml").write_text("a: 4\n")
    (tree / "id_rsa").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert code.place(tree, LocalShell(), machine, proven) == proven
    assert (machine / "code" / str(proven) / "conf.yaml").read_text() == "a: 3\n"
    assert not (machine / "code" / str(proven) / "id_rsa").exists()
    with pytest.raises(WrongUse, match="id_rsa"):
        code.prove(tree)


def test_a_snapshot_larger_than_what_a_program_may_print_travels(tree: Path, machine: Path) -> None:
    """Photographs in the project's folder, which do not shrink; the limit is 8 MiB."""
    content = random.Random(0).randbytes(9 << 20)
    (tree / "large.bin").write_bytes(content)
    assert (arrived(tree, machine) / "large.bin").read_bytes() == content


def test_a_binary_file_that_is_called_text_is_refused(tree: Path) -> None:
    """git would convert the bytes 13 10 in it as a line end."""
    (tree / ".gitattributes").write_text("* text eol=lf\n")
    (tree / "table.bin").write_bytes(b"\x00\x01\r\n\x02")
    with pytest.raises(WrongUse, match=r"table\.bin is binary.*mark it binary in \.gitattributes"):
        code.prove(tree)
    (tree / ".gitattributes").write_text("* text eol=lf\n*.bin binary\n")
    code.prove(tree)


def test_encodings_and_ident_arrive_as_the_attributes_say(tree: Path, machine: Path) -> None:
    (tree / ".gitattributes").write_text("*.ps1 text working-tree-encoding=UTF-16LE-BOM eol=crlf\n*.id ident\n")
    text = "﻿Write-Host 'größe'\r\n".encode("utf-16-le")
    (tree / "a.ps1").write_bytes(text)
    (tree / "a.id").write_bytes(b"$Id: an old one $\n")
    folder = arrived(tree, machine)
    assert (folder / "a.ps1").read_bytes() == text
    assert (folder / "a.id").read_bytes().startswith(b"$Id: ")


CONTENT, CRLF, BINARY = b"a\n", b"a\r\n", b"\0\r\n"


@pytest.mark.parametrize(
    ("content", "stored", "checked_out", "right"),
    [
        (CONTENT, CONTENT, b"", True),
        (CRLF, CONTENT, b"", True),
        (BINARY, BINARY, b"", True),
        (BINARY, b"\0\n", b"", False),
        (b"$Id: 1 $\r\n", b"$Id$\n", b"$Id: 2 $\n", True),
        (b"weights", b"pointer", b"pointer", False),
        (b"", b"x", b"x", False),
    ],
)
@pytest.mark.parametrize("hashed", ["sha1", "sha256"])
def test_the_judgement_of_a_file(content: bytes, stored: bytes, checked_out: bytes, right: bool, hashed: str) -> None:
    blob = snapshots.object_id(stored, hashed)
    assert (snapshots.judge(content, blob, hashed, lambda: checked_out) is None) == right


def test_the_id_of_an_object_is_gits(tree: Path) -> None:
    assert snapshots.object_id(b"a: 1\n", "sha1") == git(tree, "rev-parse", "HEAD:conf.yaml")


def test_a_folder_without_git_names_what_stays(tmp_path: Path) -> None:
    for name in ("app", "mine", "runs", ".hidden"):
        (tmp_path / name).mkdir()
    assert code.look(tmp_path).left_out == ("mine",)


def test_what_a_system_writes_beside_the_code_is_no_code(tmp_path: Path, machine: Path) -> None:
    """macOS writes .DS_Store into folders that are opened, and ._NAME on disks without extended attributes."""
    project, shell = tmp_path / "unpacked", LocalShell()
    (project / "app").mkdir(parents=True)
    (project / "app" / "train.py").write_text("1")
    before = code.place(project, shell, machine, None)
    for name in ("app/.DS_Store", "app/._train.py", "app/.ipynb_checkpoints/train.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_bytes(b"\0\5\x16\7")
    assert code.place(project, shell, machine, None) == before


@ON_POSIX
def test_a_disk_that_takes_no_more_is_named(tmp_path: Path, machine: Path) -> None:
    """The system names no file when a write fails. A limit of the size of files fails as a full disk does."""
    import resource

    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "tasks.py").write_text("1" * 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(StepFailed) as caught:
            code.place(tmp_path / "unpacked", LocalShell(), machine, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"cannot be placed on this computer: {machine / 'code'}: File too large" in caught.value.message


def test_what_is_refused_leaves_no_run(project: Project) -> None:
    """A file that is too large, and a binary file marked as text, are refused before a run is recorded."""
    git(project.path, "init", "--quiet")
    with open(project.path / "video.mp4", "wb") as file:
        file.truncate(51 << 20)
    told = project.invoke("train", "--detach", code=2).stderr
    assert "large_files: [video.mp4]" in told
    (project.path / "video.mp4").unlink()
    (project.path / ".gitattributes").write_text("*.dat text\n")
    (project.path / "x.dat").write_bytes(b"\0\r\n")
    assert "x.dat is binary" in project.invoke("train", "--detach", code=2).stderr
    assert not list((project.path / "runs").glob("*/run.json"))


@ON_POSIX
def test_a_git_that_may_not_be_executed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is the error on the machine; it names the program."""
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode & ~(stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH))
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(OSError, match=f"{program} on the machine is not executable by this user"):
        place_snapshot(str(tmp_path / "shelf"), "0" * 40, "bundle", b"")


@ON_POSIX
def test_a_shelf_that_cannot_be_made_is_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StepFailed, match=r"the code cannot be placed on this computer: .*file.*: Not a directory"):
        code.place(tree, LocalShell(), tmp_path / "file", code.prove(tree)[1])


@pytest.mark.parametrize(
    ("among", "advice"),
    [("photos", r"in \.gitignore \(photos/\), or keep it in another folder"), ("", r"in \.gitignore, or keep it")],
    ids=["a folder of their own", "tracked"],
)
def test_more_names_than_an_answer_may_hold(
    tree: Path, machine: Path, monkeypatch: pytest.MonkeyPatch, among: str, advice: str
) -> None:
    """`invoke train` refuses them before a run is recorded, and says what to do."""
    monkeypatch.setattr(verbs, "BODY_BYTES", 4000)
    (tree / among).mkdir(exist_ok=True)
    for number in range(100):
        (tree / among / f"{number:040}").touch()
    if not among:
        git(tree, "add", ".")
    for attempt in (lambda: code.look(tree), lambda: code.check(tree, (), {}), lambda: arrived(tree, machine)):
        with pytest.raises(WrongUse, match=f"too many files.*{advice}") as caught:
            attempt()
        assert "\n" not in caught.value.message
    assert not machine.exists()


def test_a_filtered_file_that_is_larger_than_an_answer_is_refused_by_name(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git's copy cannot be compared with the disk then."""
    (tree / ".gitattributes").write_text("*.txt ident\n")
    (tree / "long.txt").write_text("$Id: 1234567890123456789012345678901234567890 $\n" + "long\n" * 1000)
    assert code.prove(tree)[1]
    monkeypatch.setattr(verbs, "BODY_BYTES", 4000)
    with pytest.raises(WrongUse, match=r"long\.txt is too large to compare it with git's copy: mark it -text"):
        code.prove(tree)
