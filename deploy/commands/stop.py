"""Commands that end things: a run, with a checkpoint; a machine, after everything on it is downloaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from deploy.billing import bills
from deploy.billing.hosts import free_ram
from deploy.billing.reaper import reap
from deploy.billing.teardown import bring_all_home, run_of_another_laptop, stop_run
from deploy.errors import DeployError, StepFailed, WrongUse, command
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES
from deploy.runs import documents, records, session
from deploy.runs.session import Reach
from deploy.runs.situation import Situation
from deploy.specs.names import family_name
from deploy.specs.settings import load
from deploy.steps import download
from deploy.ui.paths import near
from deploy.ui.screen import Screen


def stop(project: Path, target: str, run_id: str | None, screen: Screen) -> dict[str, Any]:
    """Ask the job to write a checkpoint and end, wait for both, and download the results.

    Raises WrongUse while a command is still starting the run.
    """
    with session.run(project, target, run_id, partial(reap, screen=screen)) as reached:
        reached, _ = reached.look()
        record = reached.record
        if record.state in records.STARTING:
            raise WrongUse(f"run {record.run_id} is still {record.state}: press Ctrl-C in the terminal that started it")
        if record.state in FINAL_STATES:
            screen.say(f"{documents.how_it_is(record)} (it had already ended)")
        else:
            reached = stop_run(reached, screen)
            record = reached.record
            screen.say(documents.how_it_is(record))
        if reached.machine is not None:  # also of a run that was over: its newest checkpoint may be there alone
            download.bring(reached, screen)
        checkpoint = download.newest_checkpoint(reached)
        if checkpoint:
            where = f"(epoch {checkpoint['epoch']}, step {checkpoint['step']})"
            screen.say(f"checkpoint: {near(checkpoint['path'])} {where}")
        report, verdict = download.report(reached), download.verdict(reached)
        if report:
            screen.say(f"report: {near(report)}")
        document = documents.of_run(record, reached.events(), checkpoint, report, verdict)
        screen.verdict(document)
        screen.commands(documents.next_commands(record))
        return document


def down(
    project: Path, target: str, run_id: str | None, screen: Screen, *, every: bool, orphans: bool, anyway: bool
) -> list[dict[str, Any]]:
    """Release machines. A run on one ends with a checkpoint first, and its results are downloaded.

    A machine with a live run of another laptop is kept, unless `anyway`. A machine whose results cannot be downloaded
    is kept too, and an account may not answer, but the others are released: the first such failure is raised at the
    end. A host that nobody rented stays: what this user staged in its RAM is freed.
    """
    gone: list[dict[str, Any]] = []
    situation = Situation(project)
    record = records.choose(situation.records, run_id, target) if run_id else None
    named = record.target if record else target
    wide = every or orphans
    failures = bills.unread_targets(situation) if wide else []
    for at in bills.targets(situation) if wide else [Reach(load(project, named), situation)]:
        with at:
            for each in _there(at, failures if wide else None, screen):
                name = each.machine.name
                is_of_target = wide or name.startswith(family_name(at.settings))
                is_meant = (each.bill.orphan or not orphans) and (record is None or name in record.machines)
                if is_of_target and is_meant:
                    try:
                        gone += _released(at, each, screen, anyway=anyway)
                    except DeployError as error:
                        failures.append(error)
    screen.raise_first(failures)
    if not gone and not wide:
        with Reach(load(project, named), situation) as at:
            _refuse_living(at)
            gone = free_ram(at, screen, anyway=anyway)
    if not gone:
        screen.say("there is nothing to release")
    return gone


def _released(at: Reach, each: bills.Priced, screen: Screen, *, anyway: bool) -> list[dict[str, Any]]:
    """Release a machine. Returns its bill; nothing for a machine that is kept for another laptop's run."""
    machine, bill = each.machine, each.bill
    if not anyway and (other := run_of_another_laptop(at, machine)):
        screen.complain(f"kept {machine.name}: run {other} of another computer is running on it; --anyway ends it")
        return []
    bring_all_home(at, machine, screen, anyway=anyway)
    at.provider.release(machine)
    at.forget(machine.name)
    screen.say(f"released {machine.name}" + (f" after ${bill.usd:.2f}" if bill.usd else ""))
    return [bill.to_json()]


def _refuse_living(at: Reach) -> None:
    """Raise WrongUse for a run that goes on where no machine was rented: the user meant to end something."""
    target = at.settings.target.name
    for record in at.situation.of(target):
        if bills.lives(at, record):
            record, _ = at.look(record)
        if record.state in LIVE_STATES:
            raise WrongUse(
                f"run {record.run_id} is {record.state} on target '{target}', whose machine was not rented: "
                "there is nothing to release",
                next_command=command("stop" + documents.on(record)),
            )


def _there(at: Reach, failures: list[DeployError] | None, screen: Screen) -> list[bills.Priced]:
    """What the target's account bills. Of several accounts, one that does not answer is added to `failures`."""
    at.provider.say = screen.complain
    try:
        return bills.priced(at)
    except DeployError as error:
        if failures is None:
            raise
        if bills.may_bill(at, error):
            words = f"{at.settings.target.provider} could not be asked, so its machines may still bill"
            failures.append(StepFailed(f"{words} ({error.message})", next_command=error.next_command))
        return []
