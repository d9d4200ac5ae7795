"""What is saved of a run, and where: told in words, and the newest of it brought to where the run goes on.

A checkpoint may lie on the machine itself, in the laptop's copy of the run, and where the machine's guard keeps copies
(`sync_to` of the target: a volume, or a bucket). The newest whole one is gone on from; of two that are equally new the
one that is nearer to the machine. What the run told up to it comes along, so that its log and its curve have no hole.
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
from deploy.pod.base.folder import RunFolder
from deploy.pod.base.redact import Redactor
from deploy.runs import checkpoints
from deploy.runs import records as runs
from deploy.runs import watchdog as guard
from deploy.runs.records import Record
from deploy.runs.session import Reach, Reached
from deploy.shell import LinkLost, LocalShell, MachineGone, Shell, transfer
from deploy.specs.machine import Machine
from deploy.specs.plan import Plan
from deploy.specs.request import Request
from deploy.specs.settings import Settings
from deploy.ui.screen import Screen

LOOK_LIMIT_S = 60.0
RECORD_LIMIT_S = 120.0
SLOWEST_BYTES_PER_S = 1 << 20
MACHINE, KEPT, HOME = "machine", "kept", "home"
NEARNESS = (HOME, KEPT, MACHINE)

Note = dict[str, Any]


class Unusable(StepFailed):
    """A copy that is not whole, or a place that cannot be read: there may be others."""


class NothingReadable(StepFailed):
    """Copies of a run may be there, but cannot be read now, and nothing else of it is left."""


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint of a run in each place, as far as it is known without its machine."""

    machine: Note | None
    home: Note | None
    kept: str | None  # where copies are kept; what is there, a machine must look

    def __str__(self) -> str:
        there = [f"{_name(self.machine)} on its machine"] if self.machine else []
        home = f"{_name(self.home)} at home" if self.home else "no checkpoint at home"
        kept = f"copies in {_place(self.kept)}, looked at when it goes on" if self.kept else "no copies elsewhere"
        return ", ".join([*there, home, kept])

    def to_json(self) -> dict[str, Any]:
        keys = ("file", "epoch", "step")
        notes = {"machine": self.machine, "home": self.home}
        told = {where: {key: note[key] for key in keys} if note else None for where, note in notes.items()}
        return {**told, "sync_to": self.kept}


@dataclass(frozen=True)
class Restored:
    """From where a run goes on: a checkpoint, or from its beginning."""

    note: Note | None = None
    spend: dict[str, float] = field(default_factory=dict)  # dollars by machine, as the place of the copies tells


def of(settings: Settings, record: Record, reached: Reached | None = None) -> Saved:
    """`reached`: where its machine may still be asked."""
    on_machine = checkpoints.whole(reached.shell, reached.folder) if reached and reached.machine else []
    at_home = checkpoints.whole(LocalShell(), runs.home(settings.runs, record.run_id))
    kept = f"{settings.target.sync_to.rstrip('/')}/{record.run_id}" if settings.target.sync_to else None
    return Saved(on_machine[-1] if on_machine else None, at_home[-1] if at_home else None, kept)


def refuse_to_forget(at: Reach, request: Request) -> None:
    """A new run after one that was lost is started by who says so: most likely the lost one was meant to go on."""
    newest = runs.every(at.settings.runs, at.settings.target.name)[:1]
    if request.resume != "none" or "resume" in request.given or not newest:
        return
    record, _ = at.look(newest[0])
    if record.state == "lost":
        saved = of(at.settings, record, at.run(record))
        raise WrongUse(
            f"run {record.run_id} was lost ({record.reason}); saved of it: {saved}. "
            "Give --resume auto to go on with it, or --resume none for a new run",
            next_command=command(f"train --resume auto --on {record.target}"),
        )


