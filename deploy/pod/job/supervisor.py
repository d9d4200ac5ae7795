"""The supervisor: start one job, restart it after a crash, write its log and status, end all its processes.

    python -m deploy.pod.supervisor <run folder>

The job's output goes directly to train.log, or through a process that masks secrets (redacting_log.py). The supervisor
copies it from there to its own output. So the last output of a job is kept even if the supervisor is killed. The job
watches its standard input: when that pipe closes, on purpose or because the supervisor died, it writes a checkpoint and
exits.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from deploy.pod.agent import verbs
from deploy.pod.base import processes, queue, redact
from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import Root, RunFolder, read_json, tell_json
from deploy.pod.base.job_object import JobObject
from deploy.pod.base.limits import parse_for_job
from deploy.pod.base.lock import Busy, Lock, is_held
from deploy.pod.base.notify import WEBHOOK, Notifier
from deploy.pod.base.redact import Redactor
from deploy.pod.base.stopping import Stops
from deploy.pod.job import redacting_log, restarts
from deploy.pod.job.ending import Ending, how, judge, stopped
from deploy.pod.job.status import StatusFile
from deploy.pod.job.tee import Echo

POLL_S = 0.2
GUARD_EVERY_S = 5.0
SIEVE_LIMIT_S = 10.0  # for the last output of a job that has ended
OF_TERMINAL = {"TERM", "TMUX", "TMUX_PANE", "PWD", "OLDPWD", "SHLVL", "_"}
CODE = Path(__file__).resolve().parents[3]


def main(argv: list[str], clock: Clock | None = None) -> int:
    folder = RunFolder(Path(argv[1]).absolute())
    plan = read_json(Path(folder.plan))
    if not plan:
        print(f"{folder.plan} is missing or incomplete", file=sys.stderr)
        return 2
    take_environment(Path(folder.environment))
    secrets = redact.take(Path(folder.secrets))
    processes.adopt_orphans()
    supervisor = Supervisor(folder, plan, secrets, clock or Clock())
    try:
        with _images_in_use(plan), supervisor.turn() as lock:
            return supervisor.run(lock)
    except Busy as busy:
        return _refuse(folder, plan, busy)
    finally:
        supervisor.status.gauges.gpus.close()
        supervisor.notify()  # after the lock is free: the next job and the guard must not wait for a webhook


def take_environment(path: Path) -> None:
    """Replace this process's environment by the one in a file, if there is one, and delete the file.

    A tmux server keeps the environment of its first session, and passes at most 16 KiB of a variable to a later one.
    """
    values = redact.take(path)
    if values:
        of_terminal = {name: os.environ[name] for name in OF_TERMINAL & os.environ.keys()}
        os.environ.clear()
        os.environ.update({name: value for name, value in values.items() if name not in OF_TERMINAL} | of_terminal)


class Supervisor:
    """One attempt of one run, from the first heartbeat to the last, including restarts."""

    def __init__(self, folder: RunFolder, plan: dict[str, Any], secrets: dict[str, str], clock: Clock) -> None:
        self.folder = folder
        self.plan = plan
        self.root = Root(Path(plan["busy_lock"]).parent)
        self.secrets = secrets
        self.clock = clock
        self.limits = parse_for_job(plan.get("limits") or {})
        self.grace_s = float(plan["grace_s"])
        self.hidden = [*secrets.values(), *redact.of_environment({**os.environ, **plan["env"]})]
        self.notifier = Notifier(secrets.pop(WEBHOOK, None))  # the job does not get it
        self.status = StatusFile(folder, plan, self.limits, Redactor(self.hidden), clock)
        self.sieve: subprocess.Popen[bytes] | None = None
        self.group = JobObject()  # of the processes of one attempt, on Windows
        self.stops = Stops(folder)
        self.stop_deadline: float | None = None
        self.killed = False
        self.place = plan.get("place") or {}  # rank and host, if several machines train
        self.oom_kills = 0  # of the system before the job's last start
        self.ran = False  # whether torchrun has started its ranks since its last start
        self.rule = self._rule()
        self.echo = Echo()
        self.guard_pid: int | None = None  # of a guard that this process started
        self.guard_seen_at = clock.monotonic()

    @property
    def is_follower(self) -> bool:
        """Whether another machine writes checkpoints and metrics, and decides how the run ends."""
        return bool(self.place.get("rank"))

    def _rule(self) -> restarts.FromCheckpoint | restarts.WithTheOthers:
        if not self.is_follower:
            return restarts.FromCheckpoint(self.folder, int(self.limits.max_restarts), self.status.beat)
        # Rank 0's machine may have to end its job, pause before the restart, and wait for all machines.
        patience_s = float(self.plan["join_s"]) + self.grace_s + restarts.LONGEST_PAUSE_S
        return restarts.WithTheOthers(self.place["host"], patience_s, self.clock)

    def turn(self) -> contextlib.AbstractContextManager[Lock | None]:
        """Acquire the machine's lock, after waiting in the queue if the plan says so. Raises Busy otherwise.

        The lock is None if the run was stopped while it waited.
        """
        holder = {"run_id": self.plan["run_id"], "attempt": self.plan["attempt"], "pid": os.getpid()}
        if not self.plan.get("queue"):
            waiting = queue.waiting(self.root)
            if waiting:
                raise Busy(waiting[0])
            return self._machine_lock(holder)
        lock = self._wait_for_turn(queue.Ticket(self.root, holder), holder)
        return lock if lock is not None else contextlib.nullcontext()

    def run(self, lock: Lock | None) -> int:
        """Run the job, with restarts, to its end. `lock`: as `turn` gave it. Returns the supervisor's exit code."""
        if lock is None:
            state, reason = stopped(self.stops.expired, "stopped while it waited for its turn")
            return self._finish(state, None, reason)
        self.status.tell(state="running", reason=None)
        self.rule.begin()
        argv = list(self.plan["argv"])
        with open(self.folder.log, "ab", buffering=0) as log, open(self.folder.log, "rb") as echo:
            while True:
                since = echo.seek(0, os.SEEK_END)
                self.status.metrics.begin()
                try:
                    job = self._start(argv, log, lock)
                except OSError as error:
                    return self._finish("failed", None, f"the job could not be started: {error}")
                self._watch(job, echo)
                state, reason = self._judge(job.returncode)
                evidence = self.status.evidence(since) if state == "failed" else None
                if state != "failed" or self.stops.asked:
                    return self._finish(state, job.returncode, reason, evidence)
                ending = self.status.metrics.end.get("reason")
                crash = restarts.Crash(job.returncode, ending, self.ran, self.status.values["restarts"])
                why_not = self.rule.refusal(crash)
                if why_not is not None:
                    reason = f"{reason}; {why_not}" if why_not else reason
                    return self._finish("failed", job.returncode, reason, evidence)
                if not self._pause(f"{reason}; {self.rule.words()}", evidence):
                    state, reason = stopped(self.stops.expired, "stopped before it was started again")
                    return self._finish(state, job.returncode, reason)
                argv = restarts.resuming(argv)

    def _wait_for_turn(self, ticket: queue.Ticket, holder: dict[str, Any]) -> Lock | None:
        self.status.tell(state="planned")
        try:
            while not self.stops.asked:
                ahead = ticket.ahead()
                try:
                    if not ahead:
                        return self._machine_lock(holder, self.status.beat)
                    before = ahead[-1]
                except Busy as busy:
                    before = busy.holder
                place = f" (place {len(ahead) + 1} in the queue)" if ahead else ""
                reason = f"waiting for run {before.get('run_id', 'of another command')}{place}"
                if self.status.values["reason"] != reason:
                    self.status.tell(reason=reason)
                self.status.beat()
                time.sleep(POLL_S)
            return None
        finally:
            ticket.leave()

    def _machine_lock(self, holder: dict[str, Any], tick: Callable[[], None] = lambda: None) -> Lock:
        """Acquire the lock or raise Busy. Waits `grace_s` for a job that outlived its supervisor, then kills it."""
        deadline = self.clock.monotonic() + self.grace_s
        while True:
            try:
                return Lock(Path(self.root.busy_lock), holder).acquire()
            except Busy as busy:
                owner, job = busy.holder.get("pid"), busy.holder.get("job_pid")
                if not owner or not job or processes.is_alive(int(owner)):
                    raise
                # The lock is held but the supervisor is dead: so the job is alive, and the pid has not been reused.
                if self.clock.monotonic() > deadline:
                    processes.kill_tree(int(job))
                    deadline = self.clock.monotonic() + 10
            tick()
            time.sleep(POLL_S)

    def _start(self, argv: list[str], log: IO[bytes], lock: Lock) -> subprocess.Popen[bytes]:
        """Start the job in its own session, so that Ctrl-C in `attach` reaches this process and not the ranks."""
        options: dict[str, Any] = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options.update(start_new_session=True, pass_fds=(lock.fileno(),))
        self.oom_kills = processes.oom_kills()
        self.sieve = redacting_log.before(Path(self.folder.log), self.hidden)
        try:
            job = subprocess.Popen(
                argv,
                cwd=self.plan["cwd"],
                env={**os.environ, **self.plan["env"], **self.secrets},
                stdin=subprocess.PIPE,
                stdout=self.sieve.stdin if self.sieve else log,
                stderr=subprocess.STDOUT,
                **options,
            )
        finally:
            if self.sieve and self.sieve.stdin:
                self.sieve.stdin.close()  # the job holds the pipe now
        self.group.hold(getattr(job, "_handle", 0))  # torchrun takes a second before it starts the first rank
        lock.write({**lock.holder, "job_pid": job.pid})
        self.ran = not self.place
        self.status.tell(state="running", job_pid=job.pid, job_started=self.clock.wall(), reason=None)
        return job

    def _watch(self, job: subprocess.Popen[bytes], echo: IO[bytes]) -> None:
        """Wait until the job and all processes that it started have ended."""
        while job.poll() is None:
            self._listen_to_stop(job)
            self._echo(echo)
            if not self.ran:  # torchrun does not report when all machines have joined: the number of ranks tells
                self.ran = len(processes.descendants(job.pid)) >= int(self.plan["processes"])
            self._look_for_guard()
            self.status.beat()
            time.sleep(POLL_S)
        self._end_what_is_left(job, echo)

    def _listen_to_stop(self, job: subprocess.Popen[bytes]) -> None:
        if self.stop_deadline is None and self.stops.asked:
            self.stop_deadline = self.clock.monotonic() + self.grace_s
            why = self.stops.expired
            asked = f"{why}: waiting for the checkpoint" if why else "stop requested; waiting for the checkpoint"
            self.status.tell(reason=asked)
            _close(job)
        late = self.stop_deadline is not None and self.clock.monotonic() > self.stop_deadline
        if (late or self.stops.at_once) and not self.killed:
            self.killed = True
            processes.kill_tree(job.pid)

    def _end_what_is_left(self, job: subprocess.Popen[bytes], echo: IO[bytes]) -> None:
        """End ranks that outlive torchrun: close the pipe, wait for their checkpoint, then kill them."""
        _close(job)
        if job.returncode and not self.stops.asked:
            self.status.tell(reason=f"the job {how(job.returncode)}; waiting for its remaining processes")
        deadline = self.clock.monotonic() + (0 if self.killed else self.grace_s)
        while self._others() and self.clock.monotonic() < deadline and not self.stops.at_once:
            processes.reap()
            self._echo(echo)
            self.status.beat()
            time.sleep(POLL_S)
        processes.kill_tree(os.getpid(), keep_root=True, spare=self._not_the_jobs())
        self.group.end()
        processes.reap()
        self._wait(SIEVE_LIMIT_S, lambda: self.sieve is None or self.sieve.poll() is not None)
        self._echo(echo)

    def _others(self) -> bool:
        """Whether any process of the job is alive."""
        return bool(processes.descendants(os.getpid(), spare=self._not_the_jobs())) or self.group.count() > 0

    def _not_the_jobs(self) -> set[int]:
        """Pids that do not belong to the job: nvidia-smi, the masking process, and a guard that was started here."""
        sieve_pid = self.sieve.pid if self.sieve else None
        return {pid for pid in (self.status.gauges.gpus.pid, sieve_pid, self.guard_pid) if pid is not None}

    def _look_for_guard(self) -> None:
        """Restart the guard if it was killed and the machine has limits. Outside our image nothing else does."""
        now = self.clock.monotonic()
        if now - self.guard_seen_at < GUARD_EVERY_S:
            return
        self.guard_seen_at = now
        if Path(self.root.guard).exists() and not is_held(Path(self.root.guard_lock)):
            with contextlib.suppress(OSError):
                argv = [sys.executable, "-m", "deploy.pod.guard", str(self.root.path)]
                self.guard_pid = verbs.spawn(argv, str(CODE))

    def _judge(self, exit_code: int) -> tuple[str, str | None]:
        """Return final state and reason, from the exit code and the job's last event."""
        self.status.metrics.read()
        last = self.status.metrics.end
        return judge(
            Ending(
                exit_code,
                event=last.get("reason"),
                message=last.get("message") or None,
                ran=self.ran,
                nodes=int(self.plan.get("nodes", 1)),
                is_follower=self.is_follower,
                stop_asked=self.stops.asked,
                stop_passed_on=self.stop_deadline is not None,
                expired=self.stops.expired,
                oom_kills=processes.oom_kills() - self.oom_kills,
                killed_after_s=self.grace_s if self.killed else None,
            )
        )

    def _pause(self, reason: str, evidence: list[str] | None) -> bool:
        """Wait before a restart. Returns False if the run was stopped meanwhile."""
        count = self.status.values["restarts"]
        crash = {"time": self.clock.wall(), "reason": reason, "evidence": evidence}
        self.status.tell(state="restarting", restarts=count + 1, reason=reason, last_crash=crash, job_pid=None)
        return self._wait(restarts.pause_s(self.limits.restart_pause_s, count), lambda: self.stops.asked)

    def _wait(self, seconds: float, until: Callable[[], bool]) -> bool:
        deadline = self.clock.monotonic() + seconds
        while self.clock.monotonic() < deadline:
            if until():
                return False
            self.status.beat()
            time.sleep(POLL_S)
        return True

    def _finish(self, state: str, exit_code: int | None, reason: str | None, evidence: list[str] | None = None) -> int:
        if state == "failed" and reason:
            self.echo(self.status.end_log(reason))
        ended = self.clock.wall()
        self.status.tell(state=state, exit_code=exit_code, reason=reason, evidence=evidence, ended=ended)
        self.stops.done()
        return 0 if state in ("succeeded", "stopped", "expired") else 1

    def notify(self) -> None:
        """Tell the webhook how the run ended. A failure is a line in the log."""
        if self.is_follower or self.status.values["ended"] is None:
            return
        self.notifier.tell(Redactor(self.hidden)(_how_it_ended(self.plan, self.status)))
        if failure := self.notifier.wait():
            with contextlib.suppress(OSError), open(self.folder.log, "ab") as log:
                log.write(f"notification not delivered: {failure}\n".encode())

    def _echo(self, log: IO[bytes]) -> None:
        text = log.read()
        if text:
            self.echo(text)


