"""THE STORY: what each command does, from top to bottom."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from deploy import checkpoints, code, data, doctor, facts, job, runs, transfer
from deploy import plan as planning
from deploy.errors import DeployError, StepFailed, WrongUse, unknown
from deploy.machine import Machine, MachineSpec, Provider
from deploy.plan import Plan, Request
from deploy.pod.folder import FINAL_STATES, RunFolder
from deploy.pod.lock import Busy, Lock, is_held, read_holder
from deploy.providers import PROVIDERS
from deploy.runs import Record
from deploy.settings import Settings, load
from deploy.shell import LocalShell, Shell, open_shell
from deploy.show import Screen

BROUGHT_HOME = ("config.yaml", "status.json", "metrics.jsonl", "train.log")
STOP_SLACK_S = 30


def deploy(project: Path, target: str, screen: Screen) -> dict[str, Any]:
    """Make a target ready: machine, environment, code, data. A second call does only what is missing."""
    settings = load(project, target)
    checked = facts.check(settings, Request(target=target), None)
    with _launching(settings) as note:
        note("deploy")
        checked = facts.prepare_orl(settings, checked)
        plan = planning.make(settings, checked.request, facts.gather(settings, checked), tryout=checked.tryout)
        provider = _provider(settings)
        machine = provider.acquire(MachineSpec(plan.machine, settings.root))
        try:
            plan, done = _ready(settings, open_shell(machine), machine, plan, checked, screen)
        except BaseException:
            provider.release(machine)
            raise
    for line in done:
        screen.say(line)
    screen.say(f"target {target} is ready; train on it with: invoke train --on {target}")
    document = {"target": target, "machine": machine.name, "root": str(machine.root), "snapshot": plan.snapshot}
    return {**document, "data": plan.data_path, "done": done}


def train(
    project: Path, request: Request, screen: Screen, *, detach: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Check, plan, start, follow, bring home."""
    settings = load(project, request.target)
    _provider(settings)
    checked = facts.check(settings, request, _unfinished(settings, request))
    if checked.note:
        screen.say(checked.note)
    if dry_run:
        plan = planning.make(settings, checked.request, facts.gather(settings, checked), tryout=checked.tryout)
        screen.plan(plan)
        return plan.to_json()
    _refuse_second(settings)
    with _launching(settings) as note:
        _refuse_second(settings)  # again: it may have been started while this command waited for nothing but the lock
        checked = facts.prepare_orl(settings, checked)
        plan = planning.make(settings, checked.request, facts.gather(settings, checked), tryout=checked.tryout)
        note(plan.run_id)
        screen.plan(plan)
        record, shell = _start(settings, plan, checked, screen)
    _say_how_to_reach(record, screen)
    if detach:
        return _document(record, [], None)
    return _follow(settings, record, shell, screen)


def status(project: Path, target: str, run_id: str | None) -> dict[str, Any]:
    """One merged answer from machine, supervisor and app."""
    settings = load(project, target)
    record = runs.get(settings.runs, run_id, target)
    settings = load(project, record.target)
    record, seen = _look(settings, record)
    events = _events(settings, record)
    left = next((event["seconds_left"] for event in reversed(events) if event.get("seconds_left") is not None), None)
    return {
        "run_id": record.run_id,
        "target": record.target,
        "state": record.state,
        "attempt": record.attempt,
        "epoch": seen.epoch if seen else None,
        "step": seen.step if seen else None,
        "images_per_s": seen.images_per_s if seen else None,
        "seconds_left": None if record.state in FINAL_STATES else left,
        "heartbeat_age_s": seen.heartbeat_age_s if seen else None,
        "spend_usd": seen.spend_usd if seen else 0.0,
        "reason": record.reason,
    }


def is_over(answer: dict[str, Any]) -> bool:
    """Whether a status will not change any more by itself."""
    return answer["state"] in FINAL_STATES


