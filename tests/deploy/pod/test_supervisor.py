"""Real supervisors with real jobs: how each job ends, and what its status says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.pod.base import processes
from deploy.pod.base.folder import read_json, write_json
from deploy.pod.base.lock import Busy, Lock, is_held
from deploy.runs import job
from tests.deploy.conftest import SOURCE, CutAfterReading, SoonAfter, wait_until
from tests.deploy.support.supervised import DEAF, GOOD, OBEDIENT, TELL, Supervised
from tests.support.load import under_load

# A rank in a session of its own, as torchrun starts it. It writes its checkpoint at the end of its input.
RANK = 'import sys; sys.stdin.read(); open("checkpoint", "w").write("whole")'
ORPHANING = TELL + (
    f"subprocess.Popen([sys.executable, '-c', {RANK!r}], start_new_session=True)\n"
    "print('begun', flush=True); time.sleep(600)"
)
DEAF_RANK = "import time; time.sleep(600)"
LEAVING = TELL + (
    f"rank = subprocess.Popen([sys.executable, '-c', {DEAF_RANK!r}], start_new_session=True)\n"
    "open('rank', 'w').write(str(rank.pid)); sys.exit(3)"
)


def test_success_is_told(make: Callable[..., Supervised]) -> None:
    """The status has state, exit code and position. The log is kept and copied to the supervisor's output."""
    run = make().start(GOOD)
    code, status = run.end()
    assert (code, status["state"], status["exit_code"], status["reason"]) == (0, "succeeded", 0, None)
    assert (status["epoch"], status["step"], status["images_per_s"]) == (1, 5, 9.5)
    assert Path(run.folder.log).read_text(encoding="utf-8").strip() == "grüße"
    assert run.output.decode("utf-8").strip() == "grüße"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit(7)", "the job ended with exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "the job was killed by signal 9"),
        (TELL + 'tell(event="end", reason="wrong_use", message="give 3"); sys.exit(1)', "give 3"),
        (TELL + 'tell(event="end", reason="stopped", message="asked"); sys.exit(1)', "the job ended with exit code 1"),
        ("pass", "the job exited with code 0 but did not report its end"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX: run on Linux or macOS")
def test_failure_is_told_with_its_reason(make: Callable[..., Supervised], script: str, reason: str) -> None:
    """The reason is the job's own message about its failure; without one, the exit code or the signal."""
    code, status = make().start(script).end()
    assert (code, status["state"], status["reason"]) == (1, "failed", reason)


@pytest.fixture
def little_memory(tmp_path: Path) -> Iterator[Path]:
    """The file of a cgroup with 64 MiB: a process that writes its number there belongs to it."""
    for above, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", above, f"sniperface-{tmp_path.name}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(64 << 20))
                yield group / "cgroup.procs"
                return
        finally:
            wait_until(lambda group=group: not (group / "cgroup.procs").read_text().strip())
            group.rmdir()
    pytest.skip("needs the right to make a cgroup with a limit of memory: run this as root on Linux")


def test_a_process_that_the_system_killed_for_memory_is_told(
    make: Callable[..., Supervised], little_memory: Path
) -> None:
    """Supervisor and job are in one control group, as in a container."""
    inside = (
        f"import os, runpy; open({str(little_memory)!r}, 'w').write(str(os.getpid())); "
        "runpy.run_module('deploy.pod.supervisor', run_name='__main__')"
    )
    _, status = make().start("bytearray(1 << 30)", launcher=("-c", inside)).end()
    assert status["reason"].startswith("the job was killed by signal 9; meanwhile memory ran out")


def test_a_program_that_is_not_there_is_a_failure(make: Callable[..., Supervised]) -> None:
    """The supervisor reports the failed start in the status and does not raise."""
    run = make()
    run.path.mkdir(parents=True)
    plan = {"run_id": "a", "attempt": 1, "argv": ["/no/such"], "cwd": str(run.path), "env": {}, "grace_s": 1}
    write_json(Path(run.folder.plan), {**plan, "busy_lock": str(run.path.parent / "busy.lock")})
    subprocess.run(
        [sys.executable, "-m", "deploy.pod.supervisor", str(run.path)], cwd=SOURCE, check=False, timeout=under_load(30)
    )
    assert run.status["state"] == "failed"
    assert "could not be started" in run.status["reason"]


def test_the_end_of_an_earlier_attempt_is_not_this_ones(make: Callable[..., Supervised]) -> None:
    """metrics.jsonl is one file for all attempts."""
    run = make()
    run.path.mkdir(parents=True)
    Path(run.folder.metrics).write_text('{"event": "end", "reason": "done"}\n')
    assert run.start("pass", attempt=2).end()[1]["state"] == "failed"


def ask_by_file(run: Supervised) -> None:
    Path(run.folder.stop_request).touch()


def ask_by_signal(run: Supervised) -> None:
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("ask", [ask_by_file, ask_by_signal])
def test_a_stop_closes_the_jobs_input(make: Callable[..., Supervised], ask: Callable[[Supervised], None]) -> None:
    """The job exits by itself; the stop request is removed afterwards."""
    run = make().start(OBEDIENT).begun()
    ask(run)
    code, status = run.end()
    assert (code, status["state"], status["reason"], status["exit_code"]) == (0, "stopped", "asked", 0)
    assert not Path(run.folder.stop_request).exists()


