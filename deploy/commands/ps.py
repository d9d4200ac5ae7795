"""List what costs money, as the providers report it: machines and volumes, orphans first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.billing.bills import Bill, may_bill, priced, stored, targets, unread_targets
from deploy.errors import DeployError, StepFailed
from deploy.runs.situation import Situation
from deploy.ui.screen import Screen

COLUMNS = (
    "machine", "volume", "target", "gpu", "gb", "usd_per_hour", "usd_per_month", "hours", "usd", "run", "state", "note",
)  # fmt: skip


def ps(project: Path, screen: Screen) -> int:
    """Print what costs money. Returns 1 if an account does not answer: the list may then lack some of it."""
    found, silent = _bills(project, screen)
    screen.rows("Machines and volumes", found, COLUMNS)
    for failed in silent:
        screen.failure(failed)
    return int(bool(silent))


def bills(project: Path, screen: Screen) -> list[dict[str, Any]]:
    """What costs money, orphans first. Prints a warning for an account that does not answer: its costs are unknown."""
    found, silent = _bills(project, screen)
    for failed in silent:
        screen.complain(failed.message)
    return found


def _bills(project: Path, screen: Screen) -> tuple[list[dict[str, Any]], list[DeployError]]:
    """All machines of this project, whoever made them, all volumes of its accounts, and what could not be listed."""
    found: list[Bill] = []
    situation = Situation(project)
    silent = unread_targets(situation)
    for at in targets(situation):
        at.provider.say = screen.complain
        try:
            found += [each.bill for each in priced(at)]
            found += stored(at)
        except DeployError as error:
            words = f"{at.settings.target.provider} could not list everything that it bills ({error.message})"
            silent += [StepFailed(words, next_command=error.next_command)] if may_bill(at, error) else []
    return [bill.to_json() for bill in sorted(found, key=lambda bill: not bill.orphan)], silent
