"""Look at a host that costs nothing, for the plan of a dry run. Nothing on it is changed."""

from __future__ import annotations

from dataclasses import replace

from deploy.errors import DeployError
from deploy.runs.session import Reach
from deploy.specs.facts import Facts
from deploy.specs.names import machine_name
from deploy.ui.screen import Screen
from deploy.workspace import devices, environment

LIMIT_S = 20.0


def look_at_host(at: Reach, facts: Facts, screen: Screen) -> Facts:
    """Add the hardware of a host that exists and is free to ask. Says why, if the host does not answer or cannot train.

    Machines that are rented, or that are yet to be made, are left alone.
    """
    settings = at.settings
    if facts.hardware is not None or settings.is_rented or facts.usd_per_hour != 0:
        return facts
    at.limit_s = LIMIT_S
    try:
        machine = at.machine(machine_name(settings, "look"))
        if machine is None:
            return facts
        shell = at.shell(machine)
        settled = environment.settle(machine, shell, settings.project)
        is_ready = environment.is_ready(settled, shell, settings.project)
        found = devices.ask(shell, settled.python) if is_ready else devices.ask_driver(shell)
        if is_ready and (why := devices.fault(found, settings.target.device)):
            screen.say(f"warning: this run would not start: {why}")
        user = shell.user() if settings.shares_ram else None
        hardware = devices.combine(shell.hardware(), found, settings.target.device)
        return replace(facts, hardware=hardware, user=user)
    except (DeployError, OSError) as error:
        screen.say(f"warning: target '{settings.target.name}' could not be looked at: {error}")
        return facts
