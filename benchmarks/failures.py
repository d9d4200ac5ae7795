"""Run every test of a fault, and sum up what the tests measured.

`python bootstrap.py pytest -m fault` runs the same tests; tests/support/faults.py defines what they share. There is no
peer: each claim compares a measurement with its limit. docs/failures.md begins with these figures and lists what
breaks. unfit_hosts.py adds the time until each unusable host of RunPod is refused. --quick runs only the tests without
containers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks import unfit_hosts
from benchmarks._claims import RESULTS, Claim, quick, report

PROJECT = Path(__file__).parents[1]
TRUTH_S = 10.0
ORPHAN_S = 60.0
LEAST_S = 0.01  # lower values count as this


def main() -> int:
    is_quick = quick()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "faults.jsonl"
        environment = {**os.environ, "SNIPERFACE_FAULTS": str(record)}
        words = ["-m", "fault and not slow" if is_quick else "fault"]
        tests = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=PROJECT, env=environment, check=False)
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        told = "" if line["truth_s"] is None else f"truth after {line['truth_s']:.1f} s"
        print(f"{'survived' if line['survived'] else 'FAILED':8} {line['faults']:2} {line['test']}  {told}")
    code = report("failures", claims(lines), is_quick=is_quick)
    refused = report("unfit_hosts", unfit_hosts.claims(), is_quick=is_quick)
    return code or refused or tests.returncode


def claims(lines: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return one claim per figure: the measurement, its limit, and their ratio."""

    def total(name: str) -> int:
        return sum(int(line[name]) for line in lines)

    def longest(name: str) -> float:
        return max((float(line[name]) for line in lines if line[name] is not None), default=0.0)

    injected, survived = total("faults"), sum(line["faults"] for line in lines if line["survived"])
    truth_s, orphan_s = longest("truth_s"), longest("orphan_s")
    overhead = json.loads((RESULTS / "supervisor_overhead.json").read_text(encoding="utf-8"))["claims"][0]
    return [
        Claim("faults survived, of those injected", survived, injected, "faults", survived / injected, 1.0),
        Claim("longest time to a truthful status", truth_s, TRUTH_S, "s", TRUTH_S / max(truth_s, LEAST_S), 1.0),
        Claim("longest orphan time beyond idle_min", orphan_s, ORPHAN_S, "s", ORPHAN_S / max(orphan_s, LEAST_S), 1.0),
        none_of("checkpoints lost or half-written", total("checkpoints_damaged"), total("checkpoints"), "checkpoints"),
        none_of("machines that bill unnoticed", total("machines_unnoticed"), injected, "faults"),
        none_of("bytes of logs lost or doubled", total("log_bytes_wrong"), total("log_bytes"), "bytes"),
        Claim(
            "supervisor and guard, of one core",
            overhead["ours"],
            overhead["peer"],
            overhead["unit"],
            overhead["ratio"],
            1.0,
        ),
    ]


def none_of(name: str, wrong: int, of: int, unit: str) -> Claim:
    return Claim(name, wrong, of, unit, (of - wrong) / of if of else 0.0, 1.0)


if __name__ == "__main__":
    raise SystemExit(main())