def list_runs(project: Path) -> list[dict[str, Any]]:
    """Every run in the address book, the newest first, each with its state now."""
    listed = []
    for record in runs.every(project / "runs"):
        with contextlib.suppress(DeployError):  # a target whose file is gone: its runs keep the state last seen
            record, _ = _look(load(project, record.target), record)
        keys = (
            "run_id",
            "target",
            "state",
            "attempt",
            "created",
            "fraction",
            "backbone",
            "seconds",
            "commit",
            "reason",
        )
        listed.append({key: getattr(record, key) for key in keys})
    return listed


def stop(project: Path, target: str, run_id: str | None, screen: Screen) -> dict[str, Any]:
    """Ask the job for a checkpoint and an end, and wait for both."""
    settings, record, shell, folder = _reach(project, target, run_id)
    record, _ = _look(settings, record)
    if record.state in ("acquiring", "preparing"):
        raise WrongUse(f"run {record.run_id} is still {record.state}: press Ctrl-C in the terminal that started it")
    if record.state in FINAL_STATES:
        screen.say(f"run {record.run_id} is over already: {record.state}" + _because(record))
    else:
        grace_s = float(runs.plan_of(settings.runs, record).get("grace_s", planning.GRACE_S))
        screen.say(f"asking run {record.run_id} to make a checkpoint and end (up to {grace_s:.0f} s)")
        job.request_stop(shell, folder)
        job.wait_for_end(shell, folder, grace_s + STOP_SLACK_S)
        record, _ = _look(settings, record)
        if record.state not in FINAL_STATES:
            raise StepFailed(
                f"run {record.run_id} did not end within {grace_s + STOP_SLACK_S:.0f} s",
                evidence=job.last_lines(shell, folder),
                next_command=f"invoke status --run {record.run_id}",
            )
        screen.say(f"run {record.run_id} is {record.state}" + _because(record))
        _bring_home(settings, record, shell, screen)
    if record.state in runs.UNFINISHED:
        screen.say("continue it with: invoke train --resume auto" + _on(record.target))
    return _document(record, _events(settings, record), _home_checkpoint(settings, record))


def fetch_checkpoint(
    project: Path, target: str, run_id: str | None, which: str, to: str | None, screen: Screen
) -> dict[str, Any]:
    """Bring one checkpoint home: verified, resumable, and never in the place of one of fuller data."""
    settings, record, shell, folder = _reach(project, target, run_id)
    about = checkpoints.choose(checkpoints.whole(shell, folder), which, record.run_id)
    place = _destination(settings, record, to, about["file"])
    with screen.copying(about["file"]) as progress:
        transfer.fetch_checkpoint(shell, folder.checkpoints / about["file"], about, place, progress)
    screen.say(f"{place} (epoch {about['epoch']}, step {about['step']}, SHA-256 verified)")
    return _checkpoint_document(place, about)


def logs(project: Path, target: str, run_id: str | None, *, follow: bool) -> None:
    """The log as it is, and with `follow` as it grows, until the job has ended."""
    _, _, shell, folder = _reach(project, target, run_id)
    if follow:
        job.follow_log(shell, folder, _write_out)
    else:
        _write_out(job.Tail(shell, folder.log).read())


def attach(project: Path, target: str, run_id: str | None, *, write: bool) -> int:
    """Lend this terminal to the live session until the user leaves it; the exit code of tmux."""
    settings, record, shell, _ = _reach(project, target, run_id)
    if record.session == "detached":
        raise StepFailed(
            f"run {record.run_id} has no terminal, because tmux was missing when it started: install tmux "
            "(apt-get install tmux, or brew install tmux; not on Windows) before the next run",
            next_command=f"invoke logs --follow --run {record.run_id}",
        )
    argv = job.attach_argv(shell, settings.tmux_socket, record.run_id, write=write)
    if not sys.stdin.isatty():
        raise WrongUse("attach needs a terminal", next_command=f"invoke logs --follow --run {record.run_id}")
    return LocalShell().foreground(argv, cwd=project, without=("TMUX",))


