"""How the cost of search, clustering, staging, resume and feed grows from 10,000 to 1 million images: fitted exponents.

An exponent of 1 means twice the time for twice the images. It is fitted to the time of the cores at all sizes, because
other processes may share the machine; one thread computes. The spread is that of the exponents between neighbouring
sizes. Each size is measured several times in turn, and the least time counts. No GPU is measured.

    python benchmarks/growth.py            measure; write both results, the plot and the table in docs/
    python benchmarks/growth.py --draw     draw the plot and write the table again from the committed results

search       exact search of 32 neighbours among synthetic people, 64 numbers each: 2,048 queries, scaled to all images
clustering   lists of 32 neighbours to pseudo-IDs, as in cluster_time.py
staging      blocks of images copied into RAM and hashed, as a deploy runs it
resume       reading a checkpoint that holds all pseudo-IDs, the positives, and the order of the epoch
feed         one epoch of batches of 256

Images are small, 16 x 16, so that a million fit in RAM. Their size changes the time of staging and feed, but not how it
grows.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # one core; must be set before anything starts threads

import argparse
import base64
import contextlib
import io
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder


from app.data.dataset import epoch_order
from app.data.loader import feed
from app.data.positives import Positives
from app.recipes.self_supervised import PseudoIds
from app.runtime import checkpoint
from app.runtime.folder import RunFolder
from benchmarks._claims import Claim, core_seconds, report
from benchmarks._growth import fitted, publish, record
from benchmarks._planted import NOISE, normal, unit
from benchmarks.cluster_time import K, ours, planted_lists
from deploy.pod.agent import files
from tests.app.support.nearest import nearest

SIZES, QUICK = [10_000, 30_000, 100_000, 300_000, 1_000_000], [2_000, 6_000]
QUERIES, DIM, IMAGES_EACH = 2_048, 64, 40
BATCH, BLOCK_ROWS, IMAGE = 256, 8192, (16, 16, 3)
LIMITS = {"search": 2.1, "clustering": 1.3, "staging": 1.1, "resume": 1.2, "feed": 1.1}  # largest exponent that holds
Work = Callable[[], object]


def search(n: int, _: Path) -> tuple[Work, float]:
    rng, rows = np.random.default_rng(0), np.arange(min(n, QUERIES))
    people = unit(normal(rng, n // IMAGES_EACH, DIM))
    bank = unit(people[rng.integers(0, len(people), n)] + NOISE["easy"] * normal(rng, n, DIM))
    return lambda: nearest(bank, rows, K, threads=1, backend="auto"), n / len(rows)


def clustering(n: int, _: Path) -> tuple[Work, float]:
    lists = planted_lists(n, 0)
    return lambda: ours(lists), 1.0


def staging(n: int, folder: Path) -> tuple[Work, float]:
    row_bytes, source = math.prod(IMAGE), folder / "images.npy"
    source.write_bytes(np.random.default_rng(0).bytes(n * row_bytes))
    part = folder / "part"
    pieces = [
        {"name": f"block {at}", "offset": at * row_bytes, "bytes": min(BLOCK_ROWS, n - at) * row_bytes, "sha256": None}
        for at in range(0, n, BLOCK_ROWS)
    ]
    order = {"source": str(source), "part": str(part), "header": base64.b64encode(b"").decode(), "pieces": pieces}

    def work() -> None:
        part.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):  # its progress
            files.copy(order, files.Progress(n * row_bytes))

    return work, 1.0


def resume(n: int, folder: Path) -> tuple[Work, float]:
    modules = nn.ModuleDict({"pseudo_ids": PseudoIds(n), "encoder": nn.Linear(64, 64)})
    modules["pseudo_ids"].ids.copy_(torch.from_numpy(np.random.default_rng(0).integers(-1, n // 10, n)))
    optimizer, scaler = torch.optim.SGD(modules.parameters(), 0.1), torch.amp.GradScaler(enabled=False)
    run = RunFolder(folder / "run")
    state = checkpoint.TrainState(epoch=1)
    saved = checkpoint.save(run, state, modules, {}, optimizer, scaler, keep=1, facts={})

    def work() -> None:
        content = checkpoint.read(run.checkpoints / saved["file"])
        modules.load_state_dict(content["modules"])
        Positives(modules["pseudo_ids"].ids.numpy())
        epoch_order(np.arange(n), seed=0, epoch=1)

    return work, 1.0


def feeding(n: int, _: Path) -> tuple[Work, float]:
    images = np.random.default_rng(0).integers(0, 255, (n, *IMAGE), dtype=np.uint8)
    rows = epoch_order(np.arange(n), seed=0, epoch=0)
    batches = np.split(rows[: n // BATCH * BATCH], n // BATCH)

    def work() -> None:
        for _, batch in feed(images, batches, torch.device("cpu")):
            assert batch.shape[0] == BATCH

    return work, n / (n // BATCH * BATCH)


KINDS = {"search": search, "clustering": clustering, "staging": staging, "resume": resume, "feed": feeding}


def measured(name: str, sizes: list[int]) -> list[float]:
    """Return the core seconds at each size."""
    seconds = []
    for n in sizes:
        ram = Path("/dev/shm")  # noqa: S108 - where the product stages data
        with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as folder:
            work, scale = KINDS[name](n, Path(folder))
            core_seconds(work)  # warms caches, not counted
            seconds.append(min(core_seconds(work) for _ in range(2 if n > 200_000 else 5)) * scale)
        print(f"{name:12} {n:>9,} images {seconds[-1]:10.3f} s of a core", flush=True)
    return seconds


def claim(name: str, sizes: list[int], seconds: list[float]) -> Claim:
    exponent, between = fitted(sizes, seconds)
    what = f"{name}: exponent, {min(between):.2f} to {max(between):.2f} (peer: limit)"
    return Claim(what, exponent, LIMITS[name], "exponent", LIMITS[name] / exponent, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes; writes nothing")
    parser.add_argument("--draw", action="store_true", help="only draw the committed results again")
    asked = parser.parse_args()
    if asked.draw:
        publish()
        return 0
    torch.set_num_threads(1)
    sizes = QUICK if asked.quick else SIZES
    series = {name: measured(name, sizes) for name in KINDS}
    claims = [claim(name, sizes, seconds) for name, seconds in series.items()]
    code = report("growth", claims, is_quick=asked.quick)
    if not asked.quick:
        record(sizes, series)
        publish()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
