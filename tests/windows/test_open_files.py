"""Windows neither deletes nor replaces a file that is open. Linux can tell what is open, so the rule is kept here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import files, prepare
from app.data.sources.source import Source
from app.errors import WrongUse
from app.runtime import checkpoint
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from tests.app.conftest import alone as alone
from tests.app.conftest import faces
from tests.app.conftest import small_data as small_data
from tests.app.support.training import events, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: open files are looked up in /proc")


def is_open(path: Path) -> bool:
    """Whether this process has a file open, or mapped into its memory."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    opened = {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}
    return str(path) in opened or any(line.endswith(f" {path}") for line in lines)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(change: Any) -> Any:
        def changed(path: Any, *more: Any, **keys: Any) -> Any:
            for each in [path, *more]:
                if "dir_fd" not in keys and is_open(Path(os.path.realpath(each))):
                    raise PermissionError(13, "The process cannot access the file: it is being used", str(each))
            return change(path, *more, **keys)

        return changed

    for name in ("unlink", "remove", "rename", "replace"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.mark.usefixtures("strict")
def test_training_changes_no_file_that_is_open(small_data: Path, tmp_path: Path, alone: World) -> None:
    run(small_data, tmp_path, alone, "train.checkpoint.keep=2", "train.eval.every_epochs=9")
    assert events(tmp_path)[-1]["reason"] == "done"
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert names == [*(f"epoch_00{i}.{kind}" for i in (1, 2) for kind in ("json", "pt")), "latest"]


@pytest.mark.usefixtures("strict")
def test_prepare_leaves_only_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ON_WINDOWS", True)
    images = faces(people=4, each=2)
    labels = np.repeat(np.arange(4, dtype=np.int32), 2)
    source = Source("small", 8, lambda start, stop: images[start:stop], labels=labels, held_out=4, block_rows=4)
    prepare.prepare(source, tmp_path / "images.npy")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images.npy", "labels.npy", "manifest.json"]


@pytest.mark.usefixtures("strict")
def test_images_without_room_are_refused_in_a_sentence(tmp_path: Path) -> None:
    source = Source("large", 10**10, lambda start, stop: [start, stop], None, block_rows=8192)
    with pytest.raises(WrongUse, match="MiB are free"):
        prepare.prepare(source, tmp_path / "images.npy")


@pytest.mark.usefixtures("strict")
def test_a_checkpoint_that_another_command_reads_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not end the training. Once it is closed, the next one goes with it."""
    monkeypatch.setattr(files, "ON_WINDOWS", True)
    monkeypatch.setattr(files, "RENAME_S", 0.1)
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    for number in range(4):
        name = folder.checkpoints / f"epoch_{number:03}.pt"
        name.write_bytes(b"weights")
        files.write_json(name.with_suffix(".json"), {"epoch": number, "step": number})
    with (folder.checkpoints / "epoch_000.json").open():
        checkpoint.prune(folder, 2, name)
        assert (folder.checkpoints / "epoch_000.pt").exists()
        assert not (folder.checkpoints / "epoch_001.pt").exists()
    checkpoint.prune(folder, 2, name)
    assert not (folder.checkpoints / "epoch_000.pt").exists()
