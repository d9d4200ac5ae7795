"""Data sets on the laptop: which are refused, the blocks of a fraction, and staging."""

from __future__ import annotations

import array
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from deploy.errors import StepFailed, WrongUse
from deploy.shell import LocalShell
from deploy.shell.base import Room
from deploy.shell.ranges import no_progress
from deploy.specs.machine import Machine
from deploy.specs.plan import Plan, make
from deploy.specs.request import Request
from deploy.specs.settings import Settings, Target
from deploy.specs.shards import WHOLE, Shard
from deploy.workspace import dataset as data
from deploy.workspace import npy
from deploy.workspace import staging as to_ram
from deploy.workspace.sources import HERE, Origin
from tests.deploy.conftest import HOSTILE_NAMES, SOURCE
from tests.deploy.specs.test_plan import FACTS
from tests.deploy.support.pretend.app.prepare import make as prepare

ROW = data.ROW_BYTES


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """40 rows in blocks of 5, the last 10 held out."""
    path = tmp_path / HOSTILE_NAMES[1] / "images.npy"
    prepare(path)
    return path


def write(path: Path, dtype: str, shape: tuple[int, ...], content: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(npy.header_bytes(dtype, shape) + bytes(content))
    return path


def test_a_good_file_is_taken_as_it_is(images: Path) -> None:
    """The folder may be given instead of the file."""
    dataset = data.find(here(images.parent), 8192)
    assert (dataset.rows, dataset.train_rows, dataset.block_rows, dataset.name) == (40, 30, 5, "orl")


def test_numpy_headers_of_every_version_are_read(tmp_path: Path) -> None:
    """Versions 2 and 3 have a longer length field."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (3, 112, 112, 3), }\n"
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text)
    assert npy.read_header(path, LocalShell()) == npy.Header("|u1", False, (3, 112, 112, 3), 12 + len(text))


@pytest.mark.parametrize(
    ("make_file", "words"),
    [
        (lambda path: path / "missing.npy", ["missing.npy", "there is no file"]),
        (lambda path: write(path / "x.npy", "|u1", (3, 112, 112, 3), 2 * ROW), ["truncated", str(128 + 2 * ROW)]),
        (lambda path: write(path / "x.npy", "<f4", (3, 112, 112, 3), 12 * ROW), ["float32", "uint8"]),
        (
            lambda path: write(path / "x.npy", "|u1", (3, 3, 112, 112), 3 * ROW),
            ["[3, 3, 112, 112]", "[N, 112, 112, 3]"],
        ),
        (lambda path: write(path / "x.npy", "|u1", (0, 112, 112, 3), 0), ["no rows", "at least"]),
        (lambda path: write(path / "x.npy", "|O", (3,), 10), ["dtype |O", "uint8"]),
    ],
)
def test_a_wrong_file_is_named_with_what_would_work(
    tmp_path: Path, make_file: Callable[[Path], Path], words: list[str]
) -> None:
    """Each error is one sentence."""
    with pytest.raises(WrongUse) as caught:
        data.find(here(make_file(tmp_path)), 8192)
    assert [word for word in [*words, "invoke prepare"] if word not in caught.value.message] == []
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no array", b"\x93NUMPY\x01\x00\xff\xffcut", b"\x93NUMPY\x01\x00\x04\x00{]}\n"]
)
def test_what_is_no_npy_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """The file is empty, of another kind, has an incomplete header, or a header that is not a dictionary."""
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(WrongUse, match=r"not a complete \.npy file"):
        data.find(here(tmp_path / "x.npy"), 8192)


def test_labels_of_another_length_are_refused(images: Path) -> None:
    """The error has both numbers."""
    write(images.with_name("labels.npy"), "<i4", (39,), 39 * 4)
    with pytest.raises(WrongUse, match="39 labels for 40 images"):
        data.find(here(images), 8192)


@pytest.mark.parametrize("name", ["../../outside", "a/b", "C:x", "", 5, ["x"], "x" * 100])
def test_an_id_that_is_no_plain_name_is_refused(images: Path, name: object) -> None:
    """It names the folder of packed images on this computer, and a stranger may have written the manifest."""
    path = images.with_name("manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset_id": name}))
    with pytest.raises(WrongUse, match="cannot be used"):
        data.find(here(images), 8192)


def test_a_manifest_of_other_images_is_refused(images: Path) -> None:
    """The manifest's hashes would verify other images."""
    manifest = json.loads(images.with_name("manifest.json").read_text())
    images.with_name("manifest.json").write_text(json.dumps({**manifest, "rows": 41}))
    with pytest.raises(WrongUse, match="lists 41 rows, they have 40"):
        data.find(here(images), 8192)


def test_a_fraction_is_part_of_every_larger_one() -> None:
    """A fraction has at least one block, and halves are rounded up."""
    parts = [set(data.choose_blocks(1000, 10, fraction)) for fraction in (0.001, 0.01, 0.1, 0.5, 1)]
    assert [len(part) for part in parts] == [1, 1, 10, 50, 100]
    assert all(small <= large for small, large in itertools.pairwise(parts))
    assert data.choose_blocks(30, 10, 0.5) == data.choose_blocks(30, 10, 2 / 3)


def here(path: Path) -> Origin:
    return Origin(HERE, path, LocalShell())


class Staging:
    """Stage `images` in a folder, as `deploy` does."""

    def __init__(self, images: Path, folder: Path, root: Path, shard: Shard = WHOLE) -> None:
        self.images, self.shard = images, shard
        self.folder = folder
        self.machine = Machine("m", root, sys.executable)
        self.shell = LocalShell()

    def plan(self, fraction: float) -> Plan:
        dataset = data.find(here(self.images), 8192)
        settings = Settings(self.folder, Target("local", "local", str(self.machine.root), stage_to=str(self.folder)))
        self.place = to_ram.choose_place(self.shell, settings, self.machine.root, dataset, fraction, shard=self.shard)
        facts = dataclasses.replace(
            FACTS, data=data.facts(dataset, fraction, shard=self.shard), data_path=self.place.path
        )
        return make(settings, Request(fraction=fraction), facts, tryout=False)

    def run(self, fraction: float = 1.0) -> str | None:
        dataset, plan = data.find(here(self.images), 8192), self.plan(fraction)
        return to_ram.stage(self.shell, self.machine, PurePath(SOURCE), plan, dataset, no_progress)


@pytest.fixture
def staging(images: Path, tmp_path: Path) -> Staging:
    return Staging(images, tmp_path / "ram disk", tmp_path / "root")


def test_everything_is_staged_once(staging: Staging) -> None:
    """A second call copies nothing. A changed data set is staged again."""
    assert "staged" in (staging.run() or "")
    staged = staging.folder / "images.npy"
    assert staged.read_bytes()[-40 * ROW :] == staging.images.read_bytes()[-40 * ROW :]
    before = staged.stat().st_mtime_ns
    assert "already there" in (staging.run() or "")
    assert staged.stat().st_mtime_ns == before
    prepare(staging.images, rows=45)
    assert "staged" in (staging.run() or "")
    assert data.find(here(staged), 1).rows == 45


def test_a_part_is_compact_and_says_what_it_is(staging: Staging) -> None:
    """A part has the chosen blocks and all held-out rows, with its own labels and manifest."""
    staging.run(0.5)
    staged = data.find(here(staging.folder / "orl-f0.5" / "images.npy"), 1)
    chosen = data.choose_blocks(30, 5, 0.5)
    rows = [*(row for block in chosen for row in range(block * 5, block * 5 + 5)), *range(30, 40)]
    content = staged.path.read_bytes()[staged.data_offset :]
    assert [content[place * ROW] for place in range(staged.rows)] == rows
    assert staged.labels is not None
    assert staged.labels.read_bytes()[128:] == b"".join((row // 5).to_bytes(4, "little") for row in rows)
    original = json.loads(staging.images.with_name("manifest.json").read_text())["dataset_id"]
    assert staged.manifest["selection"] == {"of": original, "fraction": 0.5, "blocks": [*chosen, 6, 7]}
    assert staged.held_out_rows == 10
    assert staged.manifest["dataset_id"] != original


def test_labels_to_learn_travel_with_the_part_that_is_staged(staging: Staging, tmp_path: Path) -> None:
    """Labels are staged even if the images already are, because they may be another file than last time."""
    for told in (1, 2):
        own = tmp_path / f"pseudo_ids_{told}.npy"
        own.write_bytes(
            npy.header_bytes("<i4", (40,)) + b"".join((told * row).to_bytes(4, "little") for row in range(40))
        )
        dataset, plan = data.find(here(staging.images), 8192, train_labels=own), staging.plan(0.5)
        to_ram.stage(staging.shell, staging.machine, PurePath(SOURCE), plan, dataset, no_progress)
        staged = staging.folder / "orl-f0.5" / "train_labels.npy"
        chosen = data.choose_blocks(30, 5, 0.5)
        rows = [*(row for block in chosen for row in range(block * 5, block * 5 + 5)), *range(30, 40)]
        header = npy.read_header(staged, LocalShell())
        assert header.shape == (len(rows),)
        assert staged.read_bytes()[header.data_offset :] == b"".join((told * row).to_bytes(4, "little") for row in rows)
    with pytest.raises(WrongUse, match=r"data\.train_labels_path an int32"):
        data.find(here(staging.images), 8192, train_labels=tmp_path / "nowhere.npy")


def test_an_image_file_without_manifest_is_staged_too(staging: Staging) -> None:
    """The blocks are hashed during the copy. The source's size and time show whether it is already staged."""
    staging.images.with_name("manifest.json").unlink()
    staging.run()
    assert len(data.find(here(staging.folder / "images.npy"), 1).manifest["blocks"]) == 1
    assert "already there" in (staging.run() or "")


def test_a_broken_copy_goes_on_where_it_was(staging: Staging) -> None:
    """Intact blocks of the partial file are not copied again, damaged ones are.

    The source's block 0 is damaged here, so another copy of it would fail.
    """
    whole = staging.images.read_bytes()
    staging.run()
    part = staging.folder / "images.npy.part"
    (staging.folder / "images.npy").rename(part)
    _spoil(part, 7)
    _spoil(staging.images, 0)
    staging.run()
    assert (staging.folder / "images.npy").read_bytes() == whole
    assert not part.exists()


def _spoil(path: Path, row: int) -> None:
    with path.open("r+b") as file:
        file.seek(128 + row * ROW)
        file.write(b"\xff\xfe")


def test_a_spoiled_source_is_never_staged(staging: Staging) -> None:
    """The error names the block. No file appears under the final name."""
    _spoil(staging.images, 12)
    with pytest.raises(StepFailed) as caught:
        staging.run()
    assert "block 2" in " ".join(caught.value.evidence)
    assert not (staging.folder / "images.npy").exists()


def test_a_strangers_file_is_left_alone(staging: Staging) -> None:
    """Staging never replaces a file that this project did not stage."""
    staging.folder.mkdir()
    (staging.folder / "images.npy").write_bytes(b"mine")
    with pytest.raises(WrongUse, match="this project did not stage it"):
        staging.run()
    assert (staging.folder / "images.npy").read_bytes() == b"mine"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A RAM disk of 1 MiB; 40 rows need 1.5 MB."""
    folder = tmp_path / "tiny disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs the right to mount: run this as root on Linux")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_ram_disk_has_a_plan_b(images: Path, tiny_disk: Path, tmp_path: Path) -> None:
    """The images are read from their original place. This is decided before the first byte is copied."""
    staging = Staging(images, tiny_disk, tmp_path / "root")
    assert staging.run() is None
    assert staging.place.path == images
    assert "GiB free" in staging.place.words
    assert "read from disk instead" in staging.place.words
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/shm: it is of Linux machines")
@pytest.mark.parametrize(
    ("gpus", "spare_bytes", "staged"),
    [
        (1, 100 << 20, True),
        (2, 100 << 20, False),
        (2, (512 << 20) - 1, False),
        (2, 512 << 20, True),
        (8, 1 << 30, True),
    ],
)
def test_images_leave_room_in_shm_for_what_gpus_exchange(
    images: Path, tmp_path: Path, gpus: int, spare_bytes: int, staged: bool
) -> None:
    """NCCL keeps files there, too. Without room, ranks fail at their first exchange or die of SIGBUS later."""
    dataset = data.find(here(images), 8192)

    class Tight(LocalShell):
        def room(self, folder: PurePath, *files: PurePath) -> Room:
            """A machine whose /dev/shm is nearly full. The memory of this computer does not matter here."""
            free_bytes = data.facts(dataset, 1.0).bytes + spare_bytes
            return replace(super().room(folder, *files), free_bytes=free_bytes, in_ram=False)

    settings = Settings(tmp_path, Target("local", "local", str(tmp_path), stage_to="/dev/shm/sniperface_test"))
    place = to_ram.choose_place(Tight(), settings, tmp_path, dataset, 1.0, gpus=gpus)
    assert (place.path != images) == staged
    assert ("besides the space that NCCL needs" in place.words) == (not staged)


@pytest.mark.parametrize("name", ["images.npy.part", "images.npy"])
@pytest.mark.parametrize(("short_bytes", "staged"), [(0, True), (1, False)])
def test_an_earlier_copy_counts_as_free_room(
    images: Path, tmp_path: Path, name: str, short_bytes: int, staged: bool
) -> None:
    """An interrupted copy fills a tight disk itself. The next attempt must not be refused for those bytes."""
    dataset, earlier = data.find(here(images), 8192), tmp_path / "shm" / name
    earlier.parent.mkdir()
    earlier.write_bytes(bytes(ROW))

    class Tight(LocalShell):
        def room(self, folder: PurePath, *files: PurePath) -> Room:
            """A machine whose disk is nearly full. The memory of this computer does not matter here."""
            free_bytes = data.facts(dataset, 1.0).bytes - ROW - short_bytes
            return replace(super().room(folder, *files), free_bytes=free_bytes, in_ram=False)

    settings = Settings(tmp_path, Target("local", "local", str(tmp_path), stage_to=str(tmp_path / "shm")))
    place = to_ram.choose_place(Tight(), settings, tmp_path, dataset, 1.0)
    assert (place.path == earlier.with_name("images.npy")) == staged


def test_classes_are_counted_as_the_app_counts_them(images: Path) -> None:
    """Only the training images of a fraction count; a negative label is not a class."""
    labels = images.with_name("own.npy")
    count = 40
    for code, kind in (("<i4", "i"), (">i4", "i"), ("<i8", "q"), ("<i2", "h")):
        values = array.array(kind, [row // 3 - 1 for row in range(count)])
        if code[0] != "<":
            values.byteswap()
        labels.write_bytes(npy.header_bytes(code, (count,)) + values.tobytes())
        dataset = data.find(here(images), 8192, train_labels=labels)
        assert data.count_classes(dataset, 1.0) == len({row // 3 - 1 for row in range(30)} - {-1})
        blocks = data.choose_blocks(30, 5, 0.4)
        rows = [row for block in blocks for row in range(5 * block, 5 * block + 5)]
        assert data.count_classes(dataset, 0.4) == len({row // 3 - 1 for row in rows} - {-1})
    assert data.count_classes(dataclasses.replace(dataset, train_labels=None, labels=None), 1.0) is None


def test_room_that_vanishes_is_a_message_too(images: Path, tiny_disk: Path, tmp_path: Path) -> None:
    """Another program may fill the disk after the check. Staging reserves the room first, and fails with a message."""

    class Optimist(LocalShell):
        def room(self, folder: PurePath, *files: PurePath) -> Room:
            return replace(super().room(folder, *files), free_bytes=1 << 40)

    staging = Staging(images, tiny_disk, tmp_path / "root")
    staging.shell = Optimist()
    with pytest.raises(StepFailed) as caught:
        staging.run()
    assert "has no room" in " ".join(caught.value.evidence)
