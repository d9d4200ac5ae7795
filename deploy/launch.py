"""THE STORY: what each command does, from top to bottom."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy import answers, checkpoints, doctor, facts, home, job, reach, runs
from deploy.errors import DeployError, StepFailed, WrongUse, command
from deploy.machine import Machine, MachineSpec
from deploy.plan import GRACE_S, Plan, Request, slug
from deploy.pod.folder import FINAL_STATES, RunFolder
from deploy.ready import bring_own_checkpoint, ready
from deploy.runs import Record
from deploy.settings import Settings, load
from deploy.shell import LocalShell, open_shell
from deploy.show import Screen

STOP_SLACK_S = 30
WATCH_EVERY_S = 2


def deploy(project: Path, target: str, screen: Screen) -> dict[str, Any]:
    """Make a target ready: machine, environment, code, data. A second call does only what is missing."""
    settings = load(project, target)
    checked = facts.check(settings, Request(target=target))
    with reach.launching(settings) as note:
        note("deploy")
        checked = facts.prepare_orl(settings, checked, screen.say)
        plan = facts.plan(settings, checked)
        provider = reach.provider_of(settings)
        machine = provider.acquire(MachineSpec(plan.machine, plan.machine, settings.root))
        try:
            plan = ready(settings, open_shell(machine, settings.notes), machine, plan, checked, screen)
        except BaseException:
            provider.release(machine)
            raise
    screen.say(f"target {target} is ready; train on it with: {command(f'train --on {target}')}")
    about = {"target": target, "machine": machine.name, "root": str(machine.root)}
    return {**about, "snapshot": plan.snapshot, "data": plan.data_path}


def train(
    project: Path, request: Request, screen: Screen, *, detach: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Check, plan, start, follow, bring home."""
    settings = load(project, request.target)
    checked = facts.check(settings, request)
    if checked.note:
        screen.say(checked.note)
    if dry_run:
        plan = facts.plan(settings, checked)
        screen.plan(plan, with_command=True)
        return plan.to_json()
    with reach.launching(settings) as note:
        reach.refuse_second(settings)
        checked = facts.prepare_orl(settings, checked, screen.say)
        plan = facts.plan(settings, checked)
        note(plan.run_id)
        screen.plan(plan)
        record, since = _start(settings, plan, checked, screen)
    screen.say(f"run {record.run_id} is {record.state}")
    screen.commands(answers.next_commands(record))
    if detach:
        return answers.of_run(record, [], None)
    return _follow(settings, record, since, screen)


def _start(settings: Settings, plan: Plan, checked: facts.Checked, screen: Screen) -> tuple[Record, job.Position]:
    """From the intent, noted first, to a running supervisor. What was acquired is released when anything fails."""
    record = runs.create(settings.runs, plan)
    provider = reach.provider_of(settings)
    machine: Machine | None = None
    try:
        machine = provider.acquire(MachineSpec(plan.machine, plan.machine, settings.root))
        record = runs.update(settings.runs, record, state="preparing")
        shell = open_shell(machine, settings.notes)
        plan = ready(settings, shell, machine, plan, checked, screen)
        bring_own_checkpoint(shell, checked, plan)
        runs.save_plan(settings.runs, plan)
        if plan.attempt > 1:
            screen.say("waiting for the earlier attempt to leave, should it still be writing its checkpoint")
        since = job.position(shell, RunFolder(Path(plan.run_dir)))
        session = job.start(shell, machine, plan, settings.tmux_socket)
        return runs.update(settings.runs, record, state="running", session=session), since
    except BaseException as error:
        if machine is not None:
            provider.release(machine)
        reason = error.message if isinstance(error, DeployError) else str(error) or "interrupted before it ran"
        runs.update(settings.runs, record, state="failed", reason=reason)
        raise


