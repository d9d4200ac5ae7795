"""status.json of a run: the supervisor's word about it, replaced every two seconds, so that silence means death."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.pod.base.clock import Clock, Jumps
from deploy.pod.base.folder import HEARTBEAT_S, Root, RunFolder, read_json, tell_json
from deploy.pod.base.limits import Limits
from deploy.pod.base.metrics import MetricsTail
from deploy.pod.base.paid_time import Meter
from deploy.pod.base.redact import Redactor
from deploy.pod.job.gpu_metrics import Gauges, disk_free_bytes

EVIDENCE_LINES = 10
EVIDENCE_BYTES = 8192
FULL_BYTES = 64 << 10


class StatusFile:
    """What is known, and when it was told last. Nothing here may end a job: what cannot be written is left out."""

    def __init__(self, folder: RunFolder, plan: Mapping[str, Any], limits: Limits, redact: Redactor, clock: Clock):
        self.folder = folder
        self.redact = redact
        self.clock = clock
        self.metrics = MetricsTail(Path(folder.metrics))
        self.gauges = Gauges(Path(folder.path), clock)
        root = Root(Path(plan["busy_lock"]).parent)
        self.meter = Meter(limits, clock, read_json(Path(root.guard_status)).get("meter"))
        self.jumps = Jumps(clock)
        self._told_at: float | None = None
        now = clock.wall()
        self.values: dict[str, Any] = {
            "run_id": plan["run_id"],
            "state": "running",
            "attempt": plan["attempt"],
            "restarts": 0,
            "pid": os.getpid(),
            "job_pid": None,
            "job_started": None,  # when torchrun was, the last time
            "started": now,
            "heartbeat": now,
            "ended": None,
            "exit_code": None,
            "reason": None,
            "evidence": None,
            "last_crash": None,
            "epoch": None,
            "step": None,
            "images_per_s": None,
            "spend_usd": 0.0,
            "deadline": None,
        }

    def tell(self, **changes: Any) -> None:
        """Something has happened: at once, and to disk."""
        self.values.update(changes)
        self._write(durable=True)

    def beat(self) -> None:
        """A sign of life, when one is due. A jump of the wall clock makes it due: the last one looks old, or young."""
        late = self._told_at is None or self.clock.monotonic() - self._told_at >= HEARTBEAT_S
        if late or self.jumps.seen():
            self._write(durable=False)

    def evidence(self, since: int) -> list[str]:
        """How the log ends, of what was written to it from byte `since` on."""
        try:
            with open(self.folder.log, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(since, size - EVIDENCE_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return []
        lines = [line for line in text.splitlines() if line.strip()]
        free = disk_free_bytes(Path(self.folder.path))
        if free is not None and free < FULL_BYTES:  # then the job's own complaint had no room either
            lines.append(f"no room is left on the disk of {self.folder.path}")
        return lines[-EVIDENCE_LINES:]

    def _write(self, durable: bool) -> None:
        self._told_at = self.clock.monotonic()
        self.metrics.read()
        self.values.update(self.metrics.position)
        self.values.update(self.gauges.read(self.values["job_pid"]))
        deadline = self.meter.deadline
        self.values.update(
            heartbeat=self.clock.wall(),
            spend_usd=round(self.meter.spend_usd, 4),
            deadline=None if deadline is None else round(deadline, 1),
        )
        # Who it is and how it is are words of ours: a secret that is spelt like one of them must not hide it.
        mine = {name: self.values[name] for name in ("run_id", "state")}
        tell_json(Path(self.folder.status), {**self.redact(self.values), **mine}, durable)
