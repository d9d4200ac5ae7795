"""images.jpegs against images.npy: bytes, seconds of staging, and images a second on one core. No GPU is used.

The images are ORL's photographs in twenty tints, as JPEG files of quality 95. `encoded_sizes.py` measures other images.
Training from images.npy copies rows, and from images.jpegs it decodes them, both into a batch buffer. The other peer is
a plain torch DataLoader that decodes the same files with Pillow in its own process, without the cost of workers.

Rates of one core are CPU time, which a busy machine changes little. Staging is wall time. Every pair runs in turn, and
the figures are medians and the median of the ratios. The committed run was on two cores that other programs used too,
so several threads are not timed by the clock. Instead, the time of an image is held against its part under Python's
lock: that many threads can decode beside each other. The last claims hold the rate of one core against what a GPU
takes: the ratio is images that one core decodes for each image that the GPU trains on.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.data.dataset import open_images
from app.data.encoded import EncodedImages, read_into
from app.data.sources import decode
from app.data.sources.photograph import decode_stored
from app.data.sources.source import Source
from app.prepare import prepare
from benchmarks._claims import Claim, core_seconds, in_turn, quick, report, seconds
from benchmarks.rec_read import photographs

PROJECT = Path(__file__).parents[1]
RAM = Path("/dev/shm")  # noqa: S108 - where the product stages data
BATCH = 256
GPUS = {"an A4500": 650, "an H100": 3000}  # images/s of training


class Files(Dataset):
    """Decode image files as most training scripts do."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.array(Image.open(io.BytesIO(self.files[row])).convert("RGB")))


class Header:
    """simplejpeg without its decoder, which runs outside Python's lock. What is left is the part that threads share."""

    def __init__(self, real: Any) -> None:
        self.decode_jpeg_header, self.pixels = real.decode_jpeg_header, np.zeros((112, 112, 3), np.uint8)

    def decode_jpeg(self, *_: object) -> np.ndarray:
        return self.pixels


def source_of(files: list[bytes]) -> Source:
    return Source(
        "photographs",
        len(files),
        lambda start, stop: files[start:stop],
        None,
        decode=lambda some: np.stack([decode_stored(file) for file in some]),
        stored=lambda some: some,
    )


def order_of(images: Path, part: Path) -> Path:
    """Write the order that a deploy gives to the machine for all blocks of a data set."""
    manifest = json.loads(images.with_name("manifest.json").read_text())
    rows, pieces = manifest["block_rows"], []
    if images.suffix == ".jpegs":
        offsets = np.load(images.with_name("offsets.npy"))
        edges = [int(offsets[min(at, len(offsets) - 1)]) for at in range(0, len(offsets) - 1 + rows, rows)]
    else:
        edges = [128 + min(at, manifest["rows"]) * 112 * 112 * 3 for at in range(0, manifest["rows"] + rows, rows)]
    for block, sha256 in enumerate(manifest["blocks"]):
        size = edges[block + 1] - edges[block]
        pieces.append({"name": f"block {block}", "offset": edges[block], "bytes": size, "sha256": sha256})
    header = images.read_bytes()[: edges[0]]
    order = {"source": str(images), "part": str(part), "header": base64.b64encode(header).decode(), "pieces": pieces}
    path = images.with_name("order.json")
    path.write_text(json.dumps(order))
    return path


def staged_in(order: Path) -> float:
    """Seconds of a copy into RAM, hashed, as a deploy runs it on the machine."""
    told = json.loads(order.read_text())
    Path(told["part"]).unlink(missing_ok=True)
    argv = [sys.executable, "-m", "deploy.pod.agent.files", str(order)]
    return seconds(lambda: subprocess.run(argv, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL))


def main() -> int:
    is_quick = quick()
    torch.set_num_threads(1)  # threads that wait would count as CPU time of the DataLoader
    tints, rounds = (1, 2) if is_quick else (20, 9)
    files, claims = photographs(tints), list[Claim]()
    with tempfile.TemporaryDirectory(dir=PROJECT) as disk, tempfile.TemporaryDirectory(dir=RAM) as memory:
        plain, encoded = Path(disk) / "plain" / "images.npy", Path(disk) / "encoded" / "images.jpegs"
        for out in (plain, encoded):
            prepare(source_of(files), out)
        pixels, images = open_images(plain), open_images(encoded)
        assert isinstance(images, EncodedImages)
        assert hashlib.sha256(images[:].data).digest() == hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
        a, b = (file.stat().st_size / len(files) / 1024 for file in (encoded, plain))
        claims.append(Claim("KiB an image, JPEG of quality 95", a, b, "KiB", b / a, 3.0))

        orders = [order_of(file, Path(memory) / file.name) for file in (encoded, plain)]
        a, b, ratio = in_turn(lambda: staged_in(orders[0]), lambda: staged_in(orders[1]), rounds)
        claims.append(Claim(f"staging {len(files):,} images into RAM", a, b, "s", 1 / ratio, 1.5))

        batches = np.array_split(np.random.default_rng(0).permutation(len(files)), max(1, len(files) // BATCH))
        buffer = np.empty((BATCH * 2, 112, 112, 3), np.uint8)

        def read(of: Any) -> None:
            for rows in batches:
                read_into(of, rows, buffer[: len(rows)])

        def one_thread() -> None:
            for rows in batches:
                images._decode(rows, buffer)

        def without_decoder() -> None:
            with patch.object(decode, "simplejpeg", Header(simplejpeg)):
                one_thread()

        def loader() -> None:
            for _ in DataLoader(Files(files), BATCH, shuffle=True):
                pass

        def rate(work: Any) -> float:
            return len(files) / core_seconds(work)

        a, b, ratio = in_turn(lambda: rate(one_thread), lambda: rate(loader), rounds)
        claims.append(Claim("one core, peer a DataLoader that decodes", a, b, "images/s", ratio, 1.5))
        decoded = a
        a, b, ratio = in_turn(lambda: rate(one_thread), lambda: rate(lambda: read(pixels)), rounds)
        claims.append(Claim("one core, peer rows of images.npy", a, b, "images/s", ratio, 0.01))
        a, b, ratio = in_turn(lambda: 1e6 / rate(one_thread), lambda: 1e6 / rate(without_decoder), rounds)
        claims.append(Claim("threads that can decode beside each other", a, b, "us an image, us locked", ratio, 4.0))
        for gpu, takes in GPUS.items():
            print(f"{gpu} at {takes:,} images/s keeps {takes / decoded:.2f} cores busy with decoding")
            claims.append(Claim(f"one core, peer {gpu}", decoded, float(takes), "images/s", decoded / takes, 1.0))
    return report("encoded", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
