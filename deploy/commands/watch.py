"""Stay with a run: download its checkpoints, and replace a machine that vanishes."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path
from typing import Any

from deploy.billing.reaper import reap
from deploy.billing.teardown import release_idle, stop_run
from deploy.commands.train import train
from deploy.errors import DeployError, NoMachine, StepFailed, WrongUse, command
from deploy.pod.base.checkpoints import age
from deploy.pod.base.folder import FINAL_STATES
from deploy.pod.base.limits import LAPTOP, Limits
from deploy.pod.base.retry import ELSEWHERE_PAUSES_S, endless
from deploy.pod.watchdog import ceilings
from deploy.runs import checkpoints, documents, notes, records, session
from deploy.runs.records import Record
from deploy.runs.session import Reached
from deploy.shell import LinkLost, MachineGone
from deploy.shell.awake import awake_s
from deploy.specs.request import How, Request
from deploy.specs.settings import load
from deploy.steps import download
from deploy.steps.notify import run_notify_command
from deploy.steps.restore import NothingReadable
from deploy.ui.paths import near
from deploy.ui.screen import Screen

EVERY_S = 2
CEILING_S = 900.0  # time for a run at max_usd to end and to be downloaded


def fetch_checkpoint(
    project: Path, target: str, run_id: str | None, which: str, to: str | None, screen: Screen, *, watch: bool = False
) -> dict[str, Any]:
    """Download one checkpoint, verified and resumable. Never replaces a checkpoint that was trained on more data.

    With `watch`, download every newer one as it appears, until the run is over.
    """
    with session.run(project, target, run_id, partial(reap, screen=screen)) as reached:
        reached.shell.on_loss = screen.say
        brought: dict[str, Any] = {}
        while True:
            reached, _ = reached.look()
            is_last = reached.record.state in FINAL_STATES or not watch
            found = checkpoints.whole(reached.shell, reached.folder)
            if found or is_last:
                about, chosen_by = checkpoints.choose(found, which, reached.record.run_id)
                if about["sha256"] != brought.get("sha256"):
                    brought = download.bring_checkpoint(reached, about, to, screen)
                    if not to:  # log and metrics too: one day this copy may be all that is left
                        download.bring_record(reached)
                    words = f"epoch {brought['epoch']}, step {brought['step']}, SHA-256 verified"
                    screen.say(f"{near(brought['path'])} ({words})" + (f": {chosen_by}" if chosen_by else ""))
                    brought["chosen_by"] = chosen_by
            if is_last:
                return documents.of_checkpoint(brought)
            time.sleep(EVERY_S)


def watch(project: Path, target: str, run_id: str | None, screen: Screen, *, max_usd: float | None) -> dict[str, Any]:
    """Stay with a run until it is over: download its newest checkpoint, and replace a machine that vanishes.

    Stops the run once its machines have cost `max_usd` (None: the target's) over all attempts. The cost is computed
    from the provider's price and this computer's clock. Machines that do not stop then are released. At the end of the
    run, a machine that cannot release itself is released, unless another run is on it. Raises StepFailed for a run that
    failed.
    """
    record = records.get(project / "runs", run_id, target)
    about = load(project, record.target).target
    max_usd = max_usd or about.max_usd
    said = ""
    while True:
        record, words = _looked_at(project, record, screen)
        if words not in ("", said):
            screen.say(words)
        said = words
        spent = ceilings.reached(Limits(max_usd=max_usd), ceilings.Seen(spend_usd=record.spend_usd))
        if spent and record.state not in FINAL_STATES:
            screen.say(f"this run has cost ${record.spend_usd:.2f} and reached max_usd {max_usd:g}")
            record = _end_at_ceiling(project, record, screen)
        if record.state == "lost" and not spent:
            screen.say(f"{documents.how_it_is(record)}; continuing on another machine")
            record = _go_on_elsewhere(project, record, screen, max_usd)
        elif record.state in FINAL_STATES:
            if record.state == "lost":
                words = f"it has cost ${record.spend_usd:.2f} and reached max_usd {max_usd:g}: it is not continued"
                screen.say(f"{documents.how_it_is(record)}; {words}")
            return _over(project, record, screen)
        else:
            time.sleep(about.options.poll_s or EVERY_S)


def _looked_at(project: Path, record: Record, screen: Screen) -> tuple[Record, str]:
    """Download what is new of a run. Returns it with its current state and cost, and why that failed, if it did."""
    try:
        with session.run(project, record.target, record.run_id) as reached:
            return _keep_home_current(reached, screen), ""
    except (NoMachine, StepFailed) as error:  # the next look finds out what that means for the run
        words = error.message
    except FileNotFoundError as error:  # a disk may vanish during a download
        words = f"{error.filename} no longer exists"
    return _charged(project, record), words


def _over(project: Path, record: Record, screen: Screen) -> dict[str, Any]:
    """Tell how a run ended, and release a machine that cannot release itself.

    Raises StepFailed for a failed run, and for a machine that still bills.
    """
    settings = load(project, record.target)
    run_notify_command(settings, record, screen)
    is_free = settings.target.options.release != LAPTOP or _release_idle(project, record, screen)
    row = documents.row(record, note=notes.read(project / "runs", record.run_id))
    if record.state == "failed":
        screen.document(row)
        raise StepFailed(documents.how_it_is(record), next_command=documents.resume(record))
    if not is_free:
        screen.document(row)
        words = f"run {record.run_id} is over, and its machine could not be released: it still bills"
        raise StepFailed(words, next_command=command(f"down --run {record.run_id}"))
    if record.state != "lost":
        screen.say(documents.how_it_is(record))
    return row


def _go_on_elsewhere(project: Path, record: Record, screen: Screen, max_usd: float | None) -> Record:
    """Start the next attempt. If no machine is available or no copy is readable, retry with growing pauses.

    Returns a run that is still lost once its machines, those that failed included, have cost `max_usd`.
    """
    pauses_s = endless(ELSEWHERE_PAUSES_S)
    while True:
        try:
            again = Request(target=record.target, resume="auto", run=record.run_id)
            train(project, again, screen, How(detach=True, yes=True))
            return records.get(project / "runs", record.run_id, record.target)
        except (NoMachine, LinkLost, MachineGone, NothingReadable) as error:
            # An attempt that never ran does not change the run: it stays lost and does not become failed.
            now = records.get(project / "runs", record.run_id, record.target)
            now = records.update(project / "runs", now, state="lost", reason=error.message)
            if max_usd is not None and now.spend_usd >= max_usd:
                return now
            pause = next(pauses_s)
            screen.say(f"{error.message}; trying again in {pause} s")
            time.sleep(pause)


def _end_at_ceiling(project: Path, record: Record, screen: Screen) -> Record:
    """Stop the run and download its results. If that fails or takes too long, release the machines that cost money."""
    try:
        with session.run(project, record.target, record.run_id) as reached:
            reached.shell.give_up_at = awake_s() + CEILING_S
            reached = stop_run(reached, screen)
            download.bring(reached, screen)
            return reached.record
    except (DeployError, OSError) as error:
        screen.say(f"it could not be stopped ({error})")
    _release_all(project, record, screen)
    reason = "it reached max_usd and could not be stopped"
    return records.update(project / "runs", record, state="expired", reason=reason)


def _release_idle(project: Path, record: Record, screen: Screen) -> bool:
    """Release machines that nothing else releases. Tries again for some minutes, as nobody may be there.

    Returns whether none still bills.
    """
    for pause_s in ELSEWHERE_PAUSES_S:
        if release_idle(project, record, screen):
            return True
        screen.say(f"trying again in {pause_s} s")
        time.sleep(pause_s)
    return release_idle(project, record, screen)


def _release_all(project: Path, record: Record, screen: Screen) -> None:
    """Release the machines of a run as the provider lists them, with or without an address.

    A machine that its guard has stopped stays: it computes nothing, and its disk has the results. While the provider
    does not answer, or cannot release one, tries again with growing pauses.
    """
    for pause_s in endless(ELSEWHERE_PAUSES_S):
        try:
            with session.target(project, record.target) as at:
                for machine in at.machines():
                    if machine.name in record.machines and not machine.is_stopped:
                        at.provider.release(machine)
                        screen.say(f"released {machine.name}: what was not downloaded before is lost")
            return
        except (NoMachine, StepFailed) as error:
            screen.complain(f"{error.message}; it still bills; trying again in {pause_s} s")
            time.sleep(pause_s)


def _charged(project: Path, record: Record) -> Record:
    """The run with its current cost, also if its machine is out of reach: it bills all the same."""
    record = records.get(project / "runs", record.run_id, record.target)
    with contextlib.suppress(DeployError), session.target(project, record.target) as at:
        return at.charge(record)
    return record


def _keep_home_current(reached: Reached, screen: Screen) -> Record:
    """Look at a watched run once, and download what is new."""
    reached, _ = reached.look()
    if reached.machine is not None:
        found = checkpoints.whole(reached.shell, reached.folder)
        at_home = download.newest_checkpoint(reached)
        if found and (at_home is None or age(found[-1]) > age(at_home)):
            try:
                about = download.bring_checkpoint(reached, found[-1], None, screen)
                screen.say(f"{near(about['path'])} (epoch {about['epoch']}, step {about['step']})")
            except WrongUse as error:  # it would replace a better one, which is no reason to stop watching
                raise StepFailed(error.message) from error
        download.bring_record(reached)
    if reached.record.state in FINAL_STATES and reached.machine is not None:
        download.bring(reached, screen)
    return reached.record
