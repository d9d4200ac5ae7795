"""THE STORY: what each command does, from top to bottom."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from deploy import answers, checkpoints, doctor, facts, home, job, money, reach, remote, runs
from deploy.errors import DeployError, NoMachine, StepFailed, WrongUse, command
from deploy.machine import Machine, MachineSpec
from deploy.phases import Stopwatch
from deploy.plan import GRACE_S, Facts, Plan, Request, family_name, make, slug
from deploy.pod.folder import FINAL_STATES, RunFolder
from deploy.reach import Reach, Reached
from deploy.ready import bring_own_files, ready, ready_code
from deploy.runs import Record
from deploy.settings import load
from deploy.shell import LinkLost, LocalShell
from deploy.show import Screen

STOP_SLACK_S = 30
WATCH_EVERY_S = 2
WATCH_PAUSES_S = (15, 30, 60, 120, 300)
FOLLOW_PATIENCE_S = 3600  # a laptop may sleep; the job does not need it


def deploy(project: Path, target: str, screen: Screen) -> dict[str, Any]:
    """Make a target ready: machine, environment, code, data. A second call does only what is missing."""
    with reach.target(project, target) as at:
        _remind(project, at, screen)
        checked = facts.check(at, Request(target=target))
        with reach.launching(at.settings) as note:
            note("deploy")
            checked = facts.prepare_orl(at, checked, screen.say)
            looked_up = facts.gather(at, checked)
            plan = make(at.settings, checked.request, looked_up, tryout=checked.tryout)
            watch = Stopwatch()
            with _acquired(at, plan.machine, screen, watch) as machine:
                made = ready(at.settings, machine, at.shell(machine), checked, looked_up, screen, watch)
    screen.say(f"target {target} is ready; train on it with: {command(f'train --on {target}')}")
    about = {"target": target, "machine": made.machine.name, "root": str(made.machine.root)}
    return {**about, "snapshot": made.plan.snapshot, "data": made.plan.data_path}


def train(
    project: Path,
    request: Request,
    screen: Screen,
    *,
    detach: bool = False,
    dry_run: bool = False,
    keep: bool = False,
    yes: bool = False,
) -> dict[str, Any]:
    """Check, plan, start, follow, bring home."""
    with reach.target(project, request.target) as at:
        _remind(project, at, screen)
        checked = facts.check(at, request)
        if checked.note:
            screen.say(checked.note)
        if dry_run:
            plan = make(at.settings, checked.request, facts.gather(at, checked), tryout=checked.tryout)
            screen.plan(plan, with_command=True)
            return plan.to_json()
        with reach.launching(at.settings) as note:
            if not request.queue:
                at.refuse_second()
            checked = facts.prepare_orl(at, checked, screen.say)
            looked_up = facts.gather(at, checked)
            plan = make(at.settings, checked.request, looked_up, tryout=checked.tryout)
            note(plan.run_id)
            screen.plan(plan)
            _agree(plan, at.settings.target.confirm_usd, screen, yes=yes)
            record, since = _start(at, plan, checked, looked_up, screen, keep=keep)
        screen.say(f"run {record.run_id} is {record.state}")
        screen.commands(answers.next_commands(record))
        if detach:
            return answers.of_run(record, [], None)
        return _follow(at.run(record), since, screen)


def _start(
    at: Reach, plan: Plan, checked: facts.Checked, looked_up: Facts, screen: Screen, *, keep: bool
) -> tuple[Record, job.Position]:
    """From the intent, noted first, to a running supervisor. What was acquired is released when anything fails."""
    book = at.settings.runs
    record = runs.create(book, plan)
    watch = Stopwatch()
    try:
        with _acquired(at, plan.machine, screen, watch, keep=keep) as machine:
            record = runs.update(book, record, state="preparing", machine=machine.name)
            shell = at.shell(machine)
            made = ready(at.settings, machine, shell, checked, looked_up, screen, watch)
            machine, plan = made.machine, made.plan
            bring_own_files(shell, machine, checked, plan)
            runs.save_plan(book, plan)
            record = runs.update(book, record, run_dir=plan.run_dir)
            if plan.attempt > 1:
                home.restore(at.settings, shell, RunFolder(machine.path(plan.run_dir)), screen)
                screen.say("waiting for the earlier attempt to leave, should it still be writing its checkpoint")
            since = job.position(shell, RunFolder(machine.path(plan.run_dir)))
            session = job.start(shell, machine, plan, at.settings.tmux_socket)
            seen = job.look(shell, RunFolder(machine.path(plan.run_dir)))
            state = seen.state if seen else "running"
            return runs.update(book, record, state=state, session=session, phases=watch.taken), since
    except BaseException as error:
        reason = error.message if isinstance(error, DeployError) else str(error) or "interrupted before it ran"
        runs.update(book, record, state="failed", reason=reason)
        raise


@contextlib.contextmanager
def _acquired(at: Reach, name: str, screen: Screen, watch: Stopwatch, *, keep: bool = False) -> Iterator[Machine]:
    """A machine of the target. When what is done with it fails, one that was made for it is released."""
    with watch.phase("machine"):
        machine = at.acquire(MachineSpec(name, family_name(at.settings), at.settings.root), screen.say)
    try:
        yield machine
    except BaseException:
        if machine.name == name and not keep:
            at.provider.release(machine)
            if not machine.is_here:
                screen.say(f"released {machine.name}, which was made for this; --keep would leave it")
        elif not machine.is_here and machine.usd_per_hour:
            screen.say(f"{machine.name} goes on costing ${machine.usd_per_hour:.2f} an hour: {command('down')}")
        raise


def _follow(reached: Reached, since: job.Position, screen: Screen) -> dict[str, Any]:
    """Watch until the end and bring home what came of it. Neither Ctrl-C nor a lost connection touches the job."""
    reached.shell.patience_s = FOLLOW_PATIENCE_S
    reached.shell.on_loss = screen.say
    try:
        with screen.follower() as follower:
            for text, events in job.follow(reached.shell, reached.folder, since):
                follower.update(text, events)
    except KeyboardInterrupt:
        reached, _ = reached.look()
        screen.say(f"\ndetached: run {reached.record.run_id} goes on")
        screen.commands(answers.next_commands(reached.record))
        return answers.of_run(reached.record, reached.events(), None)
    reached, _ = reached.look()
    record = reached.record
    watch = Stopwatch(record.phases)
    with watch.phase("home"):
        checkpoint = home.bring(reached, screen)
    taken = {**watch.taken, **({"training": record.seconds} if record.seconds else {})}
    record = runs.update(reached.settings.runs, record, phases=taken)
    document = answers.of_run(record, reached.events(), checkpoint)
    screen.result(document)
    plan = runs.plan_of(reached.settings.runs, record)
    screen.compared(plan["phases"], taken, plan["usd_per_hour"])
    if record.state != "succeeded":
        screen.document(document)
        seen = record.state == "stopped" or screen.shows_the_log
        evidence = [] if seen else job.last_lines(reached.shell, reached.folder)
        raise StepFailed(_how_it_is(record), evidence=evidence, next_command=answers.resume(record))
    return document


def status(project: Path, target: str, run_id: str | None, screen: Screen, *, watch: bool) -> dict[str, Any]:
    """One merged answer from machine, supervisor and app; with `watch` again and again until the run is over."""
    with reach.run(project, target, run_id) as reached:
        _remind(project, reached.reach, screen)
        while True:
            reached, seen = reached.look()
            answer = answers.of_status(reached.record, seen, reached.events())
            if not watch or reached.record.state in FINAL_STATES:
                break
            screen.status_line(answer)
            time.sleep(WATCH_EVERY_S)
        screen.facts(f"Run {reached.record.run_id}", answer)
        screen.commands(answers.next_commands(reached.record))
        return answer


def watch(project: Path, target: str, run_id: str | None, screen: Screen, *, max_usd: float | None) -> dict[str, Any]:
    """Stay with a run until it is done: its newest checkpoint comes home, and a machine that vanishes is replaced.

    No capacity is waited out, with pauses that grow; a run that has cost `max_usd` is stopped.
    """
    record = runs.get(project / "runs", run_id, target)
    pauses = iter(WATCH_PAUSES_S)
    while True:
        with contextlib.suppress(LinkLost), reach.run(project, record.target, record.run_id) as reached:
            record = _keep_home_current(reached, screen, max_usd)
        if record.state == "lost":
            screen.say(f"{_how_it_is(record)}; going on elsewhere")
            try:
                train(project, Request(target=record.target, resume="auto"), screen, detach=True, yes=True)
                record, pauses = runs.get(project / "runs", record.run_id, target), iter(WATCH_PAUSES_S)
            except (NoMachine, LinkLost) as error:
                pause = next(pauses, WATCH_PAUSES_S[-1])
                screen.say(f"{error.message}; trying again in {pause} s")
                time.sleep(pause)
        elif record.state in FINAL_STATES:
            screen.say(_how_it_is(record))
            return answers.row(record)
        else:
            time.sleep(WATCH_EVERY_S)


def _keep_home_current(reached: Reached, screen: Screen, max_usd: float | None) -> Record:
    """One look at a watched run."""
    reached, seen = reached.look()
    if reached.machine is not None:
        found = checkpoints.whole(reached.shell, reached.folder)
        at_home = home.newest_checkpoint(reached)
        if found and (at_home is None or checkpoints.age(found[-1]) > checkpoints.age(at_home)):
            about = home.bring_checkpoint(reached, found[-1], None, screen)
            screen.say(f"{about['path']} (epoch {about['epoch']}, step {about['step']})")
        home.bring_record(reached)
    if reached.record.state in FINAL_STATES:
        if reached.machine is not None:
            home.bring(reached, screen)
    elif max_usd is not None and seen is not None and seen.spend_usd >= max_usd:
        screen.say(f"this run has cost ${seen.spend_usd:.2f}, which is what --max-usd allows")
        reached = _stop(reached, screen)
        home.bring(reached, screen)
    return reached.record


def list_runs(project: Path) -> list[dict[str, Any]]:
    """Every run in the address book, the newest first, each with its state now."""
    listed = []
    with contextlib.ExitStack() as stack:
        targets: dict[str, Reach] = {}
        for record in runs.every(project / "runs"):
            with contextlib.suppress(DeployError):  # gone or not to be reached now: the state last seen stands
                if record.state not in FINAL_STATES or record.state == "lost":
                    if record.target not in targets:
                        targets[record.target] = stack.enter_context(reach.target(project, record.target))
                    record, _ = targets[record.target].look(record)
            listed.append(answers.row(record))
    return listed


def stop(project: Path, target: str, run_id: str | None, screen: Screen) -> dict[str, Any]:
    """Ask the job for a checkpoint and an end, and wait for both."""
    with reach.run(project, target, run_id) as reached:
        _remind(project, reached.reach, screen)
        reached, _ = reached.look()
        record = reached.record
        if record.state in runs.STARTING:
            raise WrongUse(f"run {record.run_id} is still {record.state}: press Ctrl-C in the terminal that started it")
        if record.state in FINAL_STATES:
            screen.say(f"{_how_it_is(record)} (it was over already)")
        else:
            reached = _stop(reached, screen)
            record = reached.record
            screen.say(_how_it_is(record))
            home.bring(reached, screen)
        checkpoint = home.newest_checkpoint(reached)
        if checkpoint:
            screen.say(f"checkpoint: {checkpoint['path']} (epoch {checkpoint['epoch']}, step {checkpoint['step']})")
        screen.commands(answers.next_commands(record))
        return answers.of_run(record, reached.events(), checkpoint)


def _stop(reached: Reached, screen: Screen) -> Reached:
    """The job's own end, or after its time of grace the supervisor's."""
    run_id = reached.record.run_id
    grace_s = float(runs.plan_of(reached.settings.runs, reached.record).get("grace_s", GRACE_S))
    screen.say(f"asking run {run_id} to make a checkpoint and end (up to {grace_s:.0f} s)")
    job.request_stop(reached.shell, reached.folder)
    job.wait_for_end(reached.shell, reached.folder, grace_s + STOP_SLACK_S)
    reached, _ = reached.look()
    if reached.record.state not in FINAL_STATES:
        raise StepFailed(
            f"run {run_id} did not end within {grace_s + STOP_SLACK_S:.0f} s",
            evidence=job.last_lines(reached.shell, reached.folder),
            next_command=command(f"status --run {run_id}"),
        )
    return reached


def fetch_checkpoint(
    project: Path, target: str, run_id: str | None, which: str, to: str | None, screen: Screen, *, watch: bool = False
) -> dict[str, Any]:
    """Bring one checkpoint home: verified, resumable, and never in the place of one of fuller data.

    With `watch` every newer one as it appears, until the run is over.
    """
    with reach.run(project, target, run_id) as reached:
        _remind(project, reached.reach, screen)
        reached.shell.on_loss = screen.say
        brought: dict[str, Any] = {}
        while True:
            reached, _ = reached.look()
            over = reached.record.state in FINAL_STATES
            found = checkpoints.whole(reached.shell, reached.folder)
            if found or over or not watch:
                about = checkpoints.choose(found, which, reached.record.run_id)
                if about["sha256"] != brought.get("sha256"):
                    brought = home.bring_checkpoint(reached, about, to, screen)
                    words = f"epoch {brought['epoch']}, step {brought['step']}, SHA-256 verified"
                    screen.say(f"{brought['path']} ({words})")
            if over or not watch:
                return answers.of_checkpoint(brought)
            time.sleep(WATCH_EVERY_S)


def logs(project: Path, target: str, run_id: str | None, screen: Screen, *, follow: bool) -> None:
    """The log as it is, and with `follow` as it grows, until the job has ended."""
    with reach.run(project, target, run_id) as reached:
        _remind(project, reached.reach, screen)
        if follow:
            reached.shell.patience_s = FOLLOW_PATIENCE_S
            reached.shell.on_loss = screen.complain
        for text, _ in job.follow(reached.shell, reached.folder):
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
        argv = job.attach_argv(reached.shell, reached.settings.tmux_socket, run_id, write=write)
        if not sys.stdin.isatty():
            raise WrongUse("attach needs a terminal", next_command=instead)
        return LocalShell().foreground(reached.shell.terminal(argv), cwd=project, without=("TMUX",))


def prepare(
    project: Path,
    target: str,
    screen: Screen,
    *,
    source: str,
    path: str | None,
    labels: str | None,
    out: str | None,
    options: Mapping[str, str | None],
) -> int:
    """Make a data set with the app's own command, here or on a target's machine; its exit code.

    `options` are handed on as they are. On a machine, paths are that machine's.
    """
    name = slug(Path(path).stem) if path and source != "orl" else source
    words = [f"source={source}"]
    more = [f"{key}={value}" for key, value in options.items() if value is not None]
    with reach.target(project, target) as at:
        if at.settings.is_local:
            place = Path(out).absolute() if out else project / "data" / name
            place = place if place.suffix == ".npy" else place / "images.npy"
            words += [f"out={place}"]
            words += [f"{key}={Path(file).absolute()}" for key, file in (("path", path), ("labels", labels)) if file]
            argv = [sys.executable, "-m", "app.prepare", *words, *more]
            return LocalShell().foreground(argv, cwd=project)
        with _acquired(at, f"{family_name(at.settings)}prepare", screen, Stopwatch()) as machine:
            shell = at.shell(machine)
            machine, folder = ready_code(at.settings, machine, shell, screen)
            there = machine.path(out) if out else machine.root / "data" / name
            there = there if there.suffix == ".npy" else there / "images.npy"
            words += [f"out={there}", *(f"{key}={file}" for key, file in (("path", path), ("labels", labels)) if file)]
            for line in shell.stream([machine.python, "-m", "app.prepare", *words, *more], cwd=folder):
                screen.say(line)
            screen.say(f"train on it with: {command(f'train --on {target} --data machine:{there}')}")
    return 0


def mine(
    project: Path,
    target: str,
    run_id: str | None,
    which: str,
    out: str | None,
    overrides: Sequence[str],
    screen: Screen,
) -> int:
    """Pseudo-IDs of a run's data from one of its checkpoints, by the app's own command; its exit code."""
    with reach.run(project, target, run_id) as reached:
        checkpoint = _checkpoint(reached, which)
        stem = PurePath(checkpoint["file"]).stem
        place = (
            Path(out).absolute() if out else Path(runs.home(reached.settings.runs, reached.record.run_id).mining) / stem
        )
        words = [f"checkpoint={reached.folder.checkpoints / checkpoint['file']}", *overrides]
        return remote.app(reached, "app.mine", words, place, screen)


def evaluate(
    project: Path,
    target: str,
    run_id: str | None,
    which: str | None,
    screen: Screen,
    *,
    weights: str | None,
    sets: str | None,
    out: str | None,
    overrides: Sequence[str],
) -> int:
    """How good checkpoints or any files of weights are, by the app's own command; its exit code."""
    if weights is not None:
        words = [f"weights={weights}", *([f"sets={sets}"] if sets else []), *overrides]
        words += [f"out={Path(out).absolute()}"] if out else []
        return LocalShell().foreground([sys.executable, "-m", "app.evaluate", *words], cwd=project)
    with reach.run(project, target, run_id) as reached:
        checkpoint = _checkpoint(reached, which or "latest")
        chosen = reached.folder.checkpoints / (checkpoint["file"] if which else "*.pt")
        named = [f"sets={','.join(remote.bring_sets(reached, sets))}"] if sets else []
        own = Path(runs.home(reached.settings.runs, reached.record.run_id).path) / "evaluation"
        place = Path(out).absolute() if out else own
        return remote.app(reached, "app.evaluate", [f"weights={chosen}", *named, *overrides], place, screen)


