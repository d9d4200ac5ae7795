"""A file is either complete or absent, also on a full disk and after a kill while it is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import load
from app.data.dataset import read_manifest
from app.errors import WrongUse
from app.files import atomic, claim, make_folder, write_json
from app.runtime.checkpoint import file_name, is_due, most_accurate, newest, prune, read_tensors
from app.runtime.folder import RunFolder

PROJECT = Path(__file__).parents[3]


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a file.pt"
    target.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic(target) as file:
            file.write(b"new, but")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a file.pt"]


def test_claimed_room_that_was_not_used_is_given_back(tmp_path: Path) -> None:
    with atomic(tmp_path / "x", 10_000_000) as file:
        file.write(b"short")
    assert (tmp_path / "x").read_bytes() == b"short"


def test_more_than_there_is_room_for_is_refused_before_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(WrongUse, match=r"a checkpoint: .* MiB are needed .* MiB are free"),
        atomic(tmp_path / "x", 2**60, "a checkpoint"),
    ):
        pytest.fail("must not get here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs the right to mount: run this as root on Linux"
)
def test_a_full_ram_disk_is_a_sentence_and_never_a_bus_error(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    try:
        with (tmp_path / "x").open("wb") as file, pytest.raises(WrongUse, match="4 MiB"):
            claim(file, 4 * 2**20, "the data")
        write_json(tmp_path / "small.json", {"still": "room"})
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals: run this on Linux or macOS")
def test_killed_while_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "epoch_000.pt"
    target.write_bytes(b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from app.files import atomic\n"
        "with atomic(Path(sys.argv[1]), 1000) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(target)], cwd=PROJECT)
    assert killed.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"


def test_names_in_the_run_folder() -> None:
    assert file_name(14, 7, epoch_complete=True) == "epoch_014.pt"
    assert file_name(14, 123, epoch_complete=False) == "epoch_014_step_00000123.pt"


def test_checkpoints_are_due_every_few_epochs_and_at_the_end() -> None:
    assert [epoch for epoch in range(1, 9) if is_due(3, epoch, 8)] == [3, 6, 8]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(WrongUse, match=r"^out=.* cannot be created as a folder .*; give another out=…$"):
        make_folder(tmp_path / "a file" / "below", "out")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc: run it on Linux")
def test_a_folder_that_takes_no_files_is_refused_before_the_work() -> None:
    for of, words in (
        (None, "out=/proc takes no files"),
        (Path("/proc/a.npy"), "out=/proc/a.npy lies in /proc, which takes"),
    ):
        with pytest.raises(WrongUse, match=rf"^{words} .*; give another out=…$"):
            make_folder(Path("/proc"), "out", of=of)


@pytest.mark.parametrize("content", ["", "[1]", '{"step": 1'])
def test_damaged_files_of_others_are_passed_over_or_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    """The damaged files are a checkpoint, the JSON beside it, a manifest and the configuration of a run."""
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "epoch_000.pt").write_bytes(b"weights")
    (folder.checkpoints / "epoch_000.json").write_text(content)
    assert newest(folder) is None
    with pytest.raises(WrongUse, match="corrupt"):
        read_tensors(folder.checkpoints / "epoch_000.pt")
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(WrongUse, match=r"manifest\.json is not an image manifest"):
        read_manifest(tmp_path / "images.npy", 3)
    folder.config.write_text("a: [1\nb: }")
    with pytest.raises(WrongUse, match="not the configuration of a run"):
        load([], base=folder.config)


def test_the_best_of_each_measure_outlives_newer_checkpoints(tmp_path: Path) -> None:
    """Of six checkpoints with keep=2: the newest two, the best on held-out people, and the best on each set."""
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    measured = [
        {"accuracy": 0.7},
        {"accuracy": 0.9, "sets": {"lfw": {"accuracy": 0.8}}},
        {"accuracy": 0.9, "sets": {"lfw": {"accuracy": 0.85}, "cfp": {"accuracy": None}}},
        None,
        {"sets": {"cfp": {"accuracy": 0.6}}},
        None,
    ]
    for epoch, found in enumerate(measured):
        note = folder.checkpoints / f"epoch_{epoch:03d}.json"
        write_json(note, {"step": epoch, "eval": found})
        note.with_suffix(".pt").touch()
        prune(folder, keep=2, spare=note.with_suffix(".pt"))
    left = ["epoch_001", "epoch_002", "epoch_004", "epoch_005"]
    assert sorted(p.stem for p in folder.checkpoints.glob("*.pt")) == left
    assert sorted(p.stem for p in folder.checkpoints.glob("*.json")) == left


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ([(0.9, 0.6), (0.8, 0.7), (0.7, 0.7)], {"b"}),  # the earliest of equal ones
        ([(0.9, None), (0.8, 0.7), (0.7, 0.6)], {"b"}),  # the run was continued by a version that divides the people
        ([(0.9, None), (0.95, None)], {"b"}),
        ([(None, None), (None, None)], set()),
    ],
)
def test_validation_people_alone_choose_what_outlives(
    measured: list[tuple[float | None, float | None]], best: set[str]
) -> None:
    keys = ("accuracy", "validation_accuracy")
    notes = {
        name: {"eval": {key: value for key, value in zip(keys, each, strict=True) if value is not None}}
        for name, each in zip("abc", measured, strict=False)
    }
    assert most_accurate(notes) == best
