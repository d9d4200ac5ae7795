"""PURE: which lines of a job's log say why it failed. torchrun's report is one line, or none."""

from __future__ import annotations

import re
from collections.abc import Sequence

FAILED = "the run failed: "  # begins the supervisor's last line, after the time
TRACE = "Traceback (most recent call last):"
REPORT = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError"
RULE = re.compile(r"={20,}\s*")  # above and below the report's table
LOGGED = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ \d+ \S*torch/distributed/")
FRAME = re.compile(r"(\[rank\d+\]:)?(Exception raised from |frame #\d+: )")  # of a trace of torch's C++ parts
RANK = re.compile(r"\s*rank\s+: (\d+)")
SIGNAL = re.compile(r"\s*exitcode\s+: -(\d+)")
STOPPED = "15"  # SIGTERM
EVIDENCE_LINES = 10
# torchrun's report alone may have 8 KiB. A trace of torch's C++ parts may follow it, with thousands of characters.
EVIDENCE_BYTES = 32 << 10


def last_words(end: bytes, reason: str | None = None) -> list[str]:
    """Return the last EVIDENCE_LINES telling lines: no empty ones, no frames of a C++ trace, no report of torchrun.

    `end`: the last EVIDENCE_BYTES bytes of a log. `reason`: of a failure, if the message that gets the lines has it.
    """
    return beyond(telling(end.decode("utf-8", errors="replace").splitlines()), reason)[-EVIDENCE_LINES:]


def telling(lines: Sequence[str]) -> list[str]:
    """The lines without blank ones, frames of C++, and torchrun's trace and report.

    Of the report, ranks that a signal killed stay. If torchrun alone has said something, its lines stay.
    """
    said = [line for line in lines if line.strip() and not FRAME.match(line)]
    kept: list[str] = []
    index = 0
    while index < len(said):
        if said[index].startswith(REPORT):
            _drop_trace(kept)
            end = _end_of_report(said, index)
            kept += _killed(said[index:end])
            index = end
            continue
        if not LOGGED.match(said[index]):
            kept.append(said[index])
        index += 1
    return kept or said


def beyond(lines: Sequence[str], reason: str | None) -> list[str]:
    """What the lines say beyond the reason of a failure: nothing if one of them is the job's own, with that reason."""
    own = [line for line in lines if FAILED not in line]
    return [] if reason and any(reason in line for line in own) else own


def _drop_trace(kept: list[str]) -> None:
    """Remove the trace at the end: its lines are indented below its heading."""
    start = len(kept)
    while start and kept[start - 1].startswith(" "):
        start -= 1
    if start and kept[start - 1] == TRACE:
        del kept[start - 1 :]


def _end_of_report(said: Sequence[str], index: int) -> int:
    """The index after the report that begins at `index`: after its second rule, or after its first line."""
    rules = [place for place in range(index + 1, len(said)) if RULE.fullmatch(said[place])]
    return rules[1] + 1 if len(rules) > 1 and rules[0] == index + 1 else index + 1


def _killed(report: Sequence[str]) -> list[str]:
    """Say which ranks a signal killed. After a rank has failed, torchrun ends the others with STOPPED: no cause."""
    found: dict[str, str] = {}
    ranks, rank = set(), "?"
    for line in report:
        if told := RANK.match(line):
            rank = told[1]
            ranks.add(rank)
        elif told := SIGNAL.match(line):
            found[rank] = told[1]
    failed = ranks - found.keys()
    killed = {rank: number for rank, number in found.items() if not failed or number != STOPPED}
    return [f"rank {rank} was killed by signal {number}" for rank, number in sorted(killed.items())]
