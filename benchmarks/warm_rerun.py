"""A second run on a warm machine 100 ms away, with its data in RAM: time from `invoke train` to a running torchrun.

The budget is 5 s and three round trips. No other runner is known to publish this time.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

from _claims import Claim, quick, report
from _far import ROUND_TRIP_S, Far, far

BUDGET_S = 5 + 3 * ROUND_TRIP_S
SMALL = ("backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", "train.epochs=1")


def main() -> int:
    is_quick = quick()
    with far() as there:
        there.invoke("deploy")
        taken = [start(there) for _ in range(1 if is_quick else 7)]
    ours = statistics.median(taken)
    print(f"each: {', '.join(f'{seconds:.2f} s' for seconds in taken)}")
    claim = Claim("warm machine: train to torchrun", ours, BUDGET_S, "s, against the budget", BUDGET_S / ours, 1.0)
    return report("warm_rerun", [claim], is_quick=is_quick)


def start(there: Far) -> float:
    """Return the seconds until torchrun was started, and stop the run."""
    words = [word for setting in SMALL for word in ("--set", setting)]
    typed = time.time()
    run_id = there.invoke("train", "--detach", *words)["run_id"]
    status = json.loads(Path(there.root / "runs" / run_id / "status.json").read_text())
    there.invoke("stop")
    return float(status["job_started"]) - typed


if __name__ == "__main__":
    raise SystemExit(main())
