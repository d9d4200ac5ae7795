"""Images a second out of a .rec file on one core, JPEG included: ours, from opening the file with its index to batches
of uint8 faces, against a plain Pillow loop that makes the same batches of the same files, already in memory. Ours once
with its own decoder (simplejpeg) and once with Pillow; and against a bare loop of that decoder, which is the limit: all
of them are libjpeg-turbo. All in one run, in turn; the images are ORL's photographs in ten tints."""

from __future__ import annotations

import io
import sys
import tempfile
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script from anywhere

from _claims import Claim, in_turn, quick, report, seconds

from app.data import decode
from app.data.recordio import framed, image_record, rec
from app.data.sources import orl

BATCH = 256
QUALITY = 95


def photographs(tints: int) -> list[bytes]:
    """The 400 photographs as JPEG files, once in each tint."""
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
    for file in files:
        decode.fast_jpeg(file, 112)


def main() -> int:
    is_quick = quick()
    tints, rounds = (1, 2) if is_quick else (10, 7)
    files = photographs(tints)
    fast = decode.simplejpeg
    assert fast is not None, "pip install simplejpeg"
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faces.rec"
        write(path, files)
        print(f"{len(files)} images of 112 x 112, {path.stat().st_size / len(files):,.0f} bytes each on average")
        for name, decoder, peer, at_least in (
            ("by simplejpeg, peer Pillow", fast, with_pillow, 2.0),
            ("by simplejpeg, peer its bare loop", fast, bare, 0.85),
            ("by Pillow, peer Pillow", None, with_pillow, 1.0),
        ):
            decode.simplejpeg = decoder
            a, b, ratio = in_turn(
                lambda: len(files) / seconds(lambda: ours(path)),
                lambda peer=peer: len(files) / seconds(lambda: peer(files)),
                rounds,
            )
            claims.append(Claim(f".rec {name}", a, b, "images/s", ratio, at_least))
    return report("rec_read", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
