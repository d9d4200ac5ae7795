"""Runs of a sweep are ranked by one measure, and earlier runs count if nothing differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.runs import comparison, records, sweeps
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.specs.plan import Plan, make
from deploy.specs.request import Request
from deploy.specs.settings import Settings, Target
from deploy.specs.sweep import combinations
from tests.deploy.billing.test_costs import record
from tests.deploy.specs.test_plan import FACTS

Evals = list[tuple[str, int, float]]  # what, epoch, accuracy
TRAINED, LFW = "trained", "sets/lfw"


def written(book: Path, run_id: str, evals: Evals) -> Record:
    told = [{"event": "eval", "what": what, "epoch": epoch, "accuracy": value} for what, epoch, value in evals]
    folder = book / run_id
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in told), encoding="utf-8")
    return record(run_id, "2026-11-28T01:00:00", "m", 0.0)


@pytest.mark.parametrize(
    ("runs", "measure", "best", "points"),
    [
        ([[], []], None, None, [None, None]),
        (
            [[(TRAINED, 0, 0.9), (TRAINED, 1, 0.8)], [(TRAINED, 1, 0.85)]],
            comparison.HELD_OUT, 0, [(0, 0.9), (1, 0.85)],
        ),
        ([[(TRAINED, 0, 0.8)], [(TRAINED, 0, 0.8)]], comparison.HELD_OUT, 0, [(0, 0.8), (0, 0.8)]),
        ([[(LFW, 0, 0.7)], [(LFW, 2, 0.9)]], "lfw", 1, [(0, 0.7), (2, 0.9)]),
        ([[(LFW, 0, 0.99)], [(LFW, 0, 0.5), (TRAINED, 0, 0.6)]], comparison.HELD_OUT, 1, [None, (0, 0.6)]),
        ([[("untrained", 0, 0.99)], [(TRAINED, 0, 0.6)]], comparison.HELD_OUT, 1, [None, (0, 0.6)]),
    ],
)  # fmt: skip
def test_one_measure_ranks_all_runs(
    tmp_path: Path, runs: list[Evals], measure: str | None, best: int | None, points: list[tuple[int, float] | None]
) -> None:
    """As `--which best`: the held-out people, else the first set. A run that was not measured so is not the best."""
    combos = combinations(["a.b=1,2"], {})
    found = [written(tmp_path, f"run-{place}", evals) for place, evals in enumerate(runs)]
    told = sweeps.document(tmp_path, "local", list(zip(combos, found, strict=True)), {"run-0": 0.5}, None)
    assert (told["measure"], told["best"]) == (measure, None if best is None else f"run-{best}")
    assert [None if row["epoch"] is None else (row["epoch"], row["accuracy"]) for row in told["runs"]] == points
    assert [row["best"] for row in told["runs"]] == [place == best for place in range(2)]
    assert (told["cost_usd"], told["runs"][1]["cost_usd"]) == (0.5, None)


def test_validation_people_rank_and_the_accuracy_is_of_the_others(tmp_path: Path) -> None:
    """The best run and epoch are those that validation people choose, whatever the result's people say."""
    of_runs = [[(0, 0.90, 0.80), (1, 0.85, 0.82)], [(0, 0.99, 0.60), (1, 0.70, 0.81)], []]
    found = []
    for place, evals in enumerate(of_runs):
        found.append(written(tmp_path, f"run-{place}", []))
        lines = [
            {"event": "eval", "what": TRAINED, "epoch": epoch, "accuracy": value, "validation_accuracy": validation}
            for epoch, value, validation in evals
        ]
        file = tmp_path / f"run-{place}" / "metrics.jsonl"
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    combos = combinations(["a.b=1,2,3"], {})
    told = sweeps.document(tmp_path, "local", list(zip(combos, found, strict=True)), {}, None)
    assert (told["measure"], told["best"]) == (comparison.VALIDATION, "run-0")
    rows = [(row["epoch"], row["accuracy"], row["rating"], row["best"]) for row in told["runs"]]
    assert rows == [(1, 0.85, 0.82, True), (1, 0.70, 0.81, False), (None, None, None, False)]
    compared = comparison.document([comparison.read(tmp_path, each) for each in found])["runs"]
    assert [(row["best_epoch"], row["best_accuracy"], row["best_by"]) for row in compared] == [
        (1, 0.85, comparison.VALIDATION),
        (1, 0.70, comparison.VALIDATION),
        (None, None, None),
    ]


