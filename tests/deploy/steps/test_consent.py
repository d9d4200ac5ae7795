"""What a command asks before it costs money, and what earlier runs say about the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.errors import WrongUse
from deploy.specs.estimate import Measured
from deploy.steps.consent import agree
from deploy.steps.measured import MEASURED_MOST, _measure, measured_in, succeeded_of
from deploy.ui.screen import Screen
from tests.deploy.support.rented import Rented

CONFIG = {"recipe": {"name": "moco"}, "backbone": {"name": "tiny"}}


class Asked(Screen):
    """A user who answers."""

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer = answer

    def ask(self, question: str) -> bool:
        assert question == "it costs. Continue?"
        return self.answer


@pytest.mark.parametrize(
    ("usd", "yes", "passes"),
    [(5.0, False, True), (5.01, False, False), (0.0, False, True), (None, False, False), (None, True, True)],
)
def test_a_cost_above_confirm_usd_needs_an_answer(
    tmp_path: Path, usd: float | None, yes: bool, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Rented(tmp_path, options={"confirm_usd": 5.0}).settings
    for is_terminal, answer in ((False, True), (True, False), (True, True)):
        monkeypatch.setattr("sys.stdin.isatty", lambda is_terminal=is_terminal: is_terminal)
        if passes or (is_terminal and answer):
            agree("it costs", usd, settings, Asked(answer), yes=yes)
        else:
            words = "nothing was started" if is_terminal else "it costs: give --yes to agree"
            with pytest.raises(WrongUse, match=words):
                agree("it costs", usd, settings, Asked(answer), yes=yes)


START = {"event": "start", "step": 10, "steps_per_epoch": 5, "train_rows": 100}
END = {"event": "end", "step": 20, "seconds": 50.0}


@pytest.mark.parametrize(
    ("events", "seconds", "expected"),
    [
        ([START, END], 60.0, (4.0, 10.0)),
        ([START, END], 40.0, (4.0, 0.0)),
        ([{**START, "step": 0}, {**END, "step": 5}, START, END], 60.0, (4.0, 10.0)),  # continued: the last attempt
        ([START, {**END, "step": 10}], 60.0, None),
        ([START, {**END, "step": 9}], 60.0, None),
        ([START], 60.0, None),
        ([END], 60.0, None),
        ([{**START, "steps_per_epoch": 0}, END], 60.0, None),
        ([{**START, "step": None}, END], 60.0, None),
        ([{"event": "start"}, END], 60.0, None),
    ],
)
def test_the_speed_of_a_run(events: list[dict[str, Any]], seconds: float, expected: tuple[float, float] | None) -> None:
    assert _measure(events, seconds, "k") == ([Measured(*expected, "k", is_most=True)] if expected else [])


def at(event: str, time: float, step: int, **more: Any) -> dict[str, Any]:
    return {"event": event, "time": time, "step": step, **more}


FIRST = [
    {**START, "step": 0, "time": 1000.0}, at("mining", 1030.0, 0, seconds=20.0), at("step", 1040.0, 1),
    at("step", 1048.0, 5), at("epoch", 1048.0, 5),
]  # fmt: skip
AGAIN = at("mining", 1050.0, 5, seconds=2.0)


@pytest.mark.parametrize(
    ("events", "expected", "is_most"),
    [
        # Each epoch after the first takes 10 s: 10 images a second. The first took 40 s more.
        ([*FIRST, AGAIN, at("epoch", 1058.0, 10), at("end", 1058.0, 10, seconds=60.0)], (10.0, 45.0), False),
        # Without a second mining, the first one counts.
        ([*FIRST, at("epoch", 1058.0, 10), at("end", 1058.0, 10, seconds=60.0)], (100 / 30, 5.0), True),
        # Alone, its steps take 2 s for 20 images, and its mining 20 s.
        ([*FIRST, at("end", 1048.0, 5, seconds=50.0)], (100 / 30, 25.0), True),
        # A clock that jumped, and a run that got slower: as a whole.
        ([*FIRST, AGAIN, at("epoch", 900.0, 10), at("end", 900.0, 10, seconds=60.0)], (200 / 60, 5.0), False),
        ([*FIRST, AGAIN, at("epoch", 1100.0, 10), at("end", 1200.0, 10, seconds=200.0)], (1.0, 5.0), False),
    ],
    ids=["epochs", "one mining", "one epoch", "jump", "slower"],
)
def test_what_is_taken_once_is_no_part_of_the_speed(
    events: list[dict[str, Any]], expected: tuple[float, float], is_most: bool
) -> None:
    """A plan of 24 epochs after a trial of a few would count the first epoch's compiling 24 times."""
    [told] = _measure(events, events[-1]["seconds"] + 5.0, "k")
    assert (told.images_per_s, told.around_s) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert told.is_most is is_most


def test_runs_like_this_one_are_measured(tmp_path: Path) -> None:
    """The same recipe, backbone and number of machines; those that succeeded; not more than MEASURED_MOST."""
    rented = Rented(tmp_path)
    like = {"recipe": "moco", "backbone": {"name": "tiny"}}
    told = [
        like, {**like, "nodes": 2}, {**like, "recipe": "arcface"}, {**like, "backbone": {"name": "big"}},
        {**like, "nodes": 1},
    ]  # fmt: skip
    records = [rented.record(f"r{number}", seconds=60.0) for number in range(len(told))]
    for record, plan in zip(records, told, strict=True):
        rented.plan(record.run_id, **plan)
        lines = '{"event": "start", "step": 10, "steps_per_epoch": 5, "train_rows": 100}\n'
        lines += '{"event": "end", "step": 20, "seconds": 50.0}\n'
        (rented.settings.runs / record.run_id / "metrics.jsonl").write_text(lines, encoding="utf-8")
    book = rented.settings.runs
    assert [len(measured_in(book, records, CONFIG, nodes)) for nodes in (1, 2, 3)] == [2, 1, 0]
    assert len(measured_in(book, records[:1] * (MEASURED_MOST + 3), CONFIG, 1)) == MEASURED_MOST
    short = '{"event": "start", "step": 0, "steps_per_epoch": 1, "train_rows": 1}\n'
    short += '{"event": "end", "step": 1, "seconds": 0.5}\n'
    (book / "r0" / "metrics.jsonl").write_text(short, encoding="utf-8")
    (told_of,) = measured_in(book, [rented.record("r0", seconds=None)], CONFIG, 1)
    assert (told_of.images_per_s, told_of.around_s) == (2.0, 0.0)
    assert succeeded_of([rented.record("x", state="failed"), records[0]]) == [records[0]]
