"""PURE: what machines have cost, by day and target, from the records of runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from deploy.pod.base.folder import FINAL_STATES
from deploy.runs.records import Record, moment


@dataclass
class _Machine:
    """A machine's cost since its creation. Each run on it records that, so the largest counts, not the sum."""

    day: date
    target: str
    usd: float
    runs: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)


def history(records: Iterable[Record], since: date) -> list[dict[str, Any]]:
    """Rows of day, target, runs, machines, usd and runs that are alive, newest day first, without what cost nothing.

    A machine counts for the day on which its first recorded run started, also if it lived longer.
    """
    machines: dict[str, _Machine] = {}
    for record in sorted(records, key=lambda each: moment(each.created)):
        try:
            day = datetime.fromisoformat(record.created).date()
        except ValueError:
            continue
        for name, usd in (record.spend or {}).items():
            machine = machines.setdefault(name, _Machine(day, record.target, usd))
            machine.usd = max(machine.usd, usd)
            machine.runs.add(record.run_id)
            if record.state not in FINAL_STATES and name == record.machine:
                machine.alive.add(record.run_id)
    rows: dict[tuple[date, str], list[_Machine]] = {}
    for machine in machines.values():
        if machine.usd > 0 and machine.day >= since:
            rows.setdefault((machine.day, machine.target), []).append(machine)
    newest_first = sorted(rows.items(), key=lambda item: (-item[0][0].toordinal(), item[0][1]))
    return [_row(day, target, found) for (day, target), found in newest_first]


def by_run(records: Iterable[Record]) -> dict[str, float]:
    """Dollars of each run: its machines' paid time since the run before it on them ended, or since their creation.

    `records` must hold all runs on these machines. So no time of a machine is counted twice.
    """
    before: dict[str, float] = {}
    found: dict[str, float] = {}
    for record in sorted(records, key=lambda each: moment(each.created)):
        usd = 0.0
        for name, paid in (record.spend or {}).items():
            known = before.get(name, 0.0)
            usd += max(0.0, paid - known)
            before[name] = max(paid, known)
        found[record.run_id] = round(usd, 4)
    return found


def _row(day: date, target: str, machines: list[_Machine]) -> dict[str, Any]:
    return {
        "day": day.isoformat(),
        "target": target,
        "runs": len({run for machine in machines for run in machine.runs}),
        "machines": len(machines),
        "spend_usd": round(sum(machine.usd for machine in machines), 4),
        "still_running": len({run for machine in machines for run in machine.alive}),
    }
