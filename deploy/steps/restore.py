"""Find what is saved of a run and where, and put the newest checkpoint on the machine that continues the run.

A checkpoint may be on the machine, in the laptop's copy of the run, or where the machine's guard keeps copies
(`sync_to` of the target: a volume or a bucket). A run continues from the newest whole checkpoint; of two equally new
ones, from the one nearer to the machine. Log and metrics up to it are restored too, so that they have no gap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, StepFailed, WrongUse, command
from deploy.pod.base import metrics
from deploy.pod.base.checkpoints import age
from deploy.pod.base.folder import RunFolder, as_json
from deploy.pod.base.redact import Redactor
from deploy.runs import checkpoints, records, watchdog
from deploy.runs.records import Record
from deploy.runs.session import Reach, Reached
from deploy.shell import LinkLost, LocalShell, MachineGone, Shell, transfer
from deploy.specs.machine import Machine
from deploy.specs.plan import Plan
from deploy.specs.settings import Settings
from deploy.ui.screen import Screen

LOOK_LIMIT_S = 60.0
RECORD_LIMIT_S = 120.0
SLOWEST_BYTES_PER_S = 1 << 20
MACHINE, KEPT, HOME = "machine", "kept", "home"

Note = dict[str, Any]


class Unusable(StepFailed):
    """A copy is not whole, or its place cannot be read. Other copies may be usable."""


class NothingReadable(StepFailed):
    """Copies of a run may exist but cannot be read now, and nothing else of it is left."""


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint of a run in each place that can be read from here."""

    machine: Note | None
    home: Note | None
    kept: str | None  # where copies are kept; only a machine can look inside

    def __str__(self) -> str:
        there = [f"{_name(self.machine)} on its machine"] if self.machine else []
        home = f"{_name(self.home)} on this laptop" if self.home else "no checkpoint on this laptop"
        kept = f"copies in {_place(self.kept)}, read when the run continues" if self.kept else "no copies elsewhere"
        return ", ".join([*there, home, kept])

    def to_json(self) -> dict[str, Any]:
        keys = ("file", "epoch", "step")
        notes = {"machine": self.machine, "home": self.home}
        told = {where: {key: note[key] for key in keys} if note else None for where, note in notes.items()}
        return {**told, "sync_to": self.kept}


@dataclass(frozen=True)
class Restored:
    """What a run continues from: a checkpoint or, with `note` None, its beginning."""

    note: Note | None = None
    spend: dict[str, float] = field(default_factory=dict)  # machine -> dollars, as stored with the copies


def of(settings: Settings, record: Record, reached: Reached | None = None) -> Saved:
    """Find what is saved of a run. `reached`: the run, if its machine may still be asked."""
    on_machine = checkpoints.whole(reached.shell, reached.folder) if reached and reached.machine else []
    at_home = checkpoints.whole(LocalShell(), records.home(settings.runs, record.run_id))
    kept = f"{settings.target.sync_to.rstrip('/')}/{record.run_id}" if settings.target.sync_to else None
    return Saved(on_machine[-1] if on_machine else None, at_home[-1] if at_home else None, kept)


def refuse_to_forget(at: Reach) -> None:
    """Raise WrongUse if the newest run is lost: without --resume, the user most likely means to resume."""
    newest = next(iter(at.situation.of(at.settings.target.name)), None)
    if newest is None:
        return
    record, _ = at.look(newest)
    if record.state == "lost":
        saved = of(at.settings, record, at.run(record))
        raise WrongUse(
            f"run {record.run_id} was lost ({record.reason}); saved of it: {saved}. "
            "Give --resume auto to continue it, or --resume none for a new run",
            next_command=command(f"train --resume auto --on {record.target}"),
        )