def prepare(project: Path, *, source: str, path: str | None, labels: str | None, out: str | None) -> int:
    """Make a data set with the app's own command; its exit code."""
    name = planning.slug(Path(path).stem) if path and source != "orl" else source
    place = Path(out).absolute() if out else project / "data" / name
    place = place if place.suffix == ".npy" else place / "images.npy"
    given = {"path": path, "labels": labels}
    options = [f"{key}={Path(value).absolute()}" for key, value in given.items() if value]
    argv = [sys.executable, "-m", "app.prepare", f"source={source}", f"out={place}", *options]
    return LocalShell().foreground(argv, cwd=project)


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


# -- the parts of `train` ------------------------------------------------------------------------------------------


def _start(settings: Settings, plan: Plan, checked: facts.Checked, screen: Screen) -> tuple[Record, Shell]:
    """From the intent, noted first, to a running supervisor. What was acquired is released when anything fails."""
    record = runs.create(settings.runs, plan)
    provider = _provider(settings)
    machine: Machine | None = None
    try:
        machine = provider.acquire(MachineSpec(plan.machine, settings.root))
        record = runs.update(settings.runs, record, state="preparing")
        shell = open_shell(machine)
        plan, done = _ready(settings, shell, machine, plan, checked, screen)
        for line in done:
            screen.say(line)
        _bring_own_checkpoint(shell, checked, plan)
        runs.save_plan(settings.runs, plan)
        session = job.start(shell, machine, plan, settings.tmux_socket)
        return runs.update(settings.runs, record, state="running", session=session), shell
    except BaseException as error:
        if machine is not None:
            provider.release(machine)
        reason = error.message if isinstance(error, DeployError) else str(error) or "interrupted before it ran"
        runs.update(settings.runs, record, state="failed", reason=reason)
        raise


def _ready(
    settings: Settings, shell: Shell, machine: Machine, plan: Plan, checked: facts.Checked, screen: Screen
) -> tuple[Plan, list[str]]:
    """Environment, code and data on the machine; the settled plan, and what was done in words."""
    snapshot = code.place(settings.project, machine)
    plan = planning.settle(plan, snapshot)
    done = [f"code is in {plan.cwd}"]
    _check_environment(shell, machine, PurePath(plan.cwd))
    assert checked.dataset is not None, "data is prepared before a machine is asked for"
    with screen.copying("staging") as progress:
        staged = data.stage(shell, machine, PurePath(plan.cwd), plan, checked.dataset, progress)
    return plan, [*done, *([staged] if staged else [])]


def _check_environment(shell: Shell, machine: Machine, code_folder: PurePath) -> None:
    ask = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    if not shell.run([machine.python, "-c", ask], cwd=code_folder, check=False):
        raise StepFailed(f"torch is not installed for {machine.python}", next_command=facts.BOOTSTRAP)


def _bring_own_checkpoint(shell: Shell, checked: facts.Checked, plan: Plan) -> None:
    """The user's checkpoint travels into the run folder, with its JSON."""
    if checked.request.resume in ("none", "auto"):
        return
    for file in (Path(checked.request.resume), Path(checked.request.resume).with_suffix(".json")):
        if file.exists():
            transfer.push(shell, file, PurePath(plan.resume).with_suffix(file.suffix))


def _follow(settings: Settings, record: Record, shell: Shell, screen: Screen) -> dict[str, Any]:
    """Watch until the end. Ctrl-C leaves the job alone."""
    folder = RunFolder(Path(record.run_dir))
    try:
        with screen.follower() as follower:
            for events in job.follow(shell, folder):
                follower.update(events)
    except KeyboardInterrupt:
        screen.say(f"\ndetached: run {record.run_id} goes on")
        _say_how_to_reach(record, screen)
        return _document(_look(settings, record)[0], _events(settings, record), None)
    record, _ = _look(settings, record)
    checkpoint = _bring_home(settings, record, shell, screen)
    document = _document(record, _events(settings, record), checkpoint)
    _show_result(document, record, screen)
    if record.state != "succeeded":
        screen.document(document)
        again = "invoke train --resume auto" + _on(record.target)
        evidence = [] if record.state == "stopped" else job.last_lines(shell, folder)
        raise StepFailed(
            f"run {record.run_id} {record.state}" + _because(record), evidence=evidence, next_command=again
        )
    return document


