"""Prepare the release of a machine: end its run with a checkpoint, and download what only this machine has."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from deploy.billing.bills import lives
from deploy.errors import DeployError, StepFailed, command
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES, Root, RunFolder
from deploy.runs import checkpoints, job, records
from deploy.runs.records import Record
from deploy.runs.session import Reach, Reached, target
from deploy.shell import LocalShell
from deploy.specs.machine import Machine
from deploy.specs.plan import GRACE_S
from deploy.steps import download
from deploy.ui.screen import Screen

STOP_SLACK_S = 30
ANYWAY_S = 45.0  # time limit for downloads with --anyway, which releases within a minute whatever the machine does


def stop_run(reached: Reached, screen: Screen) -> Reached:
    """Ask the job to end. After the grace period its supervisor ends it. Raises StepFailed if it does not end."""
    run_id = reached.record.run_id
    grace_s = float(reached.read_plan().get("grace_s", GRACE_S))
    screen.say(f"asking run {run_id} to make a checkpoint and end (up to {grace_s:.0f} s)")
    job.request_stop(reached.shell, reached.folder)
    for other in reached.others():
        job.request_stop(other.shell, other.folder)
    job.wait_for_end(reached.shell, reached.folder, grace_s + STOP_SLACK_S)
    reached, _ = reached.look()
    if reached.record.state not in FINAL_STATES:
        raise StepFailed(
            f"run {run_id} did not end within {grace_s + STOP_SLACK_S:.0f} s",
            evidence=job.last_lines(reached.shell, reached.folder),
            next_command=command(f"status --run {run_id}"),
        )
    return reached


def bring_all_home(at: Reach, machine: Machine, screen: Screen, *, anyway: bool) -> None:
    """Download everything that only this machine has. With `anyway`, give up after ANYWAY_S: the rest is lost.

    Never raises with `anyway`. Otherwise raises StepFailed for the first run that could not be downloaded.
    """
    if not anyway:
        _bring_each(at, machine, screen, anyway=False)
        return
    # In a thread of its own, so that nothing a machine does can delay its release.
    bringing = threading.Thread(target=_bring_each, args=(at, machine, screen), kwargs={"anyway": True}, daemon=True)
    until = time.monotonic() + ANYWAY_S
    bringing.start()
    while bringing.is_alive() and time.monotonic() < until:
        bringing.join(0.2)
    if bringing.is_alive():
        screen.say(f"the results on {machine.name} were not downloaded within {ANYWAY_S:.0f} s: they are lost")


def _bring_each(at: Reach, machine: Machine, screen: Screen, *, anyway: bool) -> None:
    for record in records.every(at.settings.runs):
        if machine.name not in record.machines or record.state in records.STARTING:
            continue
        try:
            reached, _ = at.run(record).look()
            writes = record.machine == machine.name  # of several machines, only rank 0's has the results
            if writes and at.machine(machine.name) is None and not is_home(at, reached.record):
                raise StepFailed("it does not answer")  # a stopped container still holds the results
            if reached.machine is not None:
                if reached.record.state not in FINAL_STATES:
                    reached = stop_run(reached, screen)
                download.bring(reached, screen)
        except Exception as error:  # of any kind: the machine is not trusted, and must not block its release
            if not anyway:
                raise StepFailed(
                    f"the results of run {record.run_id} on {machine.name} could not be downloaded ({error}): "
                    "the machine was kept",
                    next_command=command(f"down --run {record.run_id} --anyway"),
                ) from error
            screen.say(f"the results of run {record.run_id} could not be downloaded and are lost ({error})")


def release_idle(project: Path, record: Record, screen: Screen) -> bool:
    """Release the machines of a run that is over, after what only they have is downloaded.

    Keeps a machine with another live run, and one whose results cannot be downloaded. Prints why. Returns False if one
    still bills that could not be asked, emptied or released: a later call may succeed.
    """
    with target(project, record.target) as at:
        done = [_released_idle(at, record, name, screen) for name in record.machines]  # each, also after a failure
        return all(done)


def _released_idle(at: Reach, record: Record, name: str, screen: Screen) -> bool:
    others = [each for each in records.every(at.settings.runs) if each.run_id != record.run_id]
    try:
        machine = at.machine(name)
        if machine is None or not machine.usd_per_hour:
            return True
        busy = next((each.run_id for each in others if name in each.machines and lives(at, each)), None)
        if busy := busy or run_of_another_laptop(at, machine):
            screen.say(f"kept {name}: run {busy} is on it")
            return True
        bring_all_home(at, machine, screen, anyway=False)
        at.provider.release(machine)
    except DeployError as error:
        end = error.next_command or command(f"down --run {record.run_id}")
        screen.complain(f"{error.message}; {name} still bills: {end}")
        return False
    at.forget(name)
    screen.say(f"released {name}: it cannot release itself")
    return True


def run_of_another_laptop(at: Reach, machine: Machine) -> str | None:
    """A live run on a machine, as the machine reports it, that this laptop does not know.

    Also None if the machine does not answer.
    """
    known = {record.run_id for record in records.every(at.settings.runs)}
    try:
        there = at.machine(machine.name)
        if there is None or there.address is None or not there.address.host:
            return None
        shell = at.shell(there)
        folder = Root(there.path(shell.expand(str(there.root)))).runs
        for name in shell.listdir(folder):
            seen = job.look(shell, RunFolder(folder / name)) if name not in known else None
            if seen and seen.state in LIVE_STATES:
                return name
    except (DeployError, OSError):
        return None
    return None


def is_home(at: Reach, record: Record) -> bool:
    """Whether an unreachable machine holds nothing more of a run: its end is on the laptop, or it never began."""
    if record.session is None:
        return True
    whole = checkpoints.whole(LocalShell(), records.home(at.settings.runs, record.run_id))
    epochs = int(records.plan_of(at.settings.runs, record)["epochs"])
    return record.state == "succeeded" and bool(whole) and int(whole[-1]["epoch"]) + 1 >= epochs
