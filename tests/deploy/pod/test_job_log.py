"""What is left of a job's log as evidence, and its last line. torchrun's reports are real ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.pod.base.job_log import FAILED, beyond, telling

CRASH = "raise ValueError('the cause')"
DECLARED = "print('failed after 0:01: the learning rate is too high', flush=True); raise SystemExit(1)"
KILLED = "import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(60)"


def report(*ranks: tuple[int, int]) -> list[str]:
    """torchrun's trace and report of (rank, exit code), as torch 2 prints it."""
    lines = [
        "E1129 16:58:57.651000 15088 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1)",
        "Traceback (most recent call last):",
        '  File "<frozen runpy>", line 198, in _run_module_as_main',
        "    raise ChildFailedError(",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
        "=" * 60,
        "app.train FAILED",
        "-" * 60,
    ]
    for rank, code in ranks:
        lines += [f"[{rank}]:", f"  rank      : {rank} (local_rank: {rank})", f"  exitcode  : {code} (pid: 1)"]
    return [*lines, "=" * 60]


TRACE = ["Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: the cause"]


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([], []),
        (["one", "", "  ", "two"], ["one", "two"]),
        (["failed after 0:01: why", *report((0, 1), (1, 1))], ["failed after 0:01: why"]),
        ([*TRACE, *report((0, 1))], TRACE),
        ([*TRACE, *report((0, 1)), "the second start", *report((0, 1))], [*TRACE, "the second start"]),
        (
            ["one", *report((0, -15), (1, -9))],
            ["one", "rank 0 was killed by signal 15", "rank 1 was killed by signal 9"],
        ),
        ([*TRACE, *report((0, 1), (1, -15))], TRACE),  # torchrun ended the other rank
        (["one", *report((0, -15), (1, -15))], ["one", *(f"rank {rank} was killed by signal 15" for rank in (0, 1))]),
        (["one", *report((0, 1))[:5], "two"], ["one", "two"]),  # its table is missing
        (["one", *report((0, 1))[4:]], ["one"]),  # its trace is cut off
        (report((0, 1)), report((0, 1))),  # nothing else was said
    ],
)
def test_torchruns_report_hides_nothing_of_the_job(lines: list[str], kept: list[str]) -> None:
    assert telling(lines) == kept


@pytest.mark.parametrize(
    ("lines", "reason", "evidence"),
    [
        (["one", "[1] failed after 0:01: why", "report: x", f"[2] {FAILED}why"], "why", []),
        ([*TRACE, f"[2] {FAILED}the job exited with code 1"], "the job exited with code 1", TRACE),
        (["one"], None, ["one"]),
    ],
)
def test_evidence_does_not_repeat_the_reason(lines: list[str], reason: str | None, evidence: list[str]) -> None:
    assert beyond(lines, reason) == evidence


@pytest.mark.parametrize("where", ["", ".venv/lib/python3.11/site-packages/", "/opt/sniperface/lib/"])
def test_a_line_of_torchruns_own_log_is_no_line_of_the_job(where: str) -> None:
    line = f"E1129 16:58:57.651000 15088 {where}torch/distributed/elastic/multiprocessing/api.py:1002] failed"
    assert telling(["the job's own words", line]) == ["the job's own words"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals: run this on Linux or macOS")
@pytest.mark.parametrize(
    ("script", "last"),
    [
        (CRASH, "ValueError: the cause"),
        (DECLARED, "failed after 0:01: the learning rate is too high"),
        (KILLED, "rank 1 was killed by signal 9"),
    ],
    ids=["crash", "declared", "killed"],
)
def test_the_report_of_the_real_torchrun_is_known(tmp_path: Path, script: str, last: str) -> None:
    file = tmp_path / "job.py"
    file.write_text(script, encoding="utf-8")
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(file)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 1
    kept = telling(done.stdout.splitlines())
    assert last in kept[-1]
    assert not any("ChildFailedError" in line or "exitcode" in line for line in kept)
