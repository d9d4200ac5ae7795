"""The laptop's records: one run.json per run, with where it runs. Its current state must be read from the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, WrongUse, command, unknown
from deploy.pod.base.folder import FINAL_STATES, RunFolder, read_json, write_json
from deploy.specs.estimate import Compared, compare
from deploy.specs.plan import Plan

STARTING = ("acquiring", "preparing")
UNFINISHED = ("stopped", "failed", "lost", "expired")
WORDS = ("run_id", "target", "provider", "state", "created", "backbone", "run_dir", "machine")


@dataclass(frozen=True)
class Record:
    """run.json: where a run is, and its state as last seen."""

    run_id: str
    target: str
    provider: str
    state: str
    attempt: int
    created: str
    commit: str | None
    fraction: float
    backbone: str
    run_dir: str
    machine: str  # of rank 0
    reason: str | None = None
    seconds: float | None = None
    phases: Mapping[str, float] | None = None  # seconds by phase, see deploy/specs/estimate.py
    session: str | None = None  # how the supervisor runs: tmux or detached
    others: Mapping[str, str] = field(default_factory=dict)  # other machines, in order of rank -> the run's folder
    spend: Mapping[str, float] | None = None  # machine -> dollars, as last seen
    name: str | None = None  # that the user gave

    @property
    def machines(self) -> tuple[str, ...]:
        return (self.machine, *self.others)

    @property
    def spend_usd(self) -> float:
        """Cost of all attempts on all machines."""
        return round(sum((self.spend or {}).values()), 4)


def create(runs: Path, plan: Plan) -> Record:
    """Write the record before anything is provisioned. A continued run keeps its folder and its spend."""
    record = Record(
        run_id=plan.run_id,
        target=plan.target,
        provider=plan.provider,
        state="acquiring",
        attempt=plan.attempt,
        created=plan.created,
        commit=plan.code.commit,
        fraction=plan.fraction,
        backbone=str(plan.backbone["name"]),
        run_dir=plan.run_dir,
        machine=plan.machine,
        spend=read_json(Path(home(runs, plan.run_id).run)).get("spend"),
        name=plan.request.name,
    )
    folder = home(runs, plan.run_id)
    write_json(Path(folder.plan), plan.to_json())
    write_json(Path(folder.run), asdict(record))
    return record


def update(runs: Path, record: Record, **changes: Any) -> Record:
    """Change fields of a record. Writes run.json only if something changed."""
    changed = replace(record, **changes)
    if changed == record:
        return record
    write_json(Path(home(runs, record.run_id).run), asdict(changed))
    return changed


def limit_usd(runs: Path, run_id: str) -> float | None:
    """The run's max_usd, in dollars; None without one, or if its plan.json does not fit."""
    limits = carried_out(runs, run_id).get("limits")
    try:
        return border.number(limits["max_usd"], "max_usd", 0) if isinstance(limits, dict) else None
    except (BadAnswer, KeyError):
        return None


def cost_now(record: Record, told_usd: float) -> float:
    """Dollars of all machines and attempts. `told_usd`: of the machine of rank 0, as its supervisor told just now."""
    before = record.spend or {}
    recorded = before.get(record.machine, 0.0)
    return sum(before.values()) - recorded + max(recorded, told_usd * len(record.machines))


def credible_usd(told: float, *, usd_per_hour: float, hours: float, lives: bool) -> float:
    """Cost of a machine in dollars. Its own figure, `told`, counts only up to the laptop's price times hours.

    While a run `lives` on it, every hour since its creation is paid for.
    """
    most = max(0.0, usd_per_hour * hours)
    return round(most if lives else min(told, most), 4)


def moment(created: str) -> float:
    """Unix seconds of the time in a record; 0 for a damaged one. Those of older versions have no offset to UTC.

    Texts do not sort: an hour comes twice when summer ends, and a laptop travels.
    """
    try:
        return datetime.fromisoformat(created).timestamp()
    except (ValueError, OSError, OverflowError):
        return 0.0


def hours_since(record: Record, created: float | None, now: float) -> float:
    """Paid hours of a machine of the run: since its creation or, if that is unknown, since the run began."""
    began = moment(record.created) if created is None else created
    return max(0.0, now - began) / 3600 if began else 0.0


def most_spent(one: Mapping[str, float] | None, other: Mapping[str, float]) -> Mapping[str, float] | None:
    """PURE: the larger cost of each machine of two records of a run; `one` where that has them all."""
    before = one or {}
    more = {machine: usd for machine, usd in other.items() if usd > before.get(machine, 0.0)}
    return {**before, **more} if more else one


def written_spend(runs: Path, record: Record) -> Mapping[str, float]:
    """The costs that run.json has by now, which may be more than the record that a command read earlier."""
    written = record_in(Path(home(runs, record.run_id).path))
    return (written.spend or {}) if isinstance(written, Record) else {}


def spent(runs: Path, record: Record, told: Mapping[str, float]) -> Record:
    """Record the cost of machines, as `credible_usd` computes it. A recorded cost never decreases."""
    return update(runs, record, spend=most_spent(record.spend, told))