@contextlib.contextmanager
def _images_in_use(plan: dict[str, Any]) -> Iterator[None]:
    """Keep staged images open from the queue to the last restart: pod/agent/ram.py sees that they are needed."""
    with contextlib.ExitStack() as stack:
        if os.name == "posix" and plan.get("stage"):
            with contextlib.suppress(OSError):
                stack.enter_context(open(plan["data_path"], "rb"))
        yield


def _refuse(folder: RunFolder, plan: dict[str, Any], busy: Busy) -> int:
    """Report which run holds the machine. Leaves status.json unchanged if it is this same run."""
    reason = f"the machine is busy with run {busy.holder.get('run_id', 'of another command')}"
    print(reason, file=sys.stderr)
    if busy.holder.get("run_id") != plan["run_id"]:
        now = time.time()
        status = {"run_id": plan["run_id"], "state": "failed", "attempt": plan["attempt"], "reason": reason}
        tell_json(Path(folder.status), {**status, "pid": os.getpid(), "heartbeat": now, "ended": now}, durable=True)
    return 2


def _how_it_ended(plan: dict[str, Any], status: StatusFile) -> str:
    """The end of a run in one line."""
    told = status.values
    facts = [str(told["reason"])] if told["reason"] else []
    if status.metrics.accuracy is not None:
        facts.append(f"accuracy {status.metrics.accuracy:.1%}")
    minutes, seconds = divmod(max(0, round(told["ended"] - told["started"])), 60)
    facts.append(f"{minutes} min {seconds} s" if minutes else f"{seconds} s")
    if told["spend_usd"]:
        facts.append(f"${told['spend_usd']:.2f}")
    on = f" on {plan['target']}" if plan.get("target") else ""
    return f"run {told['run_id']} {told['state']}{on}: {', '.join(facts)}"


def _close(job: subprocess.Popen[bytes]) -> None:
    if job.stdin is not None:
        with contextlib.suppress(OSError):
            job.stdin.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
