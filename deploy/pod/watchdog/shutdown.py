"""Teardown of a machine: stop the jobs with a checkpoint, make the final sync, release the machine.

Each step may take minutes. `beat` is called meanwhile, so that the guard's heartbeat stays recent.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from deploy.pod.agent import verbs
from deploy.pod.backup import storage
from deploy.pod.base import checkpoints, processes
from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import FINAL_STATES, Root, RunFolder, read_json, tell_json
from deploy.pod.base.limits import Limits
from deploy.pod.base.stopping import ask_to_expire
from deploy.pod.watchdog import release
from deploy.pod.watchdog.activity import Activity
from deploy.pod.watchdog.ceilings import Ceiling
from deploy.pod.watchdog.release import Outcome

CODE = Path(__file__).resolve().parents[3]
COPIES = (checkpoints.FETCHED, checkpoints.SYNCED)
LOOK_EVERY_S = 5.0  # how often to look for a new checkpoint to copy
COPY_EVERY_S = 30.0  # at most one copy in this time
COPY_AGAIN_S = 300.0  # after a failed copy
SLACK_S = 20.0  # from the supervisor's kill of its job to its own exit
T = TypeVar("T")


class Goodbye:
    """The steps of a teardown. Used only by the guard."""

    def __init__(self, root: Root, activity: Activity, clock: Clock, beat: Callable[[], None]) -> None:
        self.root = root
        self.activity = activity
        self.clock = clock
        self.beat = beat
        self.secrets: dict[str, str] = {}  # for the sync
        self._copier: threading.Thread | None = None
        self._copy_at = clock.monotonic()
        self.last_copy: str | None = None
        self.copied: dict[str, str] = {}  # sha256 -> destination; on a full disk the .synced file may be missing

    def end_jobs(self, ceiling: Ceiling, limits: Limits) -> list[RunFolder]:
        """Stop the running job and the queued runs; kill them if they do not end. Returns the runs that were stopped.

        When the job has stalled, the queued runs are not stopped: they run next.
        """
        asked: list[RunFolder] = []
        others = [] if ceiling.cause == "stall_min" else self.activity.waiting
        for holder in [*others, *([self.activity.job] if self.activity.job else [])]:
            if holder.get("run_id"):
                folder = RunFolder(Path(self.root.runs / str(holder["run_id"])))
                ask_to_expire(folder, ceiling.reason)
                asked.append(folder)
        grace_s = max([limits.grace_s, *(_grace_s(folder) for folder in asked)]) if asked else limits.grace_s
        mine = {folder.run_id for folder in asked}

        def over() -> bool:
            self.activity.look(limits.watch)
            there = [self.activity.job, *self.activity.waiting]
            return not any(each is not None and each.get("run_id", "") in {"", *mine} for each in there)

        if not self._wait(over, grace_s + SLACK_S, limits.poll_s):
            self._kill(mine)
            self._wait(over, SLACK_S, limits.poll_s)
        for folder in asked:
            _see_that_it_is_told(folder, ceiling, self.clock)
        return asked

    def end_orphan(self) -> None:
        """Kill a job whose supervisor is gone and that did not end within its grace."""
        if self.activity.job and self.activity.job.get("job_pid"):
            processes.kill_tree(int(self.activity.job["job_pid"]))

    def keep_copies(self, limits: Limits) -> None:
        """Copy each new checkpoint of the running job in the background: a machine may vanish without warning."""
        folder = self.activity.folder
        if folder is None or not limits.sync_to or self.clock.monotonic() < self._copy_at or self._copies():
            return
        self._copy_at = self.clock.monotonic() + LOOK_EVERY_S
        newest = checkpoints.described(folder)[:1]
        if newest and not self._is_copied(folder, newest[0], checkpoints.SYNCED):
            self._copy_at = self.clock.monotonic() + COPY_EVERY_S
            copier = threading.Thread(target=self._note_copy, args=(folder, limits), name="copies", daemon=True)
            with contextlib.suppress(RuntimeError):  # the machine is out of processes: a job may have used all of them
                copier.start()
                self._copier = copier

    def _copies(self) -> bool:
        return self._copier is not None and self._copier.is_alive()

    def _note_copy(self, folder: RunFolder, limits: Limits) -> None:
        before = len(self.copied)
        self.last_copy = self._copy(folder, limits, limits.sync_limit_s)
        if len(self.copied) == before:
            self._copy_at = self.clock.monotonic() + COPY_AGAIN_S

    def _is_copied(self, folder: RunFolder, note: dict[str, Any], *marks: str) -> bool:
        return note.get("sha256") in self.copied or checkpoints.has_copy(folder, note, *marks)

    def copy(self, folders: list[RunFolder], limits: Limits, until_s: float | None) -> list[str]:
        """Make the final sync of each run; returns a line per run. `until_s`: monotonic time when max_usd is spent."""

        def left_s() -> float:
            left = limits.sync_limit_s
            return left if until_s is None else min(left, max(10.0, until_s - self.clock.monotonic()))

        self._wait(lambda: not self._copies(), left_s(), limits.poll_s)  # two would write to the same name
        return [self._while_beating(partial(self._copy, folder, limits, left_s())) for folder in folders]

    def only_copies(self, limits: Limits) -> dict[str, str]:
        return only_copies(self.root, limits, lambda folder, note: self._is_copied(folder, note, *COPIES))

    def release(self, action: str, cluster: str | None = None) -> Outcome:
        """Terminate or stop the machine; with `cluster`, release the whole cluster."""
        env = {**release.environment(), **self.secrets}
        return self._while_beating(lambda: release.release(action, env, time.sleep, cluster))

    def _copy(self, folder: RunFolder, limits: Limits, limit_s: float) -> str:
        """Sync one run in a separate process, killed after `limit_s`: a volume may hang. Returns a status line."""
        argv = [_python(folder), "-m", "deploy.pod.backup.sync", str(folder.path), str(limits.sync_to)]
        try:
            more = [limits.volume_path] if limits.volume_path else []
            code, out, err = verbs.run([*argv, *more], cwd=str(CODE), env=self.secrets, limit_s=limit_s)
        except verbs.Overdue:
            return f"run {folder.run_id}: the copy to {limits.sync_to} did not finish within {limit_s:.0f} s"
        except OSError as error:
            return f"run {folder.run_id}: the copy could not be started: {error}"
        last = (out or err).decode("utf-8", errors="replace").strip().splitlines()[-1:] or [f"exit code {code}"]
        if code:
            return f"run {folder.run_id}: {last[0]}"
        told = json.loads(last[0])
        if told["sha256"]:
            self.copied[told["sha256"]] = told["sync_to"]
        what = told["checkpoint"] or "log and metrics (it has no checkpoint)"
        return f"run {folder.run_id}: {what} is in {told['sync_to']}, verified"

    def _kill(self, mine: set[str]) -> None:
        """Kill supervisor and job of these runs, after neither reacted to the stop."""
        for holder in [self.activity.job, *self.activity.waiting]:
            if holder and holder.get("run_id") in mine:
                for pid in (holder.get("pid"), holder.get("job_pid")):
                    if pid:
                        processes.kill_tree(int(pid))

    def _wait(self, until: Callable[[], bool], limit_s: float, poll_s: float) -> bool:
        deadline = self.clock.monotonic() + limit_s
        while not until():
            if self.clock.monotonic() > deadline:
                return False
            self.beat()
            time.sleep(poll_s)
        return True

    def _while_beating(self, work: Callable[[], T]) -> T:
        """Run blocking work in a thread and beat meanwhile. If no thread can be started, runs it without beats."""

        def beat_until_its_end(thread: threading.Thread) -> None:
            while thread.is_alive():
                self.beat()
                thread.join(0.2)

        return release.in_a_thread(work, beat_until_its_end)


def only_copies(
    root: Root, limits: Limits, is_copied: Callable[[RunFolder, dict[str, Any]], bool] | None = None
) -> dict[str, str]:
    """Return run id -> newest checkpoint for each run whose newest checkpoint has no verified copy elsewhere.

    Empty if the root is below `volume_path`, which outlives the machine.
    """
    known = is_copied or (lambda folder, note: checkpoints.has_copy(folder, note, *COPIES))
    found: dict[str, str] = {}
    if storage.is_below(Path(root.path), limits.volume_path):
        return found
    for folder in run_folders(root):
        for note in checkpoints.described(folder)[:1]:
            if not known(folder, note):
                found[folder.run_id] = note["file"]
    return found


def run_folders(root: Root) -> Iterator[RunFolder]:
    """Yield every run folder on this machine."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(root.runs)):
            yield RunFolder(Path(root.runs / name))


