"""Limits of a run and of a machine, as the laptop wrote them to plan.json ("limits") and guard.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

ON_END = ("keep", "stop", "terminate")  # the first is the default
# Who releases a machine. `none`: nobody, it is not billed. `laptop`: the next command there, as the machine has no key
# for it. Otherwise the way in which the machine releases itself: deploy/pod/watchdog/release.py.
NONE, LAPTOP, RUNPOD = "none", "laptop", "runpod"
RELEASES = (NONE, LAPTOP, RUNPOD)
SHARE_FOR_THE_END = 0.05
CEILINGS = ("max_hours", "max_usd", "idle_min", "stall_min")
OF_TARGET = ("max_restarts", *CEILINGS, "sync_to", "on_end")  # keys of conf/deploy/<target>.yaml
DECIDED = (*OF_TARGET, "paid_since", "usd_per_hour", "release")  # what the laptop decides for each run


@dataclass(frozen=True)
class Limits:
    """Limits of a run or machine. None: no limit. Minutes may be fractions."""

    machine: str = "this machine"
    max_restarts: int = 0
    restart_pause_s: float = 2.0  # before the first restart; doubles with each further one
    max_hours: float | None = None
    max_usd: float | None = None
    idle_min: float | None = None
    stall_min: float | None = None
    sync_to: str | None = None
    on_end: str = "keep"
    paid_since: float | None = None
    usd_per_hour: float = 0.0  # of all machines of the run together
    release: str = NONE
    # Used only by the guard:
    grace_s: float = 60.0  # for the last checkpoint; a larger value in the run's plan wins
    sync_limit_s: float = 600.0  # for the final sync of one run
    volume_path: str | None = None  # files below it outlive the machine
    watch: tuple[str, ...] = ()  # files and folders whose changes count as activity, such as data being staged
    poll_s: float = 1.0
    retry_s: float = 60.0  # between two attempts to release the machine
    group: str | None = None  # id of the machine's cluster, which can only be released as a whole
    node: int = 0  # index of the machine in its cluster
    notify_pct: float | None = None  # the share of max_usd at which the webhook is told

    @property
    def releases_itself(self) -> bool:
        return self.release not in (NONE, LAPTOP)

    @property
    def usd_s(self) -> float | None:
        """Paid seconds that max_usd buys."""
        if self.max_usd is None or self.usd_per_hour <= 0:
            return None
        return self.max_usd / self.usd_per_hour * 3600

    @property
    def hard_s(self) -> float | None:
        """Paid seconds after which the end must begin, so that max_usd also covers the last checkpoint and copy."""
        if self.usd_s is None:
            return None
        return self.usd_s - min(self.grace_s + self.sync_limit_s, SHARE_FOR_THE_END * self.usd_s)

    @property
    def deadline_s(self) -> float | None:
        """The earlier of `hard_s` and max_hours, in paid seconds."""
        times = [self.hard_s, None if self.max_hours is None else self.max_hours * 3600]
        return min((each for each in times if each is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the limits as plan.json and guard.json hold them. The guard has its own values of the others."""
        return {name: getattr(self, name) for name in DECIDED}


def parse(values: Mapping[str, Any]) -> Limits:
    """Parse limits from JSON. Ignores keys of other versions. Raises ValueError for an invalid value."""
    told: dict[str, Any] = {}
    for each in fields(Limits):
        value = values.get(each.name)
        if value is None:
            continue
        if each.name in ("machine", "sync_to", "on_end", "release", "volume_path", "group"):
            told[each.name] = str(value)
        elif each.name == "watch":
            told[each.name] = tuple(str(path) for path in value)
        else:
            told[each.name] = _number(each.name, value)
    limits = Limits(**told)
    for name, right in (("on_end", ON_END), ("release", RELEASES)):
        if getattr(limits, name) not in right:
            raise ValueError(f"{name} must be one of {', '.join(right)}, not {getattr(limits, name)}")
    return limits


def parse_for_job(values: Mapping[str, Any]) -> Limits:
    """Parse as `parse` does. Invalid limits count as no limits: the guard reports them, and the job still starts."""
    try:
        return parse(values)
    except ValueError:
        return Limits()


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number < float("inf"):
        raise ValueError(f"{name} must be a number from 0, not {value!r}")
    return number