def _bring_home(settings: Settings, record: Record, shell: Shell, screen: Screen) -> dict[str, Any] | None:
    """Config, status, metrics, log and the newest checkpoint, verified, into the laptop's run folder."""
    folder, home = RunFolder(Path(record.run_dir)), runs.home(settings.runs, record.run_id)
    for name in BROUGHT_HOME:
        if shell.size(folder.path / name) is not None:
            transfer.fetch(shell, folder.path / name, Path(home.path / name))
    whole = checkpoints.whole(shell, folder)
    if not whole:
        return None
    about, place = whole[-1], Path(home.checkpoints / whole[-1]["file"])
    with screen.copying(about["file"]) as progress:
        transfer.fetch_checkpoint(shell, folder.checkpoints / about["file"], about, place, progress)
    return _checkpoint_document(place, about)


# -- what several stories need -------------------------------------------------------------------------------------


def _provider(settings: Settings) -> Provider:
    name = settings.target.provider
    if name not in PROVIDERS:
        raise unknown(f"provider in conf/deploy/{settings.target.name}.yaml", name, PROVIDERS)
    return PROVIDERS[name](settings)


@contextlib.contextmanager
def _launching(settings: Settings) -> Iterator[Callable[[str], None]]:
    """One launch at a time on a target, from here to the running job; gives a way to note which run it is."""
    try:
        with Lock(_launch_lock(settings), {"run_id": "of another command"}).acquire() as lock:
            yield lambda run_id: lock.write({"run_id": run_id})
    except Busy as busy:
        raise WrongUse(
            f"run {busy.holder.get('run_id', 'of another command')} is being started on target "
            f"'{settings.target.name}': wait for it",
            next_command="invoke status" + _on(settings.target.name),
        ) from busy


def _launch_lock(settings: Settings) -> Path:
    return settings.project / ".sniperface" / f"launching-{settings.target.name}.lock"


def _refuse_second(settings: Settings) -> None:
    for record in runs.every(settings.runs, settings.target.name):
        if record.state not in FINAL_STATES or record.state == "lost":
            record, _ = _look(settings, record)
        if record.state not in FINAL_STATES:
            raise WrongUse(
                f"run {record.run_id} is {record.state} on target '{settings.target.name}': wait for it, or stop it",
                next_command=f"invoke stop --run {record.run_id}",
            )


def _unfinished(settings: Settings, request: Request) -> facts.Unfinished | None:
    """The newest run of the target that was stopped, failed or lost."""
    if request.resume != "auto":
        return None
    for record in runs.every(settings.runs, settings.target.name):
        record, _ = _look(settings, record)
        if record.state in runs.UNFINISHED:
            return facts.Unfinished(
                record, checkpoints.whole(_shell(settings, record), RunFolder(Path(record.run_dir)))
            )
    return None


def _reach(project: Path, target: str, run_id: str | None) -> tuple[Settings, Record, Shell, RunFolder]:
    """A run, and where to ask about it: the machine, or the laptop's own copy when the machine's is gone."""
    record = runs.get(project / "runs", run_id, load(project, target).target.name)
    settings = load(project, record.target)
    shell = _shell(settings, record)
    folder = RunFolder(Path(record.run_dir))
    if not shell.listdir(folder.path):
        return settings, record, LocalShell(), runs.home(settings.runs, record.run_id)
    return settings, record, shell, folder


def _shell(settings: Settings, record: Record) -> Shell:
    machine = _provider(settings).find(record.machine)
    return open_shell(machine) if machine else LocalShell()