def test_a_deaf_job_is_ended_after_the_grace(make: Callable[..., Supervised]) -> None:
    """The reason says that it was ended by force."""
    run = make().start(DEAF, grace_s=0.5).begun()
    ask_by_file(run)
    _, status = run.end()
    assert status["state"] == "stopped"
    assert "by force" in status["reason"]
    assert not processes.is_alive(status["job_pid"])


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM cannot be caught on Windows: run on Linux or macOS")
def test_a_second_sigterm_does_not_wait(make: Callable[..., Supervised]) -> None:
    """The second signal ends the job at once, although the grace here is an hour."""
    run = make().start(DEAF, grace_s=3600).begun()
    ask_by_signal(run)
    wait_until(lambda: run.status.get("reason"))
    ask_by_signal(run)
    assert run.end()[1]["state"] == "stopped"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGHUP: run on Linux or macOS")
def test_a_closed_terminal_means_nothing(make: Callable[..., Supervised]) -> None:
    """Neither SIGHUP nor the closed output ends the job."""
    run = make().start(OBEDIENT.replace('print("begun", flush=True)', 'print("begun " * 20000, flush=True)'))
    assert run.process is not None
    assert run.process.stdout is not None
    run.process.stdout.close()
    run.begun().process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    heartbeat = run.status["heartbeat"]
    wait_until(lambda: run.status["heartbeat"] > heartbeat)
    ask_by_file(run)
    run.process.wait(timeout=under_load(30))
    assert run.status["state"] == "stopped"


def test_a_killed_supervisor_is_lost_and_its_job_ends(make: Callable[..., Supervised]) -> None:
    """Ten seconds later the run counts as lost. The job's input ends, so the job stops by itself."""
    run = make().start(OBEDIENT).begun()
    wait_until(lambda: run.status.get("job_pid"))
    assert run.process is not None
    run.process.kill()
    wait_until(
        lambda: '"stopped"' in Path(run.folder.metrics).read_text() if Path(run.folder.metrics).exists() else None
    )
    assert run.status["state"] == "running"  # the last status it wrote
    lost = job.look(SoonAfter(), run.folder)
    assert lost
    assert (lost.state, "no heartbeat" in (lost.reason or "")) == ("lost", True)


def test_a_line_that_breaks_while_it_is_asked_makes_nobody_look_lost(make: Callable[..., Supervised]) -> None:
    """A broken connection is not a stopped heartbeat: a command that follows the log would exit without a message."""
    run = make().start(OBEDIENT).begun()
    seen = job.look(CutAfterReading(), run.folder)
    assert seen
    assert seen.state == "running"
    ask_by_file(run)
    run.end()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are adopted on Linux only: run there")
def test_ranks_that_outlive_a_killed_job_make_their_checkpoint(make: Callable[..., Supervised]) -> None:
    """After torchrun is killed, its ranks see the end of their input. The supervisor waits for them."""
    run = make().start(ORPHANING).begun()
    os.kill(wait_until(lambda: run.status.get("job_pid")), signal.SIGKILL)
    _, status = run.end()
    assert (status["state"], status["reason"]) == ("failed", "the job was killed by signal 9")
    assert (run.path / "checkpoint").read_text() == "whole"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are adopted on Linux only: run there")
def test_nothing_is_left_of_a_job(make: Callable[..., Supervised]) -> None:
    """A rank that ignores the end of its input is killed after the grace."""
    run = make().start(LEAVING, grace_s=0.5)
    run.end()
    pid = int((run.path / "rank").read_text())
    wait_until(lambda: not processes.is_alive(pid))


def test_a_second_supervisor_is_refused(make: Callable[..., Supervised]) -> None:
    """The refused supervisor's status names the first run. One of the same run leaves the status unchanged."""
    first = make("first").start(OBEDIENT).begun()
    second = make("second").start(GOOD)
    assert second.end()[0] == 2
    assert (second.status["state"], second.status["reason"]) == ("failed", "the machine is busy with run first")
    again = Supervised(first.path)
    again.start(OBEDIENT)
    assert again.end()[0] == 2
    assert first.status["state"] == "running"
    ask_by_file(first)
    assert first.end()[1]["state"] == "stopped"


@pytest.mark.skipif(os.name == "nt", reason="a lock is not inherited on Windows: run on Linux or macOS")
def test_a_new_attempt_waits_for_the_job_of_a_killed_one(make: Callable[..., Supervised]) -> None:
    """Two jobs never write to one run folder. A job that does not exit is killed after the grace."""
    run = make().start(DEAF).begun()
    assert run.process is not None
    orphan = wait_until(lambda: run.status.get("job_pid"))
    run.process.kill()
    run.process.communicate()
    assert run.start(GOOD, attempt=2, grace_s=0.5).end()[1]["state"] == "succeeded"
    assert not processes.is_alive(orphan)


def test_a_lock_lives_as_long_as_its_holder(tmp_path: Path) -> None:
    """The lock names its holder, can be checked without being taken, and is free after the holder is killed."""
    path = tmp_path / "busy.lock"
    script = (
        "import sys; from pathlib import Path; from deploy.pod.base.lock import Lock\n"
        f"with Lock(Path({str(path)!r}), {{'run_id': 'one'}}).acquire(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=SOURCE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        assert is_held(path)
        assert read_json(path) == {"run_id": "one"}
        with pytest.raises(Busy) as caught:
            Lock(path, {}).acquire()
        assert caught.value.holder == {"run_id": "one"}
        holder.kill()
    assert not is_held(path)
    with Lock(path, {"run_id": "two"}).acquire():
        assert json.loads(path.read_text()) == {"run_id": "two"}
    assert read_json(path) == {}
    with contextlib.suppress(FileNotFoundError):
        assert not is_held(tmp_path / "none")
