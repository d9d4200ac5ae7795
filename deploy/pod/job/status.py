"""status.json of a run. The supervisor replaces it every two seconds, so a stale heartbeat means that it is dead."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import Root, RunFolder, read_json, tell_json
from deploy.pod.base.heartbeat import Beats
from deploy.pod.base.job_log import EVIDENCE_BYTES, EVIDENCE_LINES, FAILED, last_words
from deploy.pod.base.limits import Limits
from deploy.pod.base.metrics import MetricsTail
from deploy.pod.base.paid_time import Meter
from deploy.pod.base.redact import Redactor
from deploy.pod.job.gpu_metrics import Gauges, disk_free_bytes

FULL_BYTES = 64 << 10


class StatusFile:
    """Content of status.json, and the time of the last write. A failed write is ignored: it must not end the job."""

    def __init__(self, folder: RunFolder, plan: Mapping[str, Any], limits: Limits, redact: Redactor, clock: Clock):
        self.folder = folder
        self.redact = redact
        self.clock = clock
        self.metrics = MetricsTail(Path(folder.metrics))
        self.gauges = Gauges(Path(folder.path), clock)
        root = Root(Path(plan["busy_lock"]).parent)
        self.meter = Meter(limits, clock, read_json(Path(root.guard_status)).get("meter"))
        self.beats = Beats(clock)
        now = clock.wall()
        self.values: dict[str, Any] = {
            "run_id": plan["run_id"],
            "state": "running",
            "attempt": plan["attempt"],
            "restarts": 0,
            "pid": os.getpid(),
            "job_pid": None,
            "job_started": None,  # last start of torchrun
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
        """Change values and write them to disk at once."""
        self.values.update(changes)
        self._write(durable=True)

    def beat(self) -> None:
        """Write a heartbeat if one is due."""
        if self.beats.is_due():
            self._write(durable=False)

    def evidence(self, since: int) -> list[str]:
        """Return the last words that were written to the log from byte `since` on."""
        try:
            with open(self.folder.log, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(since, size - EVIDENCE_BYTES))
                lines = last_words(file.read())
        except OSError:
            return []
        free = disk_free_bytes(Path(self.folder.path))
        if free is not None and free < FULL_BYTES:  # the job's own error message may not have fit either
            lines.append(f"no space left on the disk of {self.folder.path}")
        return lines[-EVIDENCE_LINES:]

    def end_log(self, reason: str) -> bytes:
        """Write why the run failed as the last line of the log, and return the line. torchrun's report is above it."""
        when = time.strftime("%H:%M:%S", time.localtime(self.clock.wall()))
        line = f"[{when}] {FAILED}{self.redact(reason)}\n".encode()
        with contextlib.suppress(OSError), open(self.folder.log, "ab") as log:
            log.write(line)
        return line

    def _write(self, durable: bool) -> None:
        self.beats.note()
        self.metrics.read()
        self.values.update(self.metrics.position)
        self.values.update(self.gauges.read(self.values["job_pid"]))
        deadline = self.meter.deadline
        self.values.update(
            heartbeat=self.clock.wall(),
            spend_usd=round(self.meter.spend_usd, 4),
            deadline=None if deadline is None else round(deadline, 1),
        )
        # run_id and state are never masked, even if a secret equals one of them.
        mine = {name: self.values[name] for name in ("run_id", "state")}
        tell_json(Path(self.folder.status), {**self.redact(self.values), **mine}, durable)
