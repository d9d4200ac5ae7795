"""Which files of a run are whole checkpoints, and which file of the user's may be continued from."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import BadAnswer, WrongUse, command
from deploy.pod.base.folder import RunFolder
from deploy.runs.checkpoints import check_usable, whole
from deploy.shell import LocalShell
from tests.deploy.support.rented import Rented


def found(folder: Path) -> list[str]:
    return [note["file"] for note in whole(LocalShell(), RunFolder(folder))]


def test_what_is_not_whole_is_passed_over_and_the_rest_is_found(tmp_path: Path) -> None:
    """Without its note or its weights, with a strange name, damaged, or about another file."""
    Rented(tmp_path).checkpoints(tmp_path, 6)
    folder = tmp_path / "checkpoints"
    (folder / "epoch_000.pt").unlink()
    (folder / "epoch_001.json").unlink()
    (folder / "epoch_002.json").write_text("{", encoding="utf-8")
    told = json.loads((folder / "epoch_003.json").read_text(encoding="utf-8"))
    (folder / "epoch_003.json").write_text(json.dumps({**told, "file": "epoch_004.pt"}), encoding="utf-8")
    (folder / "a.json").write_text("{}", encoding="utf-8")
    (folder / "a.pt").write_text("", encoding="utf-8")
    (folder / "epoch_0001.json").mkdir()
    (folder / "epoch_0001.pt").write_text("", encoding="utf-8")
    assert found(tmp_path) == ["epoch_004.pt", "epoch_005.pt"]


def test_if_all_notes_are_damaged_the_first_is_the_reason(tmp_path: Path) -> None:
    Rented(tmp_path).checkpoints(tmp_path, 2)
    for number in range(2):
        (tmp_path / "checkpoints" / f"epoch_00{number}.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadAnswer, match=r"epoch_000.json"):
        found(tmp_path)
    assert found(tmp_path / "nothing") == []


def weights(path: Path, note: dict[str, Any] | None = None, data: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", data)
    if note is not None:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        about = {"file": path.name, "epoch": 3, "step": 7, "sha256": sha256, **note}
        path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    return path


def test_a_file_of_the_users_may_have_any_name(tmp_path: Path) -> None:
    assert check_usable(weights(tmp_path / "mine.pt")) is None
    told = check_usable(weights(tmp_path / "my own.pt", {}))
    assert told is not None
    assert (told["file"], told["epoch"]) == ("my own.pt", 3)


@pytest.mark.parametrize("note", [None, {}, {"sha256": "0" * 64}, {"epoch": "three"}])
def test_a_damaged_file_is_refused(tmp_path: Path, note: dict[str, Any] | None) -> None:
    """With a note the hash shows the damage; without one, the archive's own check."""
    path = weights(tmp_path / "mine.pt", note)
    if not note:
        path.write_bytes(path.read_bytes().replace(b"weights", b"weighty"))
    with pytest.raises(WrongUse, match="is not a complete checkpoint: give another one"):
        check_usable(path)
    path.write_bytes(b"no archive")
    with pytest.raises(WrongUse, match="is not a complete checkpoint: give another one"):
        check_usable(path)


def test_a_damaged_file_of_a_run_is_fetched_again(tmp_path: Path) -> None:
    path = weights(tmp_path / "orl-1" / "checkpoints" / "epoch_000.pt", {"sha256": "0" * 64})
    with pytest.raises(WrongUse) as error:
        check_usable(path)
    assert f"fetch it again ({command('fetch-checkpoint --run orl-1')}), or give another one" in str(error.value)
    with pytest.raises(WrongUse, match="no such file"):
        check_usable(tmp_path / "nothing.pt")
