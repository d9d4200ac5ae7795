"""Observe a machine: the running job, the queue, the job's progress, and the last activity of a user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy.pod.base import processes, queue
from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import Root, RunFolder, read_json
from deploy.pod.base.lock import is_held
from deploy.pod.watchdog.ceilings import Seen

BUSY_PCT = 5.0  # of a GPU, or of one core without GPUs; at or below it counts as idle
SIGNS_EVERY_S = 5.0


class Activity:
    """State of the machine, updated by each `look`. All times are monotonic seconds."""

    def __init__(self, root: Root, clock: Clock) -> None:
        self.root = root
        self.clock = clock
        self.job: dict[str, Any] | None = None  # what the supervisor wrote in the machine's lock
        self.waiting: list[dict[str, Any]] = []
        self.orphan_since: float | None = None  # when the supervisor was first seen dead
        self.moved_at = clock.monotonic()  # time of the last activity of any kind
        self._job_at = self.moved_at
        self._step_at: float | None = None
        self._computed_at = self.moved_at
        self._position: object = None
        self._status: tuple[int, dict[str, Any]] = (0, {})
        self._signs: object = None
        self._signs_at = self.moved_at - SIGNS_EVERY_S

    @property
    def is_busy(self) -> bool:
        return self.job is not None or bool(self.waiting)

    @property
    def folder(self) -> RunFolder | None:
        """Run folder of the running job."""
        name = (self.job or {}).get("run_id")
        return RunFolder(Path(self.root.runs / str(name))) if name else None

    def look(self, watch: Sequence[str], signs_every_s: float = SIGNS_EVERY_S) -> None:
        now = self.clock.monotonic()
        before = _identity(self.job)
        self.waiting = queue.waiting(self.root)
        self.job = read_json(Path(self.root.busy_lock)) if is_held(Path(self.root.busy_lock)) else None
        if _identity(self.job) != before:
            self._job_at = self._computed_at = now
            self._step_at, self._position = None, None
        if self.is_busy:
            self.moved_at = now
        if self.job is not None:
            self._look_at_job(now)
        if now - self._signs_at >= signs_every_s:
            self._signs_at = now
            signs = list(self._look_for_signs(watch))
            if signs != self._signs:
                self._signs, self.moved_at = signs, now

    def seen(self, paid_s: float | None) -> Seen:
        now = self.clock.monotonic()
        stall_s = None
        if self.job is not None and self._step_at is not None:
            stall_s = now - max(self._step_at, self._computed_at)
        return Seen(
            paid_s=paid_s,
            job_s=now - self._job_at if self.job is not None else None,
            idle_s=None if self.is_busy else now - self.moved_at,
            stall_s=stall_s,
        )

    def _look_at_job(self, now: float) -> None:
        pid = (self.job or {}).get("pid")
        alive = pid is None or processes.is_alive(int(pid))
        self.orphan_since = None if alive else self.orphan_since or now
        status = self._read_status()
        if self._step_at is None and status.get("job_pid"):
            self._step_at = now
        position = (status.get("epoch"), status.get("step"), status.get("restarts"))
        if position != self._position:
            self._position, self._step_at = position, now
        if computes(status):
            self._computed_at = now

    def _read_status(self) -> dict[str, Any]:
        """Return the job's status.json, read again only when it has changed; {} if it belongs to another run."""
        if self.folder is None:
            return {}
        path = Path(self.folder.status)
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return {}
        if changed != self._status[0]:
            self._status = (changed, read_json(path) or self._status[1])
        mine = self._status[1].get("run_id") == (self.job or {}).get("run_id")
        return self._status[1] if mine else {}

    def _look_for_signs(self, watch: Sequence[str]) -> Iterator[object]:
        """Yield names, sizes and times of what the laptop or a staging command touches, two levels deep.

        Leaves out the run folders, because the guard itself writes there.
        """
        root = self.root
        for path in (root.contact, root.guard):
            yield _sign(str(path))
        for folder in (root.path / "code", root.path / "data", root.path / "environments", *watch):
            yield from _signs(str(folder), levels=2)


def computes(status: dict[str, Any]) -> bool:
    """Whether the job keeps a GPU busy, or a core if GPU utilization is unknown. If both are unknown, returns True.

    Not covered: ranks that wait for each other inside NCCL keep their GPUs busy. NCCL's own timeout of ten minutes ends
    such a job.
    """
    told = [gpu.get("utilization_pct") for gpu in status.get("gpus") or []]
    known = [value for value in told if value is not None] or [status.get("job_cpu_pct")]
    return any(value is None or float(value) > BUSY_PCT for value in known)


def _identity(job: dict[str, Any] | None) -> object:
    return None if job is None else (job.get("run_id"), job.get("attempt"), job.get("pid"))


def _signs(path: str, levels: int) -> Iterator[object]:
    yield _sign(path)
    if levels:
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                deeper = levels - 1 if entry.is_dir(follow_symlinks=False) else 0
                yield from _signs(entry.path, deeper)


def _sign(path: str) -> object:
    try:
        about = os.stat(path)
    except OSError:
        return path, None
    return path, about.st_size, about.st_mtime_ns