def save_placement(runs: Path, plan: Plan, placed: Plan) -> None:
    """Write what the machine of rank 0 added to the plan beside the plan, which stays as it was decided."""
    before, after = plan.to_json(), placed.to_json()
    added = {key: value for key, value in after.items() if key == "attempt" or value != before[key]}
    write_json(Path(home(runs, plan.run_id).placement), added)


def carried_out(runs: Path, run_id: str) -> dict[str, Any]:
    """The run's plan as it was carried out: plan.json and, of the same attempt, placement.json. {} without a plan."""
    folder = home(runs, run_id)
    plan, placement = read_json(Path(folder.plan)), read_json(Path(folder.placement))
    return {**plan, **placement} if placement.get("attempt") == plan.get("attempt") else plan


def home(runs: Path, run_id: str) -> RunFolder:
    """A run's folder on the laptop."""
    return RunFolder(runs / run_id)


def every(runs: Path, target: str | None = None) -> list[Record]:
    """All runs, newest first."""
    written_by_us = [record for _, record in each_folder(runs) if isinstance(record, Record)]
    records = [record for record in written_by_us if target in (None, record.target)]
    return sorted(records, key=lambda record: (moment(record.created), record.run_id), reverse=True)


def get(runs: Path, run_id: str | None, target: str, typed: str = "--run") -> Record:
    """Read the records and choose one. Raises WrongUse."""
    return choose(every(runs), run_id, target, typed)


def choose(newest: Sequence[Record], run_id: str | None, target: str, typed: str = "--run") -> Record:
    """PURE: the run with this id or beginning of an id; without one, the newest of the target. Raises WrongUse.

    `typed`: the flag that gave the id, for messages.
    """
    if run_id is None:
        found = next((record for record in newest if record.target == target), None)
        if found is None and newest:
            other = newest[0].target
            raise WrongUse(
                f"there is no run on target '{target}' yet, and the newest is on '{other}': give --on {other}"
            )
        if found is None:
            raise WrongUse(f"there is no run on target '{target}' yet", next_command=command(f"train --on {target}"))
        return found
    records = {record.run_id: record for record in newest}
    if run_id in records:
        return records[run_id]
    matching = [record for name, record in records.items() if name.startswith(run_id)]
    if len(matching) == 1:
        return matching.pop()
    if matching:
        names = ", ".join(record.run_id for record in matching[:5]) + (", …" if len(matching) > 5 else "")
        raise WrongUse(f"{typed} {run_id} matches {len(matching)} runs: {names}; give more characters")
    raise (
        unknown("run", run_id, list(records)[:10])
        if records
        else WrongUse(f"there is no run '{run_id}': none has been started yet", next_command=command("train"))
    )


def events(runs: Path, run_id: str) -> list[dict[str, Any]]:
    """The events of a run, as far as they were downloaded."""
    return border.read_events(Path(home(runs, run_id).metrics))


def plan_of(runs: Path, record: Record) -> dict[str, Any]:
    """The run's plan as it was carried out. Raises WrongUse without one."""
    plan = carried_out(runs, record.run_id)
    if not plan:
        raise WrongUse(
            f"run {record.run_id} cannot be continued: its plan.json is missing",
            next_command=command(f"train --resume none --on {record.target}"),
        )
    return plan


def compared(runs: Path, record: Record) -> tuple[Compared, ...]:
    """Expected and actual time and cost of each phase of a run; empty until it is over."""
    plan = carried_out(runs, record.run_id)
    if record.state not in FINAL_STATES or not plan.get("phases"):
        return ()
    training = {"training": record.seconds} if record.seconds else {}
    return compare(plan["phases"], {**(record.phases or {}), **training}, plan.get("usd_per_hour"))


def each_folder(runs: Path) -> Iterator[tuple[str, Record | str]]:
    """Every folder of a run: its name and its record or, if that cannot be read, the reason in one sentence."""
    try:
        folders = sorted(runs.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # no run yet, or the folder was just removed
        return
    for folder in folders:
        if folder.is_dir() and not folder.name.startswith("."):  # hidden ones are of editors and of systems
            yield folder.name, record_in(folder)


def record_in(folder: Path) -> Record | str:
    """The record in a run's folder or, if it cannot be read, the reason in one sentence."""
    file = Path(RunFolder(folder).run)
    if not os.path.isfile(file):  # Path.is_file raises where the folder is forbidden
        return "it has no run.json: no command of this project started it here"
    values = read_json(file)
    if not values:
        return "its run.json is damaged or cannot be read"
    try:
        return _record(values)
    except BadAnswer as error:
        return f"its run.json does not fit: {error.message}"
    except (AttributeError, TypeError, ValueError):
        return "its run.json does not fit: another version or a person wrote it"


def _record(values: Mapping[str, Any]) -> Record:
    """Parse a record. Raises TypeError or BadAnswer if it is invalid."""
    record, what = Record(**values), "run.json"
    if not all(isinstance(getattr(record, key), str) for key in WORDS) or not isinstance(record.name, str | None):
        raise TypeError
    border.whole(record.attempt, what)
    border.number(record.fraction, what)
    border.dollars(record.spend or {}, what)
    border.strings(dict(record.others), what)
    for value in (record.seconds, *(record.phases or {}).values()):
        if value is not None:
            border.number(value, what)
    return record
