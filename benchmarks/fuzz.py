"""Damage untrusted data files at random: a reader must read each, or refuse it in one sentence, and do nothing else.

    python benchmarks/fuzz.py [--seconds 180] [--kind rec] [--seed N] [--keep DIR]

Each kind of file runs for --seconds. One file of a valid set gets one to six changes (bytes, typical bad values of
length fields, pieces cut, doubled or moved, words such as nan and ../..), and the reader reads the whole set. These
count as failures: any exception but the app's own sentence, a process that dies, more than 20 seconds, more than
512 MiB (parquet: 2.5 GiB, as Arrow allocates what a page announces, up to 2 GiB). --keep stores the files that failed.
Claim: no file of any kind fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app import prepare
from app.data import dataset
from app.data.sources.parquet import parquet
from app.data.sources.recordio import rec
from app.data.sources.source import Source, folder
from app.errors import WrongUse
from app.evaluation.sets import open_set
from benchmarks._claims import Claim, report
from deploy.errors import WrongUse as LaptopsWrongUse
from deploy.shell import LocalShell
from deploy.workspace import dataset as laptop
from deploy.workspace.sources import HERE, Origin
from tests.app.data.test_parquet import png, save
from tests.app.data.test_recordio import insightface, write
from tests.app.evaluation.test_sets import FACES, write_arrays, write_bin, write_csv
from tests.app.support.ijb import write_ijb

LIMIT_S = 20.0
MEMORY_BYTES = 512 << 20  # above the reader's memory before its first file
PAGE_BYTES = (2 << 30) + MEMORY_BYTES  # Arrow takes what a page's header announces: up to 2 GiB, by the format
SENTENCE = 1000  # characters
NUMBERS = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**29, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
WORDS = [
    b"nan", b"-1", b"1e999", b"9" * 30, b"../../../etc/passwd", b"/dev/zero", b"\0", b"\xff\xfe", b"\n", b" ", b",",
    b'"', "\u0663".encode(), b"0x10", b"1_0", b"", b"-0.0",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """How to make a valid set of files in a folder, how to read it, and which files to damage."""

    make: Callable[[Path], object]
    read: Callable[[Path], None]
    damaged: str = "**/*"
    memory_bytes: int = MEMORY_BYTES


def read_source(source: Source) -> None:
    for start in range(0, source.count, 4):
        source.decode(source.read(start, min(start + 4, source.count)))


def read_set(path: Path) -> None:
    images = open_set(path)
    for row in range(images.count):
        images.read(row)


def make_rec(at: Path) -> None:
    write(at / "train.rec", insightface([3, 2, 4]))
    (at / "property").write_text("3,112,112\n9\n")


def make_photographs(at: Path) -> None:
    for person in range(3):
        (at / str(person)).mkdir(parents=True)
        for number in range(3):
            (at / str(person) / f"{number}.png").write_bytes(png(3 * person + number))


def make_dataset(at: Path, name: str = "images.npy") -> None:
    """Make a data set as `prepare` does: images.npy or images.jpegs and offsets.npy, labels.npy, manifest.json."""
    make_photographs(at / "photographs")
    argv = ["source=folder", f"path={at / 'photographs'}", f"out={at / 'a' / name}", "held_out=2", "workers=1"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert prepare.main(argv) == 0
    shutil.rmtree(at / "photographs")


def read_dataset(at: Path, name: str = "images.npy") -> None:
    """Read with the trainer's code and with the laptop's, which finds the parts of a fraction on its own."""
    images = at / "a" / name
    read = dataset.open_dataset(images, labels_path=None, fraction=0.5, block_rows=8192)
    assert read.images[read.train_rows].dtype == "uint8"
    found = laptop.find(Origin(HERE, images, LocalShell()), 8192)
    laptop.facts(found, 0.5)
    found.pieces(found.kept_blocks(0.5))
    laptop.count_classes(found, 0.5)


def read_directly(path: Path) -> None:
    read = dataset.open_dataset(path, labels_path=None, fraction=0.5, block_rows=2)
    assert read.images[read.train_rows].dtype == "uint8"


def make_table(at: Path) -> None:
    save(at / "a.parquet", {"image": [png(n) for n in range(8)], "label": [0, 0, 1, 1, 2, 2, -1, 3]}, 3)


KINDS = {
    "rec": Kind(make_rec, lambda at: read_source(rec(at / "train.rec"))),
    "parquet": Kind(make_table, lambda at: read_source(parquet(at / "a.parquet")), memory_bytes=PAGE_BYTES),
    "dataset": Kind(make_dataset, read_dataset),
    "encoded": Kind(partial(make_dataset, name="images.jpegs"), partial(read_dataset, name="images.jpegs")),
    "rec as it lies": Kind(make_rec, lambda at: read_directly(at / "train.rec")),
    "folder": Kind(make_photographs, lambda at: read_source(folder(at))),
    "ijb": Kind(lambda at: write_ijb(at / "IJBC", FACES), lambda at: read_set(at / "IJBC")),
    "bin": Kind(lambda at: write_bin(at / "a.bin"), lambda at: read_set(at / "a.bin")),
    "csv": Kind(lambda at: write_csv(at / "pairs.csv"), lambda at: read_set(at / "pairs.csv"), "pairs.csv"),
    "pairs": Kind(lambda at: write_arrays(at / "a", "pairs.npy"), lambda at: read_set(at / "a")),
    "labels": Kind(lambda at: write_arrays(at / "a", "labels.npy"), lambda at: read_set(at / "a")),
}


def damage(data: bytes, chance: random.Random) -> bytes:
    """Make one to six changes, mostly near the ends, where headers, indices and footers are."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        size = len(result)
        place = chance.choice([chance.randrange(size + 1), chance.randrange(min(size, 64) + 1)])
        at = size - place if chance.random() < 0.3 else place
        what = chance.randrange(7)
        if what == 0:
            result[at : at + 1] = bytes([chance.randrange(256)])
        elif what == 1:
            width = chance.choice([1, 2, 4, 8])
            number = chance.choice(NUMBERS) % 256**width
            result[at : at + width] = number.to_bytes(width, chance.choice(["little", "big"]))
        elif what == 2:
            del result[at : at + chance.choice([1, 2, 4, chance.randrange(size + 1)])]
        elif what == 3:
            result[at:at] = result[at : at + chance.randrange(1, 200)] * chance.randint(1, 3)
        elif what == 4:
            other, length = chance.randrange(size + 1), chance.randrange(1, 64)
            result[at : at + length] = result[other : other + length]
        elif what == 5:
            end = next((i for i in range(at, size) if result[i] in b" ,\t\n"), at)
            result[at:end] = chance.choice(WORDS)
        else:
            result[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 17)))
    return bytes(result)