def restore(settings: Settings, machine: Machine, shell: Shell, plan: Plan, screen: Screen) -> Restored:
    """Put the newest whole checkpoint on the machine, unless it is there already. Print which one, and its source.

    Damaged or unreadable copies are reported and skipped. Raises NothingReadable if unreadable copies may be all that
    is left: the user did not ask to start over.
    """
    folder, home = RunFolder(machine.path(plan.run_dir)), records.home(settings.runs, plan.run_id)
    kept = Kept(settings, machine, shell, machine.path(plan.cwd), folder) if settings.target.sync_to else None
    seen = kept.look(screen) if kept else Seen()
    found = {  # the nearest first
        MACHINE: checkpoints.whole(shell, folder),
        KEPT: seen.checkpoints,
        HOME: checkpoints.whole(LocalShell(), home),
    }
    bringing = _Bringing(shell, folder, home, kept if seen.why_not is None else None, seen.log_bytes, screen)
    for where, note in _newest_first(found):
        place = {MACHINE: "the machine", KEPT: _place(settings.target.sync_to), HOME: "this laptop"}[where]
        try:
            bringing.bring(where, note)
        except Unusable as failed:
            screen.say(f"skipped {_name(note)} from {place}: {failed.message}")
            continue
        verb = "continuing from" if where == MACHINE else "restored"
        screen.say(f"{verb} {_name(note)}{', which is on' if where == MACHINE else ' from'} {place}")
        return Restored(note, seen.spend)
    if seen.why_not is not None and shell.size(folder.log) is None:
        raise NothingReadable(
            f"nothing of run {plan.run_id} could be restored: {_place(settings.target.sync_to)} cannot be read "
            f"({seen.why_not}), and there is no complete checkpoint elsewhere",
            next_command=command(f"train --resume auto --on {plan.target} --run {plan.run_id}")
            + "   (once it can be read; or --resume none)",
        )
    screen.say(f"no complete checkpoint of run {plan.run_id} was found: it starts from the beginning")
    return Restored(None, seen.spend)


@dataclass(frozen=True)
class Seen:
    """What the place of the copies holds of a run."""

    checkpoints: list[Note] = field(default_factory=list)
    log_bytes: int = 0
    spend: dict[str, float] = field(default_factory=dict)
    why_not: str | None = None  # why it cannot be read


class Kept:
    """The place where copies are kept, read by a process on the machine.

    A volume is mounted only there, and a volume that hangs blocks nothing but that process.
    """

    def __init__(self, settings: Settings, machine: Machine, shell: Shell, code: PurePath, folder: RunFolder) -> None:
        self.shell = shell
        self.code = code
        self.sync_to = str(settings.target.sync_to)
        # Sent over the connection, into the environment of that one process.
        self.secrets = {} if machine.is_here else watchdog.own_secrets(settings)
        self.redact = Redactor(watchdog.own_secrets(settings).values())
        volume = watchdog.volume_path(settings)
        words = ["--volume", volume] if volume else []
        self.argv = [machine.python, "-m", "deploy.pod.backup.restore", str(folder.path), self.sync_to, *words]

    def look(self, screen: Screen) -> Seen:
        try:
            told = border.restorable(self._ask(limit_s=LOOK_LIMIT_S), f"{self.shell.name}: {_place(self.sync_to)}")
        except (Unusable, BadAnswer) as failed:
            screen.say(f"{_place(self.sync_to)} cannot be read and is skipped: {failed.message}")
            return Seen(why_not=failed.message)
        for damage in told["damaged"]:
            screen.say(f"skipped a copy in {_place(self.sync_to)}: {damage}")
        return Seen(told["checkpoints"], told["log_bytes"], told["spend"])

    def take(self, note: Note) -> None:
        self._ask("--take", note["file"], limit_s=LOOK_LIMIT_S + note["bytes"] / SLOWEST_BYTES_PER_S)

    def record(self, note: Note) -> bool:
        """Restore log and metrics. Returns whether the metrics reach the checkpoint."""
        told = self._ask("--record", limit_s=RECORD_LIMIT_S, stdin=json.dumps(note).encode("utf-8"))
        return border.document(told, f"{self.shell.name}: {_place(self.sync_to)}").get("reaches") is True

    def _ask(self, *words: str, limit_s: float, stdin: bytes = b"") -> str:
        """Run the process. Returns the JSON document that it prints. Raises Unusable."""
        try:
            result = self.shell.run(
                [*self.argv, *words],
                cwd=self.code,
                env=self.secrets,
                stdin=stdin,
                limit_s=limit_s,
                check=False,
                again=True,
            )
        except (LinkLost, MachineGone):  # no fault of the copies
            raise
        except StepFailed as failed:
            raise Unusable(f"it hangs or is too slow ({failed.message})") from failed
        last = (result.text.strip().splitlines() or result.complaint or ["it printed nothing"])[-1]
        if not result:
            raise Unusable(str(self.redact(last)))
        return last


