"""The ways to end things: a run with a checkpoint, a machine with everything on it brought home first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy import answers, home, job, money, reach, runs
from deploy.errors import DeployError, StepFailed, WrongUse, command
from deploy.machine import Machine
from deploy.money import remind
from deploy.plan import GRACE_S, family_name
from deploy.pod.folder import FINAL_STATES
from deploy.reach import Reach, Reached
from deploy.settings import load
from deploy.show import Screen

STOP_SLACK_S = 30


def stop(project: Path, target: str, run_id: str | None, screen: Screen) -> dict[str, Any]:
    """Ask the job for a checkpoint and an end, and wait for both."""
    with reach.run(project, target, run_id) as reached:
        remind(project, reached.reach, screen)
        reached, _ = reached.look()
        record = reached.record
        if record.state in runs.STARTING:
            raise WrongUse(f"run {record.run_id} is still {record.state}: press Ctrl-C in the terminal that started it")
        if record.state in FINAL_STATES:
            screen.say(f"{answers.how_it_is(record)} (it was over already)")
        else:
            reached = stop_run(reached, screen)
            record = reached.record
            screen.say(answers.how_it_is(record))
            home.bring(reached, screen)
        checkpoint = home.newest_checkpoint(reached)
        if checkpoint:
            screen.say(f"checkpoint: {checkpoint['path']} (epoch {checkpoint['epoch']}, step {checkpoint['step']})")
        screen.commands(answers.next_commands(record))
        return answers.of_run(record, reached.events(), checkpoint)


def stop_run(reached: Reached, screen: Screen) -> Reached:
    """The job's own end, or after its time of grace the supervisor's."""
    run_id = reached.record.run_id
    grace_s = float(runs.plan_of(reached.settings.runs, reached.record).get("grace_s", GRACE_S))
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


def down(
    project: Path, target: str, run_id: str | None, screen: Screen, *, every: bool, orphans: bool, anyway: bool
) -> list[dict[str, Any]]:
    """Release machines: a run on one ends with a checkpoint, and what is there comes home first."""
    gone: list[dict[str, Any]] = []
    record = runs.get(project / "runs", run_id, target) if run_id else None
    wide = every or orphans
    for at in money.targets(project) if wide else [Reach(load(project, record.target if record else target))]:
        with at:
            for machine, bill in _there(project, at, screen, quiet=wide):
                is_of_target = wide or machine.name.startswith(family_name(at.settings))
                is_meant = (bill.orphan or not orphans) and (record is None or machine.name in record.machines)
                if is_of_target and is_meant:
                    _bring_all_home(at, machine, screen, anyway=anyway)
                    at.provider.release(machine)
                    screen.say(f"released {machine.name}" + (f" after ${bill.usd:.2f}" if bill.usd else ""))
                    gone.append(bill.to_json())
    if not gone:
        screen.say("there is nothing to release")
    return gone


def _there(project: Path, at: Reach, screen: Screen, *, quiet: bool) -> list[tuple[Machine, money.Bill]]:
    try:
        return money.priced(project, at)
    except DeployError as error:
        if not quiet:
            raise
        screen.say(f"not asked: {at.settings.target.provider} ({error.message})")
        return []


def _bring_all_home(at: Reach, machine: Machine, screen: Screen, *, anyway: bool) -> None:
    """Nothing that only this machine has is lost, unless the user says so."""
    for record in runs.every(at.settings.runs):
        if machine.name not in record.machines or record.state in runs.STARTING:
            continue
        try:
            reached, _ = at.run(record).look()
            if at.machine(machine.name) is None and record.session and not _is_home(reached):
                raise StepFailed("it does not answer")  # a container that was stopped holds what the run left
            if reached.machine is not None:
                if reached.record.state not in FINAL_STATES:
                    reached = stop_run(reached, screen)
                home.bring(reached, screen)
        except (DeployError, OSError) as error:
            if not anyway:
                raise StepFailed(
                    f"what run {record.run_id} left on {machine.name} could not be brought home ({error}): the machine "
                    "was kept",
                    next_command=command(f"down --run {record.run_id} --anyway"),
                ) from error
            screen.say(f"run {record.run_id} could not be brought home, and is given up ({error})")


def _is_home(reached: Reached) -> bool:
    """Whether the end of a run was brought home before its machine stopped answering."""
    return reached.record.state == "succeeded" and home.newest_checkpoint(reached) is not None
