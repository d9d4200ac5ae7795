"""Delete runs that are over from this laptop. Nothing on another machine is touched."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.border import place
from deploy.errors import BadAnswer, DeployError, WrongUse, command
from deploy.pod.base.folder import FINAL_STATES, Root, RunFolder, replace
from deploy.pod.base.folder import remove as delete
from deploy.runs import checkpoints, records, session
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.shell import LocalShell, Shell
from deploy.specs import targets
from deploy.specs.estimate import plural
from deploy.ui.screen import Screen

LIMIT_S = 20.0  # for the machine of a run to answer
TRASH = ".removed"  # in runs/; one level deeper than `records.every` looks
SHOWN = 5


@dataclass(frozen=True)
class Doomed:
    """A run that may be deleted: its folders on this laptop, and what is lost with them."""

    record: Record
    folders: tuple[Path, ...]  # the one with the record is last
    files: int
    size_bytes: int
    only: tuple[str, ...]  # checkpoints that are nowhere else, as far as can be read from here
    stays: str | None  # where else the run is, in words

    def to_json(self) -> dict[str, Any]:
        return {
            "run_id": self.record.run_id,
            "files": self.files,
            "bytes": self.size_bytes,
            "only_checkpoints": list(self.only),
        }


def remove(project: Path, names: Sequence[str], screen: Screen, *, yes: bool) -> list[dict[str, Any]]:
    """Delete the folders of the named runs from this laptop, after consent. Checks all of them before the first.

    Raises WrongUse for a run that is alive, or whose machine still costs money.
    """
    if not names:
        raise WrongUse("rm needs a run, such as rm RUN", next_command=command("runs"))
    known = records.every(project / "runs")
    chosen = {(record := records.choose(known, name, "", typed="rm")).run_id: record for name in names}
    doomed = [_examine(project, record) for record in chosen.values()]
    for each in doomed:
        screen.say(
            f"{each.record.run_id} ({each.record.state}): {plural(each.files, 'file')}, {_size(each.size_bytes)}"
        )
        if each.only:
            more = f" and {len(each.only) - SHOWN} more" if len(each.only) > SHOWN else ""
            screen.say(f"  checkpoints that exist nowhere else: {', '.join(each.only[:SHOWN])}{more}")
        if each.stays:
            screen.say(f"  {each.stays}")
    _agree(doomed, screen, yes=yes)
    for each in doomed:
        for folder in each.folders:
            _delete(folder)
        screen.say(f"deleted {each.record.run_id}: {_size(each.size_bytes)} freed")
    return [each.to_json() for each in doomed]


def _examine(project: Path, record: Record) -> Doomed:
    """Find what is deleted with a run. Raises WrongUse for a run that must be kept."""
    home = place(project / "runs", record.run_id, what="run.json").path
    local = _checkpoints_of(LocalShell(), RunFolder(home))
    has_target = any(file.name == record.target for file in targets.every(project))
    if not _costs(project, record) and record.state in FINAL_STATES and not has_target:
        lost = tuple(sorted(local.values()))
        return _doomed(record, (home,), lost, [f"target '{record.target}' no longer exists"])
    with session.target(project, record.target) as at:
        at.limit_s = LIMIT_S
        _refuse_billed(at, record)
        there, record, why_not = _ask(at, record)
        if why_not is None and at.settings.is_local:
            own = place(Path(Root(at.settings.root).runs), record.run_id, what="run.json").path
            folders, only = ((own, home) if own.is_dir() else (home,)), {**there, **local}
        else:
            folders, only = (home,), {sha256: file for sha256, file in local.items() if sha256 not in there}
        sync_to = at.settings.target.sync_to
    stays = []
    if there and home == folders[0]:
        stays.append(f"also on {record.machine}, which keeps them: {plural(len(there), 'checkpoint')}")
    stays += [f"{record.machine} could not be asked for its checkpoints ({why_not})"] if why_not else []
    stays += [f"copies that its machine made stay in {sync_to}"] if sync_to else []
    return _doomed(record, folders, tuple(sorted(set(only.values()))), stays)


def _doomed(record: Record, folders: tuple[Path, ...], only: tuple[str, ...], stays: Sequence[str]) -> Doomed:
    found = [file for folder in folders for file in _files(folder)]
    size = sum(file.lstat().st_size for file in found)
    return Doomed(record, folders, len(found), size, only, "; ".join(stays) or None)


def _costs(project: Path, record: Record) -> bool:
    """Whether a machine of the run has cost money or was planned to."""
    plan = records.carried_out(project / "runs", record.run_id)
    return bool(plan.get("usd_per_hour") or record.spend_usd)


def _refuse_billed(at: Reach, record: Record) -> None:
    """Raise WrongUse if a machine of the run costs money, or if nobody can tell and one has cost money."""
    for name in record.machines:
        try:
            machine = at.machine(name)
        except DeployError as error:
            if _costs(at.settings.project, record):
                words = f"run {record.run_id} is kept, because its machine {name} may still cost money"
                raise WrongUse(f"{words}: {error.message}", next_command=command("ps")) from error
            continue
        if machine is not None and machine.usd_per_hour:
            raise WrongUse(
                f"the machine of run {record.run_id}, {name}, still costs ${machine.usd_per_hour:.2f} an hour: "
                "release it before you delete the run",
                next_command=command(f"down --run {record.run_id}"),
            )


def _ask(at: Reach, record: Record) -> tuple[Mapping[str, str], Record, str | None]:
    """Ask the machine: its whole checkpoints, the run's current state, and why it did not answer.

    Raises WrongUse if the run is alive, or was when its machine answered last.
    """
    why_not, there = None, {}
    try:
        record, _ = at.look(record)
        machine = at.machine(record.machine)
        if record.state in FINAL_STATES and machine is not None:
            there = _checkpoints_of(at.shell(machine), RunFolder(machine.path(record.run_dir)))
    except (DeployError, OSError) as error:
        why_not = str(error)
    if record.state not in FINAL_STATES:
        seen = f"was {record.state} when last seen, and its machine does not answer ({why_not})" if why_not else ""
        raise WrongUse(
            f"run {record.run_id} {seen or f'is {record.state}'}: stop it before you delete it",
            next_command=command(f"stop --run {record.run_id}"),
        )
    return there, record, why_not


def _checkpoints_of(shell: Shell, folder: RunFolder) -> dict[str, str]:
    """SHA-256 -> file of the whole checkpoints in a run's folder. Damaged ones are left out."""
    try:
        return {str(note["sha256"]): str(note["file"]) for note in checkpoints.whole(shell, folder)}
    except BadAnswer:
        return {}


def _agree(doomed: Sequence[Doomed], screen: Screen, *, yes: bool) -> None:
    if yes:
        return
    words = f"this deletes {plural(len(doomed), 'run')} and frees {_size(sum(each.size_bytes for each in doomed))}"
    if not sys.stdin.isatty():
        raise WrongUse(f"{words}: give --yes to agree")
    if not screen.ask(f"{words}. Continue?"):
        raise WrongUse("nothing was deleted")


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, links included. Links are not followed."""
    for path, folders, names in os.walk(folder):
        yield from (Path(path, name) for name in names)
        yield from (Path(path, name) for name in folders if Path(path, name).is_symlink())


def _delete(folder: Path) -> None:
    """Delete a run's folder. It vanishes at once from all lists, even if this is interrupted. Links are not followed.

    Raises WrongUse if the folder for deleted runs is a link, OSError if a program has a file open (Windows).
    """
    trash = folder.parent / TRASH
    if trash.is_symlink():
        raise WrongUse(f"{trash} is a symbolic link: remove it")
    delete(trash)  # of a deletion that was interrupted
    trash.mkdir()
    replace(folder, trash / folder.name)
    delete(trash)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"
