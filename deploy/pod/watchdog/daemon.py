"""The guard: enforce the limits of one machine (time, cost, idleness, stalls). It works while the laptop is off.

    python -m deploy.pod.guard <root> &

Reads <root>/guard.json (limits and machine name), which the laptop may replace at any time. Writes
<root>/guard-status.json. A machine has one guard: a second one exits at once. The guard runs until SIGTERM or until
the machine is gone.

When a limit is reached: write the reason (ended.json) -> stop the job with a checkpoint -> final sync -> release the
machine. The only copy of a checkpoint is not deleted, unless `on_end` is "terminate" or max_usd is reached.

The guard of the first machine releases a whole cluster. The checkpoints are there, so only this guard knows which of
them have no other copy. The other guards stop their jobs and wait; once max_usd is spent, they release the cluster too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from deploy.pod.base import redact
from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import Root, RunFolder, read_json, tell_json, write_bytes
from deploy.pod.base.heartbeat import Beats
from deploy.pod.base.limits import CEILINGS, NONE, Limits, parse
from deploy.pod.base.lock import Busy, Lock
from deploy.pod.base.notify import WEBHOOK, Notifier
from deploy.pod.base.paid_time import Meter
from deploy.pod.base.redact import Redactor
from deploy.pod.watchdog.activity import SIGNS_EVERY_S, Activity
from deploy.pod.watchdog.ceilings import Ceiling, reached
from deploy.pod.watchdog.release import environment
from deploy.pod.watchdog.shutdown import Goodbye, newest_run, run_folders

KEEPS_WORDS = 20
CODE = Path(__file__).resolve().parents[3]
NOTIFY_S = 5.0  # how long a release waits for a message about it; not at all once max_usd is reached
FOR_BOOT = Path("/run/sniperface/guard")  # in our image: init.py restarts the guard from this file if it was killed
IN_WORDS = ("decision", "decisions", "copies", "last_copy", "limits")  # redacted: others' text is in it
ARMED = (*CEILINGS, "sync_to", "on_end", "usd_per_hour", "release")


def main(argv: list[str], clock: Clock | None = None) -> int:
    if len(argv) != 2:
        print((__doc__ or "").split("\n\n")[1].strip(), file=sys.stderr)
        return 2
    root = Root(Path(argv[1]).absolute())
    if not read_json(Path(root.guard)):
        print(f"{root.guard} is missing or incomplete: it holds the limits of this machine", file=sys.stderr)
        return 2
    try:
        with Lock(Path(root.guard_lock), {"pid": os.getpid()}).acquire():
            _tell_boot(root)
            return Guard(root, clock or Clock()).run()
    except Busy:
        return 0


class Guard:
    """The guard's loop: calls `tick` every `poll_s`, by default once a second."""

    def __init__(self, root: Root, clock: Clock) -> None:
        self.root = root
        self.clock = clock
        self.limits = Limits()
        self.meter = Meter(self.limits, clock)
        self.activity = Activity(root, clock)
        self.goodbye = Goodbye(root, self.activity, clock, self.beat)
        self.redact = Redactor(redact.of_environment(environment()))
        self.beats = Beats(clock)
        self.notifier = Notifier()
        self.notified: set[str] = set()  # what was told since the guard was armed
        self.ceiling: Ceiling | None = None  # the limit that the guard has acted on
        self.again_at = 0.0  # when to try the release again
        self.told_to_end = False
        self._limits_read: object = None
        self.status: dict[str, Any] = {
            "state": "guarding",
            "pid": os.getpid(),
            "machine": None,
            "heartbeat": clock.wall(),
            "decision": None,
            "decisions": [],
            "secrets": [],  # names of the secrets that it has for the sync and the webhook
            "told_spend": None,  # the limit of which it was told that its share is spent
        }

    def run(self) -> int:
        self._listen_to_signals()
        self.meter = Meter(self.limits, self.clock)
        before = read_json(Path(self.root.guard_status))
        known = before.get("meter")
        self.status["told_spend"] = before.get("told_spend")
        self._read_limits(known if isinstance(known, dict) else None)
        self.decide("guarding", "armed")
        while not self.told_to_end:
            try:
                self.tick()
            except Exception as error:  # any error: a guard that exits leaves the machine without limits
                self.decide(str(self.status["state"]), f"internal error of the guard: {type(error).__name__}: {error}")
            time.sleep(self.limits.poll_s)
        self.decide("ended", "the guard was stopped by a signal: no cost limit of this machine is enforced now")
        return 0

    def tick(self) -> None:
        """Read limits and activity, then act on a reached limit."""
        self._read_limits()
        self._read_secrets()
        self.activity.look(self.limits.watch, min(SIGNS_EVERY_S, (self.limits.idle_min or 1.0) * 6))
        self._end_orphan()
        self._tell_spend()
        ceiling = reached(self.limits, self.activity.seen(self.meter.paid_s))
        if ceiling is None and self.ceiling and self.ceiling.cause == "stall_min" and not self.activity.is_busy:
            ceiling = self.ceiling  # the stalled job has ended; its machine is still released
        if ceiling is None:
            if self.ceiling is not None:
                self.ceiling = None
                self.notified.clear()
                self.decide("guarding", "no limit is reached now")
            self.goodbye.keep_copies(self.limits)
        else:
            if self.ceiling is None or self.ceiling.cause != ceiling.cause or self.activity.is_busy:
                self._end_work(ceiling)
            # max_usd and max_hours release it even if a job cannot be killed. With other limits, a job keeps it.
            free = not self.activity.is_busy or ceiling.cause in ("max_usd", "max_hours")
            if free and self.clock.monotonic() >= self.again_at:
                self._let_go(ceiling)
        self.beat()

    def decide(self, state: str, words: str, **more: Any) -> None:
        """Record a decision and write the status to disk at once."""
        if (state, words) != (self.status["state"], self.status["decision"]):
            said = {"time": self.clock.wall(), "state": state, "words": words}
            self.status["decisions"] = [*self.status["decisions"], said][-KEEPS_WORDS:]
        self.status.update(state=state, decision=words, **more)
        self._write(durable=True)

    def beat(self) -> None:
        if self.beats.is_due():
            self._write(durable=False)

    def _end_work(self, ceiling: Ceiling) -> None:
        """Write the reason, stop the jobs, then make the final sync."""
        self.ceiling, self.again_at = ceiling, 0.0
        self.decide("ending", f"{ceiling.reason}: ending the job")
        self._notify(ceiling.cause, f"{ceiling.reason}: its work ends now")
        running = self.activity.folder or newest_run(self.root)
        record = {
            "cause": ceiling.cause,
            "reason": ceiling.reason,
            "time": self.clock.wall(),
            "spend_usd": round(self.meter.spend_usd, 4),
            "machine": self.limits.machine,
        }
        self._record(running, record)
        ended = self.goodbye.end_jobs(ceiling, self.limits)
        copies: list[str] = []
        if self.limits.sync_to:
            self.decide("ending", f"{ceiling.reason}: copying to {self.limits.sync_to}")
            copies = self.goodbye.copy(self._to_copy(running, ended), self.limits, self._hard_line())
            self._record(running, {**record, "copies": copies})
        self.status["copies"] = copies

    def _to_copy(self, running: RunFolder | None, ended: list[RunFolder]) -> list[RunFolder]:
        """Return the runs that have just ended, and earlier runs whose newest checkpoint has no other copy."""
        first = {folder.run_id: folder for folder in [*([running] if running else []), *ended]}
        only = self.goodbye.only_copies(self.limits)
        rest = [each for each in run_folders(self.root) if each.run_id not in first and each.run_id in only]
        return [*first.values(), *rest]

    def _let_go(self, ceiling: Ceiling) -> None:
        """Decide whether to release, stop or keep the machine after its jobs have ended, and do so."""
        limits, price = self.limits, f"${self.limits.usd_per_hour:.2f} an hour"
        only = self.goodbye.only_copies(limits)
        copies = "; ".join(self.status.get("copies") or [])
        why = f"{ceiling.reason}; {copies}" if copies else ceiling.reason
        self.again_at = self.clock.monotonic() + limits.retry_s
        if limits.release == NONE:
            self.decide("ended", f"{why}; nothing to release: this machine is not rented", only_copies=only)
            return
        if not limits.releases_itself:
            hands = "this machine has no key to release itself, so the next command on your computer does"
            self.decide("stuck", f"{why}; its job has ended; it still costs {price}: {hands}", only_copies=only)
            return
        if limits.group and limits.node and not self._is_spent():
            until = f"or once max_usd {limits.max_usd:g} is spent" if limits.max_usd else "with no max_usd to end it"
            self.decide("waiting", f"{why}; the guard of the first machine releases it with its cluster, {until}")
            return
        stops = limits.on_end == "stop" and not limits.group  # a cluster cannot be stopped
        if only and not stops and limits.on_end != "terminate" and ceiling.cause != "max_usd":
            self.again_at = self.clock.monotonic() + min(limits.retry_s, SIGNS_EVERY_S)
            until = f"until max_usd {limits.max_usd:g} is reached" if limits.max_usd else "with no max_usd to end it"
            kept = f"kept because the only copy of {_some(only)} is here; costs {price}, {until}"
            self.decide("kept", f"{why}; {kept}", only_copies=only)
            self._notify("kept", kept)
            return
        action = "stop" if stops else "terminate"
        lost = f", and with it the only copy of {_some(only)}" if only and action == "terminate" else ""
        self.decide("releasing", f"{why}; {action}{lost}", only_copies=only)
        if ceiling.cause != "max_usd":
            self.notifier.wait(NOTIFY_S)
        outcome = self.goodbye.release(action, limits.group)
        if outcome.done:
            self.decide("released", f"{why}; {outcome.words}")
        else:
            visible = f"the machine could not be released; its job has ended; it still costs {price}"
            again = f"tried again every {limits.retry_s:g} s"
            self.decide("stuck", f"{why}; {visible}: {outcome.words}; {again}")
            self._notify("stuck", visible)
        self.again_at = self.clock.monotonic() + limits.retry_s

    def _tell_spend(self) -> None:
        """Tell once that the share notify_pct of max_usd is spent, also across restarts of the guard."""
        limits, spent = self.limits, self.meter.spend_usd
        if not limits.notify_pct or not limits.max_usd or spent < limits.notify_pct / 100 * limits.max_usd:
            return
        limit = f"{limits.notify_pct:g} % of max_usd {limits.max_usd:g} on {limits.machine}"
        if self.notifier.address and self.status["told_spend"] != limit:
            self.status["told_spend"] = limit
            self._write(durable=True)  # before it is told, so that a guard that replaces this one is silent
            self._notify(limit, f"${spent:.2f} spent, {spent / limits.max_usd:.0%} of max_usd {limits.max_usd:g}")

    def _notify(self, what: str, words: str) -> None:
        """Tell the webhook once, in the background. Of several machines, the first one does."""
        if what not in self.notified and not self.limits.node:
            self.notified.add(what)
            on = f" (run {self.activity.job.get('run_id')})" if self.activity.job else ""
            self.notifier.tell(self.redact(f"{self.limits.machine}{on}: {words}"))

    def _end_orphan(self) -> None:
        """Kill a job whose supervisor died more than `grace_s` ago; it had that time for a checkpoint."""
        since = self.activity.orphan_since
        if since is not None and self.activity.job and self.clock.monotonic() - since > self.limits.grace_s:
            self.decide(str(self.status["state"]), f"ended the job of run {self.activity.job.get('run_id')}: an orphan")
            self.goodbye.end_orphan()

    def _hard_line(self) -> float | None:
        """Monotonic time at which max_usd is spent; None without that limit or if the machine is not billed."""
        if self.limits.usd_s is None or self.meter.paid_s is None:
            return None
        return self.clock.monotonic() + self.limits.usd_s - self.meter.paid_s

    def _is_spent(self) -> bool:
        usd_s, paid_s = self.limits.usd_s, self.meter.paid_s
        return usd_s is not None and paid_s is not None and paid_s >= usd_s

    def _record(self, folder: RunFolder | None, record: dict[str, Any]) -> None:
        if folder is not None and Path(folder.path).is_dir():
            attempt = read_json(Path(folder.plan)).get("attempt")
            told = {"run_id": folder.run_id, "attempt": attempt, **record}
            tell_json(Path(folder.ended), self.redact(told), durable=True)

    def _read_limits(self, known: dict[str, Any] | None = None) -> None:
        """Read guard.json if it has changed. If it is invalid, the earlier limits stay in force."""
        path = Path(self.root.guard)
        try:
            about = path.stat()
        except OSError:
            return
        seen = (about.st_mtime_ns, about.st_size, about.st_ino)
        if seen == self._limits_read:
            return
        self._limits_read = seen
        try:
            told = read_json(path)
            if not told:
                raise ValueError("it is incomplete")
            limits = parse(told)
        except ValueError as error:
            self.decide(str(self.status["state"]), f"guard.json is ignored, the earlier limits stay in force: {error}")
            return
        if known is not None:
            self.meter = Meter(limits, self.clock, known)
        changed = limits != self.limits
        self.limits = limits
        self.meter.change(limits)
        self.again_at = 0.0
        self.status["machine"] = limits.machine
        self.status["limits"] = {name: getattr(limits, name) for name in ARMED}
        if changed and known is None and self.beats.last is not None:
            self.decide(str(self.status["state"]), "new limits from the laptop")

    def _read_secrets(self) -> None:
        if Path(self.root.guard_secrets).exists():
            self.goodbye.secrets.update(redact.take(Path(self.root.guard_secrets)))
            self.notifier.address = self.goodbye.secrets.pop(WEBHOOK, self.notifier.address)
            own = {**self.goodbye.secrets, **({WEBHOOK: self.notifier.address} if self.notifier.address else {})}
            self.redact = Redactor([*redact.of_environment(environment()), *own.values()])
            self.status["secrets"] = sorted(own)

    def _write(self, durable: bool) -> None:
        self.beats.note()
        job = self.activity.job or {}
        self.status.update(
            heartbeat=self.clock.wall(),
            spend_usd=round(self.meter.spend_usd, 4),
            paid_hours=None if self.meter.paid_s is None else round(self.meter.paid_s / 3600, 4),
            deadline=self.meter.deadline,
            running=job.get("run_id"),
            waiting=[each.get("run_id") for each in self.activity.waiting],
            last_copy=self.goodbye.last_copy,
            meter=self.meter.note(),
            notify=self.notifier.failure,
        )
        told = {name: self.redact(self.status[name]) for name in IN_WORDS if name in self.status}
        tell_json(Path(self.root.guard_status), {**self.status, **told}, durable)

    def _listen_to_signals(self) -> None:
        def end(*_: object) -> None:
            self.told_to_end = True

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        if sys.platform != "win32":
            signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _tell_boot(root: Root) -> None:
    """Write for process 1 how to restart the guard. Does nothing outside our image."""
    argv = [sys.executable, "-m", "deploy.pod.guard", str(root.path)]
    note = {"argv": argv, "cwd": str(CODE), "needs": str(root.guard), "lock": str(root.guard_lock)}
    with contextlib.suppress(OSError):
        if FOR_BOOT.parent.is_dir():
            write_bytes(FOR_BOOT, json.dumps(note).encode("utf-8"), mode=0o600)


def _some(only: dict[str, str]) -> str:
    run_id, file = next(iter(only.items()))
    return f"{file} (run {run_id})" + (f" and of {len(only) - 1} more" if len(only) > 1 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
