"""The main path: prepare a machine, start a job on it, follow the job, and download the results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.billing.reaper import reap
from deploy.errors import StepFailed, command
from deploy.pod.base.addresses import hide
from deploy.pod.base.folder import RunFolder
from deploy.pod.base.retry import FOLLOW_PATIENCE_S
from deploy.runs import documents, job, records
from deploy.runs import session as reach
from deploy.runs.records import Record
from deploy.runs.session import Reach, Reached
from deploy.runs.situation import Situation
from deploy.specs.estimate import Stopwatch
from deploy.specs.facts import Facts
from deploy.specs.plan import Plan, going_on, make
from deploy.specs.request import How, Request, parse_request
from deploy.steps import download, nodes, resolve, restore
from deploy.steps.code_check import prove_code
from deploy.steps.consent import agree, warn_of_balance, warn_of_preemption
from deploy.steps.look import look_at_host
from deploy.steps.notify import run_notify_command
from deploy.steps.provision import acquired_all, bring_own_files, pack_images, ready_all, refuse_too_much
from deploy.ui.screen import Screen


def deploy(
    project: Path, target: str, screen: Screen, *, pack: str | None = None, several: str | None = None, **rented: Any
) -> dict[str, Any]:
    """Make a target ready: machine, environment, code, data. A second call does only what is missing.

    `rented`: gpus, spot and no_spot, as typed.
    """
    with reach.target(project, target) as at:
        reap(at, screen=screen)
        checked = resolve.check(at, parse_request(target=target, pack=pack, nodes=several, **rented))
        if checked.note:
            screen.say(checked.note)
        with reach.launching(at.settings) as note:
            note("deploy")
            checked = resolve.prepare_orl(at, checked, screen.say)
            pack_images(at.settings, checked, screen)
            looked_up = resolve.gather(at, checked)
            plan = make(at.settings, checked.request, looked_up, tryout=checked.tryout)
            at.snapshot = prove_code(at.settings)
            watch = Stopwatch()
            with acquired_all(at, plan, screen, watch) as machines:
                made = ready_all(at, machines, checked, looked_up, screen, watch, trains=False)[0]
    packed = f" --pack {pack}" if pack else ""  # without it, train would upload the images again, unpacked
    on_all = f" --nodes {several}" if several else ""
    screen.say(f"target {target} is ready; train on it with: {command(f'train --on {target}{packed}{on_all}')}")
    about = {"target": target, "machine": made.machine.name, "root": str(made.machine.root)}
    return {**about, "snapshot": made.plan.snapshot, "data": made.plan.data_path}


def train(project: Path, request: Request, screen: Screen, how: How) -> dict[str, Any]:
    """Check the request, plan, start the job, follow it, and download the results."""
    with reach.target(project, request.target) as at:
        reap(at, screen=screen)
        checked = resolve.check(at, request)
        if checked.note:
            screen.say(checked.note)
        if how.dry_run:
            looked_up = look_at_host(at, resolve.gather(at, checked), screen)
            plan = make(at.settings, checked.request, looked_up, tryout=checked.tryout)
            screen.plan(plan, with_command=True)
            warn_of_balance(at, plan, screen)
            warn_of_preemption(at.settings, screen)
            refuse_too_much(plan, looked_up)
            return dict(hide(plan.to_json()))
        with reach.launching(at.settings) as note:
            at.situation = Situation(project)  # as it is now that no other command starts a run here
            if not request.queue:
                at.refuse_second()
            if request.resume == "none" and "resume" not in request.given:
                restore.refuse_to_forget(at)
            checked = resolve.prepare_orl(at, checked, screen.say)
            looked_up = resolve.gather(at, checked)
            plan = make(at.settings, checked.request, looked_up, tryout=checked.tryout)
            note(plan.run_id)
            screen.plan(plan)
            refuse_too_much(plan, looked_up)
            at.snapshot = prove_code(at.settings)  # before the run is recorded: a refusal leaves no failed run
            warn_of_balance(at, plan, screen)
            warn_of_preemption(at.settings, screen)
            _agree(plan, at, screen, yes=how.yes)
            pack_images(at.settings, checked, screen)
            record, since = start(at, plan, checked, looked_up, screen, keep=how.keep)
        screen.say(f"run {record.run_id} is {record.state}")
        screen.commands(documents.next_commands(record))
        if how.detach:
            return documents.of_run(record, [], None)
        outcome = follow(at.run(record), since, screen)
    if outcome.failure:
        screen.document(outcome.document)
        raise outcome.failure
    return outcome.document


@dataclass(frozen=True)
class Outcome:
    """A run that this command started. `failure` is None too for a run that continues without this command."""

    record: Record
    document: dict[str, Any]
    failure: StepFailed | None = None


def start(
    at: Reach, plan: Plan, checked: resolve.Checked, looked_up: Facts, screen: Screen, *, keep: bool
) -> tuple[Record, job.Position]:
    """Record the run, prepare its machines and start the supervisor. On failure, release machines made for the run."""
    book = at.settings.runs
    record = records.create(book, plan)
    watch = Stopwatch()
    refused_usd = 0.0
    try:
        with acquired_all(at, plan, screen, watch, keep=keep) as machines:
            refused_usd = at.wasted_usd  # of hosts before these machines, which had the same name
            record = records.spent(book, record, {f"{plan.machine}-refused": round(refused_usd, 4)})
            first, *others = (machine.name for machine in machines)
            others_at = dict.fromkeys(others, plan.run_dir)
            record = records.update(book, record, state="preparing", machine=first, others=others_at)
            made = ready_all(at, machines, checked, looked_up, screen, watch)
            (machine, placed), shell = (made[0].machine, made[0].plan), at.shell(made[0].machine)
            for each in made:
                bring_own_files(at.settings, at.shell(each.machine), each.machine, checked, each.plan)
            records.save_placement(book, plan, placed)
            others_at = {each.machine.name: each.plan.run_dir for each in made[1:]}
            record = records.update(book, record, machine=machine.name, run_dir=placed.run_dir, others=others_at)
            folder = RunFolder(machine.path(placed.run_dir))
            if plan.attempt > 1:
                nodes.gather_checkpoints(at, record, screen)
                restored = restore.restore(at.settings, machine, shell, placed, screen)
                made = [replace(each, plan=going_on(each.plan)) for each in made] if restored.note else made
                records.save_placement(book, plan, made[0].plan)
                record = records.spent(book, record, restored.spend)
                screen.say("waiting for the earlier attempt to end, in case it is still writing its checkpoint")
            since = job.position(shell, folder)
            session = nodes.start(at, made)
            seen = job.look(shell, folder)
            state = seen.state if seen else "running"
            return records.update(book, record, state=state, session=session, phases=watch.taken), since
    except BaseException as error:
        reason = str(error) or "interrupted before it ran"
        record = records.spent(book, record, {plan.machine: round(at.wasted_usd - refused_usd, 4)})
        records.update(book, record, state="failed", reason=reason)
        raise


def follow(reached: Reached, since: job.Position, screen: Screen) -> Outcome:
    """Follow the job to its end and download the results. Neither Ctrl-C nor a lost connection affects the job."""
    reached.shell.patience_s = FOLLOW_PATIENCE_S
    reached.shell.on_loss = screen.say
    try:
        record = reached.record
        with screen.follower(records.limit_usd(reached.settings.runs, record.run_id)) as follower:

            def measured(seen: job.Status) -> None:
                follower.gauges(seen.gpus, records.cost_now(record, seen.spend_usd))

            for text, events in job.follow(reached.shell, reached.folder, since, measured):
                follower.update(text, events)
    except KeyboardInterrupt:
        reached, _ = reached.look()
        screen.say(f"\ndetached: run {reached.record.run_id} continues")
        screen.commands(documents.next_commands(reached.record))
        return Outcome(reached.record, documents.of_run(reached.record, reached.events(), None))
    return finish(reached, screen)


def finish(reached: Reached, screen: Screen) -> Outcome:
    """Download the results of a run whose job is over, and tell how it went."""
    reached, _ = reached.look()
    record = reached.record
    watch = Stopwatch(record.phases)
    with watch.phase("home"):
        checkpoint = download.bring(reached, screen)
        nodes.end_others(reached, screen)
    taken = {**watch.taken, **({"training": record.seconds} if record.seconds else {})}
    record = records.update(reached.settings.runs, record, phases=taken)
    document = documents.of_run(
        record, reached.events(), checkpoint, download.report(reached), download.verdict(reached)
    )
    screen.result(document)
    screen.compared(records.compared(reached.settings.runs, record))
    run_notify_command(reached.settings, record, screen)
    screen.verdict(document)
    if record.state == "succeeded":
        return Outcome(record, document)
    seen = record.state == "stopped" or screen.shows_the_log
    evidence = [] if seen else job.last_lines(reached.shell, reached.folder, record.reason)
    words = documents.how_it_is(record)
    return Outcome(record, document, StepFailed(words, evidence=evidence, next_command=documents.resume(record)))


def _agree(plan: Plan, at: Reach, screen: Screen, *, yes: bool) -> None:
    """Ask the user before a run that may cost more than `confirm_usd`, unless `yes`. Raises WrongUse on a refusal."""
    if not plan.usd_per_hour:
        return
    cost = f"about ${plan.expected_usd:.2f}" if plan.expected_usd is not None else "its duration is not known yet"
    words = f"this run costs ${plan.usd_per_hour:.2f} an hour, {cost}"
    agree(words, plan.expected_usd, at.settings, screen, yes=yes)
