"""Records of runs: which one a word means, and what a run has cost."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from deploy.errors import WrongUse, command
from deploy.pod.base.folder import read_json, write_json
from deploy.runs import records
from deploy.runs.session import is_launching, launching
from deploy.specs.plan import make
from deploy.specs.request import Request
from tests.deploy.specs.test_plan import FACTS
from tests.deploy.support.rented import Rented


@pytest.fixture
def rented(tmp_path: Path) -> Rented:
    return Rented(tmp_path)


def test_a_run_is_meant_by_its_id_or_by_a_beginning_that_no_other_has(rented: Rented) -> None:
    newest = [rented.record(name) for name in ("orl-1", "orl-12", "far-2")]
    newest[2] = replace(newest[2], target="far")
    assert records.choose(newest, "orl-1", "rented").run_id == "orl-1"  # also the beginning of another one
    assert records.choose(newest, "f", "rented").run_id == "far-2"
    assert records.choose(newest, None, "far").run_id == "far-2"
    assert records.choose(newest, None, "rented").run_id == "orl-1"
    with pytest.raises(
        WrongUse, match=r"no run on target 'local' yet, and the newest is on 'rented': give --on rented$"
    ):
        records.choose(newest, None, "local")
    with pytest.raises(WrongUse, match="--run orl matches 2 runs: orl-1, orl-12; give more characters"):
        records.choose(newest, "orl", "rented")
    with pytest.raises(WrongUse, match="unknown run 'nobody'"):
        records.choose(newest, "nobody", "rented")


@pytest.mark.parametrize(("count", "words"), [(5, "r0, r1, r2, r3, r4;"), (6, "r0, r1, r2, r3, r4, …;")])
def test_at_most_five_runs_are_named(rented: Rented, count: int, words: str) -> None:
    with pytest.raises(WrongUse) as error:
        records.choose([rented.record(f"r{number}") for number in range(count)], "r", "rented", "--of")
    assert f"--of r matches {count} runs: {words}" in str(error.value)


def test_without_a_run_the_next_command_starts_one() -> None:
    with pytest.raises(WrongUse, match="there is no run on target 'far' yet") as error:
        records.choose([], None, "far")
    assert error.value.next_command == command("train --on far")
    with pytest.raises(WrongUse, match="none has been started yet") as error:
        records.choose([], "a", "far")
    assert error.value.next_command == command("train")


@pytest.mark.parametrize(
    ("told", "usd_per_hour", "hours", "lives", "usd"),
    [
        (0.0, 2.0, 1.5, True, 3.0),
        (1.0, 2.0, 1.5, True, 3.0),
        (1.0, 2.0, 1.5, False, 1.0),
        (9.0, 2.0, 1.5, False, 3.0),  # more than the price allows
        (0.0, 2.0, -1.0, True, 0.0),
        (0.123456, 1.0, 1.0, False, 0.1235),
    ],
)
def test_what_a_machine_says_of_its_cost_counts_up_to_its_price(
    told: float, usd_per_hour: float, hours: float, lives: bool, usd: float
) -> None:
    assert records.credible_usd(told, usd_per_hour=usd_per_hour, hours=hours, lives=lives) == usd


def test_paid_hours_begin_with_the_machine_or_else_with_the_run(rented: Rented) -> None:
    record = rented.record()
    began = datetime.fromisoformat(record.created).timestamp()
    assert records.hours_since(record, 1000.0, 1000.0 + 5400) == 1.5
    assert records.hours_since(record, None, began + 7200) == 2.0
    assert records.hours_since(record, 1000.0, 0.0) == 0.0
    assert records.hours_since(replace(record, created="some day"), None, began) == 0.0


def test_a_recorded_cost_never_decreases(rented: Rented) -> None:
    record = rented.record(spend={"m": 1.00006, "n": 2.0}, others={"n": "/n"})
    assert (record.spend_usd, record.machines) == (3.0001, ("m", "n"))
    told = records.spent(rented.settings.runs, record, {"m": 0.5, "n": 2.5, "o": 0.0})
    assert told.spend == {"m": 1.00006, "n": 2.5}
    assert records.spent(rented.settings.runs, told, {"n": 2.5}) is told
    assert records.get(rented.settings.runs, "a", "rented") == told


def test_phases_are_compared_when_a_run_is_over(rented: Rented) -> None:
    plan = {"phases": [{"name": "training", "seconds": 10.0, "source": "x"}], "usd_per_hour": 3.6}
    record = rented.record(seconds=20.0)
    assert records.compared(rented.settings.runs, record) == ()
    assert records.compared(rented.settings.runs, replace(record, state="running")) == ()
    with pytest.raises(WrongUse, match=r"its plan\.json is missing") as error:
        records.plan_of(rented.settings.runs, record)
    assert error.value.next_command == command("train --resume none --on rented")
    rented.plan(**plan)
    assert records.plan_of(rented.settings.runs, record)["usd_per_hour"] == 3.6
    assert records.compared(rented.settings.runs, replace(record, state="running")) == ()


def test_a_record_that_cannot_be_read_has_a_reason(rented: Rented) -> None:
    """The others are listed all the same, newest first."""
    rented.record("a")
    rented.record("b", target="far")
    book = rented.settings.runs
    for name, told in (("c", {}), ("d", {"run_id": "d"}), ("e", {**vars(rented.record("e")), "machine": 3})):
        write_json(book / name / "run.json", told)
    write_json(book / "f" / "run.json", {**vars(rented.record("f")), "phases": {"data": "long"}})
    (book / "g").mkdir()
    (book / ".ipynb_checkpoints").mkdir()
    (book / "file").write_text("", encoding="utf-8")
    told = {name: record if isinstance(record, str) else "" for name, record in records.each_folder(book)}
    assert list(told) == ["a", "b", "c", "d", "e", "f", "g"]
    assert (told["a"], told["b"]) == ("", "")
    assert "damaged" in told["c"]
    assert all("does not fit" in told[name] for name in "def")
    assert "has no run.json" in told["g"]
    assert [each.run_id for each in records.every(book)] == ["b", "a"]
    assert [each.run_id for each in records.every(book, "far")] == ["b"]


def test_a_run_is_being_started_only_while_its_command_lives(rented: Rented) -> None:
    settings = rented.settings
    assert not is_launching(settings)
    with launching(settings) as note:
        note("a")
        assert (is_launching(settings), is_launching(settings, "a"), is_launching(settings, "b")) == (True, True, False)
        with (
            pytest.raises(WrongUse, match="run a is being started on target 'rented': wait for it") as error,
            launching(settings),
        ):
            pass
        assert error.value.next_command == command("status --on rented")
    assert not is_launching(settings, "a")


def test_at_most_ten_runs_are_offered_for_an_unknown_one(rented: Rented) -> None:
    newest = [rented.record(f"r{number:02d}") for number in range(12)]
    with pytest.raises(WrongUse, match=r"unknown run 'x': there are: r00, .*, r09$"):
        records.choose(newest, "x", "rented")


def test_a_continued_run_keeps_its_folder_and_its_spend(rented: Rented) -> None:
    plan = make(rented.settings, Request(), FACTS, tryout=True)
    book = rented.settings.runs
    first = records.create(book, plan)
    assert (first.state, first.backbone, first.spend, first.spend_usd, first.fraction) == (
        "acquiring", "iresnet", None, 0.0, 1.0,
    )  # fmt: skip
    records.spent(book, first, {first.machine: 2.5})
    assert records.create(book, replace(plan, attempt=2)).spend == {first.machine: 2.5}
    assert records.get(book, plan.run_id, "local").attempt == 2
    assert records.plan_of(book, first)["attempt"] == 2


def test_a_record_is_written_only_if_something_changed(rented: Rented) -> None:
    record = rented.record()
    file = rented.project / "runs" / "a" / "run.json"
    file.unlink()
    assert records.update(rented.settings.runs, record, state="succeeded") == record
    assert not file.exists()
    records.update(rented.settings.runs, record, state="failed")
    assert file.exists()


@pytest.mark.parametrize(
    ("limits", "usd"),
    [
        ({"max_usd": 3}, 3.0),
        ({"max_usd": 0.5}, 0.5),
        ({"max_usd": -1}, None),
        ({"max_usd": "x"}, None),
        ({}, None),
        ([], None),
    ],
)
def test_the_limit_of_a_run_in_dollars(rented: Rented, limits: object, usd: float | None) -> None:
    rented.plan(limits=limits)
    assert records.limit_usd(rented.settings.runs, "a") == usd
    assert records.limit_usd(rented.settings.runs, "b") is None


@pytest.mark.parametrize(
    ("spend", "told", "usd"),
    [(None, 1.0, 2.0), ({"m": 1.0}, 1.0, 2.0), ({"m": 3.0}, 1.0, 3.0), ({"m": 1.0, "old": 5.0}, 1.0, 7.0)],
)
def test_the_cost_now_is_of_all_machines_and_attempts(
    rented: Rented, spend: dict[str, float] | None, told: float, usd: float
) -> None:
    assert records.cost_now(rented.record(spend=spend, others={"n": "/n"}), told) == usd


def test_measured_seconds_of_training_win_over_the_phase(rented: Rented) -> None:
    rented.plan(phases=[{"name": "training", "seconds": 10.0, "usd": None, "source": "x"}], usd_per_hour=3600.0)
    book = rented.settings.runs
    (told,) = records.compared(book, rented.record(seconds=20.0, phases={"training": 30.0}))
    assert told.taken_s == 20.0
    (told,) = records.compared(book, rented.record(phases={"training": 30.0}))
    assert told.taken_s == 30.0


@pytest.mark.parametrize(
    "changed",
    [
        {"attempt": "one"}, {"fraction": "all"}, {"seconds": "long"}, {"spend": {"m": -1.0}}, {"others": {"n": 3}},
        {"name": 3}, {"backbone": None}, {"phases": [1]}, {"unknown": 1},
        {"others": "ab"}, {"others": 3}, {"machine": None}, {"name": ["x"]}, {"phases": {"code": "x"}},
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_makes_the_record_unreadable(rented: Rented, changed: dict[str, object]) -> None:
    rented.record()
    folder = rented.project / "runs" / "a"
    write_json(folder / "run.json", {**read_json(folder / "run.json"), **changed})
    assert "does not fit" in str(records.record_in(folder))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("2026-10-25T02:50:00.000+02:00", "2026-10-25T02:10:00.000+01:00"),  # the hour that comes twice
        ("2026-11-30T18:00:00.000+01:00", "2026-11-30T13:00:00.000-05:00"),  # after a flight to the west
        ("damaged", "2026-11-30T13:00:00"),
    ],
)
def test_the_newest_run_is_the_newest_by_time_and_not_by_text(rented: Rented, older: str, newer: str) -> None:
    """Commands without --run mean the newest: `stop` would ask another run to end."""
    for name, created in (("a", newer), ("b", older)):
        made = rented.record(name)
        records.update(rented.settings.runs, made, created=created)
    assert [each.run_id for each in records.every(rented.settings.runs)] == ["a", "b"]
    assert records.moment(newer) > records.moment(older)
