"""Writing images: the bytes are the same for any number of processes and of interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import prepare
from app.data.sources.source import Source
from app.data.sources.writer import PIECE_ROWS, ROW_BYTES, Unreadable
from app.data.synthetic.source import synthetic
from app.errors import WrongUse
from tests.support.load import under_load

PROJECT = Path(__file__).parents[3]


class Interrupted(Exception):
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def numbered(count: int, block_rows: int, *, breaks_at: int | None = None) -> Source:
    """Images of one colour each: row n has the value n % 256. Reading row `breaks_at` raises Interrupted."""

    def read(start: int, stop: int) -> range:
        if breaks_at is not None and start <= breaks_at < stop:
            raise Interrupted
        return range(start, stop)

    def decode(rows: range) -> np.ndarray:
        return np.broadcast_to(
            np.array([row % 256 for row in rows], np.uint8)[:, None, None, None], (len(rows), 112, 112, 3)
        )

    return Source("numbered", count, read, None, decode, block_rows=block_rows)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        prepare.prepare(synthetic(10, 3, seed=5), tmp_path / str(workers) / "images.npy", workers=workers)
    one, two, three = (contents(tmp_path / str(workers)) for workers in (1, 2, 3))
    assert one == two == three
    assert set(one) == {"images.npy", "labels.npy", "manifest.json"}


def test_killed_at_any_moment_the_same_command_goes_on_and_makes_the_same_bytes(tmp_path: Path) -> None:
    words = ["source=synthetic", "identities=40", "per_identity=8", "seed=3"]  # 40 blocks
    assert prepare.main([*words, f"out={tmp_path / 'whole' / 'images.npy'}", "workers=1"]) == 0
    out = tmp_path / "killed" / "images.npy"
    notes = out.with_name(".images.npy.blocks.part")
    command = [sys.executable, "-m", "app.prepare", *words, f"out={out}", "workers=2"]
    job = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert job.stdout is not None
    assert job.stderr is not None
    wait_for(lambda: notes.exists() and notes.read_bytes().count(b"\n") > 2, job)
    job.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    # It reads to the end of output, so the workers, which hold its other end, have ended.
    job.communicate(timeout=under_load(60))
    assert not out.exists()
    before = len(notes.read_text().splitlines())
    assert 0 < before < 40
    made = []
    prepare.prepare(synthetic(40, 8, seed=3), out, progress=made.append)
    assert made == [before * 8, *[8] * (40 - before)]  # the finished blocks, then one block at a time
    assert contents(out.parent) == contents(tmp_path / "whole")


def wait_for(condition: Callable[[], bool], job: subprocess.Popen, limit_s: float = 60) -> None:
    began = time.monotonic()
    while not condition():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() - began < under_load(limit_s)
        time.sleep(0.01)


@settings(max_examples=30)
@given(
    count=st.integers(1, 40),
    block_rows=st.integers(1, 45),
    breaks=st.lists(st.integers(0, 39), max_size=3),
    torn=st.integers(0, 80),
)
def test_interrupted_at_any_row_the_result_is_the_same(
    count: int, block_rows: int, breaks: list[int], torn: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "images.npy"
        notes = out.with_name(".images.npy.blocks.part")
        for row in breaks:
            try:
                prepare.prepare(numbered(count, block_rows, breaks_at=row), out)
            except Interrupted:
                assert not out.exists()
                text = notes.read_bytes()
                notes.write_bytes(text[: max(len(text) - torn, 0)])  # also with a truncated list of blocks
            else:
                out.unlink()  # the row was written before, or does not exist
        made: list[int] = []
        manifest = prepare.prepare(numbered(count, block_rows), out, progress=made.append)
        images = np.load(out)
        assert images.shape == (count, 112, 112, 3)
        assert np.array_equal(images[:, 50, 60, 1], np.arange(count))
        assert sum(made) == count
        assert len(manifest["blocks"]) == -(-count // block_rows)
        assert sorted(file.name for file in out.parent.iterdir()) == ["images.npy", "manifest.json"]


def interrupted(out: Path, made_of: str = "") -> None:
    source = numbered(12, 2, breaks_at=8)
    with pytest.raises(Interrupted):
        prepare.prepare(Source(source.name, 12, source.read, None, source.decode, 0, 2, made_of), out)


def test_a_block_that_was_damaged_since_is_made_again(tmp_path: Path) -> None:
    out = tmp_path / "images.npy"
    interrupted(out)
    with out.with_name(".images.npy.part").open("r+b") as file:
        file.seek(128 + 3 * ROW_BYTES)
        file.write(b"\xff")
    made: list[int] = []
    prepare.prepare(numbered(12, 2), out, progress=made.append)
    assert made == [6, 2, 2, 2]  # three of the four finished blocks are intact
    assert np.array_equal(np.load(out)[:, 0, 0, 0], np.arange(12))


@pytest.mark.parametrize("other", ["seed=2", "blocks"])
def test_what_was_begun_for_other_images_is_begun_anew(tmp_path: Path, other: str) -> None:
    out = tmp_path / "images.npy"
    interrupted(out, made_of="seed=1")
    source = numbered(12, 3 if other == "blocks" else 2)
    made: list[int] = []
    prepare.prepare(Source("numbered", 12, source.read, None, source.decode, 0, source.block_rows, other), out,
                    progress=made.append)  # fmt: skip
    assert made[0] == 0


def test_a_call_that_ended_just_before_the_manifest_is_gone_on_with(tmp_path: Path) -> None:
    out, good = tmp_path / "images.npy", numbered(6, 2)
    (tmp_path / "labels.npy").mkdir()  # makes writing the labels fail, after the images
    labelled = Source("numbered", 6, good.read, np.arange(6, dtype=np.int32), good.decode, block_rows=2)
    with pytest.raises(OSError, match=r"labels\.npy"):
        prepare.prepare(labelled, out)
    (tmp_path / "labels.npy").rmdir()
    assert not prepare.whole(labelled, out)
    made: list[int] = []
    prepare.prepare(labelled, out, progress=made.append)
    assert made == [6]  # nothing was made again
    assert prepare.whole(labelled, out)


@pytest.mark.parametrize("left_out", [[4], [0, 7], [12]])
def test_images_behind_one_that_is_left_out_keep_their_rows(left_out: list[int], tmp_path: Path) -> None:
    """The second attempt has blocks at the same places as the first, but with the images of other rows."""
    good = numbered(13, 1)

    def decode(rows: range) -> np.ndarray:
        if {*rows} & {*left_out}:
            raise WrongUse(f"row {rows[0]} is not readable")
        return good.decode(rows)

    source = Source("numbered", 13, good.read, np.arange(13, dtype=np.int32), decode, block_rows=1, made_of="one file")
    out = tmp_path / "images.npy"
    with pytest.raises(Unreadable):
        prepare.prepare(source, out)
    prepare.prepare(source.without(left_out), out)
    rows = np.delete(np.arange(13), left_out)
    assert np.load(out)[:, 0, 0, 0].tolist() == rows.tolist() == np.load(tmp_path / "labels.npy").tolist()


def test_memory_is_bounded_whatever_the_size_of_a_block(tmp_path: Path) -> None:
    rows = 5 * PIECE_ROWS
    tracemalloc.start()
    prepare.prepare(numbered(rows, rows), tmp_path / "images.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * PIECE_ROWS * ROW_BYTES  # the current piece and the previous one


def test_room_is_claimed_before_the_first_image(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="MiB are free"):
        prepare.prepare(numbered(10**10, 8192, breaks_at=0), tmp_path / "images.npy")
    assert list(tmp_path.iterdir()) == []


def test_two_calls_never_write_the_same_file(tmp_path: Path) -> None:
    out = tmp_path / "images.npy"

    def read(start: int, stop: int) -> range:
        with pytest.raises(WrongUse, match="another process is writing"):
            prepare.prepare(numbered(4, 2), out)
        return range(start, stop)

    good = numbered(4, 2)
    prepare.prepare(Source("numbered", 4, read, None, good.decode, block_rows=2), out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images.npy", "manifest.json"]


def test_an_image_that_a_worker_cannot_read_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "ana"
    photos.mkdir(parents=True)
    for number in range(4):
        (photos / f"{number}.png").write_bytes(b"no image")
    out = tmp_path / "out" / "images.npy"
    from app.data.sources.source import folder

    with pytest.raises(WrongUse, match=r"0\.png is not a readable image"):
        prepare.prepare(folder(tmp_path / "photos"), out, workers=2)
    assert list(out.parent.iterdir()) == []


def test_the_manifest_is_what_it_was_for_one_process(tmp_path: Path) -> None:
    manifest = prepare.prepare(numbered(5, 2), tmp_path / "images.npy")
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert (manifest["rows"], manifest["block_rows"], manifest["shape"]) == (5, 2, [5, 112, 112, 3])