def export(
    project: Path,
    target: str,
    run_id: str | None,
    which: str,
    out: str | None,
    overrides: Sequence[str],
    screen: Screen,
) -> int:
    """A checkpoint as ONNX, by the app's own command; its exit code."""
    with reach.run(project, target, run_id) as reached:
        checkpoint = _checkpoint(reached, which)
        own = Path(runs.home(reached.settings.runs, reached.record.run_id).path)
        place = Path(out).absolute() if out else own / f"{PurePath(checkpoint['file']).stem}.onnx"
        words = [f"checkpoint={reached.folder.checkpoints / checkpoint['file']}", *overrides]
        return remote.app(reached, "app.export", words, place, screen)


def bills(project: Path) -> list[dict[str, Any]]:
    """Every machine that is there for this project, whoever made it; orphans first."""
    found: list[money.Bill] = []
    for at in money.targets(project):
        with at, contextlib.suppress(DeployError):  # a provider without key or engine has no machine of ours
            found += money.bills(project, at)
    return [bill.to_json() for bill in sorted(found, key=lambda bill: not bill.orphan)]


def down(
    project: Path, target: str, run_id: str | None, screen: Screen, *, every: bool, orphans: bool, anyway: bool
) -> list[dict[str, Any]]:
    """Release machines: a run on one ends with a checkpoint, and what is there comes home first."""
    gone: list[dict[str, Any]] = []
    record = runs.get(project / "runs", run_id, target) if run_id else None
    for at in (
        money.targets(project) if every or orphans else [Reach(load(project, record.target if record else target))]
    ):
        with at:
            for bill in _bills_of(project, at, screen, quiet=every or orphans):
                own = bill.machine.startswith(family_name(at.settings)) if not (every or orphans) else True
                if not own or (orphans and not bill.orphan) or (record and bill.machine != record.machine):
                    continue
                machine = at.machine(bill.machine)
                _bring_all_home(at, bill, screen, anyway=anyway)
                if machine is not None:
                    at.provider.release(machine)
                screen.say(f"released {bill.machine}" + (f" after ${bill.usd:.2f}" if bill.usd else ""))
                gone.append(bill.to_json())
    if not gone:
        screen.say("there is nothing to release")
    return gone