def _look(settings: Settings, record: Record) -> tuple[Record, job.Status | None]:
    """The truth about a run now: the machine is asked, run.json is brought up to date."""
    machine = _provider(settings).find(record.machine)
    seen = job.look(open_shell(machine), RunFolder(Path(record.run_dir))) if machine else None
    if seen and seen.attempt != record.attempt:
        seen = None
    if seen is None and record.state in FINAL_STATES:
        return record, None
    if seen is None and record.state in ("acquiring", "preparing"):
        if is_held(_launch_lock(settings)) and read_holder(_launch_lock(settings)).get("run_id") == record.run_id:
            return record, None
        reason = "the command that started it ended before the job ran"
        return runs.update(settings.runs, record, state="failed", reason=reason), None
    if seen is None:
        return runs.update(settings.runs, record, state="lost", reason="its folder on the machine is gone"), None
    seconds = round(seen.ended - seen.started, 1) if seen.ended and seen.started else None
    return runs.update(settings.runs, record, state=seen.state, reason=seen.reason, seconds=seconds), seen


def _events(settings: Settings, record: Record) -> list[dict[str, Any]]:
    """All events of a run, from the machine, or from the copy at home."""
    for folder in (RunFolder(Path(record.run_dir)), runs.home(settings.runs, record.run_id)):
        events = job.Events(LocalShell(), folder.metrics).read()
        if events:
            return events
    return []


def _document(record: Record, events: list[dict[str, Any]], checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """The answer of `train` and `stop`, in the shape that scripts rely on."""
    last = {event.get("what"): event for event in events if event.get("event") == "eval"}
    mined = [event for event in events if event.get("event") == "mining"]
    return {
        "run_id": record.run_id,
        "state": record.state,
        "seconds": record.seconds,
        "fraction": record.fraction,
        "checkpoint": checkpoint and {key: checkpoint[key] for key in ("path", "sha256", "epoch", "step")},
        "eval": {
            what: {key: last[what].get(key) for key in ("accuracy", "rank1")} if what in last else None
            for what in ("pixels", "untrained", "trained")
        },
        "pseudo_ids": {key: mined[-1].get(key) for key in ("count", "coverage", "purity")} if mined else None,
        "reason": record.reason,
    }


def _show_result(document: dict[str, Any], record: Record, screen: Screen) -> None:
    rows = [(what, row["accuracy"], row["rank1"]) for what, row in document["eval"].items() if row]
    if rows:
        screen.table("Held-out people: 10-fold verification", ["embedding", "accuracy", "rank-1"], rows)
    if document["pseudo_ids"]:
        found = document["pseudo_ids"]
        purity = "not measured" if found["purity"] is None else f"{found['purity']:.3f}"
        screen.say(f"pseudo-IDs: {found['count']}, coverage {found['coverage']:.3f}, purity {purity}")
    if document["checkpoint"]:
        screen.say(f"checkpoint: {document['checkpoint']['path']}")
    if record.seconds is not None:
        screen.say(f"time: {record.seconds:.0f} s")


def _checkpoint_document(place: Path, about: dict[str, Any]) -> dict[str, Any]:
    keys = ("sha256", "epoch", "step", "fraction")
    return {"path": str(place), **{key: about[key] for key in keys}}


def _home_checkpoint(settings: Settings, record: Record) -> dict[str, Any] | None:
    folder = runs.home(settings.runs, record.run_id)
    whole = checkpoints.whole(LocalShell(), folder)
    return _checkpoint_document(Path(folder.checkpoints / whole[-1]["file"]), whole[-1]) if whole else None


def _destination(settings: Settings, record: Record, to: str | None, file: str) -> Path:
    if to is None:
        return Path(runs.home(settings.runs, record.run_id).checkpoints / file)
    place = Path(to).absolute()
    return place / file if place.is_dir() or to.endswith(("/", "\\")) else place


def _say_how_to_reach(record: Record, screen: Screen) -> None:
    run = f" --run {record.run_id}"
    screen.say(f"run {record.run_id} is {record.state}")
    if record.session == "tmux":
        screen.say(f"  see it live   invoke attach{run}")
    screen.say(f"  read its log  invoke logs --follow{run}")
    screen.say(f"  how it goes   invoke status{run}")
    screen.say(f"  end it        invoke stop{run}")


def _because(record: Record) -> str:
    return f": {record.reason}" if record.reason else ""


def _on(target: str) -> str:
    return "" if target == "local" else f" --on {target}"


def _write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
