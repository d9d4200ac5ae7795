"""The way out: what a machine needs before a job can start on it."""

from __future__ import annotations

from pathlib import Path, PurePath

from deploy import code, data, transfer
from deploy.errors import BOOTSTRAP, StepFailed
from deploy.facts import Checked
from deploy.machine import Machine
from deploy.plan import Plan, settle
from deploy.settings import Settings
from deploy.shell import Shell
from deploy.show import Screen


def ready(settings: Settings, shell: Shell, machine: Machine, plan: Plan, checked: Checked, screen: Screen) -> Plan:
    """Bring environment, code and data to the machine, each only where it is missing; the settled plan."""
    plan = settle(plan, code.place(settings.project, machine))
    screen.say(f"code: {plan.cwd}")
    _check_environment(shell, machine, PurePath(plan.cwd))
    assert checked.dataset is not None, "data is prepared before a machine is asked for"
    with screen.copying("staging") as progress:
        staged = data.stage(shell, machine, PurePath(plan.cwd), plan, checked.dataset, progress)
    screen.say(f"data: {staged or plan.data_path}")
    return plan


def bring_own_checkpoint(shell: Shell, checked: Checked, plan: Plan) -> None:
    """The user's checkpoint travels into the run folder, with its JSON."""
    if checked.request.resume in ("none", "auto"):
        return
    for file in (Path(checked.request.resume), Path(checked.request.resume).with_suffix(".json")):
        if file.exists():
            transfer.push(shell, file, PurePath(plan.resume).with_suffix(file.suffix))


def _check_environment(shell: Shell, machine: Machine, code_folder: PurePath) -> None:
    ask = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    if not shell.run([machine.python, "-c", ask], cwd=code_folder, check=False):
        raise StepFailed(f"torch is not installed for {machine.python}", next_command=BOOTSTRAP)
