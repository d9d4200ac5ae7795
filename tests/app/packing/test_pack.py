"""Packed blocks: lossless ones come back to the bit, JPEG stays within bounds, and damaged blocks are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.sources.source import orl
from app.data.synthetic.source import synthetic
from app.packing import pack, packed, unpack

SHAPE = (112, 112, 3)
ROW = 112 * 112 * 3
BLOCK_ROWS = 5


def photographs() -> np.ndarray:
    """Real faces, each with its own tint: those of ORL are grey, and grey images would not test chroma."""
    source = orl()
    faces = source.decode(source.read(0, source.count))[::30]
    tints = np.random.default_rng(0).uniform(0.6, 1.0, (len(faces), 1, 1, 3))
    return (faces * tints).astype(np.uint8)


def drawn() -> np.ndarray:
    source = synthetic(4, 3, 0, 100)
    return source.decode(source.read(0, source.count))


@pytest.fixture(scope="module", params=[photographs, drawn], ids=["photographs", "drawn"])
def faces(request: pytest.FixtureRequest) -> np.ndarray:
    return request.param()


class Bench:
    """An images.npy, packed into one folder and unpacked into another."""

    def __init__(self, folder: Path, images: np.ndarray, kind: str) -> None:
        self.folder, self.images, self.kind = folder, images, kind
        np.save(folder / "images.npy", images)
        self.offset = (folder / "images.npy").stat().st_size - images.nbytes
        self.starts = range(0, len(images), BLOCK_ROWS)

    def pack(self, **changed: Any) -> int:
        blocks = [
            {
                "name": f"block {number}",
                "file": f"{number}.pack",
                "offset": self.offset + start * ROW,
                "bytes": self.images[start : start + BLOCK_ROWS].nbytes,
                "sha256": hashlib.sha256(self.images[start : start + BLOCK_ROWS].tobytes()).hexdigest(),
            }
            for number, start in enumerate(self.starts)
        ]
        order = {
            "images": str(self.folder / "images.npy"), "kind": self.kind, "shape": SHAPE,
            "folder": str(self.folder / "packed"), "blocks": blocks, **changed,
        }  # fmt: skip
        return pack.main([self._order(order)])

    def notes(self) -> list[dict[str, Any]]:
        return [json.loads((self.folder / "packed" / f"{n}.json").read_text()) for n in range(len(self.starts))]

    def unpack(self, **changed: Any) -> int:
        """Unpack all blocks from one file, which holds them one after another, as the laptop sends them."""
        files = [(self.folder / "packed" / f"{number}.pack").read_bytes() for number in range(len(self.starts))]
        sent = self.folder / "sent.pack"
        if not sent.exists():
            sent.write_bytes(b"".join(files))
        pieces = [
            {
                "name": f"block {number}",
                "offset": sum(len(file) for file in files[:number]),
                "bytes": len(files[number]),
                "sha256": note["packed_sha256"],
                "place": start * ROW,
                "rows": len(self.images[start : start + BLOCK_ROWS]),
                "unpacked_sha256": note["unpacked_sha256"],
            }
            for number, (start, note) in enumerate(zip(self.starts, self.notes(), strict=True))
        ]
        (self.folder / "part").write_bytes(bytes(self.images.nbytes))
        order = {
            "packed": str(sent), "part": str(self.folder / "part"), "kind": self.kind, "shape": SHAPE,
            "pieces": pieces, **changed,
        }  # fmt: skip
        return unpack.main([self._order(order)])

    def unpacked(self) -> np.ndarray:
        return np.frombuffer((self.folder / "part").read_bytes(), np.uint8).reshape(self.images.shape)

    def _order(self, order: dict[str, Any]) -> str:
        (self.folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
        return str(self.folder / "order.json")


def test_lossless_is_bit_exact(faces: np.ndarray, tmp_path: Path) -> None:
    """The packed blocks are smaller, and no temporary file is left."""
    bench = Bench(tmp_path, faces, packed.LOSSLESS)
    assert bench.pack() == 0
    assert bench.unpack() == 0
    assert np.array_equal(bench.unpacked(), faces)
    assert sum(note["packed_bytes"] for note in bench.notes()) < 0.75 * faces.nbytes
    assert all(note["unpacked_sha256"] == note["original_sha256"] for note in bench.notes())
    assert not list((tmp_path / "packed").glob(".*"))


@pytest.mark.parametrize(("kind", "share", "psnr", "most"), [("jpeg95", 0.32, 35.0, 35), ("jpeg100", 0.75, 49.0, 6)])
def test_jpeg_stays_near_the_face(
    faces: np.ndarray, tmp_path: Path, kind: str, share: float, psnr: float, most: int
) -> None:
    """`psnr`: dB of each image; `most`: largest error, of 256 levels. Drawn faces are noisier than photographs."""
    bench = Bench(tmp_path, faces, kind)
    assert (bench.pack(), bench.unpack()) == (0, 0)
    error = bench.unpacked().astype(np.float64) - faces
    each = 10 * np.log10(255**2 / (error**2).mean(axis=(1, 2, 3)))
    assert each.min() > psnr
    assert np.abs(error).max() <= most
    assert sum(note["packed_bytes"] for note in bench.notes()) < share * faces.nbytes
    told = [note["unpacked_sha256"] for note in bench.notes()]
    blocks = [bench.unpacked()[start : start + BLOCK_ROWS] for start in bench.starts]
    assert told == [hashlib.sha256(block.tobytes()).hexdigest() for block in blocks]


def test_images_that_are_not_what_was_said_are_never_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the block. No note of the block is written, so it counts as not packed."""
    bench = Bench(tmp_path, photographs(), "jpeg95")
    with (tmp_path / "images.npy").open("r+b") as file:
        file.seek(bench.offset + BLOCK_ROWS * ROW)
        file.write(b"spoiled")
    assert bench.pack() == 2
    assert "block 1 of " in capsys.readouterr().out
    assert not (tmp_path / "packed" / "1.json").exists()
    assert not (tmp_path / "packed" / "1.pack").exists()


