"""Text files that shells and editors of Windows write are read. Other encodings are refused in one sentence."""

from __future__ import annotations

import codecs
import os
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from deploy.border.text_files import NotText, read_text
from deploy.errors import WrongUse
from deploy.pod.base import folder
from deploy.providers import ssh_key
from deploy.providers.runpod import key
from deploy.shell.host_keys import _lines
from deploy.specs.settings import load

TARGET = "provider: ssh\r\nhost: größe.example.org\r\nroot: /workspace/s\r\n"
AS_WRITTEN = {
    "utf-8": TARGET.encode(),
    "notepad": codecs.BOM_UTF8 + TARGET.encode(),
    "powershell 5": codecs.BOM_UTF16_LE + TARGET.encode("utf-16-le"),
    "big endian": codecs.BOM_UTF16_BE + TARGET.encode("utf-16-be"),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "conf" / "deploy").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("data", AS_WRITTEN.values(), ids=AS_WRITTEN)
def test_a_targets_file_is_read(project: Path, data: bytes) -> None:
    (project / "conf" / "deploy" / "mine.yaml").write_bytes(data)
    settings = load(project, "mine", {})
    assert (settings.target.options.host, settings.target.root) == ("größe.example.org", "/workspace/s")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [TARGET.encode("cp1252"), "provider: ssh\n".encode("utf-16-le"), codecs.BOM_UTF16_LE + b"\x00"],
    ids=["of Western Windows", "UTF-16 without a mark", "cut"],
)
def test_another_encoding_is_refused_in_one_sentence(project: Path, data: bytes) -> None:
    (project / "conf" / "deploy" / "mine.yaml").write_bytes(data)
    with pytest.raises(WrongUse, match=r"conf/deploy/mine\.yaml cannot be read: it .*: save it as UTF-8") as refused:
        load(project, "mine", {})
    assert "\n" not in refused.value.message


def test_a_file_that_is_not_yaml_is_refused_with_the_line(project: Path) -> None:
    (project / "conf" / "deploy" / "mine.yaml").write_text("provider: ssh\nroot: [a\n")
    with pytest.raises(WrongUse, match=r"mine\.yaml cannot be read: line 3: .*: write keys and values, such as"):
        load(project, "mine", {})


@pytest.mark.parametrize("path", ["C:\\Users\\x\\id", "D:\\new\\backup"], ids=["no escape", "escapes of YAML"])
def test_a_quoted_windows_path_is_explained(project: Path, path: str) -> None:
    """`\\n` is a new line there, so the second path is valid YAML, and no path."""
    (project / "conf" / "deploy" / "mine.yaml").write_text(f'provider: ssh\nhost: h\nkey: "{path}"\nroot: /x\n')
    with pytest.raises(WrongUse, match="write a Windows path without quotes, or with /"):
        load(project, "mine", {})


def test_a_public_key_and_an_api_key_written_by_powershell_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "id"
    private.write_bytes(b"encrypted, so that only the file beside it tells")
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@desk"
    (tmp_path / "id.pub").write_bytes(codecs.BOM_UTF16_LE + f"{line}\r\n".encode("utf-16-le"))
    assert ssh_key._public_line(private) == line
    config = tmp_path / "config.toml"
    config.write_bytes(codecs.BOM_UTF16_LE + '[default]\r\napi_key = "abc"\r\n'.encode("utf-16-le"))
    monkeypatch.setattr(key, "FILE", config)
    assert key.load({}).reveal() == "abc"


def test_no_text_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\0b")
    with pytest.raises(NotText, match="NUL bytes"):
        read_text(tmp_path / "x")


class RefusedFor:
    """os.replace as on Windows while a virus scanner reads the file: the first `times` calls fail."""

    def __init__(self, times: int) -> None:
        self.left, self.rename = times, os.replace

    def __call__(self, source: Path, destination: Path) -> None:
        if self.left > 0:
            self.left -= 1
            raise PermissionError(13, "Access is denied", str(source))
        self.rename(source, destination)