def newest_run(root: Root) -> RunFolder | None:
    """Return the run with the newest plan.json."""
    times = []
    for folder in run_folders(root):
        with contextlib.suppress(OSError):
            times.append((Path(folder.plan).stat().st_mtime, folder.run_id, folder))
    return max(times)[2] if times else None


def _see_that_it_is_told(folder: RunFolder, ceiling: Ceiling, clock: Clock) -> None:
    """Write the final state "expired" if the supervisor died before it could, and remove the stop request."""
    status = read_json(Path(folder.status))
    if status and status.get("state") not in FINAL_STATES:
        now = clock.wall()
        words = {"state": "expired", "reason": ceiling.reason, "heartbeat": now, "ended": now}
        tell_json(Path(folder.status), {**status, **words}, durable=True)
    with contextlib.suppress(OSError):
        os.unlink(folder.stop_request)


def _python(folder: RunFolder) -> str:
    """Return the job's Python, which has fsspec. The guard may run on another, as it starts before that one exists."""
    argv: Any = read_json(Path(folder.plan)).get("argv") or [""]
    return str(argv[0]) if os.path.isfile(str(argv[0])) else sys.executable


def _grace_s(folder: RunFolder) -> float:
    value: Any = read_json(Path(folder.plan)).get("grace_s", 0)
    return float(value) if isinstance(value, (int, float)) else 0.0
