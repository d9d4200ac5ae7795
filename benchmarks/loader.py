"""Batches a second from images.npy: ours, one background thread copying whole batches, against a DataLoader worker
that reads sample by sample. Both in one run, in turn, from the same file in RAM, random rows, batches of 256."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script from anywhere

from _claims import Claim, in_turn, quick, report, seconds

from app.data.loader import feed

BATCH = 256


class Samples(Dataset):
    """What a loader looks like when nobody thinks about it: one image at a time."""

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
    ram = Path("/dev/shm")  # noqa: S108 - the place the product stages to
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
