"""Tables of a sweep: one plan of all runs, and the results with the best run."""

from __future__ import annotations

from dataclasses import replace

from deploy.pod.base.limits import Limits
from deploy.specs.plan import make
from deploy.specs.request import Request
from deploy.specs.sweep import combinations, total
from deploy.ui.sweep_table import plan_of_sweep, planned_rows, result_columns, result_rows
from tests.deploy.specs.test_plan import FACTS, SETTINGS

COMBOS = combinations(["train.optimizer.lr=0.03,0.1", "recipe=supervised,distill"], {})
ROW = {
    "name": "lr_1", "settings": {"train.optimizer.lr": "0.1", "recipe": "distill"}, "run_id": "lr_1-x",
    "state": "succeeded", "accuracy": 0.912, "epoch": 3, "seconds": 62.0, "cost_usd": 1.5, "best": True,
}  # fmt: skip


def test_the_plan_tells_once_what_all_runs_share() -> None:
    """What differs is named as such. Minutes and dollars are those of all runs together."""
    plan = replace(
        make(SETTINGS, Request(), FACTS, tryout=True), usd_per_hour=2.0, expected_minutes=30.0, expected_usd=1.0,
        limits=Limits(max_usd=1.5),
    )  # fmt: skip
    plans = [plan, replace(plan, epochs=7, expected_from="measured")]
    rows = plan_of_sweep(plans, total(plans))
    told = dict(rows)
    assert told["job"] == "differs from run to run"
    assert told["fraction"] == "1"
    assert told["expected minutes"] == f"about 60.0 for all runs ({plan.expected_from} / measured)"
    assert told["expected dollars"] == "2.00 for all runs, at $2.00 an hour"
    assert [value for what, value in rows if what == "limits"] == [
        "max_usd 1.5: for the machine since its creation, so all runs on it share it",
        "warning: about 2.00 is more than max_usd 1.5, which will end the sweep",
    ]
    unknown = [replace(plan, usd_per_hour=None, expected_minutes=None, expected_usd=None)] * 2
    told = dict(plan_of_sweep(unknown, total(unknown)))
    assert told["expected minutes"].startswith("unknown for all runs")
    assert told["expected dollars"] == "unknown for all runs, at an unknown price an hour"


def test_each_run_has_a_row_before_it_starts() -> None:
    plan = replace(make(SETTINGS, Request(), FACTS, tryout=True), expected_minutes=2.5)
    plans = [plan, plan, plan, replace(plan, expected_minutes=None)]
    rows = planned_rows(COMBOS, plans, {1: "succeeded: run-7"})
    assert rows[0] == ("lr_0_03_recipe_supervised", "0.03", "supervised", "2.5 min")
    assert [row[-1] for row in rows] == ["2.5 min", "succeeded: run-7", "2.5 min", "unknown"]


def test_the_best_run_is_marked_and_free_machines_have_no_cost() -> None:
    waiting = {**ROW, "run_id": None, "state": None, "accuracy": None, "seconds": None, "cost_usd": None, "best": False}
    assert result_columns(COMBOS, [ROW]) == ["run", "lr", "recipe", "accuracy", "time", "cost", "state"]
    assert result_rows([ROW, waiting]) == [
        ("lr_1-x", "0.1", "distill", "91.2% (epoch 3) best", "1:02", "$1.50", "succeeded"),
        ("lr_1", "0.1", "distill", "-", "-", "-", "not started"),
    ]
    free = [{**ROW, "cost_usd": 0.0}]
    assert result_columns(COMBOS, free) == ["run", "lr", "recipe", "accuracy", "time", "state"]
    assert result_rows(free)[0][4:] == ("1:02", "succeeded")
