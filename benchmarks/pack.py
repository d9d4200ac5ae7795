"""Savings and cost of `--pack` on a slow connection.

It measures: bytes of an image, packed and unpacked; MB of images a second that one core packs and unpacks, hashes
included, against the rate of 100 Mbit/s; the lossless format against PNG and zlib; and `invoke deploy` over 10 Mbit/s
with and without `--pack`, packing included.

There are three kinds of faces. ORL's photographs are grey. The same photographs with one tint each stand for colour
photographs. Drawn faces have stronger noise than a lens, which no format can predict. Real colour faces are not
available here. PSNR is printed for the worst image of each kind.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app import prepare
from app.data.sources.source import Source, orl
from app.data.synthetic.source import synthetic
from app.packing.packed import Writer, read
from benchmarks._claims import Claim, in_turn, quick, report, seconds
from benchmarks._far import far

THIN_MBIT_PER_S = 10  # an ordinary uplink
LINE_MB_PER_S = 12.5  # 100 Mbit/s: a good home uplink
SHAPE = (112, 112, 3)
SAVED = {  # least factor by which the bytes shrink
    ("jpeg95", "photographs"): 6.0,
    ("jpeg95", "in tints"): 5.5,
    ("jpeg95", "drawn"): 3.2,
    ("lossless", "photographs"): 3.0,
    ("lossless", "in tints"): 3.0,
    ("lossless", "drawn"): 1.4,
}


def faces(count: int) -> dict[str, np.ndarray]:
    source = orl()
    photographs = source.decode(source.read(0, source.count))[:count]
    tints = np.random.default_rng(0).uniform(0.6, 1.0, (len(photographs), 1, 1, 3))
    drawn = synthetic(max(4, count // 10), 10, 0, 100)
    return {
        "photographs": photographs,
        "in tints": (photographs * tints).astype(np.uint8),
        "drawn": drawn.decode(drawn.read(0, count)),
    }


def pack(images: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, kind, len(images), SHAPE)
    for image in images:
        writer.add(image)
    return file.getvalue()


def unpack(block: bytes, kind: str, rows: int) -> np.ndarray:
    return np.stack(list(read(io.BytesIO(block).read, len(block), kind, rows, SHAPE)))


def as_png(images: np.ndarray) -> int:
    size = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        size += file.tell()
    return size


def as_zlib(images: np.ndarray) -> int:
    return len(zlib.compress(images.tobytes(), 6))


def mb_per_s(images: np.ndarray, work: Callable[[], object]) -> float:
    """Return MB of images a second of CPU time: other processes on the machine do not count."""
    started = time.process_time()
    work()
    return images.nbytes / 1e6 / (time.process_time() - started)


def bytes_saved(sets: dict[str, np.ndarray]) -> list[Claim]:
    claims = []
    for (kind, name), at_least in SAVED.items():
        images = sets[name]
        block = pack(images, kind)
        there = unpack(block, kind, len(images))
        error = ((there.astype(np.float64) - images) ** 2).mean(axis=(1, 2, 3)).max()
        worst = np.abs(there.astype(int) - images).max()
        print(
            f"{kind} {name}: PSNR {10 * np.log10(255**2 / error) if error else np.inf:.1f} dB, off by {worst} at most"
        )
        ours, peer = len(block) / len(images), images.nbytes / len(images)
        claims.append(Claim(f"{kind}, {name}, peer as it is", ours, peer, "bytes an image", peer / ours, at_least))
    return claims


def speed(sets: dict[str, np.ndarray], rounds: int) -> list[Claim]:
    """Measure drawn faces, which take longest, and tinted ones for the comparison with other formats."""
    claims = []
    drawn, tints = sets["drawn"], sets["in tints"]
    for kind, packs, unpacks in (("jpeg95", 5.0, 8.0), ("lossless", 2.5, 4.0)):
        block = pack(drawn, kind)
        for word, work, at_least in (
            ("packed", partial(pack, drawn, kind), packs),
            ("unpacked", partial(unpack, block, kind, len(drawn)), unpacks),
        ):
            ours, peer, ratio = in_turn(partial(mb_per_s, drawn, work), lambda: LINE_MB_PER_S, rounds)
            claims.append(Claim(f"{kind}, {word}, peer 100 Mbit/s", ours, peer, "MB/s, one core", ratio, at_least))
    for name, other, size_at_least in (("PNG", as_png, 0.95), ("zlib", as_zlib, 1.2)):
        for what, images in (("in tints", tints), ("drawn", drawn)):
            ours, peer = len(pack(images, "lossless")), other(images)
            claim = f"lossless, {what}, peer {name}"
            claims.append(Claim(claim, ours / 1e3, peer / 1e3, "kB", peer / ours, size_at_least))
        ours, peer, ratio = in_turn(
            partial(mb_per_s, drawn, partial(pack, drawn, "lossless")),
            partial(mb_per_s, drawn, partial(other, drawn)),
            rounds,
        )
        claims.append(Claim(f"lossless, packed, peer {name}", ours, peer, "MB/s, one core", ratio, 1.5))
    return claims


def staged(count: int, rounds: int) -> Claim:
    """Time `invoke deploy` with the code already uploaded and the images not; nothing is packed beforehand."""
    with tempfile.TemporaryDirectory() as folder, far(bytes_per_s=THIN_MBIT_PER_S * 1e6 / 8) as place:
        images = Path(folder) / "images.npy"
        drawn = synthetic(count // 10, 10, 0, 100)
        prepare.prepare(Source("faces", count, drawn.read, None, drawn.decode, made_of=drawn.made_of), images)
        target = place.project / "conf" / "deploy" / "far.yaml"
        told = json.loads(target.read_text())
        place.invoke("deploy")
        target.write_text(json.dumps({**told, "data": str(images)}))

        def deploy(*words: str) -> float:
            for forgotten in (Path(told["stage_to"]), place.project / ".sniperface" / "packed"):
                shutil.rmtree(forgotten, ignore_errors=True)
            return seconds(lambda: place.invoke("deploy", *words))

        ours, peer, ratio = in_turn(lambda: deploy("--pack", "jpeg95"), lambda: deploy(), rounds, warm_up=False)
        claim = f"deploy, {count} drawn, {THIN_MBIT_PER_S} Mbit/s, jpeg95"
        return Claim(claim, ours, peer, "s", 1 / ratio, 2.0)


def main() -> int:
    is_quick = quick()
    sets = faces(60 if is_quick else 400)
    claims = [*bytes_saved(sets), *speed(sets, 2 if is_quick else 5)]
    claims.append(staged(*((200, 1) if is_quick else (2000, 3))))
    return report("pack", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
