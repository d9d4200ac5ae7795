"""Make table rows of a sweep: its plan, its runs before they start, and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.specs.estimate import duration
from deploy.specs.plan import Plan
from deploy.specs.sweep import Combination, Total, limit_notes, short_keys, total
from deploy.ui.plan_table import dollars, plan_rows

OF_ONE_RUN = ("expected minutes", "parts", "expected dollars")
NOT_STARTED = "not started"

Rows = list[tuple[str, ...]]


def plan_of_sweep(plans: Sequence[Plan], all_together: Total) -> Rows:
    """The plan of all runs: what holds for each of them, then their sum and how the target's limits hold for it."""
    told = [plan_rows(plan) for plan in plans]
    same: Rows = [
        (what, value if all((what, value) in rows for rows in told) else "differs from run to run")
        for what, value in told[0]
        if what not in OF_ONE_RUN
    ]
    minutes = "unknown" if all_together.minutes is None else f"about {all_together.minutes:.1f}"
    sources = " / ".join(dict.fromkeys(plan.expected_from for plan in plans))
    return [
        *same,
        ("expected minutes", f"{minutes} for all runs ({sources})"),
        ("expected dollars", dollars(plans[0], all_together.usd, " for all runs")),
        *(("limits", note) for note in limit_notes(plans[0], all_together)),
    ]


def plan_of_targets(plans: Mapping[str, Sequence[Plan]]) -> Rows:
    """The plan of a sweep on several targets, each with the plans of all runs: what holds for all, then each target."""
    every = [plan for of_target in plans.values() for plan in of_target]
    shared = [row for row in plan_of_sweep(every, Total(None, None)) if row[0] not in (*OF_ONE_RUN, "where", "limits")]
    return [*shared, *(row for name, of_target in plans.items() for row in _of_target(name, of_target))]


def _of_target(name: str, plans: Sequence[Plan]) -> Rows:
    """Where a target's runs take place, what an hour costs, and how its limits hold for all runs on it."""
    plan, minutes = plans[0], total(plans).minutes
    where = dict(plan_rows(plan))["where"].partition(": ")[2]
    rate = "an unknown price" if plan.usd_per_hour is None else f"${plan.usd_per_hour:.2f}"
    all_runs = "" if minutes is None else f"; about {minutes:.1f} minutes if it made all runs"
    return [
        (f"on {name}", f"{where}; {rate} an hour{all_runs}"),
        *((f"on {name}", note) for note in limit_notes(plan, Total(None, None))),
    ]


def run_columns(combinations: Sequence[Combination]) -> list[str]:
    """A column for each swept setting."""
    return short_keys([key for key, _ in combinations[0].settings])


def planned_rows(combinations: Sequence[Combination], plans: Sequence[Plan], done: Mapping[int, str]) -> Rows:
    """A row for each run: its name, its settings, its expected time. `done`: place of a run -> what became of it."""
    return [
        (
            combination.name,
            *(value for _, value in combination.settings),
            done.get(place) or (f"{plan.expected_minutes:.1f} min" if plan.expected_minutes is not None else "unknown"),
        )
        for place, (combination, plan) in enumerate(zip(combinations, plans, strict=True))
    ]


def result_rows(runs: Sequence[Mapping[str, Any]], *, several: bool = False) -> Rows:
    """A row for each run: its id, settings, accuracy, time, cost and state. Costs of free machines are left out.

    `several`: with the target of each run.
    """
    costs = any(run["cost_usd"] for run in runs)
    return [
        (
            run["run_id"] or run["name"],
            *run["settings"].values(),
            *((run["target"] or "-",) if several else ()),
            _accuracy(run),
            "-" if run["seconds"] is None else duration(run["seconds"]),
            *((f"${run['cost_usd']:.2f}" if run["cost_usd"] else "-",) if costs else ()),
            run["state"] or NOT_STARTED,
        )
        for run in runs
    ]


def result_columns(
    combinations: Sequence[Combination], runs: Sequence[Mapping[str, Any]], *, several: bool = False
) -> list[str]:
    """The names of the columns of `result_rows`."""
    cost = ["cost"] if any(run["cost_usd"] for run in runs) else []
    on = ["on"] if several else []
    return ["run", *run_columns(combinations), *on, "accuracy", "time", *cost, "state"]


def _accuracy(run: Mapping[str, Any]) -> str:
    if run["accuracy"] is None:
        return "-"
    return f"{run['accuracy']:.1%} (epoch {run['epoch']})" + (" best" if run["best"] else "")
