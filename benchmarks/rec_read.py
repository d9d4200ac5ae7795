"""Images a second read from a .rec file on one core, JPEG decoding included.

Ours goes from opening the file with its index to batches of uint8 faces. The peers make the same batches from the same
files, already in memory: a plain Pillow loop, and a bare loop of simplejpeg, the decoder that ours uses. All run in
turn in one process, measured in CPU time. The images are ORL's photographs in ten tints.

Three times Pillow is out of reach, as the bare loop shows: it is hardly faster than ours. Pillow, simplejpeg, OpenCV
and imagecodecs all wrap libjpeg-turbo and differ only in their overhead: on two kinds of CPU that gave 2.5 and 2.0
times Pillow. simplejpeg's faster settings (fast DCT, fast upsampling) gain 7 % together but change pixels by up to 14
levels of 256, so they are not used. Decoding on a second core would not be one core.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from unittest.mock import patch

import numpy as np
import simplejpeg
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.data.sources import decode
from app.data.sources.recordio import rec
from app.data.sources.source import orl
from benchmarks._claims import Claim, core_seconds, in_turn, quick, report
from tests.app.support.recordio import framed, image_record

BATCH = 256
QUALITY = 95


def photographs(tints: int) -> list[bytes]:
    """Return the 400 photographs as JPEG files, once in each tint."""
    source = orl()
    faces = source.decode(source.read(0, source.count))
    files = []
    for tint in np.random.default_rng(0).uniform(0.6, 1.0, (tints, 3)):
        for face in faces:
            file = io.BytesIO()
            Image.fromarray((face * tint).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
            files.append(file.getvalue())
    return files


def write(path: Path, files: list[bytes]) -> None:
    records = [framed(image_record(file, float(number // 10), number)) for number, file in enumerate(files)]
    starts = [0, *accumulate(len(record) for record in records)][:-1]
    path.write_bytes(b"".join(records))
    path.with_suffix(".idx").write_text("".join(f"{key}\t{start}\n" for key, start in enumerate(starts)))


def ours(path: Path) -> None:
    source = rec(path)
    for start in range(0, source.count, BATCH):
        source.decode(source.read(start, min(start + BATCH, source.count)))


def with_pillow(files: list[bytes]) -> None:
    for at in range(0, len(files), BATCH):
        np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files[at : at + BATCH]])


def bare(files: list[bytes]) -> None:
    assert simplejpeg is not None, "pip install simplejpeg"
    for at in range(0, len(files), BATCH):
        np.stack([simplejpeg.decode_jpeg(file, "RGB") for file in files[at : at + BATCH]])


def rate(images: int, work: Callable[[], None]) -> float:
    """Return images a second of a core."""
    return images / core_seconds(work)


def main() -> int:
    is_quick = quick()
    tints, rounds = (1, 2) if is_quick else (10, 7)
    files = photographs(tints)
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faces.rec"
        write(path, files)
        print(f"{len(files)} images of 112 x 112, {path.stat().st_size / len(files):,.0f} bytes each on average")

        def read() -> None:
            ours(path)

        def read_with_pillow() -> None:
            with patch.object(decode, "simplejpeg", None):
                ours(path)

        def loop() -> None:
            bare(files)

        def pillow_loop() -> None:
            with_pillow(files)

        for name, work, peer, at_least in (
            (".rec by simplejpeg, peer a Pillow loop", read, pillow_loop, 1.8),
            (".rec by simplejpeg, peer its bare loop", read, loop, 0.9),
            ("bare simplejpeg loop, peer a Pillow loop", loop, pillow_loop, 1.8),
            (".rec by Pillow, peer a Pillow loop", read_with_pillow, pillow_loop, 1.0),
        ):
            a, b, ratio = in_turn(
                partial(rate, len(files), work),
                partial(rate, len(files), peer),
                rounds,
            )
            claims.append(Claim(name, a, b, "images/s", ratio, at_least))
    return report("rec_read", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
