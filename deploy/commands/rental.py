"""`doctor`: check the setup and, with --rent, rent a machine for a moment to see what the account allows.

The rented machine is released whatever happens: it is told to end itself, then this command ends it, and if this
computer dies, the machine ends itself because nobody logs in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePath

from deploy import border
from deploy.billing.reaper import reap
from deploy.commands.doctor import examine
from deploy.errors import BadAnswer, DeployError, NoMachine, StepFailed, WrongUse, command
from deploy.runs import session
from deploy.runs.session import Reach
from deploy.shell import Shell
from deploy.specs.machine import Machine
from deploy.specs.trial import OK, PROBLEM, RELEASE, RIGHTS, WARNING, Finding, Trial, refusal, worst
from deploy.steps.consent import agree
from deploy.ui.screen import Screen
from deploy.workspace import devices

ANSWER_S = 150.0  # for the questions that the machine asks
PATIENCE_S = 30.0  # for a connection that is lost before the machine ends
GONE_S = 90.0  # from its own release until the provider no longer lists it
COLUMNS = ("what", "level", "found", "fix")
ENDS = "the machine ends itself"


def doctor(project: Path, target: str, screen: Screen, *, rent: bool, yes: bool) -> int:
    """Print the findings. Returns 1 if one of them is a problem. Raises WrongUse for `yes` without `rent`."""
    if yes and not rent:
        raise WrongUse("--yes accepts the cost of --rent: give both, or none")
    with session.target(project, target) as at:
        findings = examine(at)
        if rent:
            if not screen.as_json:
                screen.rows("Set-up", [asdict(each) for each in findings], COLUMNS)
            reap(at, screen=screen)
            findings += try_out(at, screen, yes=yes)
            screen.document([asdict(each) for each in findings])
        else:
            screen.rows("Set-up", [asdict(each) for each in findings], COLUMNS)
    return int(worst(findings) == PROBLEM)


def try_out(at: Reach, screen: Screen, *, yes: bool) -> list[Finding]:
    """Rent a machine, look at it, let it end itself. Prints what was found, also before an error is raised.

    Raises WrongUse for a target that rents nothing, NoMachine if the price or the balance does not allow it.
    """
    name = at.settings.target.name
    trial = at.provider.trial()
    if trial is None:
        raise WrongUse(
            f"target '{name}' rents nothing: --rent is for a target whose machines cost money, such as runpod",
            next_command=command("doctor --on runpod --rent"),
        )
    trial.say = screen.say
    offer, funds = trial.offer(), trial.funds()
    if why := refusal(offer, funds, at.settings.target.max_usd):
        raise NoMachine(f"nothing was rented: {why}", next_command=command(f"doctor --on {name}"))
    words = f"renting {offer.words} for a trial costs {offer.usd_per_hour:.2f} USD an hour"
    words += f", at most {offer.most_usd:.2f} USD for {offer.most_min:.0f} minutes"
    agree(words, offer.most_usd, at.settings, screen, yes=yes)
    screen.say(words)
    findings: list[Finding] = []
    try:
        with _rented(at, trial, screen) as machine:
            findings += trial.placed(machine)
            _look(at, trial, machine, findings)
        findings.append(_spent(trial, funds.balance_usd if funds else None, name))
    finally:
        if findings:
            screen.say("\n".join(["seen on the machine:", *(f"- {each.what}: {each.found}" for each in findings)]))
    return findings


@contextlib.contextmanager
def _rented(at: Reach, trial: Trial, screen: Screen) -> Iterator[Machine]:
    """Rent a machine and release it, whatever happens. Releasing one that is gone succeeds."""
    machine = trial.rent()
    try:
        yield machine
    finally:
        with contextlib.suppress(OSError):  # the terminal may be closed
            screen.say(f"releasing {machine.name}")
        trial.release(machine)
        at.forget(machine.name)


def _look(at: Reach, trial: Trial, machine: Machine, findings: list[Finding]) -> None:
    """Log in, ask the machine, and let it end itself."""
    shell = at.shell(machine)
    shell.patience_s = PATIENCE_S
    root = machine.path(shell.expand(str(machine.root)))
    archive = root / "doctor.zip"
    shell.write(archive, trial.probe())
    findings.append(Finding("login with the project's key", OK, "yes"))
    findings += [_hardware(shell, root), _driver(at, shell, machine)]
    env = {"PYTHONPATH": str(archive)}
    said = shell.run(["python3", "-m", RIGHTS], cwd=root, env=env, limit_s=ANSWER_S, again=True).text
    try:
        findings += trial.rights(border.document(said, "the machine's answer about its rights"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadAnswer("the machine's answer about its rights has an unexpected format") from error
    findings.append(_ends_itself(shell, trial, machine, str(archive), at.settings.target.name))


def _hardware(shell: Shell, root: PurePath) -> Finding:
    has, gib = shell.hardware(), 1 << 30
    memory = "unknown" if has.memory_bytes is None else f"{has.memory_bytes / gib:.0f} GiB"
    shm = "none" if has.shm_bytes is None else f"{has.shm_bytes / gib:.2f} GiB"
    free = shell.free_bytes(root) / gib
    return Finding(
        "hardware", OK, f"{has.cores} cores, memory {memory}, /dev/shm {shm}, {free:.0f} GiB free on its disk"
    )


def _driver(at: Reach, shell: Shell, machine: Machine) -> Finding:
    found = devices.ask_driver(shell)
    fault = devices.driver_fault(found, at.settings.target.device, machine.gpus)
    if fault:
        return Finding("GPUs by nvidia-smi", PROBLEM, fault, "report this host to the provider")
    return Finding("GPUs by nvidia-smi", OK, f"{found.listed or 'unknown'}, driver {found.driver or 'unknown'}")


def _ends_itself(shell: Shell, trial: Trial, machine: Machine, archive: str, target: str) -> Finding:
    """Let the machine release itself, and look whether it is gone. Its connection may break before its answer."""
    argv = ["env", f"PYTHONPATH={archive}", "python3", "-m", RELEASE]
    told = ""
    try:
        for line in shell.stream(argv, cwd=machine.path(archive).parent):
            told = line.removeprefix("sniperface release: ")
    except StepFailed as failed:
        told = told or failed.message
    fix = "keep this computer on while a machine bills, and end it with: " + command(f"down --on {target}")
    if not trial.is_gone(machine, GONE_S):
        return Finding(ENDS, PROBLEM, f"no: {told}", fix)
    return Finding(ENDS, OK, f"yes ({told})" if told else "yes")


def _spent(trial: Trial, before_usd: float | None, target: str) -> Finding:
    """Compare the balance before and after. Bills may come minutes later."""
    try:
        after = trial.funds()
    except DeployError as error:
        return Finding("balance afterwards", WARNING, error.message, command(f"doctor --on {target}"))
    if after is None or before_usd is None:
        return Finding("balance afterwards", OK, "unknown")
    return Finding(
        "balance afterwards", OK, f"{after.balance_usd:.4f} USD, {before_usd - after.balance_usd:.4f} USD less (so far)"
    )
