"""Owns one job on the machine: starts it, keeps its log and its status, and sees that all of it ends.

    python -m deploy.pod.supervisor <run folder>

The job's own output goes straight into train.log and is copied from there to this process's output, so that the last
words of a job are kept even when this process is killed. The job watches its standard input: when that pipe closes, on
purpose or because this process died, it makes a checkpoint and leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from deploy.pod import processes
from deploy.pod.folder import HEARTBEAT_S, RunFolder, read_json, write_json
from deploy.pod.lock import Busy, Lock

POLL_S = 0.1
RESULT_OF_END = {"done": "succeeded", "stopped": "stopped", "wrong_use": "failed", "failed": "failed"}


def main(argv: list[str]) -> int:
    folder = RunFolder(Path(argv[1]).absolute())
    plan = read_json(Path(folder.plan))
    if not plan:
        print(f"{folder.plan} is missing or not whole", file=sys.stderr)
        return 2
    processes.adopt_orphans()
    try:
        with _machine_lock(plan) as lock:
            return Supervisor(folder, plan, lock).run()
    except Busy as busy:
        return _refuse(folder, plan, busy)


class Supervisor:
    """One attempt of one run, from its first heartbeat to its last."""

    def __init__(self, folder: RunFolder, plan: dict[str, Any], lock: Lock) -> None:
        self.folder = folder
        self.plan = plan
        self.lock = lock
        self.metrics = MetricsTail(Path(folder.metrics))
        self.terminations = 0
        self.stop_deadline: float | None = None
        self.killed = False
        self.last_beat = 0.0
        self.echo_alive = True
        self.status: dict[str, Any] = {
            "run_id": plan["run_id"],
            "state": "running",
            "attempt": plan["attempt"],
            "pid": os.getpid(),
            "job_pid": None,
            "started": time.time(),
            "heartbeat": time.time(),
            "ended": None,
            "exit_code": None,
            "reason": None,
            "epoch": None,
            "step": None,
            "images_per_s": None,
            "spend_usd": 0.0,
            "deadline": None,
        }

    def run(self) -> int:
        self._listen_to_signals()
        self._beat(durable=True)
        with open(str(self.folder.log), "ab", buffering=0) as log, open(str(self.folder.log), "rb") as echo:
            echo.seek(0, os.SEEK_END)
            try:
                job = self._start(log)
            except OSError as error:
                return self._finish("failed", None, f"the job could not be started: {error}")
            while job.poll() is None:
                self._listen_to_stop(job)
                self._echo(echo)
                self._beat()
                time.sleep(POLL_S)
            self._end_what_is_left(job, echo)
        return self._finish(*self._judge(job.returncode))

    def _start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """The job in a session of its own, so that Ctrl-C in `attach` reaches this process and not the ranks."""
        options: dict[str, Any] = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options |= {"start_new_session": True, "pass_fds": (self.lock.fileno(),)}
        job = subprocess.Popen(
            self.plan["argv"],
            cwd=self.plan["cwd"],
            env={**os.environ, **self.plan["env"]},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            **options,
        )
        self.status["job_pid"] = job.pid
        self.lock.write({**self.lock.holder, "job_pid": job.pid})
        self._beat(durable=True)
        return job

    def _listen_to_signals(self) -> None:
        """SIGTERM and Ctrl-C ask for an end, twice for an end at once; a closed terminal means nothing."""

        def ask(*_: object) -> None:
            self.terminations += 1

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)
        if sys.platform == "win32":
            signal.signal(signal.SIGBREAK, ask)
        else:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _listen_to_stop(self, job: subprocess.Popen[bytes]) -> None:
        asked = self.terminations > 0 or Path(self.folder.stop_request).exists()
        if asked and self.stop_deadline is None:
            self.stop_deadline = time.monotonic() + float(self.plan["grace_s"])
            self.status["reason"] = "stop was asked for; waiting for the checkpoint"
            self._beat(durable=True)
            _close(job)
        late = self.stop_deadline is not None and time.monotonic() > self.stop_deadline
        if (late or self.terminations > 1) and not self.killed:
            self.killed = True
            processes.kill_tree(job.pid)

    def _end_what_is_left(self, job: subprocess.Popen[bytes], echo: IO[bytes]) -> None:
        """Ranks may outlive torchrun: the closed pipe lets them make their checkpoint, the kill sees that they end."""
        _close(job)
        deadline = time.monotonic() + (0 if self.killed else float(self.plan["grace_s"]))
        while processes.descendants(os.getpid()) and time.monotonic() < deadline and self.terminations < 2:
            processes.reap()
            self._echo(echo)
            self._beat()
            time.sleep(POLL_S)
        processes.kill_tree(os.getpid(), keep_root=True)
        processes.reap()
        self._echo(echo)

    def _judge(self, exit_code: int) -> tuple[str, int, str | None]:
        """Final state, exit code and reason, from how the job left and what it said last."""
        self.metrics.read()
        ending, said = self.metrics.end.get("reason"), self.metrics.end.get("message") or None
        if self.killed:
            return (
                "stopped",
                exit_code,
                f"ended by force: no answer to the stop within {self.plan['grace_s']} s",
            )
        if exit_code != 0:
            how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
            return (
                "failed",
                exit_code,
                said if said and ending in ("wrong_use", "failed") else f"the job {how}",
            )
        if ending:
            return RESULT_OF_END.get(ending, "failed"), exit_code, said
        if self.stop_deadline is not None:
            return "stopped", exit_code, "stopped before training began"
        return "failed", exit_code, "the job ended without saying that it was done"

    def _finish(self, state: str, exit_code: int | None, reason: str | None) -> int:
        self.status |= {"state": state, "exit_code": exit_code, "reason": reason, "ended": time.time()}
        self._beat(durable=True)
        with contextlib.suppress(OSError):
            os.unlink(str(self.folder.stop_request))
        return 0 if state in ("succeeded", "stopped") else 1

    def _beat(self, durable: bool = False) -> None:
        if not durable and time.monotonic() - self.last_beat < HEARTBEAT_S:
            return
        self.last_beat = time.monotonic()
        self.metrics.read()
        self.status |= self.metrics.position
        self.status["heartbeat"] = time.time()
        with contextlib.suppress(OSError):  # a full disk must not end the job; the old heartbeat tells the truth
            write_json(Path(self.folder.status), self.status, durable)

    def _echo(self, log: IO[bytes]) -> None:
        """Show new log bytes in the terminal that `attach` opens, for as long as there is one."""
        text = log.read()
        if not text or not self.echo_alive:
            return
        try:
            os.write(sys.stdout.fileno(), text)
        except (OSError, ValueError, AttributeError):
            self.echo_alive = False


class MetricsTail:
    """What this attempt has written to metrics.jsonl so far: where it is, and how it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self.position: dict[str, Any] = {}
        self.end: dict[str, Any] = {}

    def read(self) -> None:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        for key in ("epoch", "step", "images_per_s"):
            if event.get(key) is not None:
                self.position[key] = event[key]
        if event.get("event") == "end":
            self.end = event


