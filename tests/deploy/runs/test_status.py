"""What a job's status and events say, at the borders of what counts."""

from __future__ import annotations

import errno
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import pytest

from deploy import border
from deploy.errors import StepFailed, WrongUse
from deploy.pod.base.folder import RunFolder, write_json
from deploy.pod.base.heartbeat import LOST_AFTER_S
from deploy.pod.base.job_log import EVIDENCE_BYTES
from deploy.runs import job
from deploy.runs.feed import Feed
from deploy.runs.job import Events, Status, follow
from deploy.shell import LocalShell
from deploy.specs.plan import Plan, make
from deploy.specs.request import Request
from tests.deploy.specs.test_plan import FACTS
from tests.deploy.support.rented import Noting, Rented


class At(LocalShell):
    """This computer at a fixed time."""

    def __init__(self, now: float) -> None:
        self.now = now

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        return self.now if verb == "clock" else super().call(verb, again=again, **arguments)


def status(folder: Path, **told: Any) -> RunFolder:
    write_json(folder / "status.json", {"state": "running", "attempt": 1, "heartbeat": 1000.0, **told})
    return RunFolder(folder)


def looked(folder: Path, now: float, **told: Any) -> Status:
    seen = job.look(At(now), status(folder, **told))
    assert seen is not None
    return seen


@pytest.mark.parametrize(
    ("age_s", "told", "state"),
    [
        (LOST_AFTER_S, {}, "running"),
        (LOST_AFTER_S + 1, {}, "lost"),
        (LOST_AFTER_S + 1, {"state": "succeeded"}, "succeeded"),  # the end of a run needs no heartbeat
        (0, {"state": "failed"}, "failed"),
    ],
)
def test_a_live_job_without_a_heartbeat_is_lost(
    tmp_path: Path, age_s: float, told: Mapping[str, Any], state: str
) -> None:
    seen = looked(tmp_path, 1000.0 + age_s, **told)
    assert (seen.state, seen.final) == (state, state != "running")
    assert (seen.reason or "").startswith("no heartbeat for") is (state == "lost")


@pytest.mark.parametrize(("now", "age_s"), [(1002.26, 2.3), (1000.0, 0.0), (999.0, 0.0)])
def test_the_age_of_a_heartbeat(tmp_path: Path, now: float, age_s: float) -> None:
    """A clock that was set back makes no age below zero."""
    assert looked(tmp_path, now).heartbeat_age_s == age_s


def test_a_status_that_is_missing_or_damaged_is_none(tmp_path: Path) -> None:
    assert job.look(LocalShell(), RunFolder(tmp_path)) is None
    (tmp_path / "status.json").write_text("{", encoding="utf-8", newline="\n")
    assert job.look(LocalShell(), RunFolder(tmp_path)) is None
    (tmp_path / "status.json").write_text("{}", encoding="utf-8", newline="\n")
    assert job.look(LocalShell(), RunFolder(tmp_path)) is None


def test_a_job_that_says_nothing_of_its_cost_has_none() -> None:
    assert (Status("running", 1).spend_usd, Status("running", 1).gpus) == (0.0, ())


def test_an_end_is_asked_of_a_live_job_only(tmp_path: Path) -> None:
    shell = LocalShell()
    job.end(shell, RunFolder(tmp_path), 0)
    for state, is_asked in (("succeeded", False), ("running", True)):
        folder = status(tmp_path, state=state, heartbeat=time.time())
        job.end(shell, folder, 0)
        assert Path(folder.stop_request).exists() is is_asked


def test_an_end_is_awaited_for_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.001)
    shell = LocalShell()
    assert job.wait_for_end(shell, RunFolder(tmp_path), 30) is None
    folder = status(tmp_path, heartbeat=time.time())
    seen = job.wait_for_end(shell, folder, 0.01)
    assert (seen and seen.state) == "running"

    class Ending(LocalShell):
        asked = 0

        def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
            self.asked += verb == "read"
            if self.asked == 3:
                status(tmp_path, state="stopped")
            return super().call(verb, again=again, **arguments)

    seen = job.wait_for_end(Ending(), folder, 30)
    assert (seen and seen.state) == "stopped"


def test_positions_begin_at_the_beginning(tmp_path: Path) -> None:
    folder, shell = RunFolder(tmp_path), LocalShell()
    assert job.position(shell, folder) == job.Position(0, 0)
    Path(folder.log).write_text("one\n", encoding="utf-8", newline="\n")
    assert job.position(shell, folder) == job.Position(4, 0)
    Path(folder.metrics).write_text('{"event": "a"}\n', encoding="utf-8", newline="\n")
    assert job.position(shell, folder) == job.Position(4, 15)
    assert list(follow(shell, folder)) == [("one\n", [{"event": "a"}])]


