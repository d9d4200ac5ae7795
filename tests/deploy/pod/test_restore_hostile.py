"""Restore from a bucket that others can write to: a verified checkpoint of the run, or an error of one sentence."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import SOURCE
from tests.support.load import under_load

resource = pytest.importorskip("resource", reason="needs limits of memory: run on Linux")
GOOD = b"weights"
RUN = "orl-20260101-000000-abcd"


class Bucket:
    """A bucket with one intact checkpoint of a run, which tests damage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / RUN
        self.checkpoints = self.run / "checkpoints"
        self.checkpoints.mkdir(parents=True)
        self.say("epoch_000")

    def say(self, stem: str, data: bytes = GOOD, **told: Any) -> None:
        about = {"file": f"{stem}.pt", "epoch": 0, "step": 9, "bytes": len(data)}
        about["sha256"] = hashlib.sha256(data).hexdigest()
        (self.checkpoints / f"{stem}.pt").write_bytes(data)
        (self.checkpoints / f"{stem}.json").write_text(json.dumps({**about, **told}))


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path / "bucket")


def restore(bucket: Bucket, *words: str, stdin: str = "", code: int = 0) -> str:
    """Run restore with at most 512 MiB of memory and return its one line of output.

    Checks that nothing changes outside the run's folder.
    """
    machine = bucket.path.parent / "machine"
    folder = machine / "runs" / RUN
    folder.mkdir(parents=True, exist_ok=True)
    (machine / "precious").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "deploy.pod.backup.restore", str(folder), f"file://{bucket.path}", *words],
        cwd=SOURCE, input=stdin, capture_output=True, text=True, check=False, timeout=under_load(60),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (512 << 20, 512 << 20)),
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1
    outside = {path.relative_to(machine).as_posix() for path in machine.rglob("*") if folder not in path.parents}
    assert outside == {"precious", "runs", f"runs/{RUN}"}
    assert (machine / "precious").read_text() == "mine"
    return done.stdout.strip()


@pytest.mark.parametrize(
    "told",
    [{"file": "../../../precious"}, {"file": "/etc/passwd"}, {"file": "epoch_001.pt"}, {"bytes": -1}, {"bytes": "7"},
     {"bytes": 1 << 62}, {"sha256": None}, {"step": 1e9}, {"epoch": float("inf")}, {"epoch": [0]}],
    ids=str,
)  # fmt: skip
def test_a_note_that_does_not_fit_its_file_is_damaged(bucket: Bucket, told: dict[str, Any]) -> None:
    bucket.say("epoch_001", **told) if told.get("file") != "epoch_001.pt" else bucket.say("epoch_002", **told)
    answer = json.loads(restore(bucket))
    assert [note["file"] for note in answer["checkpoints"]] == ["epoch_000.pt"]
    assert len(answer["damaged"]) == 1


@pytest.mark.parametrize("text", ["", "[]", "{" * 100_000, '{"file": "epoch_001.pt"', " " * (1 << 20), "\0\xff"])
def test_a_note_that_is_none_is_damaged(bucket: Bucket, text: str) -> None:
    (bucket.checkpoints / "epoch_001.json").write_text(text)
    answer = json.loads(restore(bucket))
    assert answer["damaged"] == ["epoch_001.json is incomplete"]
    assert len(answer["checkpoints"]) == 1


def test_thousands_of_other_names_hide_no_checkpoint(bucket: Bucket) -> None:
    for number in range(1500):
        (bucket.checkpoints / f"zzz_{number}.json").write_text("{}")
    assert [note["file"] for note in json.loads(restore(bucket))["checkpoints"]] == ["epoch_000.pt"]


@pytest.mark.parametrize("name", ["../../precious", "/etc/passwd", "epoch_000.pt\n", "epoch_000.json", "latest"])
def test_a_name_that_is_none_of_a_checkpoint_is_refused(bucket: Bucket, name: str) -> None:
    assert "is not a checkpoint name" in restore(bucket, f"--take={name}", code=1)


@pytest.mark.parametrize("data", [GOOD + b"!", GOOD[:-1], b"another"], ids=["longer", "shorter", "other bytes"])
def test_bytes_that_are_not_those_of_the_note_never_take_its_name(bucket: Bucket, data: bytes) -> None:
    (bucket.checkpoints / "epoch_000.pt").write_bytes(data)
    restore(bucket, "--take", "epoch_000.pt", code=1)
    there = bucket.path.parent / "machine" / "runs" / RUN / "checkpoints"
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl", "train.log.tail"])
def test_an_endless_log_is_refused(bucket: Bucket, name: str) -> None:
    """The log is a sparse file of 2 GiB; the process may use 512 MiB of memory."""
    with open(bucket.run / name, "wb") as file:
        file.truncate(2 << 30)
    note = (bucket.checkpoints / "epoch_000.json").read_text()
    restore(bucket, "--record", stdin=note, code=1)


def test_a_whole_checkpoint_comes(bucket: Bucket) -> None:
    assert json.loads(restore(bucket, "--take", "epoch_000.pt"))["step"] == 9
    there = bucket.path.parent / "machine" / "runs" / RUN / "checkpoints"
    assert (there / "epoch_000.pt").read_bytes() == GOOD
