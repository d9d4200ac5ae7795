"""Runs of a sweep: earlier runs of the same combinations, and the answer of a sweep with its best run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES
from deploy.runs import comparison, records
from deploy.runs.documents import Document
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.specs.plan import Plan
from deploy.specs.sweep import Combination


def earlier(at: Reach, plans: Sequence[Plan], snapshot: str | None, *, look: bool = True) -> dict[str, Record]:
    """Runs of this target that did what a plan would do, or are about it: identity of a combination -> newest such run.

    They succeeded or are alive, with the same settings, code and data. `look`: ask for the current state of those that
    were alive.
    """
    wanted = {plan.request.combination: plan for plan in plans}
    found: dict[str, Record] = {}
    for record in records.every(at.settings.runs, at.settings.target.name) if snapshot else ():
        told = records.carried_out(at.settings.runs, record.run_id)
        identity = mark(at.settings.runs, record)
        plan = wanted.get(identity) if identity and identity not in found else None
        if plan is None or told.get("snapshot") != snapshot:
            continue
        if (plan.data.dataset_id or "") != (_part(told, "data").get("dataset_id") or ""):
            continue
        if look and record.state not in FINAL_STATES:
            record, _ = at.look(record)
        if record.state == "succeeded" or record.state in LIVE_STATES:
            found[str(identity)] = record
    return found


def mark(book: Path, record: Record) -> str | None:
    """The identity of the combination that a run is of; None if it is of no sweep."""
    told = _part(records.carried_out(book, record.run_id), "request").get("combination")
    return told if isinstance(told, str) else None


def is_home(book: Path, record: Record) -> bool:
    """Whether the events of a run were downloaded up to its end."""
    return any(event.get("event") == "end" for event in records.events(book, record.run_id))


def document(
    book: Path,
    target: str,
    ran: Sequence[tuple[Combination, Record | None]],
    usd: Mapping[str, float],
    ended: str | None,
) -> Document:
    """The answer of a sweep: a row for each combination, the best run and what it was ranked by.

    `usd`: the cost of each run. `ended`: why not all combinations were run, if so.
    """
    sides = [None if record is None else comparison.read(book, record) for _, record in ran]
    measure = comparison.measure_of([side for side in sides if side])
    points = [comparison.best_point(side, measure) if side else None for side in sides]
    best = max((point.rating for point in points if point), default=None)
    first = next((place for place, point in enumerate(points) if point and point.rating == best), None)
    rows: list[Document] = [
        {
            "name": combination.name,
            "settings": dict(combination.settings),
            "target": record.target if record else None,
            "run_id": record.run_id if record else None,
            "state": record.state if record else None,
            "reason": record.reason if record else None,
            "accuracy": point.accuracy if point else None,
            "epoch": point.epoch if point else None,
            "rating": point.rating if point else None,
            "seconds": record.seconds if record else None,
            "cost_usd": usd.get(record.run_id) if record else None,
            "best": place == first,
        }
        for place, ((combination, record), point) in enumerate(zip(ran, points, strict=True))
    ]
    return {
        "target": target,
        "runs": rows,
        "best": None if first is None else rows[first]["run_id"],
        "measure": measure,
        "cost_usd": round(sum(row["cost_usd"] or 0.0 for row in rows), 4),
        "ended": ended,
    }


def _part(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = told.get(key)
    return value if isinstance(value, dict) else {}
