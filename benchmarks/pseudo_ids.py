"""Gain from pseudo-IDs: the self-supervised recipe's accuracy on unseen people, with and without them.

Data, network, epochs and seeds are the same, on the ORL photographs and on drawn faces of 2,000 people. The two runs of
a seed are parallel, one thread each. Without pseudo-IDs a positive is always the same image, and no negative is
masked for sharing a pseudo-ID.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report
from benchmarks._runs import accuracy, app, prepared

WITHOUT = ["recipe.positives.probability=[0]", "mining.start_epoch=100000"]
DRAWN = ["source=synthetic", "per_identity=5", "variation_pct=25"]
SETS = {  # name: settings to prepare it, settings to train on it
    "orl": (["source=orl"], ["experiment=tryout", "train.batch.size=64", "train.epochs=48"]),
    "drawn": (
        [*DRAWN, "identities=2000"],
        ["experiment=drawn", "train.eval.validation=none"],
    ),  # no checkpoint is chosen
}


def main() -> int:
    is_quick = quick()
    seeds, more = ([1], ["train.epochs=1"]) if is_quick else ([1, 2, 3], [])
    claims = []
    for name, (prepare, words) in SETS.items():
        if is_quick and name == "drawn":
            images = prepared("drawn-quick", [*DRAWN, "identities=60"])
        else:
            images = prepared(name, prepare)
        pairs = [pair([*words, f"data.binary_cache_path={images}", f"train.seed={seed}", *more]) for seed in seeds]
        for seed, (ours, peer) in zip(seeds, pairs, strict=True):
            print(f"{name}, seed {seed}: with pseudo-IDs {ours:.2f} %, without {peer:.2f} %", flush=True)
        ours, peer = (statistics.mean(column) for column in zip(*pairs, strict=True))
        claims.append(Claim(f"{name}: accuracy, against no pseudo-IDs", ours, peer, "%", ours / peer, 1.0))
    return report("pseudo_ids", claims, is_quick=is_quick)


def pair(words: list[str]) -> tuple[float, float]:
    """Return accuracy in percent with and without pseudo-IDs, of two parallel runs."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [(Path(folder) / "with", []), (Path(folder) / "without", WITHOUT)]
        for job in [app("app.train", *words, *arm, f"run.dir={place}") for place, arm in runs]:
            if job.wait():
                raise SystemExit(f"a run failed with exit code {job.returncode}")
        with_ids, without = (accuracy(place) for place, _ in runs)
    return with_ids, without


if __name__ == "__main__":
    sys.exit(main())
