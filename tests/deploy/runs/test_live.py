"""Where the page reads a run from, and which runs it has its machine asked about."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.pod.base.folder import RunFolder
from deploy.runs import live as lives
from deploy.runs.feed import NOTHING
from deploy.runs.live import Live
from deploy.shell import LocalShell
from tests.deploy.conftest import wait_until
from tests.deploy.support.rented import Rented

LINE = '{"event": "step", "step": 1, "loss": 2.0}\n'


def metrics(folder: Path, text: str = LINE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
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
    (folder / "train.log").write_text("first\n", encoding="utf-8")
    assert feed.read(LocalShell()).log == ("first",)
    with (folder / "train.log").open("a", encoding="utf-8") as log:
        log.write("second\n")
    told = feed.read(LocalShell())
    assert (told.log, told.loss) == (("first", "second"), ((1, 2.0),))
    assert feed.read(LocalShell()).log == ("first", "second")
    (folder / "train.log").write_text("anew\n", encoding="utf-8")
    assert feed.read(LocalShell()).log == ("anew",)
