"""Parts of a log: evidence for a message, and the lines of several machines."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import StepFailed, command
from deploy.pod.base.folder import RunFolder, write_json
from deploy.runs import job
from deploy.runs.documents import how_it_is, newest, next_commands, of_status
from deploy.runs.job import NodeLines, Status, last_lines, log_now
from deploy.shell import EVIDENCE_LINES, LocalShell
from tests.deploy.support.rented import Rented


def test_evidence_is_the_last_lines_that_say_something(tmp_path: Path) -> None:
    folder, shell = RunFolder(tmp_path), LocalShell()
    assert last_lines(shell, folder) == []
    Path(folder.log).write_bytes(b"")
    assert last_lines(shell, folder) == []
    Path(folder.log).write_bytes(b"x")
    assert last_lines(shell, folder) == ["x"]
    lines = [f"line {number}" for number in range(2000)]
    Path(folder.log).write_bytes("\n \n".join(lines).encode() + b"\xff\n")
    assert last_lines(shell, folder) == [*lines[-EVIDENCE_LINES:-1], "line 1999\ufffd"]


def test_a_line_of_a_machine_is_held_back_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    lines = NodeLines(LocalShell(), folder, 3)
    log = Path(folder.log)
    log.write_text("one\ntwo", encoding="utf-8", newline="\n")
    assert lines.read() == "3| one\n"
    assert lines.read() == ""
    assert lines.read(to_the_end=True) == "3| two\n"
    assert lines.read(to_the_end=True) == ""
    monkeypatch.setattr(job, "PIECE_BYTES", 4)
    with log.open("a", encoding="utf-8", newline="\n") as more:
        more.write("1234")
    assert lines.read() == ""
    with log.open("a", encoding="utf-8", newline="\n") as more:
        more.write("5")
    assert lines.read() == "3| 12345\n"  # a line without end does not grow for ever


@pytest.mark.parametrize("text", ["", "a\nb\n", "a\nbc", "1234567\n", "12345678", "\n" * 9, "one\n\ntwo\nthree"])
def test_a_log_of_many_pieces_is_printed_to_its_end(tmp_path: Path, text: str) -> None:
    """`logs` without `--follow` printed the first piece only, and so did `--follow` for a run on several machines."""
    folder = RunFolder(tmp_path)
    Path(folder.log).write_text(text, encoding="utf-8", newline="\n")
    lines = NodeLines(LocalShell(), folder, 0)
    lines.tail.most = 4
    assert "".join(lines.pieces(to_the_end=True)).splitlines() == [f"0| {line}" for line in text.splitlines()]
    assert "".join(log_now(LocalShell(), folder, most=4)) == text


def test_a_log_that_grows_while_it_is_printed_is_left(tmp_path: Path) -> None:
    """Its end is where it was: a machine cannot keep `logs` busy for ever."""
    folder = RunFolder(tmp_path)
    Path(folder.log).write_text("12345678", newline="\n")
    seen = ""
    for piece in log_now(LocalShell(), folder, most=4):
        seen += piece
        with Path(folder.log).open("a", newline="\n") as more:
            more.write("more")
    assert seen == "12345678"
    Path(folder.log).write_text("abc\ndef\n", encoding="utf-8", newline="\n")
    lines, told = NodeLines(LocalShell(), folder, 1), ""
    lines.tail.most = 4
    for piece in lines.pieces(to_the_end=False):
        told += piece
        with Path(folder.log).open("a", newline="\n") as more:
            more.write("ghi\n")
    assert told == "1| abc\n1| def\n"


def test_short_lines_of_several_machines_take_little_memory(tmp_path: Path) -> None:
    """Line by line, a log of nothing but newlines took sixty times its size."""
    folder = RunFolder(tmp_path)
    Path(folder.log).write_text("\n" * job.PIECE_BYTES, newline="\n")
    lines = NodeLines(LocalShell(), folder, 0)
    tracemalloc.start()
    try:
        assert len(lines.read()) == 4 * job.PIECE_BYTES
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_the_terminal_of_a_run_that_has_none(tmp_path: Path) -> None:
    """A job runs on without its terminal; one that has ended has only a log."""
    shell, folder = LocalShell(), RunFolder(tmp_path / "a")
    if not shell.which("tmux"):
        pytest.skip("needs tmux: apt-get install tmux")
    for state, words, then in (
        ("running", "runs without a terminal", "logs --follow --run a"),
        ("succeeded", "it has ended", "logs --run a"),
        (None, "it has ended", "logs --run a"),
    ):
        Path(folder.path).mkdir(exist_ok=True)
        if state:
            write_json(Path(folder.status), {"state": state, "attempt": 1, "heartbeat": time.time()})
        else:
            Path(folder.status).unlink()
        with pytest.raises(StepFailed, match=words) as failed:
            job.attach_argv(shell, "sniperface-test-none", folder, write=False)
        assert failed.value.next_command == command(then)


def test_only_estimates_of_this_attempt_count(tmp_path: Path) -> None:
    record = Rented(tmp_path).record(state="running")
    events = [
        {"seconds_left": 9, "time": 99.0},
        {"seconds_left": 8, "time": 100.0},
        {"seconds_left": None, "time": 200},
    ]
    seen = Status("running", 1, started=100.0)
    assert of_status(record, seen, events)["seconds_left"] == 8
    assert of_status(record, seen, events[:1])["seconds_left"] is None
    assert of_status(record, None, events[:1])["seconds_left"] == 9
    assert of_status(record, seen, [*events, {"seconds_left": 6, "time": 300.0}])["seconds_left"] == 6
    assert of_status(record, seen, [{"seconds_left": 7}])["seconds_left"] is None  # of which attempt is not known
    assert of_status(record, None, [{"seconds_left": 7}])["seconds_left"] == 7
    assert of_status(Rented(tmp_path).record(), seen, events)["seconds_left"] is None


@pytest.mark.parametrize(
    ("state", "about", "first"),
    [
        ("running", {"session": "tmux"}, "attach --on rented"),
        ("running", {}, "logs --follow --on rented"),
        ("stopped", {}, "train --resume auto --on rented --run a"),
        ("succeeded", {}, "fetch-checkpoint --on rented --run a"),
        ("succeeded", {"target": "local"}, "evaluate --run a"),
    ],
)
def test_what_a_user_may_do_next(tmp_path: Path, state: str, about: dict[str, Any], first: str) -> None:
    assert next_commands(Rented(tmp_path).record(state=state, **about))[0][1] == command(first)


def test_the_newest_number_is_taken(tmp_path: Path) -> None:
    events = [
        {"event": "step", "loss": 2.0}, {"event": "step", "loss": 1.0}, {"event": "step", "loss": True},
        {"event": "step", "loss": "low"}, {"event": "other", "loss": 5.0},
    ]  # fmt: skip
    assert (newest(events, "step", "loss"), newest(events, "start", "loss")) == (1.0, None)
    assert how_it_is(Rented(tmp_path).record()) == "run a succeeded"
    assert how_it_is(Rented(tmp_path).record(reason="done")) == "run a succeeded: done"
