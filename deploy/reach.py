"""A run, found and looked at: on its machine, or in the copy at home once the machine's folder is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import job, runs
from deploy.errors import WrongUse, command, unknown
from deploy.machine import Provider
from deploy.pod.folder import FINAL_STATES, RunFolder
from deploy.pod.lock import Busy, Lock, is_held, read_holder
from deploy.providers import PROVIDERS
from deploy.runs import Record
from deploy.settings import Settings, load
from deploy.shell import LocalShell, Shell, open_shell


@dataclass(frozen=True)
class Reached:
    """A run, and where to ask about it."""

    settings: Settings
    record: Record
    shell: Shell
    folder: RunFolder


def provider_of(settings: Settings) -> Provider:
    name = settings.target.provider
    if name not in PROVIDERS:
        raise unknown(f"provider in conf/deploy/{settings.target.name}.yaml", name, PROVIDERS)
    return PROVIDERS[name](settings)


def reach(project: Path, target: str, run_id: str | None) -> Reached:
    """The named run, or the newest of the target; the run says itself to which target it belongs."""
    record = runs.get(project / "runs", run_id, load(project, target).target.name)
    return reach_of(load(project, record.target), record)


def reach_of(settings: Settings, record: Record) -> Reached:
    machine = provider_of(settings).find(record.machine)
    shell, folder = open_shell(machine, settings.notes) if machine else LocalShell(), RunFolder(Path(record.run_dir))
    if machine and shell.listdir(folder.path):
        return Reached(settings, record, shell, folder)
    return Reached(settings, record, LocalShell(), runs.home(settings.runs, record.run_id))


def look(settings: Settings, record: Record) -> tuple[Record, job.Status | None]:
    """The truth about a run now: the machine is asked, run.json is brought up to date."""
    machine = provider_of(settings).find(record.machine)
    seen = job.look(open_shell(machine, settings.notes), RunFolder(Path(record.run_dir))) if machine else None
    if seen and seen.attempt == record.attempt:
        seconds = round(seen.ended - seen.started, 1) if seen.ended and seen.started else None
        return runs.update(settings.runs, record, state=seen.state, reason=seen.reason, seconds=seconds), seen
    if record.state in FINAL_STATES:
        return record, None
    if record.state in runs.STARTING:
        if _is_launching(settings, record.run_id):
            return record, None
        reason = "the command that started it ended before the job ran"
        return runs.update(settings.runs, record, state="failed", reason=reason), None
    return runs.update(settings.runs, record, state="lost", reason="its folder on the machine is gone"), None


def events(settings: Settings, record: Record) -> list[dict[str, Any]]:
    """All events of a run."""
    reached = reach_of(settings, record)
    return job.Events(reached.shell, reached.folder.metrics).read()


def unfinished(settings: Settings) -> Reached | None:
    """The newest run of the target that was stopped, failed or lost."""
    for record in runs.every(settings.runs, settings.target.name):
        record, _ = look(settings, record)
        if record.state in runs.UNFINISHED:
            return reach_of(settings, record)
    return None


def refuse_second(settings: Settings) -> None:
    """A target runs one job at a time; the refusal names the one that is there."""
    for record in runs.every(settings.runs, settings.target.name):
        if record.state not in FINAL_STATES or record.state == "lost":  # a lost one may have been found again
            record, _ = look(settings, record)
        if record.state not in FINAL_STATES:
            raise WrongUse(
                f"run {record.run_id} is {record.state} on target '{settings.target.name}': wait for it, or stop it",
                next_command=command(f"stop --run {record.run_id}"),
            )


@contextlib.contextmanager
def launching(settings: Settings) -> Iterator[Callable[[str], None]]:
    """One launch at a time on a target, from here to the running job; gives a way to note which run it is."""
    try:
        with Lock(_launch_lock(settings), {"run_id": "of another command"}).acquire() as lock:
            yield lambda run_id: lock.write({"run_id": run_id})
    except Busy as busy:
        name = settings.target.name
        raise WrongUse(
            f"run {busy.holder.get('run_id', 'of another command')} is being started on target '{name}': wait for it",
            next_command=command(f"status --on {name}"),
        ) from busy


def _is_launching(settings: Settings, run_id: str) -> bool:
    lock = _launch_lock(settings)
    return is_held(lock) and read_holder(lock).get("run_id") == run_id


def _launch_lock(settings: Settings) -> Path:
    return settings.project / ".sniperface" / f"launching-{settings.target.name}.lock"