def test_every_status_is_told_and_the_last_lines_come_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.001)
    folder, seen = status(tmp_path, heartbeat=time.time()), []

    def noted(told: Status) -> None:
        seen.append(told.state)
        with open(folder.log, "a", encoding="utf-8", newline="\n") as log:
            log.write(f"{told.state}\n")
        status(tmp_path, state="succeeded")

    assert "".join(text for text, _ in follow(LocalShell(), folder, on_status=noted)) == "running\nsucceeded\n"
    assert seen == ["running", "succeeded"]


def test_a_long_log_and_long_metrics_are_read_to_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either may be longer than the other."""
    monkeypatch.setattr(job, "EVENTS_BYTES", 40)
    folder, shell = RunFolder(tmp_path), LocalShell()
    lines = [json.dumps({"event": "step", "step": step, "loss": 1.0}) for step in range(30)]
    Path(folder.metrics).write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
    Path(folder.log).write_text("short\n", encoding="utf-8", newline="\n")
    told = list(follow(shell, folder))
    assert "".join(text for text, _ in told) == "short\n"
    assert [event["step"] for _, events in told for event in events] == list(range(30))
    assert [event["step"] for event in job.all_events(shell, folder.metrics)] == list(range(30))
    assert job.all_events(shell, tmp_path / "nothing") == []
    long = "x" * job.PIECE_BYTES + "y\n"
    Path(folder.log).write_text(long, encoding="utf-8", newline="\n")
    Path(folder.metrics).write_text('{"event": "a"}\n', encoding="utf-8", newline="\n")
    told = list(follow(shell, folder))
    assert "".join(text for text, _ in told) == long
    assert [event for _, events in told for event in events] == [{"event": "a"}]


class Endless(LocalShell):
    """A machine whose metrics grow as fast as they are read."""

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
        return b"\n" * (limit or 0) if path.name == "metrics.jsonl" else super().read(path, offset, limit)


def test_metrics_that_grow_while_they_are_read_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their end is where it was: a machine cannot keep a command busy for ever."""
    monkeypatch.setattr(job, "EVENTS_BYTES", 40)
    folder = RunFolder(tmp_path)
    Path(folder.metrics).write_text("\n", encoding="utf-8", newline="\n")
    assert job.all_events(Endless(), folder.metrics) == []
    assert Feed(Endless(), folder).read(Endless()).events == []


@pytest.mark.parametrize(("bytes_more", "is_kept"), [(0, True), (1, False)])
def test_a_line_longer_than_any_event_is_dropped(tmp_path: Path, bytes_more: int, is_kept: bool) -> None:
    file = tmp_path / "metrics.jsonl"
    line = '{"event": "a", "x": "' + "x" * (border.EVENT_BYTES - 23 + bytes_more) + '"}'
    assert len(line) == border.EVENT_BYTES + bytes_more
    events = Events(LocalShell(), file)
    file.write_text(line, encoding="utf-8", newline="\n")
    assert events.read() == []
    with file.open("a", encoding="utf-8", newline="\n") as more:
        more.write('\n{"event": "b"}\n')
    assert [event["event"] for event in events.read()] == (["a", "b"] if is_kept else ["b"])


def planned(tmp_path: Path) -> tuple[Rented, Plan]:
    rented = Rented(tmp_path)
    return rented, make(rented.settings, Request(), FACTS, tryout=False)


def test_a_run_of_another_folder_is_ended_with_a_program_that_the_computer_has(tmp_path: Path) -> None:
    """Windows has no `touch`."""
    _, made = planned(tmp_path)
    folder = RunFolder(PureWindowsPath(r"C:\\a\\runs\\new"))
    refused = job._busy("the machine is busy with run old", folder, made).next_command
    words = shlex.split(str(refused).partition(" -- ")[2])
    assert words[:2] == ["python", "-c"]
    assert words[3].replace("\\", "/") == "C:/a/runs/old/stop.request"
    subprocess.run([sys.executable, *words[1:3], str(tmp_path / "made")], check=True)
    assert (tmp_path / "made").read_bytes() == b""


