"""Copies are verified and resumable, and never replace something better."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path, PurePath
from typing import Any

import pytest

from deploy import shell as shells
from deploy.border import chosen
from deploy.errors import StepFailed, WrongUse
from deploy.pod.base.folder import write_json
from deploy.shell import LocalShell, Shell, transfer

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Counting(LocalShell):
    """Records the offsets of all reads."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
        self.offsets.append(offset)
        return super().read(path, offset, limit)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(shells, "CHUNK_BYTES", 1000)
    path = tmp_path / "machine's" / "a b.pt"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def test_a_copy_is_the_same_file(source: Path, tmp_path: Path) -> None:
    """Both directions give the same bytes. A second download reads nothing."""
    shell = Counting()
    transfer.fetch(shell, source, chosen(tmp_path / "new folder" / "a.pt"))
    transfer.push(LocalShell(), tmp_path / "new folder" / "a.pt", tmp_path / "back" / "a.pt", sha256=SHA256)
    assert (tmp_path / "back" / "a.pt").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["a.pt"]
    shell.offsets.clear()
    transfer.fetch(shell, source, chosen(tmp_path / "new folder" / "a.pt"))
    assert shell.offsets == []


def test_a_broken_copy_goes_on(source: Path, tmp_path: Path) -> None:
    """The copy resumes at the byte where it was interrupted."""
    (tmp_path / f"a.pt.{SHA256[:8]}.part").write_bytes(CONTENT[:99_500])
    shell = Counting()
    transfer.fetch(shell, source, chosen(tmp_path / "a.pt"))
    assert shell.offsets[0] == 99_500
    assert (tmp_path / "a.pt").read_bytes() == CONTENT


def test_a_spoiled_part_is_thrown_away(source: Path, tmp_path: Path) -> None:
    """The copy starts again from the beginning."""
    (tmp_path / f"a.pt.{SHA256[:8]}.part").write_bytes(b"x" * 5000)
    transfer.fetch(LocalShell(), source, chosen(tmp_path / "a.pt"))
    assert (tmp_path / "a.pt").read_bytes() == CONTENT


def test_wrong_bytes_never_arrive(source: Path, tmp_path: Path) -> None:
    """The old file stays."""
    (tmp_path / "a.pt").write_bytes(b"old")
    with pytest.raises(StepFailed, match="does not match its SHA-256"):
        transfer.fetch(LocalShell(), source, chosen(tmp_path / "a.pt"), sha256="0" * 64)
    assert (tmp_path / "a.pt").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


def about(fraction: float) -> dict[str, object]:
    return {"file": "a b.pt", "sha256": SHA256, "fraction": fraction, "epoch": 1, "step": 2}


@pytest.mark.parametrize(
    ("there", "coming", "refused"), [(1.0, 0.01, True), (0.5, 0.1, True), (0.1, 0.1, False), (0.1, 1.0, False)]
)
def test_less_data_never_replaces_more(
    source: Path, tmp_path: Path, there: float, coming: float, refused: bool
) -> None:
    """After a refusal the file and its JSON are unchanged."""
    place = tmp_path / "model.pt"
    place.write_bytes(b"precious")
    write_json(place.with_suffix(".json"), {"sha256": "1" * 64, "fraction": there})
    if refused:
        with pytest.raises(WrongUse, match="another --to"):
            transfer.fetch_checkpoint(LocalShell(), source, about(coming), chosen(place))
        assert place.read_bytes() == b"precious"
        assert json.loads(place.with_suffix(".json").read_text())["fraction"] == there
    else:
        transfer.fetch_checkpoint(LocalShell(), source, about(coming), chosen(place))
        assert place.read_bytes() == CONTENT
        assert json.loads(place.with_suffix(".json").read_text()) == {**about(coming), "file": "model.pt"}


def test_a_file_without_json_is_not_risked(source: Path, tmp_path: Path) -> None:
    """A file without JSON may have seen more data, so it stays. If it is the same checkpoint, its JSON is added."""
    place = tmp_path / "model.pt"
    place.write_bytes(b"unknown")
    with pytest.raises(WrongUse, match="was trained on is unknown"):
        transfer.fetch_checkpoint(LocalShell(), source, about(0.5), chosen(place))
    place.write_bytes(CONTENT)
    transfer.fetch_checkpoint(LocalShell(), source, about(0.5), chosen(place))
    assert place.with_suffix(".json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the right to mount: run this as root on Linux")
@pytest.mark.parametrize("size", [1 << 20, 4 << 20], ids=["while it is written", "before a byte is written"])
def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path: Path, size: int) -> None:
    """The disk is a real file system of half a megabyte."""
    disk, source = tmp_path / "disk", tmp_path / "source.pt"
    disk.mkdir()
    source.write_bytes(os.urandom(size))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        (disk / "a.pt").write_bytes(b"old")
        with pytest.raises((StepFailed, OSError)) as caught:
            transfer.fetch(Far(), source, chosen(disk / "a.pt"))
        assert "room" in str(caught.value) or "space" in str(caught.value)
        assert [path.name for path in disk.iterdir()] == ["a.pt"]
        assert (disk / "a.pt").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Far(Shell):
    """A machine whose files are this computer's."""

    name = "box"

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:  # noqa: ARG002 - nothing can break
        return LocalShell().call(verb, **arguments)
