"""`cost`: by day and target, from records alone."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from typing import Any

from deploy.billing.costs import by_run, history
from deploy.runs.records import Record
from tests.deploy.conftest import Project


def record(run_id: str, created: str, machine: str, usd: float, **more: Any) -> Record:
    told = {
        "target": "runpod", "provider": "runpod", "state": "succeeded", "attempt": 1, "commit": None, "fraction": 1.0,
        "backbone": "tiny", "run_dir": "/r", "spend": {machine: usd}, **more,
    }  # fmt: skip
    return Record(run_id=run_id, created=created, machine=machine, **told)


def test_a_machine_counts_once_however_many_runs_it_had() -> None:
    """Each run on a machine records what the machine has cost since its creation."""
    records = [
        record("b", "2026-11-27T23:00:00", "m1", 3.0),
        record("a", "2026-11-27T09:00:00", "m1", 1.0),
        record("c", "2026-11-28T01:00:00", "m1", 5.0),
        record("d", "2026-11-28T02:00:00", "m2", 0.5, state="running"),
        record("e", "2026-11-28T02:00:00", "box", 0.0, target="ssh"),
        record("f", "not a date", "m3", 9.0),
        record("g", "2026-11-01T02:00:00", "m4", 9.0),
        record("h", "2026-11-28T03:00:00", "m5", 0.25, target="evening"),
    ]
    assert history(records, date(2026, 11, 27)) == [
        {"day": "2026-11-28", "target": "evening", "runs": 1, "machines": 1, "spend_usd": 0.25, "still_running": 0},
        {"day": "2026-11-28", "target": "runpod", "runs": 1, "machines": 1, "spend_usd": 0.5, "still_running": 1},
        {"day": "2026-11-27", "target": "runpod", "runs": 3, "machines": 1, "spend_usd": 5.0, "still_running": 0},
    ]
    assert [row["day"] for row in history(records, date(2026, 11, 28))] == ["2026-11-28", "2026-11-28"]


def test_the_cost_of_a_run_is_its_own_share_of_a_machines_time() -> None:
    """Time before a run, since the one before it ended, is its own. The shares add up to the cost of the machines."""
    records = [
        record("b", "2026-11-27T11:00:00", "m1", 1.5),
        record("a", "2026-11-27T09:00:00", "m1", 1.0),
        record("c", "2026-11-27T12:00:00", "m2", 0.5, spend={"m2": 0.5, "m1": 1.75}),
        record("d", "2026-11-27T13:00:00", "m1", 1.6),
        record("e", "2026-11-27T14:00:00", "box", 0.0, spend=None),
    ]
    found = by_run(records)
    assert found == {"a": 1.0, "b": 0.5, "c": 0.75, "d": 0.0, "e": 0.0}
    assert sum(found.values()) == sum(row["spend_usd"] for row in history(records, date(2026, 11, 1)))


def test_costs_are_rounded_to_hundredths_of_cents() -> None:
    """An unreadable day has no row, and hides none."""
    records = [record("a", "some day", "m0", 1.0), record("b", "2026-11-27T11:00:00", "m1", 0.123456)]
    assert by_run(records) == {"a": 1.0, "b": 0.1235}
    assert [row["spend_usd"] for row in history(records, date(2026, 11, 27))] == [0.1235]
    assert history(records, date(2026, 11, 28)) == []


def test_cost_as_a_user_types_it(project: Project) -> None:
    assert "no run of the last 30 days has cost money" in project.invoke("cost").stdout
    for days in ("0", "week"):
        assert "--days" in project.invoke("cost", f"--days={days}", code=2).stderr
    old, new = ((datetime.now() - timedelta(days=days)).isoformat(timespec="seconds") for days in (9, 1))
    for run_id, created, usd in (("old", old, 4.0), ("new", new, 1.5)):
        path = project.path / "runs" / run_id / "run.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(vars(record(run_id, created, f"m-{run_id}", usd))), encoding="utf-8")
    told = project.json("cost", "--days", "7")
    assert (told["spend_usd"], [row["target"] for row in told["rows"]], told["estimated"]) == (1.5, ["runpod"], True)
    shown = project.invoke("cost").stdout
    assert "last 30 days: $5.50, estimated from price and time" in shown
