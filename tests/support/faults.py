"""What holds for every fault that a test injects, and what it measured.

A test of a fault takes the fixture `fault`, calls `strikes` at the moment of each fault, and then shows, by the one way
that is here, that

1. status told the truth within ten seconds: `told`,
2. no checkpoint is lost or half-written: `checkpoints`,
3. no machine bills unnoticed: `machines`, or `guard` for one that looks after itself.

What is not in the game is said with its reason (`leaves_out`); a test that forgets one of the three fails. With
SNIPERFACE_FAULTS=FILE each test adds one line of JSON to that file: benchmarks/failures.py makes figures of them.
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

RECORD = "SNIPERFACE_FAULTS"
TRUTH_S = 10.0
ORPHAN_S = 60.0  # beyond the limit of idleness
PARTS = ("truth", "checkpoints", "machines")
T = TypeVar("T")


class Fault:
    """The faults of one test, from the first to the last."""

    def __init__(self, test: str) -> None:
        self.test = test
        self.shown: dict[str, str] = {}  # part -> how, or why not
        self.struck_at: float | None = None
        self.figures: dict[str, Any] = {
            "faults": 0,
            "truth_s": None,  # the longest time after a fault that a question was put and not yet answered truly
            "orphan_s": None,  # beyond the limit of idleness
            "checkpoints": 0,  # that were looked at
            "checkpoints_damaged": 0,
            "machines_unnoticed": 0,
            "log_bytes": 0,  # that were followed over a fault
            "log_bytes_wrong": 0,  # of those lost, doubled or changed
        }

    def strikes(self) -> None:
        """Now."""
        self.struck_at = time.monotonic()
        self.figures["faults"] += 1

    def told(self, truth: Callable[[], T], limit_s: float = 60) -> T:
        """Ask until the answer is true. What counts is when the question was put: this machine may be slow to answer.

        `truth` asks the status, as a user or a script does, and gives a true value for a truthful answer.
        """
        assert self.struck_at is not None, "no fault has struck yet"
        while True:
            asked_s = time.monotonic() - self.struck_at
            if answer := truth():
                break
            assert asked_s < limit_s, f"no truthful answer within {limit_s:g} s"
            time.sleep(0.05)  # a poll, bounded by the limit
        self.figures["truth_s"] = max(self.figures["truth_s"] or 0.0, round(asked_s, 2))
        self.shown["truth"] = f"{asked_s:.1f} s"
        assert asked_s <= TRUTH_S, f"a status that was asked {asked_s:.1f} s after the fault told no truth before"
        return answer

    def checkpoints(self, *runs: Path, complete: bool = True) -> None:
        """Each checkpoint in these run folders is what its JSON says, none is half there, and the newest one that the
        run told of is among them (`complete`: not for a copy that was still on its way)."""
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
        """What is there is what `ps` lists; and what works for no living run has a note that says so."""
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
        """A machine that looks after itself is given back, or says aloud that it costs money, and why; or it works."""
        words = str(status.get("decision"))
        noticed = status.get("state") == "released" or " an hour" in words or status.get("running")
        self.figures["machines_unnoticed"] += not noticed
        self.shown["machines"] = str(status.get("state"))
        assert noticed, f"it bills, and nobody is told: {status.get('state')}: {words}"

    def log(self, shown: bytes, written: bytes) -> None:
        """A log that was followed over a fault has each byte once."""
        self.figures["log_bytes"] += len(written)
        pairs = enumerate(zip(shown, written, strict=False))
        same = next((at for at, (one, other) in pairs if one != other), min(len(shown), len(written)))
        wrong = max(len(shown), len(written)) - same
        self.figures["log_bytes_wrong"] += wrong
        assert wrong == 0, f"{wrong} bytes are lost, doubled or changed, from byte {same} on"

    def orphan(self, lived_s: float, idle_min: float) -> None:
        """How long a machine was there for nobody, against what it was allowed to be."""
        beyond_s = max(0.0, lived_s - idle_min * 60)
        self.figures["orphan_s"] = max(self.figures["orphan_s"] or 0.0, round(beyond_s, 2))
        assert beyond_s <= ORPHAN_S, f"an orphan for {beyond_s:.0f} s longer than idle_min"

    def leaves_out(self, **why: str) -> None:
        """Which of the three parts this fault cannot touch, and why not."""
        assert set(why) <= set(PARTS), f"there are: {', '.join(PARTS)}"
        self.shown |= why

    @property
    def is_shown(self) -> bool:
        """Whether nothing was forgotten."""
        return bool(self.figures["faults"]) and set(self.shown) == set(PARTS)

    def check(self) -> None:
        """The same, as a failure that names it."""
        missing = [part for part in PARTS if part not in self.shown]
        assert self.figures["faults"], "no fault has struck: `fault.strikes()` belongs where it does"
        assert not missing, f"a test of a fault shows or leaves out, with a reason, also: {', '.join(missing)}"

    def record(self, *, survived: bool) -> None:
        if os.environ.get(RECORD) and self.figures["faults"]:  # none: it was skipped
            line = json.dumps({"test": self.test, "survived": survived, **self.figures, "shown": self.shown})
            with open(os.environ[RECORD], "a", encoding="utf-8") as file:  # one small write: processes may share it
                file.write(f"{line}\n")


def looked_at(run: Path, *, complete: bool = True) -> tuple[int, list[str]]:
    """How many checkpoints a run folder holds, and what is wrong with them."""
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
    """What was being written has a name that nobody takes for a checkpoint: a dot in front."""
    return name.endswith(".part") and not name.startswith(".")


def _events(run: Path) -> list[dict[str, Any]]:
    path = Path(RunFolder(run).metrics)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:  # a process that was killed while it wrote
            continue
    return events