def _follow(settings: Settings, record: Record, since: job.Position, screen: Screen) -> dict[str, Any]:
    """Watch until the end and bring home what came of it. Ctrl-C leaves the job alone."""
    reached = reach.reach_of(settings, record)
    try:
        with screen.follower() as follower:
            for text, events in job.follow(reached.shell, reached.folder, since):
                follower.update(text, events)
    except KeyboardInterrupt:
        record, _ = reach.look(settings, record)
        screen.say(f"\ndetached: run {record.run_id} goes on")
        screen.commands(answers.next_commands(record))
        return answers.of_run(record, reach.events(settings, record), None)
    record, _ = reach.look(settings, record)
    checkpoint = home.bring(reached, screen)
    document = answers.of_run(record, reach.events(settings, record), checkpoint)
    screen.result(document)
    if record.state != "succeeded":
        screen.document(document)
        seen = record.state == "stopped" or screen.shows_the_log
        evidence = [] if seen else job.last_lines(reached.shell, reached.folder)
        raise StepFailed(_how_it_is(record), evidence=evidence, next_command=answers.resume(record))
    return document


def status(project: Path, target: str, run_id: str | None, screen: Screen, *, watch: bool) -> dict[str, Any]:
    """One merged answer from machine, supervisor and app; with `watch` again and again until the run is over."""
    reached = reach.reach(project, target, run_id)
    while True:
        record, seen = reach.look(reached.settings, reached.record)
        answer = answers.of_status(record, seen, reach.events(reached.settings, record))
        if not watch or record.state in FINAL_STATES:
            break
        screen.status_line(answer)
        time.sleep(WATCH_EVERY_S)
    screen.facts(f"Run {record.run_id}", answer)
    screen.commands(answers.next_commands(record))
    return answer


def list_runs(project: Path) -> list[dict[str, Any]]:
    """Every run in the address book, the newest first, each with its state now."""
    listed = []
    for record in runs.every(project / "runs"):
        with contextlib.suppress(DeployError):  # a target whose file is gone: its runs keep the state last seen
            record, _ = reach.look(load(project, record.target), record)
        listed.append(answers.row(record))
    return listed


def stop(project: Path, target: str, run_id: str | None, screen: Screen) -> dict[str, Any]:
    """Ask the job for a checkpoint and an end, and wait for both."""
    reached = reach.reach(project, target, run_id)
    record, _ = reach.look(reached.settings, reached.record)
    if record.state in runs.STARTING:
        raise WrongUse(f"run {record.run_id} is still {record.state}: press Ctrl-C in the terminal that started it")
    if record.state in FINAL_STATES:
        screen.say(f"{_how_it_is(record)} (it was over already)")
    else:
        record = _stop(reached, screen)
        screen.say(_how_it_is(record))
        home.bring(reached, screen)
    checkpoint = home.newest_checkpoint(reached)
    if checkpoint:
        screen.say(f"checkpoint: {checkpoint['path']} (epoch {checkpoint['epoch']}, step {checkpoint['step']})")
    screen.commands(answers.next_commands(record))
    return answers.of_run(record, reach.events(reached.settings, record), checkpoint)


def _stop(reached: reach.Reached, screen: Screen) -> Record:
    """The job's own end, or after its time of grace the supervisor's."""
    run_id = reached.record.run_id
    grace_s = float(runs.plan_of(reached.settings.runs, reached.record).get("grace_s", GRACE_S))
    screen.say(f"asking run {run_id} to make a checkpoint and end (up to {grace_s:.0f} s)")
    job.request_stop(reached.shell, reached.folder)
    job.wait_for_end(reached.shell, reached.folder, grace_s + STOP_SLACK_S)
    record, _ = reach.look(reached.settings, reached.record)
    if record.state not in FINAL_STATES:
        raise StepFailed(
            f"run {run_id} did not end within {grace_s + STOP_SLACK_S:.0f} s",
            evidence=job.last_lines(reached.shell, reached.folder),
            next_command=command(f"status --run {run_id}"),
        )
    return record


def fetch_checkpoint(
    project: Path, target: str, run_id: str | None, which: str, to: str | None, screen: Screen
) -> dict[str, Any]:
    """Bring one checkpoint home: verified, resumable, and never in the place of one of fuller data."""
    reached = reach.reach(project, target, run_id)
    about = checkpoints.choose(checkpoints.whole(reached.shell, reached.folder), which, reached.record.run_id)
    about = home.bring_checkpoint(reached, about, to, screen)
    screen.say(f"{about['path']} (epoch {about['epoch']}, step {about['step']}, SHA-256 verified)")
    return answers.of_checkpoint(about)


