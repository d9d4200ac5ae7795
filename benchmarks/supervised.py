"""Gain from labels on the ORL photographs: the supervised recipe, on 30 people with names, against two baselines.

The baselines are raw pixels and the self-supervised recipe, which has no names. Accuracy is on the 10 other people, for
three seeds. The two runs of a seed are parallel, one thread each.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report
from benchmarks._runs import accuracy, app, prepared

BATCH = "train.batch.size=64"  # one process trains on as many images as the two of the try-out together


def main() -> int:
    is_quick = quick()
    seeds, more = ([1], ["train.epochs=1"]) if is_quick else ([1, 2, 3], [])
    images = prepared("orl", ["source=orl"])
    with_names, without, pixels = [], [], 0.0
    for seed in seeds:
        words = [BATCH, f"data.binary_cache_path={images}", f"train.seed={seed}", *more]
        with tempfile.TemporaryDirectory() as folder:
            runs = {name: Path(folder) / name for name in ("tryout_supervised", "tryout")}
            jobs = [app("app.train", f"experiment={name}", *words, f"run.dir={place}") for name, place in runs.items()]
            if sum(job.wait() for job in jobs):
                raise SystemExit("a run failed")
            with_names.append(accuracy(runs["tryout_supervised"]))
            without.append(accuracy(runs["tryout"]))
            pixels = accuracy(runs["tryout"], "pixels")
        print(f"seed {seed}: with names {with_names[-1]:.2f} %, without {without[-1]:.2f} %", flush=True)
    ours, peer = statistics.mean(with_names), statistics.mean(without)
    claims = [
        Claim("ORL: accuracy, against raw pixels", ours, pixels, "%", ours / pixels, 1.0),
        Claim("ORL: accuracy, against the self-supervised recipe", ours, peer, "%", ours / peer, 1.0),
    ]
    return report("supervised", claims, is_quick=is_quick)


if __name__ == "__main__":
    sys.exit(main())