def _machine_lock(plan: dict[str, Any]) -> Lock:
    """The lock of the machine. A job that outlived its supervisor may be making its checkpoint: it is waited for."""
    path = Path(plan["busy_lock"])
    holder = {"run_id": plan["run_id"], "attempt": plan["attempt"], "pid": os.getpid()}
    deadline = time.monotonic() + float(plan["grace_s"])
    while True:
        try:
            return Lock(path, holder).acquire()
        except Busy as busy:
            owner, job = busy.holder.get("pid"), busy.holder.get("job_pid")
            if not owner or not job or processes.is_alive(int(owner)):
                raise
            # The lock is held and its supervisor is gone: so the job it names lives, and its pid is not a stranger's.
            if time.monotonic() > deadline:
                processes.kill_tree(int(job))
                deadline = time.monotonic() + 10
        time.sleep(POLL_S)


def _refuse(folder: RunFolder, plan: dict[str, Any], busy: Busy) -> int:
    """Say who has the machine; the folder's status is left alone when it is that very run's."""
    reason = f"the machine is busy with run {busy.holder.get('run_id', 'of another command')}"
    print(reason, file=sys.stderr)
    if busy.holder.get("run_id") != plan["run_id"]:
        now = time.time()
        status = {"run_id": plan["run_id"], "state": "failed", "attempt": plan["attempt"], "reason": reason}
        write_json(Path(folder.status), {**status, "pid": os.getpid(), "heartbeat": now, "ended": now})
    return 2


def _close(job: subprocess.Popen[bytes]) -> None:
    if job.stdin is not None:
        with contextlib.suppress(OSError):
            job.stdin.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
