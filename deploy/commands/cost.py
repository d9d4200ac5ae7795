"""Show what runs have cost, by day and target, from the records on this laptop. No provider is asked."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from deploy.billing.costs import history
from deploy.errors import WrongUse, command
from deploy.runs import records
from deploy.specs.estimate import plural
from deploy.ui.screen import Screen

COLUMNS = ("day", "target", "runs", "machines", "spend_usd", "still_running")
DAYS_MOST = 36_500


def cost(project: Path, days: str, screen: Screen) -> dict[str, Any]:
    """Show the recorded cost of the last `days` days, today included. Raises WrongUse for another number."""
    if not re.fullmatch(r"\d{1,5}", days) or not 1 <= int(days) <= DAYS_MOST:
        raise WrongUse(f"--days {days} must be a whole number from 1 to {DAYS_MOST}, such as 30")
    since = date.today() - timedelta(days=int(days) - 1)
    rows = history(records.every(project / "runs"), since)
    total = round(sum(row["spend_usd"] for row in rows), 4)
    span = plural(int(days), "day")
    if not rows:
        screen.say(f"no run of the last {span} has cost money, as far as this laptop recorded")
    elif not screen.as_json:
        screen.rows("Cost", rows, COLUMNS)
        screen.say(f"last {span}: ${total:.2f}, estimated from price and time; the provider's invoice counts")
        screen.say(f"not recorded: machines after their last run was looked at, volumes; see {command('ps')}")
    return {"days": int(days), "since": since.isoformat(), "spend_usd": total, "estimated": True, "rows": rows}
