"""The README's main job, as a user runs it, for three seeds: accuracy on unseen people and duration.

The peer for accuracy is raw pixels. For the gain from pseudo-IDs see pseudo_ids.py. The job is 'invoke train --json';
this benchmark does not depend on how it works.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report

PROJECT = Path(__file__).parents[1]
POINTS_WANTED = 3.0
SECONDS_ALLOWED = 240.0


def main() -> int:
    is_quick = quick()
    seeds, more = ([1], ["train.epochs=2"]) if is_quick else ([1, 2, 3], [])
    ours = [job(f"train.seed={seed}", *more) for seed in seeds]
    trained, wanted = mean(ours, "trained"), mean(ours, "pixels") + POINTS_WANTED
    seconds = statistics.median(run["whole_seconds"] for run in ours)
    for seed, run in zip(seeds, ours, strict=True):
        accuracies = ", ".join(f"{what} {measured['accuracy']:.2%}" for what, measured in run["eval"].items())
        print(f"seed {seed}: {accuracies}; pseudo-IDs {run['pseudo_ids']}; {run['whole_seconds']:.0f} s")
    claims = [
        Claim(f"accuracy, against raw pixels + {POINTS_WANTED:g} points", trained, wanted, "%", trained / wanted, 1.0),
        Claim("whole job, against 4 minutes", seconds, SECONDS_ALLOWED, "s", SECONDS_ALLOWED / seconds, 1.0),
    ]
    return report("tryout", claims, is_quick=is_quick)


def job(*settings: str) -> dict[str, Any]:
    """Run one main job; return its JSON document and the seconds that the user waited."""
    words = [word for setting in settings for word in ("--set", setting)]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "train", "--json", *words], cwd=PROJECT, stdout=subprocess.PIPE, check=True
    )
    return {**json.loads(done.stdout), "whole_seconds": time.perf_counter() - started}


def mean(runs: list[dict[str, Any]], what: str) -> float:
    """Return the mean accuracy in percent."""
    return 100 * statistics.mean(run["eval"][what]["accuracy"] for run in runs)


if __name__ == "__main__":
    raise SystemExit(main())
