"""Ask the user before something costs money."""

from __future__ import annotations

import sys

from deploy.errors import DeployError, WrongUse, command
from deploy.runs.session import Reach
from deploy.specs.plan import Plan
from deploy.specs.settings import Settings
from deploy.specs.trial import low_balance
from deploy.ui.screen import Screen


def warn_of_balance(at: Reach, plan: Plan, screen: Screen) -> None:
    """Print a warning if the provider's account runs out of money before the run ends. Silent if it cannot be read."""
    if not plan.usd_per_hour:
        return
    try:
        trial = at.provider.trial()
        funds = trial.funds() if trial else None
    except DeployError:
        return
    hours = None if plan.expected_minutes is None else plan.expected_minutes / 60
    target = at.settings.target
    is_copied = bool(target.sync_to or target.options.mount)
    if funds and (words := low_balance(funds, plan.usd_per_hour, hours, is_copied=is_copied)):
        screen.say(f"warning: {words}")


def warn_of_preemption(settings: Settings, screen: Screen) -> None:
    """Print a warning if the provider may end the machine, with what keeps the checkpoints and continues the run."""
    target = settings.target
    if not target.options.is_preemptible:
        return
    kept = "" if target.sync_to or target.options.mount else "; checkpoints on it are lost then: set volume or sync_to"
    goes_on = f"{command(f'watch --on {target.name}')} downloads them and continues the run on another machine"
    screen.say(f"warning: a spot machine may be stopped at any moment{kept}; {goes_on}")


def agree(words: str, usd: float | None, settings: Settings, screen: Screen, *, yes: bool) -> None:
    """Ask before a cost above the target's `confirm_usd`, or of unknown size, unless `yes`. Raises WrongUse on a no."""
    if yes or (usd is not None and usd <= settings.target.confirm_usd):
        return
    if not sys.stdin.isatty():
        raise WrongUse(f"{words}: give --yes to agree, or set confirm_usd in {settings.where}")
    if not screen.ask(f"{words}. Continue?"):
        raise WrongUse("nothing was started")
