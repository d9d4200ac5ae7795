"""What `doctor` finds, and the interface of a trial: a machine that `doctor --rent` rents for a moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deploy.specs.machine import Machine

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """Result of one check. `level`: ok, warning (works, with less) or problem (train will fail)."""

    what: str
    level: str
    found: str
    fix: str | None = None

    def __post_init__(self) -> None:
        assert self.level == OK or self.fix, f"{self.what}: a {self.level} needs a fix"


@dataclass(frozen=True)
class Funds:
    """Money of a provider's account."""

    balance_usd: float
    usd_per_hour: float  # of everything that bills now
    limit_usd_per_hour: float | None = None  # the account's own limit of that; None: the provider reports none

    def hours(self, more_usd_per_hour: float) -> float:
        """Return how long the balance lasts if `more_usd_per_hour` bills too."""
        rate = self.usd_per_hour + more_usd_per_hour
        return float("inf") if rate <= 0 else max(self.balance_usd, 0.0) / rate


@dataclass(frozen=True)
class Offer:
    """The cheapest machine that fits, and the most that a trial of it can cost."""

    words: str
    usd_per_hour: float
    most_min: float  # minutes after which it ends, even if this computer dies once the machine has started

    @property
    def most_usd(self) -> float:
        """Rounded up to cents."""
        return math.ceil(round(self.usd_per_hour * self.most_min / 0.6, 6)) / 100


class Trial(Protocol):
    """A provider that rents machines, asked and tried. Only `rent` costs money."""

    say: Callable[[str], None]
    check: Callable[[Machine], None]  # as Provider.check

    def funds(self) -> Funds | None:
        """Return the money of the account; None if the key may not read it."""

    def account(self) -> list[Finding]:
        """Report what the account allows, as far as that shows without a machine."""

    def offer(self) -> Offer:
        """Return what `rent` requests first. Raises NoMachine if nothing fits the target's limits."""

    def rent(self) -> Machine:
        """Create a machine under a name that no run uses, and wait until it answers. Raises NoMachine."""

    def placed(self, machine: Machine) -> list[Finding]:
        """Report what the provider says of the machine, compared with the request."""

    def probe(self) -> bytes:
        """Return the archive whose modules RIGHTS and RELEASE run on the machine."""

    def rights(self, told: Mapping[str, Any]) -> list[Finding]:
        """Report the answer of RIGHTS: what the machine's own key may do."""

    def is_gone(self, machine: Machine, limit_s: float) -> bool:
        """Wait until the provider no longer lists the machine as alive."""

    def release(self, machine: Machine) -> None: ...


# Modules of the archive of `probe`.
RIGHTS, RELEASE = "deploy.pod.watchdog.rights", "deploy.pod.watchdog.release"


def refusal(offer: Offer, funds: Funds | None, max_usd: float | None) -> str | None:
    """PURE: return why the account or the user's limit forbids a trial; None if it may be rented.

    A provider may start a machine only with credit for an hour of it.
    """
    price = f"{offer.usd_per_hour:.2f} USD an hour"
    if max_usd is not None and offer.most_usd > max_usd:
        return f"a trial may cost {offer.most_usd:.2f} USD, more than max_usd: {max_usd:g}"
    if funds is None:
        return None
    if funds.balance_usd < offer.usd_per_hour:
        return f"the balance of {funds.balance_usd:.2f} USD is below one hour of the cheapest machine, {price}"
    limit = funds.limit_usd_per_hour
    if limit is not None and funds.usd_per_hour + offer.usd_per_hour > limit:
        return (
            f"{funds.usd_per_hour:.2f} USD an hour bills already: {price} more is above the account's limit {limit:g}"
        )
    return None


def low_balance(funds: Funds, usd_per_hour: float, hours: float | None, *, is_copied: bool) -> str | None:
    """PURE: return a warning for a run that the balance does not last for; None if it does.

    `hours`: expected; None: not known, then an hour. `is_copied`: checkpoints survive the end of the machine.
    """
    lasts = funds.hours(usd_per_hour)
    if lasts >= (1.0 if hours is None else hours):
        return None
    words = f"the balance of {funds.balance_usd:.2f} USD lasts for {lasts:.1f} hours of this run"
    words += "" if hours is None else f", which is expected to take {hours:.1f}"
    if is_copied:
        return f"{words}; at 0 USD the machine ends"
    return f"{words}; at 0 USD the machine ends with its checkpoints: add credit, or set volume or sync_to"


def worst(findings: Sequence[Finding]) -> str:
    """Return the worst level."""
    return max((each.level for each in findings), key=(OK, WARNING, PROBLEM).index, default=OK)
