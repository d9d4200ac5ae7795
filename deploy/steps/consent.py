"""Ask the user before something costs money."""

from __future__ import annotations

import sys

from deploy.errors import WrongUse
from deploy.specs.settings import Settings
from deploy.ui.screen import Screen


def agree(words: str, usd: float | None, settings: Settings, screen: Screen, *, yes: bool) -> None:
    """Ask before a cost above the target's `confirm_usd`, or of unknown size, unless `yes`. Raises WrongUse on a no."""
    if yes or (usd is not None and usd <= settings.target.confirm_usd):
        return
    if not sys.stdin.isatty():
        raise WrongUse(f"{words}: give --yes to agree, or set confirm_usd in conf/deploy/{settings.target.name}.yaml")
    if not screen.ask(f"{words}. Continue?"):
        raise WrongUse("nothing was started")
