"""Curves and the log's end, as a page reads them while a run writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base.folder import RunFolder
from deploy.runs import feed as feeds
from deploy.runs import job
from deploy.runs.feed import Curve, Feed, Story, last_lines
from deploy.shell import LocalShell


def curve(*points: tuple[float, float]) -> list[tuple[float, float]]:
    made = Curve()
    for step, value in points:
        made.add(step, value)
    return made.points


def test_a_step_that_is_trained_again_replaces_what_was_after_it() -> None:
    assert curve((1, 5.0), (2, 4.0), (3, 3.0)) == [(1, 5.0), (2, 4.0), (3, 3.0)]
    assert curve((1, 5.0), (2, 4.0), (3, 3.0), (2, 9.0)) == [(1, 5.0), (2, 9.0)]
    assert curve((1, 5.0), (3, 4.0), (5, 3.0), (2, 9.0)) == [(1, 5.0), (2, 9.0)]
    assert curve((1, 5.0), (1, 4.0)) == [(1, 4.0)]


def test_a_long_curve_is_thinned_and_ends_with_its_newest_step() -> None:
    points = [(float(step), float(step)) for step in range(2000)]
    assert curve(*points[:1999]) == points[:1999]
    thinned = curve(*points)
    assert (len(thinned), thinned[:2], thinned[-1]) == (1000, [(1, 0.5), (3, 2.5)], (1999, 1998.5))
    assert curve(*points, (2000.0, 7.0))[-2:] == [(1999, 1998.5), (2000, 7.0)]


def told(folder: Path, *events: dict[str, Any], log: str = "") -> Story:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    (folder / "train.log").write_text(log, encoding="utf-8", newline="\n")
    return Feed(LocalShell(), RunFolder(folder)).read(LocalShell())


def test_which_events_make_the_curves(tmp_path: Path) -> None:
    """An event without a step, a loss or the trained network's accuracy adds no point, and hides none after it."""
    story = told(
        tmp_path,
        {"event": "start", "epochs": 3},
        {"event": "step", "step": 1, "loss": 2.0},
        {"event": "step", "step": 2},
        {"event": "step", "step": 3, "loss": 1.0},
        {"event": "eval", "what": "untrained", "step": 3, "accuracy": 0.5, "loss": 7.0},
        {"event": "eval", "what": "trained", "step": 3, "accuracy": 0.75, "loss": 7.0},
        {"event": "other", "what": "trained", "step": 4, "accuracy": 0.25},
        {"event": "mining", "step": 4, "count": 3, "coverage": 0.5},
        {"event": "mining", "step": 5, "count": 3, "coverage": 0.5, "accepted": False},
        {"event": "mining", "step": 6, "count": 3, "coverage": 0.5, "accepted": True},
        {"event": "other", "step": 7, "loss": 7.0},
    )
    assert (story.loss, story.accuracy, story.refreshes) == (((1, 2.0), (3, 1.0)), ((3, 0.75),), (4, 6))
    assert {event["event"] for event in story.events} == {"start", "step", "eval", "other", "mining"}


def test_only_the_newest_refreshes_are_kept(tmp_path: Path) -> None:
    mined = [{"event": "mining", "step": step, "count": 1, "coverage": 0.5} for step in range(502)]
    assert told(tmp_path, *mined).refreshes == tuple(range(2, 502))


def test_the_end_of_a_log_is_safe_to_show() -> None:
    assert last_lines("") == ()
    assert last_lines("one\n\n \ntwo\n") == ("one", "two")
    lines = [f"line {number}" for number in range(41)]
    assert last_lines("\n".join(lines)) == tuple(lines[1:])
    assert [len(line) for line in last_lines(f"{'x' * 400}\n{'y' * 401}")] == [400, 400]
    assert "\x1b" not in "".join(last_lines("\x1b[31mred"))


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    log = "".join(f"{number:07d}\n" for number in range(3000))
    assert len(log) > feeds.LOG_BYTES == 16384
    assert told(tmp_path, log=log).log == tuple(f"{number:07d}" for number in range(2960, 3000))


@pytest.mark.parametrize(("more", "from_its_end"), [(90, False), (100, False), (101, True), (500, True)])
def test_a_log_that_grew_faster_than_it_is_read_goes_on_at_its_end(
    tmp_path: Path, more: int, from_its_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than one piece only the end is read; what was shown before is not joined to it."""
    monkeypatch.setattr(job, "PIECE_BYTES", 100)
    monkeypatch.setattr(feeds, "LOG_BYTES", 40)
    folder, shell = RunFolder(tmp_path), LocalShell()
    log = Path(folder.log)
    log.write_text("before\n", encoding="utf-8", newline="\n")
    feed = Feed(shell, folder)
    assert feed.read(shell).log == ("before",)
    asked: list[int] = []

    class Noting(LocalShell):
        def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes:
            asked.append(offset)
            return super().read(path, offset, limit)

    with log.open("a", encoding="utf-8", newline="\n") as text:
        text.write("x" * (more - 1) + "\n")
    assert feed.read(Noting()).log == ("x" * 39,)
    assert (7 in asked) is not from_its_end


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    Path(folder.log).write_text("one\n", encoding="utf-8", newline="\n")
    Path(folder.metrics).write_text('{"event": "step", "step": 1, "loss": 2.0}\n', encoding="utf-8", newline="\n")
    asked: list[tuple[str, int]] = []

    class Noting(LocalShell):
        def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes:
            asked.append((Path(path).name, offset))
            return super().read(path, offset, limit)

    shell = Noting()
    feed = Feed(shell, folder)
    for _ in range(2):
        asked.clear()
        story = feed.read(shell)
    assert (story.log, story.loss) == (("one",), ((1, 2.0),))
    assert asked == [("metrics.jsonl", 42), ("train.log", 4)]


def test_events_that_came_in_many_pieces_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "EVENTS_BYTES", 50)
    steps = [{"event": "step", "step": step, "loss": 1.0} for step in range(20)]
    assert [step for step, _ in told(tmp_path, *steps).loss] == list(range(20))


def test_metrics_that_begin_anew_replace_the_curves(tmp_path: Path) -> None:
    """The file is shorter than what was read of it. One that only stopped growing is not read again."""
    folder, shell = RunFolder(tmp_path), LocalShell()
    metrics = Path(folder.metrics)
    metrics.write_text('{"event": "step", "step": 1, "loss": 2.0}\n' * 2, encoding="utf-8", newline="\n")
    feed = Feed(shell, folder)
    for _ in range(2):
        assert feed.read(shell).loss == ((1, 2.0),)
        assert len(feed.story.events) == 2
    metrics.write_text('{"event": "step", "step": 9, "loss": 3.0}\n', encoding="utf-8", newline="\n")
    assert feed.read(shell).loss == ((9, 3.0),)