def _bills_of(project: Path, at: Reach, screen: Screen, *, quiet: bool) -> list[money.Bill]:
    try:
        return money.bills(project, at)
    except DeployError as error:
        if not quiet:
            raise
        screen.say(f"not asked: {at.settings.target.provider} ({error.message})")
        return []


def _bring_all_home(at: Reach, bill: money.Bill, screen: Screen, *, anyway: bool) -> None:
    """Nothing that only this machine has is lost, unless the user says so."""
    for record in runs.every(at.settings.runs):
        if record.machine != bill.machine:
            continue
        try:
            reached, _ = at.run(record).look()
            if reached.machine is None:
                continue
            if reached.record.state not in FINAL_STATES:
                reached = _stop(reached, screen)
            home.bring(reached, screen)
        except (DeployError, OSError) as error:
            if not anyway:
                raise StepFailed(
                    f"what run {record.run_id} left on {bill.machine} could not be brought home ({error}): the machine "
                    "was kept",
                    next_command=command(f"down --run {record.run_id} --anyway"),
                ) from error
            screen.say(f"run {record.run_id} could not be brought home, and is given up ({error})")


def examine(project: Path, target: str) -> list[dict[str, Any]]:
    """What is wrong with the set-up, each finding with its fix."""
    return [asdict(finding) for finding in doctor.examine(load(project, target))]


