"""Where the page reads a run from, and which runs it has its machine asked about."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base.folder import RunFolder, read_json, write_json
from deploy.runs import live as lives
from deploy.runs.feed import NOTHING
from deploy.runs.live import Live
from deploy.runs.records import Record
from deploy.shell import LocalShell
from tests.deploy.conftest import wait_until
from tests.deploy.support.rented import Near, Rented

LINE = '{"event": "step", "step": 1, "loss": 2.0}\n'


def metrics(folder: Path, text: str = LINE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8", newline="\n")
    return folder


@pytest.mark.parametrize(
    ("on_machine", "in_copy", "state", "expected"),
    [
        (True, True, "running", "machine"),
        (True, True, "succeeded", "machine"),
        (False, True, "succeeded", "copy"),
        (False, True, "running", None),  # it may be older than what the machine has
        (False, False, "succeeded", None),
    ],
)
def test_the_folder_of_a_run(tmp_path: Path, on_machine: bool, in_copy: bool, state: str, expected: str | None) -> None:
    rented = Rented(tmp_path)
    record = rented.record(state=state)
    folders = {"machine": Path(record.run_dir), "copy": tmp_path / "runs" / "a"}
    for is_there, folder in zip((on_machine, in_copy), folders.values(), strict=True):
        if is_there:
            metrics(folder)
    found = Live(tmp_path).here(record)
    assert (found and Path(found.path)) == (folders[expected] if expected else None)


def test_a_folder_of_another_name_or_without_a_root_is_not_the_runs(tmp_path: Path) -> None:
    rented = Rented(tmp_path)
    metrics(tmp_path / "b")
    assert Live(tmp_path).here(rented.record(state="running", machine="x")) is None
    record = rented.record("c", state="running")
    for run_dir in (str(tmp_path / "b"), "c"):
        told = {**vars(record), "run_dir": run_dir}
        assert Live(tmp_path).here(type(record)(**told)) is None


def test_a_run_that_is_over_is_not_asked_about(tmp_path: Path) -> None:
    live = Live(tmp_path)
    record = Rented(tmp_path).record()
    look = live.want(record, whole=True)
    assert (look.status, look.at, look.problem) == (None, None, None)
    assert not live.is_watched("a")
    assert live._askers == {}
    assert live.story(record) is NOTHING


def test_a_target_that_cannot_be_asked_is_a_problem_that_is_shown(tmp_path: Path) -> None:
    """It is not asked again at once."""
    live, record = Live(tmp_path), Rented(tmp_path).record(state="running")
    live.want(record, whole=True)
    assert live.is_watched("a")
    problem = wait_until(lambda: live.want(record).problem)
    assert "has no target files" in problem
    asker = live.asker("rented")
    assert asker is live.asker("rented")
    assert asker._thread is not None
    assert asker._thread.daemon  # it delays no end of the command
    wait_until(lambda: asker._thread is not None and not asker._thread.is_alive())
    before = asker._thread
    live.want(record)
    assert asker._thread is before
    assert 2 * lives.AWAY_EVERY_S - 1 < asker._not_before - lives.time.monotonic() <= 2 * lives.AWAY_EVERY_S


def test_curves_of_the_newest_runs_are_kept(tmp_path: Path) -> None:
    live = Live(tmp_path)
    folders = {str(number): RunFolder(metrics(tmp_path / str(number))) for number in range(lives.FEEDS_MOST + 1)}
    feeds = {run_id: live.feed(run_id, folder) for run_id, folder in list(folders.items())[: lives.FEEDS_MOST]}
    assert all(live.feed(run_id, folders[run_id]) is feed for run_id, feed in feeds.items())
    live.feed("0", folders["0"])
    live.feed(str(lives.FEEDS_MOST), folders[str(lives.FEEDS_MOST)])
    assert live.feed("0", folders["0"]) is feeds["0"]
    assert live.feed("1", folders["1"]) is not feeds["1"]  # the one that was not read for longest
    assert live.feed("0", folders["1"]) is not feeds["0"]  # in another folder


def test_a_run_that_begins_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    folder = metrics(tmp_path / "a")
    feed = Live(tmp_path).feed("a", RunFolder(folder))
    (folder / "train.log").write_text("first\n", encoding="utf-8", newline="\n")
    assert feed.read(LocalShell()).log == ("first",)
    with (folder / "train.log").open("a", encoding="utf-8", newline="\n") as log:
        log.write("second\n")
    told = feed.read(LocalShell())
    assert (told.log, told.loss) == (("first", "second"), ((1, 2.0),))
    assert feed.read(LocalShell()).log == ("first", "second")
    (folder / "train.log").write_text("anew\n", encoding="utf-8", newline="\n")
    assert feed.read(LocalShell()).log == ("anew",)


def running(rented: Rented, run_id: str = "a", **told: Any) -> Record:
    """A run on this computer, of a target whose file is there."""
    file = rented.project / "conf" / "deploy" / "rented.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    (rented.project / "root").mkdir(exist_ok=True)
    file.write_text("provider: local\nroot: root\n", encoding="utf-8")
    record = rented.record(run_id, state="running")
    status(record, **told)
    return record


def status(record: Record, **told: Any) -> None:
    now = {"state": "running", "attempt": 1, "heartbeat": time.time(), "step": 7}
    write_json(Path(record.run_dir) / "status.json", {**now, **told})


def test_a_run_is_asked_about_while_somebody_looks_and_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one connection for all questions."""
    opened, target = [], lives.session.target

    def noted(*words: Any) -> Any:
        opened.append(words)
        return target(*words)

    monkeypatch.setattr(lives.session, "target", noted)
    monkeypatch.setattr(lives, "HERE_EVERY_S", 0.01)
    live, rented = Live(tmp_path), Rented(tmp_path)
    record = running(rented)
    look = wait_until(lambda: (found := live.want(record)).status and found)
    assert (look.status.state, look.status.step, look.problem) == ("running", 7, None)
    assert time.time() - 60 < look.at <= time.time()
    status(record, step=8)
    wait_until(lambda: (seen := live.want(record).status) and seen.step == 8)
    assert len(opened) == 1
    asker = live.asker("rented")
    assert (asker._failures, asker._not_before) == (0, lives.NEVER)
    status(record, state="succeeded")
    wait_until(lambda: asker._thread is not None and not asker._thread.is_alive())
    assert read_json(tmp_path / "runs" / "a" / "run.json")["state"] == "succeeded"