@dataclass(frozen=True)
class _Bringing:
    """Restore to one run folder of a machine: first log and metrics, then a checkpoint, whole or not at all."""

    shell: Shell
    folder: RunFolder
    home: RunFolder
    kept: Kept | None
    log_bytes: int  # size of the log among the copies
    screen: Screen

    def bring(self, where: str, note: Note) -> None:
        """Restore a checkpoint. Raises Unusable if it is not whole; then it is not put on the machine."""
        if where == MACHINE:
            self._verify(self.shell, self.folder, note)
        elif where == HOME:
            self._verify(LocalShell(), self.home, note)
            self._record(note)
            self._send(note)
        elif self.kept:
            self._record(note)
            self.kept.take(note)

    def _verify(self, shell: Shell, folder: RunFolder, note: Note) -> None:
        if shell.sha256(folder.checkpoints / note["file"]) != note["sha256"]:
            raise Unusable("its SHA-256 differs from the recorded one")

    def _send(self, note: Note) -> None:
        file = self.folder.checkpoints / note["file"]
        self.shell.remove(file.with_suffix(".json"))  # it belongs to an earlier file of this name
        source = Path(self.home.checkpoints / note["file"])
        with self.screen.copying(note["file"]) as progress:
            transfer.push(self.shell, source, file, sha256=note["sha256"], progress=progress)
        self.shell.write(file.with_suffix(".json"), as_json(note))
        self.shell.write(self.folder.latest, note["file"].encode("utf-8"))
        watchdog.note_fetched(self.shell, self.folder, note)

    def _record(self, note: Note) -> None:
        """Restore the longest log, and the events up to the checkpoint from the first place that has all of them."""
        here, log = LocalShell(), Path(self.home.log)
        if here.bytes_in(log) > max(self.shell.bytes_in(self.folder.log), self.log_bytes):
            transfer.push(self.shell, log, self.folder.log)
        reaches = False
        if self.kept:
            try:
                reaches = self.kept.record(note)
            except (Unusable, BadAnswer) as failed:
                self.screen.say(f"log and metrics in {_place(self.kept.sync_to)} are skipped: {failed.message}")
        if not reaches and here.size(self.home.metrics) is not None:
            told, reaches = metrics.up_to(Path(self.home.metrics).read_bytes(), note)
            if reaches or self.shell.size(self.folder.metrics) is None:
                self._send_events(len(told))

    def _send_events(self, size: int) -> None:
        part = self.folder.metrics.with_name(f".{self.folder.metrics.name}.part")
        transfer.push(self.shell, Path(self.home.metrics), part)
        self.shell.truncate(part, size)
        self.shell.replace(part, self.folder.metrics)


def _newest_first(found: dict[str, list[Note]]) -> Iterator[tuple[str, Note]]:
    """Of two equally new ones, that of the place which is named first."""
    every = [(where, note) for where in found for note in found[where]]
    yield from sorted(every, key=lambda each: age(each[1]), reverse=True)


def _name(note: Note) -> str:
    return f"{note['file']} (epoch {note['epoch']}, step {note['step']})"


def _place(sync_to: str | None) -> str:
    return f"the {'bucket' if '://' in str(sync_to) else 'volume'} {sync_to}"
