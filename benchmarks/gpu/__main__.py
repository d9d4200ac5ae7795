"""Check every CUDA path of the trainer on this machine's first GPU, in at most nine minutes and without a network.

    python -m benchmarks.gpu OUT          OUT/gpu-<card>.json, and a profile beside it
    python -m benchmarks.gpu OUT --cpu    the same checks, small, on a CPU: they run, and nothing is claimed of speed

Correctness comes first, then speed. The file is rewritten after each check, so a run that is killed keeps its results.
A check that fails, or exceeds its budget, does not stop the others; the exit code then is 1. With `--only` the chosen
checks share the time of all.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.gpu.menu import CHECKS
from benchmarks.gpu.report import Report
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.running import Check, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--cpu", action="store_true", help="small, on a CPU: whether the checks run")
    parser.add_argument("--only", nargs="*", default=None, help="names of checks; default: all")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all checks together, on a GPU")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    chosen = [check for check in CHECKS if asked.only is None or check.name in asked.only]
    with tempfile.TemporaryDirectory() as work:
        rig = Rig(asked.out, Path(work), on_cpu=asked.cpu)
        report = Report(asked.out / f"gpu-{rig.card}.json", rig.machine())
        return run(chosen, rig, report, limit_s=asked.limit * rig.patience, stretch=stretch(chosen, asked.limit))


def stretch(chosen: list[Check], limit_s: float) -> float:
    """PURE: the factor by which the budgets of some checks grow to fill the time of all."""
    return max(1.0, limit_s / max(1.0, sum(check.budget_s for check in chosen)))


if __name__ == "__main__":
    raise SystemExit(main())