def test_nobody_looks_and_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "HERE_EVERY_S", 0.01)
    monkeypatch.setattr(lives, "WANTED_S", 0.3)
    live, rented = Live(tmp_path), Rented(tmp_path)
    record = running(rented)
    asker = live.asker("rented")
    assert not asker._is_wanted()
    live.want(record)
    assert not live.is_watched("a")  # its state is on the page of all runs
    wait_until(lambda: live.want(record, whole=True).status)
    assert (asker._is_wanted(), live.is_watched("a"), live.is_watched("b")) == (True, True, False)
    wait_until(lambda: asker._thread is not None and not asker._thread.is_alive())
    assert (asker._is_wanted(), live.is_watched("a")) == (False, False)


def test_a_machine_that_fails_is_asked_again_after_longer_and_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a minute; what was seen before stays beside the problem."""
    monkeypatch.setattr(lives, "HERE_EVERY_S", 0.01)
    live, rented = Live(tmp_path), Rented(tmp_path)
    record = running(rented, attempt="first")  # no status of ours
    live.note("a", lambda look: lives.replace(look, at=5.0))
    asker = live.asker("rented")
    for failures, pause_s in ((1, 10), (2, 20), (3, 40), (4, 60), (5, 60)):
        asker._wanted_at = time.monotonic()
        asker._ask_while_wanted()
        assert asker._failures == failures
        assert pause_s - 5 < asker._not_before - time.monotonic() <= pause_s
        look = live.want(record)
        assert look.at == 5.0
        assert "attempt" in str(look.problem)
    assert asker._thread is None
    asker._not_before = 0.0
    status(record, state="succeeded")
    asker._wanted_at = time.monotonic()
    asker._ask_while_wanted()
    assert (asker._failures, live.want(record).problem) == (0, None)


@pytest.mark.parametrize(
    ("about", "watched", "every_s", "is_read"),
    [({}, True, 5.0, True), ({}, False, 5.0, False), ({"address": None}, True, 1.0, False), (None, True, 1.0, False)],
)
def test_how_often_a_machine_is_asked(
    tmp_path: Path, about: dict[str, Any] | None, watched: bool, every_s: float, is_read: bool
) -> None:
    """Another machine more seldom; its curves are read only while the run's page is looked at."""
    live, rented = Live(tmp_path), Rented(tmp_path)
    if about is not None:
        rented.machine(**about)
    record = running(rented)
    metrics(Path(record.run_dir))
    if watched:
        live._watched["a"] = time.monotonic()
    with Near(rented.settings, rented.account) as at:
        assert live.asker("rented")._ask(at, record) == every_s
    assert ("a" in live._feeds) is is_read
    assert (live.want(record).status is not None) is (about is not None)


def test_the_story_of_a_run(tmp_path: Path) -> None:
    """From this computer, or else as its machine told it last."""
    live, rented = Live(tmp_path), Rented(tmp_path)
    there = rented.record("a", state="running")
    elsewhere = Record(**{**vars(there), "run_dir": "/elsewhere/a"})
    assert live.story(elsewhere) is NOTHING
    folder = metrics(Path(there.run_dir))
    live.feed("a", RunFolder(folder)).read(LocalShell())
    assert live.story(elsewhere).loss == ((1, 2.0),)
    assert live.story(there).loss == ((1, 2.0),)
    (folder / "train.log").mkdir()  # no log that can be read
    (folder / "train.log" / "x").write_text("x", encoding="utf-8")
    assert live.story(there) is NOTHING


def test_a_run_that_nobody_looked_at_is_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also just after this computer has started, when its clock begins."""
    monkeypatch.setattr(lives.time, "monotonic", lambda: 1.0)
    assert not Live(tmp_path).is_watched("a")
