"""Checks and measurements shared by all tests that inject a fault.

Such a test takes the fixture `fault`, calls `strikes` at the moment of each fault, and then checks that

1. status is correct within ten seconds, on an idle computer: `told`,
2. no checkpoint is lost or half-written: `checkpoints`,
3. no machine bills unnoticed: `machines`, or `guard` for a machine that enforces its own limits.

`leaves_out` names, with a reason, a part that does not apply; a test that omits one of the three fails. With
SNIPERFACE_FAULTS=FILE each test appends one line of JSON to that file, for the figures of benchmarks/failures.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deploy.pod.base import checkpoints as whole
from deploy.pod.base.folder import LIVE_STATES, RunFolder, read_json
from tests.support.load import under_load

RECORD = "SNIPERFACE_FAULTS"
TRUTH_S = 10.0
ORPHAN_S = 60.0  # beyond the idle limit
PARTS = ("truth", "checkpoints", "machines")
T = TypeVar("T")


class Fault:
    """All faults of one test, what it has checked, and its measurements."""

    def __init__(self, test: str) -> None:
        self.test = test
        self.shown: dict[str, str] = {}  # part -> result, or the reason for leaving it out
        self.struck_at: float | None = None
        self.figures: dict[str, Any] = {
            "faults": 0,
            "truth_s": None,  # longest time from a fault to a correct status
            "orphan_s": None,  # beyond the idle limit
            "checkpoints": 0,  # checked
            "checkpoints_damaged": 0,
            "machines_unnoticed": 0,
            "log_bytes": 0,  # followed across a fault
            "log_bytes_wrong": 0,  # lost, doubled or changed
        }

    def strikes(self) -> None:
        """Record that a fault happens now."""
        self.struck_at = time.monotonic()
        self.figures["faults"] += 1

    def told(self, truth: Callable[[], T], limit_s: float = 60) -> T:
        """Poll until the status is correct, and return it. Times count when a query starts: this machine may be slow.

        `truth` queries the status, as a user or a script does, and returns a true value if it is correct.
        """
        assert self.struck_at is not None, "no fault has struck yet"
        while True:
            asked_s = time.monotonic() - self.struck_at
            if answer := truth():
                break
            assert asked_s < under_load(limit_s), f"no truthful answer within {asked_s:.0f} s"
            time.sleep(0.05)  # a poll, bounded by the limit
        self.figures["truth_s"] = max(self.figures["truth_s"] or 0.0, round(asked_s, 2))
        self.shown["truth"] = f"{asked_s:.1f} s"
        told = f"a status that was asked {asked_s:.1f} s after the fault told no truth before"
        assert asked_s <= under_load(TRUTH_S), told
        return answer

    def checkpoints(self, *runs: Path, complete: bool = True) -> None:
        """Check that each checkpoint in these run folders matches its JSON and none is partial.

        With `complete`, the newest checkpoint in the run's events must exist; use False for an unfinished copy.
        """
        problems = []
        for run in runs:
            found, wrong = looked_at(run, complete=complete)
            self.figures["checkpoints"] += found
            problems += wrong
        self.figures["checkpoints_damaged"] += len(problems)
        self.shown["checkpoints"] = f"{self.figures['checkpoints']} whole"
        assert problems == []
        assert self.figures["checkpoints"], "there is no checkpoint at all"

    def machines(self, listed: Sequence[Mapping[str, Any]], there: Iterable[str]) -> None:
        """Check that `ps` lists exactly the existing machines, with a note for each without a live run."""
        listed = [each for each in listed if each["machine"]]  # a volume is no machine
        names = [str(each["machine"]) for each in listed]
        hidden = sorted(set(there) - set(names))
        silent = [
            str(each["machine"])
            for each in listed
            if (each["orphan"] or each["state"] not in LIVE_STATES) and not each["note"]
        ]
        self.figures["machines_unnoticed"] += len(hidden) + len(silent)
        self.shown["machines"] = f"{len(names)} listed"
        assert (hidden, silent) == ([], []), f"unknown to ps, or listed without a word: {listed}"
        assert sorted(names) == sorted(there), f"listed, but not there: {listed}"

    def guard(self, status: Mapping[str, Any]) -> None:
        """Check that a machine with a guard is released, reports what it costs per hour, or is working."""
        words = str(status.get("decision"))
        noticed = status.get("state") == "released" or " an hour" in words or status.get("running")
        self.figures["machines_unnoticed"] += not noticed
        self.shown["machines"] = str(status.get("state"))
        assert noticed, f"it bills, and nobody is told: {status.get('state')}: {words}"

    def log(self, shown: bytes, written: bytes) -> None:
        """Check that a log followed across a fault shows each byte exactly once."""
        self.figures["log_bytes"] += len(written)
        pairs = enumerate(zip(shown, written, strict=False))
        same = next((at for at, (one, other) in pairs if one != other), min(len(shown), len(written)))
        wrong = max(len(shown), len(written)) - same
        self.figures["log_bytes_wrong"] += wrong
        assert wrong == 0, f"{wrong} bytes are lost, doubled or changed, from byte {same} on"

    def orphan(self, lived_s: float, idle_min: float) -> None:
        """Check that a machine without a run lived at most ORPHAN_S longer than `idle_min`, on an idle computer."""
        beyond_s = max(0.0, lived_s - idle_min * 60)
        self.figures["orphan_s"] = max(self.figures["orphan_s"] or 0.0, round(beyond_s, 2))
        assert beyond_s <= under_load(ORPHAN_S), f"an orphan for {beyond_s:.0f} s longer than idle_min"

    def leaves_out(self, **why: str) -> None:
        """Exempt parts that this fault cannot affect, each with a reason."""
        assert set(why) <= set(PARTS), f"there are: {', '.join(PARTS)}"
        self.shown |= why

    @property
    def is_shown(self) -> bool:
        """Whether a fault struck and all three parts are checked or exempt."""
        return bool(self.figures["faults"]) and set(self.shown) == set(PARTS)

    def check(self) -> None:
        """As `is_shown`, but as an assertion that names what is missing."""
        missing = [part for part in PARTS if part not in self.shown]
        assert self.figures["faults"], "no fault has struck: `fault.strikes()` belongs where it does"
        assert not missing, f"a test of a fault shows or leaves out, with a reason, also: {', '.join(missing)}"

    def record(self, *, survived: bool) -> None:
        if os.environ.get(RECORD) and self.figures["faults"]:  # no faults: the test was skipped
            line = json.dumps({"test": self.test, "survived": survived, **self.figures, "shown": self.shown})
            with open(os.environ[RECORD], "a", encoding="utf-8") as file:  # one small write: processes may share it
                file.write(f"{line}\n")


def looked_at(run: Path, *, complete: bool = True) -> tuple[int, list[str]]:
    """The number of intact checkpoints in a run folder, and a list of problems."""
    folder = run / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    weights = [name for name in names if name.endswith(".pt") and not name.startswith(".")]
    whole_ones, steps = [], []
    for note in (read_json(folder / name) for name in names if name.endswith(".json") and not name.startswith(".")):
        file = folder / str(note.get("file"))
        if file.is_file() and whole.sha256(file) == note.get("sha256"):
            whole_ones.append(file.name)
            steps.append(int(note["step"]))
    problems = [f"{run.name}: {name} is not what its JSON says" for name in weights if name not in whole_ones]
    problems += [f"{run.name}: {name} stands in place of a checkpoint" for name in names if _in_place(name)]
    latest = folder / "latest"
    if latest.exists() and latest.read_text(encoding="utf-8").strip() not in whole_ones:
        problems.append(f"{run.name}: latest names {latest.read_text(encoding='utf-8')!r}, which is not whole")
    told = [event["step"] for event in _events(run) if event.get("event") == "checkpoint"]
    if complete and told and max(told) > max(steps, default=-1):
        newest = max(steps, default=None)
        problems.append(f"{run.name}: the checkpoint of step {max(told)} is lost; the newest is of step {newest}")
    return len(whole_ones), problems


def _in_place(name: str) -> bool:
    """Whether a partial file has a visible name; partial files must begin with a dot."""
    return name.endswith(".part") and not name.startswith(".")


def _events(run: Path) -> list[dict[str, Any]]:
    path = Path(RunFolder(run).metrics)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:  # half a line of a process killed while writing
            continue
    return events
