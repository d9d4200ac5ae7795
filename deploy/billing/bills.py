"""List what costs money: machines of this project and volumes of its accounts, each with its run or targets.

The providers report them; local files only add the runs and targets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from deploy.errors import DeployError, NoAccount, StepFailed
from deploy.pod.base.folder import FINAL_STATES
from deploy.pod.base.limits import Limits
from deploy.pod.watchdog.ceilings import Seen, reached
from deploy.runs import records
from deploy.runs.records import Record
from deploy.runs.session import Reach, is_launching
from deploy.runs.situation import Situation
from deploy.specs.machine import Machine, Volume
from deploy.specs.names import target_word
from deploy.specs.settings import Settings

HOURS_A_MONTH = 730


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Cost of one machine or one volume (the other is None), with its run or its targets."""

    machine: str | None = None
    volume: str | None = None
    target: str | None = None  # of a volume: all targets that mount it, separated by commas
    gpu: str | None = None
    gb: int | None = None  # of a volume
    usd_per_hour: float
    usd_per_month: float | None = None  # of a volume
    hours: float | None = None  # since its creation; None if the provider does not report it
    usd: float | None = None  # so far
    run: str | None = None
    state: str | None = None  # of that run, as last seen from this laptop
    orphan: bool  # machine: no live run of this laptop is on it; volume: no target of this project mounts it
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Priced:
    """A machine with its bill, its runs and the limits of those."""

    machine: Machine
    bill: Bill
    runs: Sequence[Record]
    limits: Limits


def priced(at: Reach) -> list[Priced]:
    """List the machines that the target's provider reports, orphans first. Local files only add the runs."""
    found = [_priced(at, machine, time.time()) for machine in at.machines()]
    return sorted(found, key=lambda each: (not each.bill.orphan, each.machine.name))


def stored(at: Reach) -> list[Bill]:
    """List all volumes of the provider's account, each with the targets of this project that mount it.

    A volume without a target may belong to another project.
    """
    mounted: dict[str, list[str]] = {}
    for settings in at.situation.targets:
        mount = settings.target.options.mount
        if mount:
            mounted.setdefault(mount.id, []).append(settings.target.name)
    return [_stored(volume, mounted.get(volume.id, [])) for volume in at.provider.volumes()]


def targets(situation: Situation) -> Iterator[Reach]:
    """One target for each provider and account. See `unread_targets` for those whose file cannot be loaded."""
    chosen: dict[tuple[str, str | None], Settings] = {}
    for settings in sorted(situation.targets, key=lambda each: each.target.options.reports_less):
        account = (settings.target.provider, settings.target.options.account)
        chosen.setdefault(account, settings)
    for settings in chosen.values():
        yield Reach(settings, situation)


def may_bill(at: Reach, error: DeployError) -> bool:
    """Whether an account that does not answer may have something that costs money.

    A target that was never used needs no account, and no engine of containers.
    """
    costs_nothing = isinstance(error, NoAccount) or not at.settings.is_rented
    return not costs_nothing or bool(at.situation.of(at.settings.target.name))


def unread_targets(situation: Situation) -> list[DeployError]:
    """One error for each target whose file cannot be loaded: nobody asks its account for what it bills."""
    return [
        StepFailed(
            f"target '{name}' is left out, so its machines may still bill ({error.message})",
            next_command=error.next_command,
        )
        for name, error in situation.broken_targets.items()
    ]


