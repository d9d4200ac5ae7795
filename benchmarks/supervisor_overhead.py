"""Cost of supervising a job: processor time of a supervisor and a guard over a minute, against 1 % of one core.

The job loads them as training does: ten events a second in metrics.jsonl, as many lines in the log. A stand-in for
nvidia-smi prints the same format; the time of the real one is not counted, as the driver causes it. Rare work is not
counted either: hashing a checkpoint before a restart, and copying one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report

PROJECT = Path(__file__).parents[1]
ALLOWED_PCT = 1.0
SETTLED_S = 3.0  # starting Python costs once, not each minute
JOB = """
import json, os, sys, threading, time
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
with open("metrics.jsonl", "a") as metrics:
    step = 0
    while not ended.wait(0.1):
        step += 1
        event = {"event": "step", "epoch": step // 100, "step": step, "loss": 1.0, "lr": 0.1, "images_per_s": 3000.0}
        print(json.dumps(event), file=metrics, flush=True)
        print(f"epoch {step // 100} step {step} loss 1.000 lr 0.1 3000 img/s", flush=True)
    print(json.dumps({"event": "end", "reason": "stopped", "message": ""}), file=metrics, flush=True)
"""
SMI = """#!{python}
import time
while True:
    for gpu in range(8):
        print(f"{{gpu}}, 87, 1024, 81559", flush=True)
    time.sleep(5)
"""


def main() -> int:
    is_quick = quick()
    with tempfile.TemporaryDirectory() as root:
        supervisor, guard = measured(Path(root), 5.0 if is_quick else 60.0)
    for name, pct in (("supervisor", supervisor), ("guard", guard)):
        print(f"{name}: {pct:.3f} % of one core")
    both = supervisor + guard
    claim = Claim("supervisor and guard, against 1 % of a core", both, ALLOWED_PCT, "%", ALLOWED_PCT / both, 1.0)
    return report("supervisor_overhead", [claim], is_quick=is_quick)


def measured(root: Path, seconds: float) -> tuple[float, float]:
    """Return both shares of one core, in percent, while a job runs."""
    run = root / "runs" / "measured"
    run.mkdir(parents=True)
    limits = {
        "max_restarts": 3, "max_hours": 48, "max_usd": 100, "idle_min": 15, "stall_min": 20, "usd_per_hour": 2,
        "paid_since": time.time(),
    }  # fmt: skip
    (root / "guard.json").write_text(json.dumps({**limits, "machine": "here"}))
    plan = {
        "run_id": run.name, "attempt": 1, "argv": [sys.executable, "-c", JOB], "cwd": str(run), "env": {},
        "grace_s": 20, "busy_lock": str(root / "busy.lock"), "limits": limits,
    }  # fmt: skip
    (run / "plan.json").write_text(json.dumps(plan))
    (root / "bin").mkdir()
    (root / "bin" / "nvidia-smi").write_text(SMI.format(python=sys.executable))
    (root / "bin" / "nvidia-smi").chmod(0o755)
    environment = {**os.environ, "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    words = [("deploy.pod.guard", root), ("deploy.pod.supervisor", run)]
    guard, supervisor = (
        subprocess.Popen(
            [sys.executable, "-m", module, str(path)], cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL
        )
        for module, path in words
    )
    try:
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.1)
        time.sleep(SETTLED_S)
        before, at = [cpu_s(supervisor.pid), cpu_s(guard.pid)], time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - at
        used = [cpu_s(supervisor.pid) - before[0], cpu_s(guard.pid) - before[1]]
    finally:
        (root / "guard.json").unlink()  # otherwise the supervisor would start another guard
        (run / "stop.request").touch()
        guard.terminate()
        supervisor.wait(30)
        guard.wait(30)
    return used[0] / passed * 100, used[1] / passed * 100


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads, in seconds: schedstat has nanoseconds, stat only hundredths of a second."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    raise SystemExit(main())
