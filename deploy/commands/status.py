"""Commands that show one run, all runs, a run's log and terminal, what costs money, and the setup."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from deploy.billing import bills as money
from deploy.billing import costs
from deploy.billing.reaper import reap
from deploy.errors import BadAnswer, DeployError, NoAccount, StepFailed, WrongUse, command, unknown
from deploy.pod.base.folder import FINAL_STATES
from deploy.pod.base.retry import FOLLOW_PATIENCE_S
from deploy.runs import documents, job, notes, records, session
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.runs.situation import Situation
from deploy.shell import LinkLost, LocalShell, Misbehaves
from deploy.steps import download, nodes, restore
from deploy.ui.screen import Screen

AGAIN_EVERY_S = 2
LIST_LIMIT_S = 20.0  # `runs` waits this long for the machine of each target
# The columns of `runs`.
COLUMNS = (
    *("run_id", "target", "state", "created", "name", "fraction", "accuracy", "seconds", "run_usd", "backbone"),
    *("note", "reason"),
)
# What `runs --sort` knows -> the value of a row. -1 is less than each.
SORTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "started": lambda row: row["created"],
    "accuracy": lambda row: -1 if row["accuracy"] is None else row["accuracy"],
    "cost": lambda row: row["run_usd"],
    "fraction": lambda row: row["fraction"],
    "time": lambda row: -1 if row["seconds"] is None else row["seconds"],
}


def status(project: Path, target: str, run_id: str | None, screen: Screen, *, watch: bool) -> dict[str, Any]:
    """Show one merged answer from machine, supervisor and app. With `watch`, repeat until the run is over."""
    with session.run(project, target, run_id, partial(reap, screen=screen)) as reached:
        while True:
            reached, seen = reached.look()
            parts = records.compared(reached.settings.runs, reached.record)
            note = notes.read(reached.settings.runs, reached.record.run_id)
            answer = documents.of_status(
                reached.record,
                seen,
                reached.events(),
                parts,
                download.report(reached),
                note,
                records.limit_usd(reached.settings.runs, reached.record.run_id),
                costs.by_run(reached.reach.situation.records)[reached.record.run_id],
            )
            if reached.record.others:
                answer["nodes"] = list(nodes.look(reached, seen))
            if not watch or reached.record.state in FINAL_STATES:
                break
            screen.status_line(answer)
            time.sleep(AGAIN_EVERY_S)
        what = restore.of(reached.settings, reached.record, reached) if reached.record.state == "lost" else None
        answer["saved"] = what.to_json() if what else None
        screen.status(answer)
        if "nodes" in answer and not screen.as_json:
            screen.rows("Machines", answer["nodes"], documents.NODE)
        screen.compared(parts)
        if what:
            screen.say(f"saved: {what}")
        shown = command("status")
        screen.commands([each for each in documents.next_commands(reached.record) if not each[1].startswith(shown)])
        return answer


def list_runs(project: Path, sort: str | None = None) -> list[dict[str, Any]]:
    """Every run that this laptop knows, newest first, each with its current state.

    `sort`: largest first by one of SORTED; runs without a value come last. Raises WrongUse for another word.
    """
    if sort is not None and sort not in SORTED:
        raise unknown("--sort", sort, SORTED)
    listed, seen = [], []
    with contextlib.ExitStack() as stack:
        targets: dict[str, Reach] = {}
        for record in records.every(project / "runs"):
            unreadable = None
            try:
                if record.state not in FINAL_STATES or record.state == "lost":
                    if record.target not in targets:
                        targets[record.target] = stack.enter_context(session.target(project, record.target))
                        targets[record.target].limit_s = LIST_LIMIT_S
                    record, _ = targets[record.target].look(record)
            except (BadAnswer, Misbehaves) as error:  # keep the state last seen
                unreadable = f"the machine's answer is not readable: {error.message}"
            except (DeployError, OSError):  # gone, or unreachable now: keep the state last seen
                pass
            seen.append(record)
            row = documents.row(record, _downloaded(project, record), notes.read(project / "runs", record.run_id))
            if record.state == "lost" and record.target in targets:
                row["reason"] = f"{record.reason}; saved: {_saved(targets[record.target], record)}"
            listed.append({**row, "reason": unreadable} if unreadable else row)
    usd = costs.by_run(seen)
    listed = [{**row, "run_usd": usd[row["run_id"]]} for row in listed]
    return sorted(listed, key=SORTED[sort], reverse=True) if sort else listed


def _downloaded(project: Path, record: Record) -> list[dict[str, Any]]:
    """The run's events as far as they are on this laptop."""
    try:
        return job.all_events(LocalShell(), records.home(project / "runs", record.run_id).metrics)
    except (DeployError, OSError):
        return []