def limits_of(situation: Situation, bill: Bill, on_it: Iterable[Record]) -> Limits:
    """Limits of a machine, from the plans of its runs and its target's file, at the provider's price.

    The laxest value counts: a file that was edited later must not end what runs. Nothing is reserved for a checkpoint
    and a copy: the machine's guard ends it before these limits.
    """
    plans = [records.carried_out(situation.project / "runs", record.run_id) for record in on_it]
    told: list[Mapping[str, Any]] = [plan["limits"] for plan in plans if plan.get("limits")]
    in_file = [vars(settings.target) for settings in situation.targets if settings.target.name == bill.target]
    nodes = min((int(each.get("nodes", 1)) for each in plans or in_file), default=1)
    told += in_file

    def laxest(name: str) -> float:
        values = [each.get(name) for each in told]
        return max((float("inf") if value is None else float(value) for value in values), default=float("inf"))

    known: dict[str, Any] = {name: laxest(name) for name in ("max_hours", "max_usd", "idle_min")}
    known = {name: value for name, value in known.items() if value < float("inf")}
    rate = 0.0 if bill.usd is None else bill.usd_per_hour * nodes
    return Limits(**known, usd_per_hour=rate, grace_s=0, sync_limit_s=0)


def past_ceiling(bill: Bill, limits: Limits, *, slack_min: float = 0.0) -> str | None:
    """Why this machine should have been gone `slack_min` minutes ago; None within its limits."""
    if bill.hours is None:
        return None
    ceiling = reached(limits, Seen(paid_s=bill.hours * 3600 - slack_min * 60))
    return f"past {ceiling.cause}: {getattr(limits, ceiling.cause):g}" if ceiling else None


def _priced(at: Reach, machine: Machine, now: float) -> Priced:
    on_it = [record for record in at.situation.records if machine.name in record.machines]
    living = [record for record in on_it if lives(at, record)]
    record = next(iter([*living, *on_it]), None)
    hours = round(max(0.0, now - machine.created) / 3600, 3) if machine.created else None
    # The cost of a stopped machine is unknown: providers do not report when it was stopped.
    usd = None if hours is None or machine.is_stopped or machine.fault else round(hours * machine.usd_per_hour, 2)
    bill = Bill(
        machine=machine.name,
        target=record.target if record else _target_of(at, machine),
        gpu=machine.gpu,
        usd_per_hour=round(machine.usd_per_hour, 4),
        hours=hours,
        usd=usd,
        run=record.run_id if record else None,
        state=record.state if record else None,
        orphan=not living,
    )
    limits = limits_of(at.situation, bill, on_it)
    notes = [
        f"its price is not known: {machine.fault}" if machine.fault else None,
        "stopped, and its disk is kept" if machine.is_stopped else None,
        past_ceiling(bill, limits),
        None if living else "its run is over" if record else "no run of this laptop is on it",
    ]
    return Priced(machine, replace(bill, note="; ".join(filter(None, notes)) or None), on_it, limits)


def _stored(volume: Volume, mounted_by: Sequence[str]) -> Bill:
    nobody = None if mounted_by else "no target names it"
    about = ", ".join(filter(None, [volume.id, volume.place])) or "no id"
    price = f"its price is not known: {volume.fault}" if volume.fault else volume.note
    return Bill(
        volume=f"{volume.name} ({about})",
        target=", ".join(mounted_by) or None,
        gb=None if volume.fault else volume.gb,
        usd_per_hour=round(volume.usd_per_month / HOURS_A_MONTH, 4),
        usd_per_month=None if volume.fault else volume.usd_per_month,
        orphan=not mounted_by,
        note="; ".join(filter(None, [nobody, price])) or None,
    )


def lives(at: Reach, record: Record) -> bool:
    """Whether a run is alive. A run whose launching command died before the job started counts as dead."""
    if record.state in records.STARTING:
        return is_launching(at.settings, record.run_id)
    return record.state not in FINAL_STATES


def _target_of(at: Reach, machine: Machine) -> str:
    """The target in a machine's name, sniperface-<project>-<target>-<run>."""
    words = machine.name.split("-")
    if len(words) < 4:
        return at.settings.target.name
    word, names = words[2], [each.target.name for each in at.situation.targets]
    return next((name for name in names if target_word(name) == word), word)


def an_hour(usd_per_hour: float) -> str:
    """Format a price; below one cent, as for a small volume, with four decimals."""
    return f"${usd_per_hour:.2f} an hour" if usd_per_hour >= 0.01 else f"${usd_per_hour:.4f} an hour"