def restore(settings: Settings, machine: Machine, shell: Shell, plan: Plan, screen: Screen) -> Restored:
    """Bring the newest whole checkpoint to the machine, unless the machine has it; say which, and from where.

    What is damaged or cannot be read is said and passed over. Raises NothingReadable where copies may be all that is
    left, and cannot be read: beginning anew is not what was asked for.
    """
    folder, home = RunFolder(machine.path(plan.run_dir)), runs.home(settings.runs, plan.run_id)
    kept = Kept(settings, machine, shell, machine.path(plan.cwd), folder) if settings.target.sync_to else None
    seen = kept.look(screen) if kept else Seen()
    found = {
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
            screen.say(f"passed over {_name(note)} from {place}: {failed.message}")
            continue
        verb = "going on from" if where == MACHINE else "restored"
        screen.say(f"{verb} {_name(note)}{', which is on' if where == MACHINE else ' from'} {place}")
        return Restored(note, seen.spend)
    if seen.why_not is not None and shell.size(folder.log) is None:
        raise NothingReadable(
            f"nothing of run {plan.run_id} could be restored: {_place(settings.target.sync_to)} cannot be read "
            f"({seen.why_not}), and no whole checkpoint of it is elsewhere",
            next_command=command(f"train --resume auto --on {plan.target}") + ", once it can; or --resume none",
        )
    screen.say(f"no whole checkpoint of run {plan.run_id} was found: it begins anew")
    return Restored(None, seen.spend)


@dataclass(frozen=True)
class Seen:
    """What the place of the copies holds of a run."""

    checkpoints: list[Note] = field(default_factory=list)
    log_bytes: int = 0
    spend: dict[str, float] = field(default_factory=dict)
    why_not: str | None = None  # why it cannot be read


class Kept:
    """The place where copies are kept, read by a process on the machine: only there a volume is mounted, and a volume
    that hangs takes nothing with it but that process."""

    def __init__(self, settings: Settings, machine: Machine, shell: Shell, code: PurePath, folder: RunFolder) -> None:
        self.shell = shell
        self.code = code
        self.sync_to = str(settings.target.sync_to)
        # Over the connection, into the environment of that one process.
        self.secrets = {} if machine.is_here else guard.own_secrets(settings)
        self.redact = Redactor(guard.own_secrets(settings).values())
        volume = guard.volume_path(settings)
        words = ["--volume", volume] if volume else []
        self.argv = [machine.python, "-m", "deploy.pod.backup.restore", str(folder.path), self.sync_to, *words]

    def look(self, screen: Screen) -> Seen:
        try:
            told = border.restorable(self._ask(limit_s=LOOK_LIMIT_S), f"{self.shell.name}: {_place(self.sync_to)}")
        except (Unusable, BadAnswer) as failed:
            screen.say(f"{_place(self.sync_to)} cannot be read, and is passed over: {failed.message}")
            return Seen(why_not=failed.message)
        for damage in told["damaged"]:
            screen.say(f"passed over a copy in {_place(self.sync_to)}: {damage}")
        return Seen(told["checkpoints"], told["log_bytes"], told["spend"])

    def take(self, note: Note) -> None:
        self._ask("--take", note["file"], limit_s=LOOK_LIMIT_S + note["bytes"] / SLOWEST_BYTES_PER_S)

    def record(self, note: Note) -> bool:
        """Whether what was told up to the checkpoint is there now."""
        told = self._ask("--record", limit_s=RECORD_LIMIT_S, stdin=json.dumps(note).encode("utf-8"))
        return border.document(told, f"{self.shell.name}: {_place(self.sync_to)}").get("reaches") is True

    def _ask(self, *words: str, limit_s: float, stdin: bytes = b"") -> str:
        """The JSON document that the process says."""
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
        except (LinkLost, MachineGone):  # that says nothing about the copies
            raise
        except StepFailed as failed:
            raise Unusable(f"it hangs, or is too slow ({failed.message})") from failed
        last = (result.text.strip().splitlines() or result.complaint or ["it said nothing"])[-1]
        if not result:
            raise Unusable(str(self.redact(last)))
        return last


class _Bringing:
    """To one run folder of a machine: a checkpoint of it, whole or not there, and before it what was told up to it."""

    def __init__(
        self, shell: Shell, folder: RunFolder, home: RunFolder, kept: Kept | None, log_bytes: int, screen: Screen
    ) -> None:
        self.shell = shell
        self.folder = folder
        self.home = home
        self.kept = kept
        self.log_bytes = log_bytes  # that the place of the copies has
        self.screen = screen
        self.here = LocalShell()

    def bring(self, where: str, note: Note) -> None:
        """Raises Unusable for a checkpoint that is not whole; then it is not there."""
        if where == MACHINE:
            self._verify(self.shell, self.folder, note)
        elif where == HOME:
            self._verify(self.here, self.home, note)
            self._record(note)
            self._send(note)
        elif self.kept:
            self._record(note)
            self.kept.take(note)

    def _verify(self, shell: Shell, folder: RunFolder, note: Note) -> None:
        if shell.sha256(folder.checkpoints / note["file"]) != note["sha256"]:
            raise Unusable("its bytes are not those that were written (its SHA-256 differs)")

    def _send(self, note: Note) -> None:
        file = self.folder.checkpoints / note["file"]
        self.shell.remove(file.with_suffix(".json"))  # of an earlier file of this name
        source = Path(self.home.checkpoints / note["file"])
        with self.screen.copying(note["file"]) as progress:
            transfer.push(self.shell, source, file, sha256=note["sha256"], progress=progress)
        self.shell.write(file.with_suffix(".json"), (json.dumps(note, indent=1) + "\n").encode("utf-8"))
        self.shell.write(self.folder.latest, note["file"].encode("utf-8"))
        guard.note_fetched(self.shell, self.folder, note)

    def _record(self, note: Note) -> None:
        """The longest log there is; events up to the checkpoint, from the first place that has them so far."""
        log = Path(self.home.log)
        if (self.here.size(log) or 0) > max(self.shell.size(self.folder.log) or 0, self.log_bytes):
            transfer.push(self.shell, log, self.folder.log)
        reaches = False
        if self.kept:
            try:
                reaches = self.kept.record(note)
            except (Unusable, BadAnswer) as failed:
                self.screen.say(f"log and metrics in {_place(self.kept.sync_to)} are passed over: {failed.message}")
        if not reaches and self.here.size(self.home.metrics) is not None:
            told, reaches = metrics.up_to(Path(self.home.metrics).read_bytes(), note)
            if reaches or self.shell.size(self.folder.metrics) is None:
                self._send_events(len(told))

    def _send_events(self, size: int) -> None:
        part = self.folder.metrics.with_name(f".{self.folder.metrics.name}.part")
        transfer.push(self.shell, Path(self.home.metrics), part)
        self.shell.truncate(part, size)
        self.shell.replace(part, self.folder.metrics)


def _newest_first(found: dict[str, list[Note]]) -> Iterator[tuple[str, Note]]:
    every = [(checkpoints.age(note), NEARNESS.index(where), where, note) for where in found for note in found[where]]
    for _, _, where, note in sorted(every, key=lambda each: each[:2], reverse=True):
        yield where, note


def _name(note: Note) -> str:
    return f"{note['file']} (epoch {note['epoch']}, step {note['step']})"


def _place(sync_to: str | None) -> str:
    return f"the {'bucket' if '://' in str(sync_to) else 'volume'} {sync_to}"