@pytest.mark.parametrize(("on_windows", "times", "works"), [(True, 20, True), (False, 1, False), (True, 10**9, False)])
def test_a_rename_is_tried_again_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_windows: bool, times: int, works: bool
) -> None:
    """`folder.replace` retries on Windows until RENAME_S is over. On other systems a refusal is final."""
    monkeypatch.setattr(folder, "ON_WINDOWS", on_windows)
    monkeypatch.setattr(folder, "RENAME_S", 1.0)
    monkeypatch.setattr(folder.os, "replace", RefusedFor(times))
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    if works:
        folder.replace(tmp_path / "new", tmp_path / "old")
    else:
        with pytest.raises(PermissionError):
            folder.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == ("new" if works else "old")


class Unlinks:
    """os.unlink as on Windows: never a read-only file, and the first `times` calls fail while a file is open."""

    def __init__(self, times: int) -> None:
        self.left, self.unlink = times, os.unlink

    def __call__(self, path: Any, *, dir_fd: int | None = None) -> None:
        self.left -= 1
        if self.left >= 0 or not os.stat(path, dir_fd=dir_fd).st_mode & stat.S_IWUSR:
            raise PermissionError(13, "Access is denied", str(path))
        self.unlink(path, dir_fd=dir_fd)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX: a stand-in for os.unlink of Windows")
@pytest.mark.parametrize("name", ["file", "folder"])
@pytest.mark.parametrize(("on_windows", "times", "works"), [(True, 20, True), (False, 1, False), (True, 10**9, False)])
def test_a_removal_is_tried_again_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, on_windows: bool, times: int, works: bool
) -> None:
    """`folder.remove` makes read-only files writable, such as git's objects, and retries until RENAME_S is over."""
    monkeypatch.setattr(folder, "ON_WINDOWS", on_windows)
    monkeypatch.setattr(folder, "RENAME_S", 1.0)
    objects = tmp_path / "folder" / "objects"
    objects.mkdir(parents=True)
    for file in (tmp_path / "file", objects / "1", objects / "2"):
        file.write_text("x")
        file.chmod(0o444)
    monkeypatch.setattr(os, "unlink", Unlinks(times))
    if works:
        folder.remove(tmp_path / name)
        folder.remove(tmp_path / name)  # it is gone already
    else:
        with pytest.raises(PermissionError):
            folder.remove(tmp_path / name)
    assert (tmp_path / name).exists() is not works


def test_a_folder_is_never_renamed_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands may create the same snapshot at once. The second fails immediately: the folder will not vanish."""
    monkeypatch.setattr(folder, "ON_WINDOWS", True)
    monkeypatch.setattr(folder.os, "replace", RefusedFor(10**9))
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    done = threading.Event()

    def rename() -> None:
        with pytest.raises(PermissionError):
            folder.replace(tmp_path / "new", tmp_path / "old")
        done.set()

    threading.Thread(target=rename, daemon=True).start()
    assert done.wait(2)


def test_files_are_renamed_by_the_helpers_only() -> None:
    """`app` and `deploy` have one helper each. bootstrap.py renames by itself, because it imports neither."""
    project = Path(ssh_key.__file__).parents[2]
    told = subprocess.run(
        ["git", "grep", "-lE", r"os\.(replace|rename)\(|\b(beside|part|temporary|new)\.(replace|rename)\(", "--",
         "deploy", "app", "bootstrap.py", "tasks.py"],
        cwd=project, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert told == ["app/files.py", "bootstrap.py", "deploy/pod/base/folder.py"]


def test_the_laptop_removes_files_by_the_helper_only() -> None:
    told = subprocess.run(
        ["git", "grep", "-lE", r"\b(unlink|rmtree)\(|os\.remove\(", "--", "deploy", ":!deploy/pod"],
        cwd=Path(ssh_key.__file__).parents[2], capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    assert told == []


def test_known_hosts_of_powershell_are_read(tmp_path: Path) -> None:
    """`ssh-keyscan HOST >> known_hosts` in PowerShell writes CRLF, in UTF-8 or UTF-16."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMxNu1DQHBB3jDdtJPZDMYTg5JTnhAmAg2vRSTvSSHUT"
    for data in (f"box {key}\r\n".encode(), codecs.BOM_UTF16_LE + f"box {key}\r\n".encode("utf-16-le")):
        (tmp_path / "known_hosts").write_bytes(data)
        names = [name for name, _ in _lines(tmp_path / "known_hosts", "box")]
        assert names == ["box"]