def test_a_start_is_over_when_this_attempts_supervisor_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status of another attempt is no answer. A run that cannot begin because of another one says so."""
    monkeypatch.setattr(job, "POLL_S", 0.003)
    monkeypatch.setattr(job, "START_LIMIT_S", 0.05)
    rented, made = planned(tmp_path)
    made = replace(made, grace_s=0)
    machine = rented.machine()
    folder = RunFolder(machine.path(made.run_dir))
    place = Path(folder.path)

    def wait() -> None:
        job._wait_until_started(Noting(), folder, made, machine)

    with pytest.raises(StepFailed, match="did not answer after its start") as failed:
        wait()
    assert str(failed.value.next_command).endswith(", on the machine)")
    now = {"heartbeat": time.time(), "attempt": made.attempt}
    status(place, **{**now, "attempt": made.attempt + 1})
    with pytest.raises(StepFailed):
        wait()
    for told in ({"state": "running"}, {"state": "failed", "started": 5.0}, {"state": "stopped"}):
        status(place, **now, **told)
        wait()
    monkeypatch.setattr(job, "START_LIMIT_S", 0.0)
    made = replace(made, grace_s=30)  # a job of an earlier attempt may take that long to end
    wait()
    status(place, **now, state="failed", reason="run b is at work here")
    with pytest.raises(WrongUse, match=r"run b is at work here: wait for it$"):
        wait()


def test_evidence_is_of_the_last_32_kib(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for size in (EVIDENCE_BYTES - 1, EVIDENCE_BYTES, EVIDENCE_BYTES + 800):
        Path(folder.log).write_text("x" * size, encoding="utf-8", newline="\n")
        assert [len(line) for line in job.last_lines(LocalShell(), folder)] == [min(size, EVIDENCE_BYTES)]


class Tmux(Noting):
    """A machine with tmux, which starts what is noted."""

    def __init__(self, folder: Path, attempt: int, *, fails: bool = False) -> None:
        super().__init__()
        self.folder, self.attempt, self.fails = folder, attempt, fails
        self.ran: list[list[str]] = []

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        if verb == "environment_for":
            Path(arguments["path"]).write_text("{}", encoding="utf-8", newline="\n")
            return True
        if verb == "run":
            self.ran.append(arguments["argv"])
            status(self.folder, attempt=self.attempt, heartbeat=time.time())
            return (1 if self.fails else 0, b"", b"no server")
        return super().call(verb, again=again, **arguments)


def test_a_job_starts_in_tmux_with_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    """Its plan is there first, and its environment is in a private file, which goes if the start fails."""
    rented, made = planned(tmp_path)
    machine = rented.machine()
    folder = tmp_path / "run"
    made = replace(made, run_dir=str(folder))
    of_run = RunFolder(folder)
    status(folder, state="failed", attempt=made.attempt)
    Path(of_run.stop_request).write_text("", encoding="utf-8", newline="\n")
    shell = Tmux(folder, made.attempt)
    assert job.start(shell, machine, made, "socket") == "tmux"
    assert shell.ran[0][:3] == ["tmux", "-L", "socket"]
    assert shell.ran[0][-4:] == [machine.python, "-m", "deploy.pod.supervisor", str(folder)]
    assert (shell.spawned, Path(of_run.stop_request).exists(), Path(of_run.environment).exists()) == ([], False, True)
    assert json.loads(Path(of_run.plan).read_text(encoding="utf-8"))["run_id"] == made.run_id
    unusable = Tmux(folder, made.attempt, fails=True)
    assert job.start(unusable, machine, made, "socket") == "detached"
    assert unusable.spawned == [shell.ran[0][-4:]]

    class Exhausted(Tmux):
        def spawn(self, *_: Any, **__: Any) -> None:
            raise BlockingIOError(errno.EAGAIN, "no process")

    with pytest.raises(BlockingIOError):
        job.start(Exhausted(folder, made.attempt, fails=True), machine, made, "socket")
    assert not Path(of_run.environment).exists()


def test_the_terminal_of_a_live_job_is_shown_read_only(tmp_path: Path) -> None:
    class Live(LocalShell):
        def call(self, verb: str, **_: Any) -> Any:
            return "/usr/bin/tmux" if verb == "which" else (0, b"", b"")

    folder = RunFolder(tmp_path / "a.b")
    argv = ["tmux", "-u", "-L", "socket", "attach-session", "-r", "-t", "=a_b"]
    assert job.attach_argv(Live(), "socket", folder, write=False) == argv
    assert job.attach_argv(Live(), "socket", folder, write=True) == [each for each in argv if each != "-r"]

    class Bare(LocalShell):
        def call(self, verb: str, **_: Any) -> Any:
            assert verb == "which"

    with pytest.raises(StepFailed, match="tmux is not installed on the machine"):
        job.attach_argv(Bare(), "socket", folder, write=False)