@pytest.mark.parametrize("kind", ["jpeg95", "lossless"])
@pytest.mark.parametrize("place", [3, 30, 200, -3])
def test_a_damaged_block_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, place: int) -> None:
    """The damage may be in the head, in a size or in an image."""
    bench = Bench(tmp_path, photographs(), kind)
    bench.pack()
    first, second = ((tmp_path / "packed" / f"{number}.pack").read_bytes() for number in (0, 1))
    spoiled = bytearray(second)
    spoiled[place] ^= 0x5A
    rest = [(tmp_path / "packed" / f"{number}.pack").read_bytes() for number in range(2, len(bench.starts))]
    (tmp_path / "sent.pack").write_bytes(b"".join([first, spoiled, *rest]))
    assert bench.unpack() == 1
    assert "packed block 1 is damaged" in capsys.readouterr().out.splitlines()[-1]


def test_a_block_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lossy images never pass for lossless ones, and blocks never unpack to other pixels than noted."""
    bench = Bench(tmp_path, photographs(), "jpeg95")
    bench.pack()
    assert bench.unpack(kind="lossless") == 1
    assert "its header differs from the expected one" in capsys.readouterr().out
    bench.notes()
    for note in (tmp_path / "packed").glob("*.json"):
        note.write_text(json.dumps({**json.loads(note.read_text()), "unpacked_sha256": "0" * 64}))
    assert bench.unpack() == 1
    assert "other pixels" in capsys.readouterr().out


def test_progress_is_told_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line says that all is done."""
    bench = Bench(tmp_path, photographs(), "jpeg95")
    bench.pack()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"done_bytes": bench.images.nbytes, "all_bytes": bench.images.nbytes}
