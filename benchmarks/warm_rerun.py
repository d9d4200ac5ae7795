"""A second run on a warm machine 100 ms away, with its data in RAM: time from `invoke train` to a running torchrun.

The budget is 5 s and three round trips. No other runner is known to publish this time.

    python benchmarks/warm_rerun.py [--quick] [--against COMMIT] [--rounds 8] [--round-trip 0.02]

With --against, the working tree and an earlier commit run in turn, and nothing is written: what a change costs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, in_turn, report
from benchmarks._far import ROUND_TRIP_S, Far, far

BUDGET_S = 5 + 3 * ROUND_TRIP_S
SMALL = ("backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", "train.epochs=1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run; writes no results file")
    parser.add_argument("--against", metavar="COMMIT", help="compare with this commit")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of a comparison")
    parser.add_argument("--round-trip", type=float, default=0.02, help="seconds to the machine in a comparison")
    told = parser.parse_args()
    if told.against:
        return compare(told.against, told.rounds, told.round_trip)
    with far() as there:
        there.invoke("deploy")
        taken = [start(there) for _ in range(1 if told.quick else 7)]
    ours = statistics.median(taken)
    print(f"each: {', '.join(f'{seconds:.2f} s' for seconds in taken)}")
    claim = Claim("warm machine: train to torchrun", ours, BUDGET_S, "s, against the budget", BUDGET_S / ours, 1.0)
    return report("warm_rerun", [claim], is_quick=told.quick)


def compare(commit: str, rounds: int, round_trip_s: float) -> int:
    """Print the times of the working tree and of a commit, in pairs."""
    with far(round_trip_s=round_trip_s) as new, far(round_trip_s=round_trip_s, commit=commit) as old:
        for there in (new, old):
            there.invoke("deploy")
        ours, theirs, ratio = in_turn(lambda: start(new), lambda: start(old), rounds)
        cpu = [statistics.median(cpu_s(there) for _ in range(3)) for there in (new, old)]
    print(f"working tree {ours:.2f} s, {commit} {theirs:.2f} s, median of {rounds} ratios {ratio:.3f}")
    print(f"CPU time of the command: working tree {cpu[0]:.2f} s, {commit} {cpu[1]:.2f} s")
    return 0


def start(there: Far) -> float:
    """Return the seconds until torchrun was started, and stop the run."""
    words = [word for setting in SMALL for word in ("--set", setting)]
    typed = time.time()
    run_id = there.invoke("train", "--detach", *words)["run_id"]
    status = json.loads(Path(there.root / "runs" / run_id / "status.json").read_text())
    there.invoke("stop")
    return float(status["job_started"]) - typed


def cpu_s(there: Far) -> float:
    """Return the CPU time of `invoke train` on the laptop, with the processes that it starts, and stop the run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    there.invoke("train", "--detach", *(word for setting in SMALL for word in ("--set", setting)))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    there.invoke("stop")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
