"""Batches a second from images.npy: one background thread that copies whole batches, against a DataLoader worker.

The worker reads sample by sample. Both run in turn in one process, from the same file in RAM, with random rows and
batches of 256.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.data.loader import feed
from benchmarks._claims import Claim, in_turn, quick, report, seconds

BATCH = 256


class Samples(Dataset):
    """The usual data set of a DataLoader: one image at a time."""

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        self.images, self.rows = np.load(path, mmap_mode="r"), rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.images[self.rows[index]]))


def main() -> int:
    is_quick = quick()
    count, batches, rounds = (2_000, 20, 2) if is_quick else (40_000, 150, 5)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, count, batches * BATCH)
    ram = Path("/dev/shm")  # noqa: S108 - where the product stages data
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as folder:
        path = Path(folder) / "images.npy"
        np.save(path, rng.integers(0, 255, (count, 112, 112, 3), dtype=np.uint8))
        images = np.load(path, mmap_mode="r")

        def ours() -> None:
            for _, batch in feed(images, np.split(rows, batches), torch.device("cpu")):
                assert batch.shape[0] == BATCH

        loader = DataLoader(Samples(path, rows), batch_size=BATCH, num_workers=1, persistent_workers=True)

        def peer() -> None:
            for batch in loader:
                assert batch.shape[0] == BATCH

        fast, slow, ratio = in_turn(lambda: batches / seconds(ours), lambda: batches / seconds(peer), rounds)
    claim = Claim("images.npy, batches of 256, one core", fast, slow, "batches/s", ratio, 5.0)
    return report("loader", [claim], is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
