"""`invoke logs --follow` on a machine 20 ms away: lines per second, CPU time and delay, in pairs with BEFORE.

Every line of a machine is decoded, its control characters are made visible, and its size is bounded. The peer is the
last commit without that, which writes bytes to the terminal as they come. A log of 1,000,000 lines is printed; one of
100 shows what the start of the command takes. Then lines are appended, and the time until each is printed counts.
Lines are those of training: progress, a line in colour, a file name that is not ASCII.

    python benchmarks/log_follow.py [--quick] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._before import BEFORE, LEAST, Cost, both, cpu_of_children, pairs
from benchmarks._claims import Claim, report
from benchmarks._far import Far

ROUND_TRIP_S = 0.02
SMALL = ("backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", "train.epochs=1")
FEW, MANY = 100, 1_000_000
LINE_US = 1.0  # budget of CPU time for one line: a core shows a million a second
APPENDED = 40  # lines
EVERY_S = 0.43  # no multiple of the follower's poll interval


def line(number: int) -> str:
    if number % 50 == 7:
        return f"\x1b[33mwarning\x1b[0m step {number}: /data/Gesichter/Ä{number}.jpg was read twice"
    return f"2026-11-29 13:04:{number % 60:02} epoch 3 step {number} loss {6.2 - number / 1e6:.4f} 4211 images/s"


class Run:
    """A run that has ended on a machine; its log and its status can be changed."""

    def __init__(self, there: Far) -> None:
        self.there = there
        words = [word for setting in SMALL for word in ("--set", setting)]
        self.id = str(there.invoke("train", "--detach", *words)["run_id"])
        there.invoke("stop")
        self.folder = there.root / "runs" / self.id
        self.ended = json.loads((self.folder / "status.json").read_text())

    def write(self, lines: int) -> None:
        (self.folder / "train.log").write_text(
            "".join(f"{line(number)}\n" for number in range(lines)), encoding="utf-8"
        )

    def say(self, **changes: object) -> None:
        part = self.folder / ".status.part"
        part.write_text(json.dumps({**self.ended, **changes}))
        part.replace(self.folder / "status.json")

    def following(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "invoke", "logs", "--follow", "--run", self.id, "--on", "far"]
        return subprocess.Popen(
            argv, cwd=self.there.project, env=self.there.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def printed(self, lines: int) -> Cost:
        """The cost of printing the whole log. All of it must arrive."""
        before, began = cpu_of_children(), time.perf_counter()
        process = self.following()
        assert process.stdout
        seen = process.stdout.read().count(b"\n")
        assert process.wait() == 0
        assert seen >= lines, f"{seen} of {lines} lines"
        return Cost(time.perf_counter() - began, cpu_of_children() - before)

    @contextmanager
    def living(self) -> Iterator[None]:
        """Let the run seem to be running, with a heartbeat."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(0.5):
                self.say(state="running", ended=None, heartbeat=time.time())

        self.say(state="running", ended=None, heartbeat=time.time())
        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.say()

    def delays(self) -> list[float]:
        """Seconds from the moment when a line is in the log until it is printed."""
        (self.folder / "train.log").write_text("begin\n")
        written: dict[bytes, float] = {}
        found: list[float] = []
        with self.living():
            process = self.following()
            assert process.stdout
            while b"begin" not in process.stdout.readline():
                pass
            reader = threading.Thread(target=self._note, args=(process, written, found))
            reader.start()
            for number in range(APPENDED):
                time.sleep(EVERY_S)
                with open(self.folder / "train.log", "ab") as file:
                    written[b"line %d" % number] = time.perf_counter()
                    file.write(b"line %d\n" % number)
        reader.join()
        process.wait()
        assert len(found) == APPENDED
        return found

    @staticmethod
    def _note(process: subprocess.Popen[bytes], written: dict[bytes, float], found: list[float]) -> None:
        assert process.stdout
        for text in process.stdout:
            if text.strip() in written:
                found.append(time.perf_counter() - written[text.strip()])


def together(new: Run, old: Run) -> tuple[float, float]:
    """Median delays of both, measured at the same time."""
    found: dict[str, list[float]] = {}
    threads = [
        threading.Thread(target=lambda name=name, run=run: found.update({name: run.delays()}))
        for name, run in (("new", new), ("old", old))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(found["new"]), statistics.median(found["old"])


def by_pair(new: list[Cost], old: list[Cost], kind: str) -> float:
    """The median of old/new over the pairs, without the first, which warms caches."""
    return statistics.median(getattr(b, kind) / getattr(a, kind) for a, b in zip(new[1:], old[1:], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few lines, one round; writes no results file")
    parser.add_argument("--rounds", type=int, default=7, help="pairs")
    told = parser.parse_args()
    many, rounds = (MANY // 10, 1) if told.quick else (MANY, told.rounds)
    peer = f"peer {BEFORE}"
    with both(ROUND_TRIP_S) as (new_far, old_far):
        new, old = Run(new_far), Run(old_far)
        costs: dict[tuple[str, int], list[Cost]] = {}

        def cost(name: str, run: Run, lines: int) -> float:
            run.write(lines)
            costs.setdefault((name, lines), []).append(run.printed(lines))
            return costs[name, lines][-1].cpu_s

        for lines in (FEW, many):
            pairs(partial(cost, "new", new, lines), partial(cost, "old", old, lines), rounds)

        def of(name: str, lines: int, kind: str) -> float:
            return statistics.median(getattr(each, kind) for each in costs[name, lines][1:])

        took, cpu = ({name: of(name, many, kind) for name in ("new", "old")} for kind in ("wall_s", "cpu_s"))
        faster, cheaper = (by_pair(costs["new", many], costs["old", many], kind) for kind in ("wall_s", "cpu_s"))
        line_us = 1e6 * (cpu["new"] - of("new", FEW, "cpu_s")) / (many - FEW)
        delay = [together(new, old) for _ in range(1 if told.quick else 3)]
    ours, theirs = (statistics.median(column) for column in zip(*delay, strict=True))
    speed = {name: many / seconds for name, seconds in took.items()}
    claims = [
        Claim(f"{many} lines, {peer}", speed["new"], speed["old"], "lines/s", faster, LEAST),
        Claim(f"CPU of {many} lines, {peer}", cpu["new"], cpu["old"], "s", cheaper, LEAST),
        Claim(f"delay of a line, {peer}", ours * 1e3, theirs * 1e3, "ms", theirs / ours, LEAST),
        Claim("CPU of one more line", line_us, LINE_US, "us, against the budget", LINE_US / line_us, 1.0),
    ]
    return report("log_follow", claims, is_quick=told.quick)


if __name__ == "__main__":
    raise SystemExit(main())
