"""What mining does to training: held-out accuracy with the code of today and of the first release of mining, in pairs.

Drawn faces, 120 people of 60 images each; half of the people are held out. `experiment=drawn` trains a small network on
the CPU. The code BEFORE mined by overlap of lists with one similarity floor. Both train with the same settings, seeds
and images, and the lists are shorter than a person has images. Three seeds are few: see the spread.

    python benchmarks/training.py [--quick]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report

PROJECT = Path(__file__).parents[1]
BEFORE = "624ae51"
SEEDS, LISTS = (11, 12, 13), (6, 16)
DATA = ("source=synthetic", "identities=120", "per_identity=60", "variation_pct=25", "seed=8")


def train(code: Path, images: Path, runs: Path, neighbours: int, seed: int, *words: str) -> tuple[float, float]:
    """Train with the project `code`; return held-out accuracy and the F of the last pseudo-IDs, in percent."""
    run = runs / f"{code.name}-{neighbours}-{seed}"
    subprocess.run(
        [
            sys.executable, "-m", "app.train", "experiment=drawn", f"data.binary_cache_path={images}",
            f"mining.neighbours={neighbours}", f"train.seed={seed}", f"run.dir={run}", *words,
        ],
        cwd=code, env={**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accuracy = [e["accuracy"] for e in events if e["event"] == "eval" and e["what"] == "trained"]
    mined = [e["pair_f"] for e in events if e["event"] == "mining"]
    return 100 * accuracy[-1], 100 * mined[-1]


def main() -> int:
    is_quick = quick()
    with tempfile.TemporaryDirectory() as folder:
        old, images = Path(folder) / "before", Path(folder) / "data" / "images.npy"
        old.mkdir()
        code = subprocess.run(["git", "archive", BEFORE], cwd=PROJECT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(old)], input=code, check=True)
        subprocess.run([sys.executable, "-m", "app.prepare", *DATA, f"out={images}"], cwd=PROJECT, check=True)
        claims = []
        for neighbours in LISTS[:1] if is_quick else LISTS:
            pairs = []
            for seed in SEEDS[:1] if is_quick else SEEDS:
                new = train(PROJECT, images, Path(folder), neighbours, seed, "train.eval.validation=none")
                pairs.append((new, train(old, images, Path(folder), neighbours, seed)))
                print(f"lists of {neighbours}, seed {seed}: accuracy and F, now {pairs[-1][0]}, before {pairs[-1][1]}")
            for place, what in enumerate(("accuracy", "F of the pseudo-IDs")):
                ours, theirs = (statistics.mean(pair[side][place] for pair in pairs) for side in (0, 1))
                claims.append(Claim(f"{what}, lists of {neighbours}", ours, theirs, "%", ours / theirs, 1.0))
    return report("training", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
