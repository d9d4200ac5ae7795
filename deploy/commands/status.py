"""The ways to look: at a run, at all runs, at its log and terminal, at what bills, at the set-up."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from deploy.billing import bills as money
from deploy.billing.reaper import reap
from deploy.commands import doctor
from deploy.errors import BadAnswer, DeployError, NoAccount, StepFailed, WrongUse, command
from deploy.pod.base.folder import FINAL_STATES
from deploy.runs import documents as answers
from deploy.runs import job
from deploy.runs import records as runs
from deploy.runs import session as reach
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.shell import LinkLost, LocalShell, Misbehaves
from deploy.steps import nodes
from deploy.steps import restore as saved
from deploy.ui.screen import Screen

AGAIN_EVERY_S = 2
LIST_LIMIT_S = 20.0  # for each target's machine to answer `runs`
TABLES = ("phases", "nodes", "saved")  # of the answer of status: shown below it
PATIENCE_S = 3600  # a laptop may sleep; the job does not need it


def status(project: Path, target: str, run_id: str | None, screen: Screen, *, watch: bool) -> dict[str, Any]:
    """One merged answer from machine, supervisor and app; with `watch` again and again until the run is over."""
    with reach.run(project, target, run_id, partial(reap, screen=screen)) as reached:
        while True:
            reached, seen = reached.look()
            parts = runs.compared(reached.settings.runs, reached.record)
            answer = answers.of_status(reached.record, seen, reached.events(), parts)
            if reached.record.others:
                answer["nodes"] = list(nodes.look(reached, seen))
            if not watch or reached.record.state in FINAL_STATES:
                break
            screen.status_line(answer)
            time.sleep(AGAIN_EVERY_S)
        what = saved.of(reached.settings, reached.record, reached) if reached.record.state == "lost" else None
        answer["saved"] = what.to_json() if what else None
        screen.facts(f"Run {reached.record.run_id}", {key: answer[key] for key in answer if key not in TABLES})
        if "nodes" in answer and not screen.as_json:
            screen.rows("Machines", answer["nodes"], answers.NODE)
        screen.compared(parts)
        if what:
            screen.say(f"saved: {what}")
        shown = command("status")
        screen.commands([each for each in answers.next_commands(reached.record) if not each[1].startswith(shown)])
        return answer


def list_runs(project: Path) -> list[dict[str, Any]]:
    """Every run in the address book, the newest first, each with its state now."""
    listed = []
    with contextlib.ExitStack() as stack:
        targets: dict[str, Reach] = {}
        for record in runs.every(project / "runs"):
            unreadable = None
            try:
                if record.state not in FINAL_STATES or record.state == "lost":
                    if record.target not in targets:
                        targets[record.target] = stack.enter_context(reach.target(project, record.target))
                        targets[record.target].limit_s = LIST_LIMIT_S
                    record, _ = targets[record.target].look(record)
            except (BadAnswer, Misbehaves) as error:  # the state last seen stands
                unreadable = f"the machine's answer is not readable: {error.message}"
            except (DeployError, OSError):  # gone, or not to be reached now
                pass
            row = answers.row(record)
            if record.state == "lost" and record.target in targets:
                row["reason"] = f"{record.reason}; saved: {_saved(targets[record.target], record)}"
            listed.append({**row, "reason": unreadable} if unreadable else row)
    return listed


def _saved(at: Reach, record: Record) -> str:
    try:
        return str(saved.of(at.settings, record))
    except DeployError as error:
        return error.message


def logs(project: Path, target: str, run_id: str | None, screen: Screen, *, follow: bool) -> None:
    """The log as it is, and with `follow` as it grows, until the job has ended.

    Where SSH is down, what the machine's console tells, which has the job's output too.
    """
    try:
        _logs(project, target, run_id, screen, follow=follow)
    except LinkLost as lost:
        record = runs.get(project / "runs", run_id, target)
        with reach.target(project, record.target) as at:
            machine = at.machine(record.machine)
            lines = list(at.provider.log(machine)) if machine else []
        if not lines:
            raise
        screen.complain(f"{lost.message}; this is the console of {record.machine}, as its provider shows it:")
        screen.raw("\n".join(lines) + "\n")
        raise


def _logs(project: Path, target: str, run_id: str | None, screen: Screen, *, follow: bool) -> None:
    with reach.run(project, target, run_id, partial(reap, screen=screen)) as reached:
        if follow:
            reached.shell.patience_s = PATIENCE_S
            reached.shell.on_loss = screen.complain
        own = (text for text, _ in job.follow(reached.shell, reached.folder))
        for text in nodes.logs(reached, screen) if reached.record.others else own:
            screen.raw(text)
            if not follow:
                break


def attach(project: Path, target: str, run_id: str | None, *, write: bool) -> int:
    """Lend this terminal to the live session until the user leaves it; the exit code of tmux."""
    with reach.run(project, target, run_id) as reached:
        run_id, instead = reached.record.run_id, command(f"logs --follow --run {reached.record.run_id}")
        if reached.record.session == "detached":
            raise StepFailed(
                f"run {run_id} has no terminal, because tmux was missing when it started: install tmux "
                "(apt-get install tmux, or brew install tmux; not on Windows) before the next run",
                next_command=instead,
            )
        argv = job.attach_argv(reached.shell, reached.settings.tmux_socket, reached.folder, write=write)
        if not sys.stdin.isatty():
            raise WrongUse("attach needs a terminal", next_command=instead)
        return LocalShell().foreground(reached.shell.terminal(argv), cwd=project, without=("TMUX",))


def bills(project: Path, screen: Screen) -> list[dict[str, Any]]:
    """Every machine that is there for this project, whoever made it, and every volume of its accounts; orphans first.

    An account that does not answer is named: what it bills is not known then. A target that ships with the project and
    was never used needs no account.
    """
    found: list[money.Bill] = []
    for at in money.targets(project):
        try:
            found += [bill for _, bill in money.priced(project, at)]
            found += money.stored(project, at)
        except DeployError as error:
            if isinstance(error, NoAccount) and not runs.every(at.settings.runs, at.settings.target.name):
                continue
            screen.complain(f"{at.settings.target.provider} could not be asked for all that bills ({error.message})")
    return [bill.to_json() for bill in sorted(found, key=lambda bill: not bill.orphan)]


def examine(project: Path, target: str) -> list[dict[str, Any]]:
    """What is wrong with the set-up, each finding with its fix."""
    with reach.target(project, target) as at:
        return [asdict(finding) for finding in doctor.examine(at)]