def logs(project: Path, target: str, run_id: str | None, screen: Screen, *, follow: bool) -> None:
    """The log as it is, and with `follow` as it grows, until the job has ended."""
    reached = reach.reach(project, target, run_id)
    for text, _ in job.follow(reached.shell, reached.folder):
        screen.raw(text)
        if not follow:
            break


def attach(project: Path, target: str, run_id: str | None, *, write: bool) -> int:
    """Lend this terminal to the live session until the user leaves it; the exit code of tmux."""
    reached = reach.reach(project, target, run_id)
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
    return LocalShell().foreground(argv, cwd=project, without=("TMUX",))


def prepare(
    project: Path,
    *,
    source: str,
    path: str | None,
    labels: str | None,
    out: str | None,
    options: Mapping[str, str | None],
) -> int:
    """Make a data set with the app's own command; its exit code. `options` are handed on as they are."""
    name = slug(Path(path).stem) if path and source != "orl" else source
    place = Path(out).absolute() if out else project / "data" / name
    place = place if place.suffix == ".npy" else place / "images.npy"
    words = [f"source={source}", f"out={place}"]
    words += [f"{key}={Path(file).absolute()}" for key, file in (("path", path), ("labels", labels)) if file]
    words += [f"{key}={value}" for key, value in options.items() if value is not None]
    return LocalShell().foreground([sys.executable, "-m", "app.prepare", *words], cwd=project)


def mine(project: Path, target: str, run_id: str | None, which: str, out: str | None, overrides: Sequence[str]) -> int:
    """Pseudo-IDs of a run's data from one of its checkpoints, by the app's own command; its exit code."""
    checkpoint, home_folder = _checkpoint(project, target, run_id, which)
    place = Path(out).absolute() if out else Path(home_folder.mining) / checkpoint.stem
    words = [f"checkpoint={checkpoint}", f"out={place}", *overrides]
    return LocalShell().foreground([sys.executable, "-m", "app.mine", *words], cwd=project)


def evaluate(
    project: Path,
    target: str,
    run_id: str | None,
    which: str | None,
    *,
    weights: str | None,
    sets: str | None,
    out: str | None,
    overrides: Sequence[str],
) -> int:
    """How good checkpoints or any files of weights are, by the app's own command; its exit code."""
    place = Path(out).absolute() if out else None
    if weights is None:
        checkpoint, home_folder = _checkpoint(project, target, run_id, which or "latest")
        weights = str(checkpoint if which else checkpoint.parent / "*.pt")
        place = place or Path(home_folder.path) / "evaluation"
    words = [f"weights={weights}", *([f"sets={sets}"] if sets else []), *([f"out={place}"] if place else [])]
    return LocalShell().foreground([sys.executable, "-m", "app.evaluate", *words, *overrides], cwd=project)


def export(
    project: Path, target: str, run_id: str | None, which: str, out: str | None, overrides: Sequence[str]
) -> int:
    """A checkpoint as ONNX, by the app's own command; its exit code."""
    checkpoint, home_folder = _checkpoint(project, target, run_id, which)
    place = Path(out).absolute() if out else Path(home_folder.path) / f"{checkpoint.stem}.onnx"
    words = [f"checkpoint={checkpoint}", f"out={place}", *overrides]
    return LocalShell().foreground([sys.executable, "-m", "app.export", *words], cwd=project)


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


def _checkpoint(project: Path, target: str, run_id: str | None, which: str) -> tuple[Path, RunFolder]:
    """The checkpoint that is meant, where the machine has it, and the run's folder at home."""
    reached = reach.reach(project, target, run_id)
    about = checkpoints.choose(checkpoints.whole(reached.shell, reached.folder), which, reached.record.run_id)
    home_folder = runs.home(reached.settings.runs, reached.record.run_id)
    return Path(reached.folder.checkpoints) / about["file"], home_folder


def _how_it_is(record: Record) -> str:
    return f"run {record.run_id} {record.state}" + (f": {record.reason}" if record.reason else "")