def test_a_run_that_was_not_started_has_a_row(tmp_path: Path) -> None:
    combos = combinations(["a.b=1,2"], {})
    first = written(tmp_path, "run-0", [(TRAINED, 0, 0.9)])
    rows = sweeps.document(tmp_path, "local", [(combos[0], first), (combos[1], None)], {}, "it was interrupted")["runs"]
    usd = {"run-0": 0.123456}
    told = sweeps.document(tmp_path, "local", [(combos[0], first), (combos[1], None)], usd, None)
    assert (told["cost_usd"], told["target"], told["ended"]) == (0.1235, "local", None)
    assert [(row["name"], row["run_id"], row["state"]) for row in rows] == [
        ("b_1", "run-0", "succeeded"),
        ("b_2", None, None),
    ]


@pytest.mark.parametrize(
    ("changed", "is_found"),
    [
        ({}, True),
        ({"state": "running"}, True),
        ({"state": "failed"}, False),
        ({"state": "stopped"}, False),
        ({"target": "ssh"}, False),
        ({"snapshot": "other"}, False),
        ({"dataset_id": "other"}, False),
        ({"combination": "other"}, False),
        ({"combination": ["x"]}, False),
        ({"request": "not a document"}, False),
    ],
)
def test_an_earlier_run_counts_if_nothing_differs(tmp_path: Path, changed: dict[str, Any], is_found: bool) -> None:
    """Its settings, code, data and target are the same, and it succeeded or lives."""
    settings = Settings(tmp_path, Target("local", "local", ".sniperface/local"))
    plan = planned(settings)
    made = records.create(settings.runs, plan)
    records.update(settings.runs, made, state=changed.get("state", "succeeded"), target=changed.get("target", "local"))
    file = tmp_path / "runs" / plan.run_id / "plan.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    told["snapshot"] = changed.get("snapshot", "tree")
    told["data"]["dataset_id"] = changed.get("dataset_id", told["data"]["dataset_id"])
    told["request"]["combination"] = changed.get("combination", "mark")
    told["request"] = changed.get("request", told["request"])
    file.write_text(json.dumps(told), encoding="utf-8")
    with Reach(settings) as at:
        assert list(sweeps.earlier(at, [plan], "tree", look=False)) == (["mark"] if is_found else [])
        assert sweeps.earlier(at, [plan], None, look=False) == {}  # no snapshot: nobody knows which code it was


def test_a_run_that_was_alive_is_asked_about_unless_only_its_record_counts(tmp_path: Path) -> None:
    settings = Settings(tmp_path, Target("local", "local", ".sniperface/local"))
    plan = planned(settings)
    made = records.create(settings.runs, plan)
    records.update(settings.runs, made, state="running")
    told = replace(plan, snapshot="tree").to_json()
    (tmp_path / "runs" / plan.run_id / "plan.json").write_text(json.dumps(told), encoding="utf-8")
    with Reach(settings) as at:
        assert list(sweeps.earlier(at, [plan], "tree", look=False)) == ["mark"]
        assert sweeps.earlier(at, [plan], "tree") == {}  # its folder is gone: it is lost


@pytest.mark.parametrize(("kinds", "is_home"), [((), False), (("start", "step"), False), (("step", "end"), True)])
def test_a_run_is_here_when_its_end_is(tmp_path: Path, kinds: tuple[str, ...], is_home: bool) -> None:
    made = written(tmp_path, "a", [])
    lines = [json.dumps({"event": kind, "step": 1}) for kind in kinds]
    (tmp_path / "a" / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert sweeps.is_home(tmp_path, made) is is_home


@pytest.mark.parametrize("changed", [{"snapshot": "other"}, {"data": {"dataset_id": "other"}}, {}])
def test_a_newer_run_that_differs_hides_no_earlier_one(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Of two equal ones the newest counts, and none is asked about: both are over."""
    settings = Settings(tmp_path, Target("local", "local", ".sniperface/local"))
    plan = planned(settings)
    for run_id, created, more in (("a", "2026-11-01", {}), ("b", "2026-11-02", changed)):
        made = records.create(settings.runs, replace(plan, run_id=run_id, created=created))
        records.update(settings.runs, made, state="succeeded")
        told = replace(plan, snapshot="tree").to_json()
        (tmp_path / "runs" / run_id / "plan.json").write_text(json.dumps({**told, **more}), encoding="utf-8")
    with Reach(settings) as at:
        found = sweeps.earlier(at, [plan], "tree")
    assert {mark: each.run_id for mark, each in found.items()} == {"mark": "a" if changed else "b"}


def planned(settings: Settings) -> Plan:
    return make(settings, Request(name="x", combination="mark"), FACTS, tryout=False)