def bench(project: Path, *, quick: bool) -> int:
    """Run every benchmark; 1 when a claim did not hold."""
    scripts = sorted(file for file in (project / "benchmarks").glob("*.py") if not file.name.startswith("_"))
    if not scripts:
        raise WrongUse(f"there is no benchmark in {project / 'benchmarks'}")
    codes = [
        LocalShell().foreground([sys.executable, str(script), *(["--quick"] if quick else [])], cwd=project)
        for script in scripts
    ]
    return 1 if any(codes) else 0


def _checkpoint(reached: Reached, which: str) -> dict[str, Any]:
    """The checkpoint that is meant, as its JSON tells it."""
    return checkpoints.choose(checkpoints.whole(reached.shell, reached.folder), which, reached.record.run_id)


def _agree(plan: Plan, confirm_usd: float, screen: Screen, *, yes: bool) -> None:
    """Before money is spent that may be more than the user thinks of: a question, or --yes."""
    if not plan.usd_per_hour or yes or (plan.expected_usd is not None and plan.expected_usd <= confirm_usd):
        return
    cost = f"about ${plan.expected_usd:.2f}" if plan.expected_usd is not None else "how long is not known yet"
    words = f"this run costs ${plan.usd_per_hour:.2f} an hour, {cost}"
    if not sys.stdin.isatty():
        raise WrongUse(f"{words}: give --yes to agree, or set confirm_usd in conf/deploy/{plan.target}.yaml")
    if not screen.ask(f"{words}. Go on?"):
        raise WrongUse("nothing was started")


def _remind(project: Path, at: Reach, screen: Screen) -> None:
    """Every command names machines that bill without need; on stderr, for stdout may be a log or a document."""
    for warning in money.warnings(project, at):
        screen.complain(f"{warning}; see {command('ps')}, end it with {command('down --orphans')}")


def _how_it_is(record: Record) -> str:
    return f"run {record.run_id} {record.state}" + (f": {record.reason}" if record.reason else "")
