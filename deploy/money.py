"""What is billing: every machine of this project, as its provider tells it, with the run it works for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploy import runs
from deploy.errors import DeployError, command
from deploy.machine import Machine
from deploy.pod.folder import FINAL_STATES
from deploy.reach import Reach, is_launching
from deploy.runs import Record
from deploy.settings import load
from deploy.show import Screen

COLUMNS = ("machine", "target", "gpu", "usd_per_hour", "hours", "usd", "run", "state", "note")


@dataclass(frozen=True)
class Bill:
    """One machine: what it costs, and for whom."""

    machine: str
    target: str
    gpu: str | None
    usd_per_hour: float
    hours: float | None
    usd: float | None
    run: str | None
    state: str | None  # of that run, as last seen from this laptop
    orphan: bool  # no living run of this laptop is on it
    note: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bills(project: Path, at: Reach) -> list[Bill]:
    """Every machine of the target's provider, orphans first."""
    return [bill for _, bill in priced(project, at)]


def priced(project: Path, at: Reach) -> list[tuple[Machine, Bill]]:
    """The same with the machines themselves. The provider is asked, local files only name the runs."""
    records = runs.every(project / "runs")
    found = [(machine, _bill(at, machine, records, time.time())) for machine in at.provider.list()]
    return sorted(found, key=lambda pair: (not pair[1].orphan, pair[1].machine))


def targets(project: Path) -> Iterator[Reach]:
    """One target for each provider and account that makes machines; a target that cannot be used is left out."""
    seen = set()
    for file in sorted((project / "conf" / "deploy").glob("*.yaml")):
        try:
            at = Reach(load(project, file.stem))
        except DeployError:
            continue
        options = at.settings.target.options
        account = (at.settings.target.provider, getattr(options, "docker_host", None), getattr(options, "api", None))
        if account not in seen:
            seen.add(account)
            yield at


def past_ceiling(bill: Bill, at: Reach) -> str | None:
    """Why this machine should be gone already, by the target's own ceilings."""
    target = at.settings.target
    if bill.target != target.name or bill.hours is None:
        return None
    if target.max_hours is not None and bill.hours > target.max_hours:
        return f"past max_hours: {target.max_hours:g}"
    if target.max_usd is not None and bill.usd is not None and bill.usd > target.max_usd:
        return f"past max_usd: {target.max_usd:g}"
    return None


def warnings(project: Path, at: Reach) -> list[str]:
    """What a person should know before anything else is started: machines that bill for nobody, or for too long."""
    try:
        found = bills(project, at)
    except DeployError:
        return []
    return [
        f"{bill.machine} costs ${bill.usd_per_hour:.2f} an hour: {bill.note}"
        for bill in found
        if bill.usd_per_hour and bill.note
    ]


def remind(project: Path, at: Reach, screen: Screen) -> None:
    """Every command names machines that bill without need; on stderr, for stdout may be a log or a document."""
    for warning in warnings(project, at):
        screen.complain(f"{warning}; see {command('ps')}, end it with {command('down --orphans')}")


def _bill(at: Reach, machine: Machine, records: Iterable[Record], now: float) -> Bill:
    on_it = [record for record in records if machine.name in record.machines]
    living = [record for record in on_it if _lives(at, record)]
    record = next(iter([*living, *on_it]), None)
    hours = round((now - machine.created) / 3600, 3) if machine.created else None
    bill = Bill(
        machine=machine.name,
        target=record.target if record else _target_of(at, machine),
        gpu=machine.gpu,
        usd_per_hour=machine.usd_per_hour,
        hours=hours,
        usd=None if hours is None else round(hours * machine.usd_per_hour, 2),
        run=record.run_id if record else None,
        state=record.state if record else None,
        orphan=not living,
        note=None,
    )
    note = past_ceiling(bill, at) or (
        None if living else "no run is on it" if record else "this laptop has no record of it"
    )
    return replace(bill, note=note)


def _lives(at: Reach, record: Record) -> bool:
    """A run that was being started when its command was killed will never live."""
    if record.state in runs.STARTING:
        return is_launching(at.settings, record.run_id)
    return record.state not in FINAL_STATES


def _target_of(at: Reach, machine: Machine) -> str:
    """From the name: sniperface-<project>-<target>-<run>."""
    words = machine.name.split("-")
    return words[2] if len(words) > 3 else at.settings.target.name