def fails(kind: Kind, at: Path) -> str:
    """Return why reading these files is a failure; "" if they are read, or refused in one sentence."""
    started = time.monotonic()
    try:
        kind.read(at)
    except (WrongUse, LaptopsWrongUse) as error:
        if "\n" in str(error) or len(str(error)) > SENTENCE:
            return f"no sentence: {str(error)[:200]!r}"
    except BaseException:
        return traceback.format_exc()
    took_s = time.monotonic() - started
    return f"took {took_s:.1f} s" if took_s > LIMIT_S else ""


def work(name: str, seed: int, seconds: float, room: Path, results: Any) -> None:
    """Damage and read until the time is over. `room` contains the current files if this process dies."""
    kind, chance = KINDS[name], random.Random(seed)
    whole, now = room / "whole", room / "now"
    whole.mkdir(parents=True)
    kind.make(whole)
    kind.read(whole)
    files = sorted(path.relative_to(whole) for path in whole.glob(kind.damaged) if path.is_file())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    shutil.copytree(whole, now)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        chosen = chance.choice(files)
        (now / chosen).write_bytes(damage((whole / chosen).read_bytes(), chance))
        reason = fails(kind, now)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
        if not reason and grown > kind.memory_bytes:
            reason = f"took {grown >> 20} MiB"
        results.put((str(chosen), reason))
        if reason:
            return  # the files are kept for --keep
        shutil.copyfile(whole / chosen, now / chosen)


def fuzz(name: str, seconds: float, seed: int, keep: Path | None) -> tuple[int, list[str]]:
    """Return how many files of a kind were tried, and the reasons of those that failed."""
    context = multiprocessing.get_context("fork")
    until, tried = time.monotonic() + seconds, 0
    failures: list[str] = []
    while time.monotonic() < until and len(failures) < 20:
        seed += 1
        with tempfile.TemporaryDirectory() as temporary:
            room, results = Path(temporary), context.SimpleQueue()
            worker = context.Process(target=work, args=(name, seed, until - time.monotonic(), room, results))
            worker.start()
            reason, silent_since = "", time.monotonic()
            while not reason and (worker.is_alive() or not results.empty()):
                if results.empty():
                    worker.join(0.01)
                    if time.monotonic() - silent_since > 3 * LIMIT_S:
                        reason = "hangs"
                    continue
                _, reason = results.get()
                tried, silent_since = tried + 1, time.monotonic()
            if worker.is_alive():
                worker.kill() if reason == "hangs" else None
            worker.join()
            if not reason and worker.exitcode:
                reason = f"the process died: {worker.exitcode}"
            if reason:
                failures.append(reason)
                if keep:
                    with contextlib.suppress(OSError):
                        shutil.copytree(room / "now", keep / f"{name}-{seed}")
    return tried, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="for each kind (default: 180)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="this kind alone; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="what is damaged, and how")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    parser.add_argument("--quick", action="store_true", help="two seconds for each kind; writes no results file")
    asked = parser.parse_args()
    claims = []
    for name in asked.kind or KINDS:
        tried, failures = fuzz(name, 2.0 if asked.quick else asked.seconds, asked.seed, asked.keep)
        for reason in failures:
            print(f"{name}: {reason}", file=sys.stderr)
        well = tried - len(failures)
        claims.append(Claim(f"{name}: damaged files read or refused", well, tried, "files", well / max(tried, 1), 1.0))
    return report("fuzz", claims, is_quick=asked.quick or bool(asked.kind))


if __name__ == "__main__":
    raise SystemExit(main())