def _saved(at: Reach, record: Record) -> str:
    try:
        return str(restore.of(at.settings, record))
    except DeployError as error:
        return error.message


def logs(project: Path, target: str, run_id: str | None, screen: Screen, *, follow: bool) -> None:
    """Print the log; with `follow`, print it as it grows until the job has ended.

    If SSH is down, print the machine's console, which also has the job's output, and raise LinkLost.
    """
    try:
        _logs(project, target, run_id, screen, follow=follow)
    except LinkLost as lost:
        record = records.get(project / "runs", run_id, target)
        with session.target(project, record.target) as at:
            machine = at.machine(record.machine)
            lines = list(at.provider.log(machine)) if machine else []
        if not lines:
            raise
        screen.complain(f"{lost.message}; this is the console of {record.machine}, as its provider shows it:")
        screen.raw("\n".join(lines) + "\n")
        raise


def _logs(project: Path, target: str, run_id: str | None, screen: Screen, *, follow: bool) -> None:
    with session.run(project, target, run_id, partial(reap, screen=screen)) as reached:
        if follow:
            reached.shell.patience_s = FOLLOW_PATIENCE_S
            reached.shell.on_loss = screen.complain
        if reached.record.others:
            texts = nodes.logs(reached, screen, follow=follow)
        elif follow:
            texts = (text for text, _ in job.follow(reached.shell, reached.folder))
        else:
            texts = job.log_now(reached.shell, reached.folder)
        for text in texts:
            screen.raw(text)


def attach(project: Path, target: str, run_id: str | None, *, write: bool) -> int:
    """Connect this terminal to the live session until the user leaves it. Returns tmux's exit code.

    Raises StepFailed for a run without tmux, WrongUse without a terminal.
    """
    with session.run(project, target, run_id) as reached:
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


def ps(project: Path, screen: Screen) -> int:
    """Print what costs money. Returns 1 if an account does not answer: the list may then lack some of it."""
    found, silent = _bills(project, screen)
    screen.rows("Machines and volumes", found, money.COLUMNS)
    for failed in silent:
        screen.failure(failed)
    return int(bool(silent))


def bills(project: Path, screen: Screen) -> list[dict[str, Any]]:
    """What costs money, orphans first. Prints a warning for an account that does not answer: its costs are unknown."""
    found, silent = _bills(project, screen)
    for failed in silent:
        screen.complain(failed.message)
    return found


def _bills(project: Path, screen: Screen) -> tuple[list[dict[str, Any]], list[StepFailed]]:
    """All machines of this project, whoever made them, all volumes of its accounts, and the accounts without an answer.

    A target that was never used needs no account, and no engine of containers.
    """
    found: list[money.Bill] = []
    silent: list[StepFailed] = []
    for at in money.targets(Situation(project)):
        at.provider.say = screen.complain
        try:
            found += [each.bill for each in money.priced(at)]
            found += money.stored(at)
        except DeployError as error:
            costs_nothing = isinstance(error, NoAccount) or not at.settings.is_rented
            if costs_nothing and not at.situation.of(at.settings.target.name):
                continue
            words = f"{at.settings.target.provider} could not list everything that it bills ({error.message})"
            silent.append(StepFailed(words, next_command=error.next_command))
    return [bill.to_json() for bill in sorted(found, key=lambda bill: not bill.orphan)], silent
