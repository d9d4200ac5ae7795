"""Start a job, look at it, read its log, attach, stop. A job is a tmux session or, without tmux, a detached process."""

from __future__ import annotations

import codecs
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath, PureWindowsPath
from typing import Any

from deploy import border
from deploy.border import Name
from deploy.errors import BadAnswer, DeployError, StepFailed, WrongUse, command, program, quoted
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES, RunFolder, as_json
from deploy.pod.base.heartbeat import is_lost
from deploy.pod.base.job_log import EVIDENCE_BYTES, last_words
from deploy.runs import tmux
from deploy.shell import Shell
from deploy.shell.awake import awake_s
from deploy.shell.background import Work
from deploy.specs.machine import Machine
from deploy.specs.plan import Plan

POLL_S = 0.3
START_LIMIT_S = 30
HOLDER = re.compile(r"busy with run ([a-z0-9][a-z0-9._-]*)\Z")
PIECE_BYTES = 2 << 20  # most that one request reads of a log
PIECES_AHEAD = 3  # requests on their way while a long log is shown: one would leave the line idle for a round trip
EVENTS_BYTES = 1 << 20  # the same of metrics.jsonl: parsed events take up to thirty times as much memory


@dataclass(frozen=True)
class Status(border.RunStatus):
    """What the machine reports about a job. `state` is `lost` if the heartbeat has stopped."""

    heartbeat_age_s: float | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES


@dataclass(frozen=True)
class Position:
    """Where an attempt begins in the files that all attempts of a run append to."""

    log_bytes: int
    metrics_bytes: int


BEGINNING = Position(0, 0)


def start(shell: Shell, machine: Machine, plan: Plan, socket: str) -> str:
    """Start the supervisor and wait until it answers. Returns how it runs: "tmux" or "detached"."""
    folder = RunFolder(machine.path(plan.run_dir))
    code = machine.path(plan.cwd)
    *_, has_tmux = shell.calls(
        [
            ("remove", {"path": str(folder.stop_request)}),
            ("remove", {"path": str(folder.status)}),
            ("write", {"path": str(folder.plan), "data": as_json(plan.to_json())}),
            ("environment_for", {"program": "tmux", "path": str(folder.environment)}),
        ]
    )
    argv = [machine.python, "-m", "deploy.pod.supervisor", str(folder.path)]
    try:
        in_tmux = False
        if has_tmux is True:  # it may be unusable, as with wrong modes of its folder: a job needs none
            in_tmux = bool(
                shell.run(tmux.start_argv(socket, plan.run_id, argv, code), check=False)
                or shell.run(tmux.exists_argv(socket, plan.run_id), check=False)
            )
        if not in_tmux:
            shell.spawn(argv, cwd=code)
        _wait_until_started(shell, folder, plan, machine)
    except BaseException:
        if has_tmux is True:
            with contextlib.suppress(OSError, DeployError):
                shell.remove(folder.environment)
        raise
    return "tmux" if in_tmux else "detached"


def _wait_until_started(shell: Shell, folder: RunFolder, plan: Plan, machine: Machine) -> None:
    """Wait for this attempt's status, longer than a job of an earlier attempt may take to end. Raises StepFailed."""
    deadline = awake_s() + START_LIMIT_S + plan.grace_s
    while awake_s() < deadline:
        status = look(shell, folder)
        if status and status.attempt == plan.attempt:
            if status.state == "failed" and status.started is None:
                raise _busy(str(status.reason), folder, plan)
            return
        time.sleep(POLL_S / 3)
    where = f"in {plan.cwd}" + ("" if machine.is_here else ", on the machine")
    python = program(machine.python) if machine.is_here else quoted(machine.python)
    raise StepFailed(
        "the supervisor did not answer after its start",
        next_command=f"{python} -m deploy.pod.supervisor {quoted(folder.path)}   ({where})",
    )


def _busy(reason: str, folder: RunFolder, plan: Plan) -> WrongUse:
    """Another run holds the machine. `stop` would not find it: `train` refuses before if it is a run of this laptop."""
    holder = HOLDER.search(reason)
    if holder is None:
        return WrongUse(f"{reason}: wait for it", next_command=command(f"status --on {plan.target}"))
    request = RunFolder(folder.path.parent / Name(holder[1])).stop_request
    is_windows = isinstance(request, PureWindowsPath)  # this computer, and without `touch`
    make = 'python -c "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"' if is_windows else "touch"
    return WrongUse(
        f"{reason}, which was not started from this folder: wait for it, or end it with a checkpoint",
        next_command=command(f"exec --on {plan.target} -- {make} {quoted(request)}"),
    )


def look(shell: Shell, folder: RunFolder) -> Status | None:
    """The job's status now; None before its supervisor has written one."""
    read = {"path": str(folder.status), "offset": 0, "limit": border.DOCUMENT_READ_BYTES}
    # Clock before status: an old status must not be compared with a later time.
    clock, data = shell.attempts([("clock", {}), ("read", read)])
    told: dict[str, Any] = {}
    if not isinstance(data, OSError):
        with contextlib.suppress(BadAnswer):  # half written on a full disk
            told = border.document(data, f"{shell.name}: {folder.status.name}")
    if "state" not in told:
        return None
    said = border.status(told, f"{shell.name}: status.json of run {folder.run_id}")
    age = max(0.0, border.unix_time(clock, f"{shell.name}: its clock") - said.heartbeat)
    seen = Status(**vars(said), heartbeat_age_s=round(age, 1))
    if seen.state in LIVE_STATES and is_lost(age):
        words = f"no heartbeat for {age:.0f} s: the supervisor or its machine has died"
        return replace(seen, state="lost", reason=words)
    return seen


def position(shell: Shell, folder: RunFolder) -> Position:
    log_bytes, metrics_bytes = shell.sizes(folder.log, folder.metrics)
    return Position(log_bytes or 0, metrics_bytes or 0)


def attach_argv(shell: Shell, socket: str, folder: RunFolder, *, write: bool) -> list[str]:
    """The command that shows the live session, read-only unless `write`. Raises StepFailed if there is none."""
    run_id = folder.run_id
    if not shell.which("tmux"):
        raise StepFailed(
            "tmux is not installed on the machine, so the job has no terminal to attach to; install it "
            "(Debian, Ubuntu: apt-get install tmux; macOS: brew install tmux; Windows: inside WSL only)",
            next_command=command(f"logs --follow --run {run_id}"),
        )
    if not shell.run(tmux.exists_argv(socket, run_id), check=False):
        status = look(shell, folder)
        if status and not status.final:  # the job needs no terminal, so it runs on
            words = f"run {run_id} runs without a terminal: its tmux session has ended"
            raise StepFailed(words, next_command=command(f"logs --follow --run {run_id}"))
        ended = f"run {run_id} has no live session: it has ended"
        raise StepFailed(ended, next_command=command(f"logs --run {run_id}"))
    return tmux.attach_argv(socket, run_id, write=write)


def request_stop(shell: Shell, folder: RunFolder) -> None:
    """Ask a job to write a checkpoint and end. It is safe to ask again, or to ask a job that has ended."""
    shell.write(folder.stop_request, b"")


def wait_for_end(shell: Shell, folder: RunFolder, limit_s: float) -> Status | None:
    """Wait for the final status. Returns it, or the last status seen within `limit_s`."""
    deadline = awake_s() + limit_s
    status = look(shell, folder)
    while status and not status.final and awake_s() < deadline:
        time.sleep(POLL_S)
        status = look(shell, folder)
    return status


def end(shell: Shell, folder: RunFolder, grace_s: float) -> None:
    """Ask a live job to end, and wait for it. Does nothing if there is no job or it has ended."""
    status = look(shell, folder)
    if status and status.state in LIVE_STATES:
        request_stop(shell, folder)
        wait_for_end(shell, folder, grace_s)


@dataclass
class Tail:
    """Reads a growing file from a byte offset, as text.

    1. Every byte is returned once, in order; `offset` is where the next read begins.
    2. A character cut by the end of the file is held back until its remaining bytes are written.
    3. Invalid UTF-8 becomes U+FFFD. 4. A file that does not exist yet counts as empty.
    5. After a full piece, the next `reads_ahead` pieces are on their way while the caller works on that one.
    """

    shell: Shell
    path: PurePath
    offset: int = 0
    most: int = PIECE_BYTES  # per request
    reads_ahead: int = 0
    is_behind: bool = False  # the last read was full: there may be more
    on_the_way: deque[Work[bytes]] = field(default_factory=deque)
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def read(self) -> str:
        """The new text, from at most `most` bytes; empty if there is none now."""
        try:
            data = self.on_the_way.popleft().result() if self.on_the_way else self._piece(self.offset)
        except (FileNotFoundError, NotADirectoryError):
            self.on_the_way.clear()
            self.is_behind = False
            return ""
        self.offset += len(data)
        self.is_behind = len(data) == self.most
        if self.is_behind:
            for number in range(len(self.on_the_way), self.reads_ahead):
                self.on_the_way.append(Work(partial(self._piece, self.offset + number * self.most)))
        else:  # the file may grow before the pieces behind this one are read
            self.on_the_way.clear()
        return self.decoder.decode(data)

    def _piece(self, offset: int) -> bytes:
        return self.shell.read(self.path, offset, self.most)


class Events:
    """Reads metrics.jsonl line by line as it grows."""

    def __init__(self, shell: Shell, path: PurePath, offset: int = 0) -> None:
        self.tail = Tail(shell, path, offset, EVENTS_BYTES)
        self.rest = ""

    def read(self) -> list[dict[str, Any]]:
        """The new events, from at most EVENTS_BYTES."""
        *lines, self.rest = (self.rest + self.tail.read()).split("\n")
        if len(self.rest) > border.EVENT_BYTES:  # longer than any event: drop it
            self.rest = ""
        return [event for line in lines if (event := border.event(line)) is not None]


def all_events(shell: Shell, path: PurePath) -> list[dict[str, Any]]:
    """The newest events of each kind in a metrics.jsonl; see border.Newest for the limits."""
    size = min(shell.bytes_in(path), border.FILE_BYTES["metrics.jsonl"])
    events, kept = Events(shell, path), border.Newest()
    while True:
        kept.add(events.read())
        if not events.tail.is_behind or events.tail.offset >= size:
            return kept.events()


def follow(
    shell: Shell,
    folder: RunFolder,
    since: Position = BEGINNING,
    on_status: Callable[[Status], None] = lambda _: None,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield new log text and new events until the job has ended. `on_status` is called with each status that was read.

    Each round reads the status first, so that the last lines are not missed.
    """
    log = Tail(shell, folder.log, since.log_bytes, reads_ahead=PIECES_AHEAD)
    events = Events(shell, folder.metrics, since.metrics_bytes)
    while True:
        status = look(shell, folder)
        if status is not None:
            on_status(status)
        yield log.read(), events.read()
        while log.is_behind or events.tail.is_behind:
            yield log.read() if log.is_behind else "", events.read() if events.tail.is_behind else []
        if status is None or status.final:
            return
        time.sleep(POLL_S)


def log_now(shell: Shell, folder: RunFolder, most: int = PIECE_BYTES) -> Iterator[str]:
    """Yield the log up to where it ends now, in pieces of at most `most` bytes."""
    size = shell.bytes_in(folder.log)
    log = Tail(shell, folder.log, most=most, reads_ahead=PIECES_AHEAD)
    while log.offset < size:
        yield log.read()
        if not log.is_behind:
            return


class NodeLines:
    """Reads the log of one of several machines as whole lines, each with the node's number in front."""

    def __init__(self, shell: Shell, folder: RunFolder, node: int) -> None:
        self.tail, self.node, self.rest = Tail(shell, folder.log), node, ""

    def pieces(self, *, to_the_end: bool) -> Iterator[str]:
        """Yield the new lines, in pieces, up to where the log ends now. `to_the_end`: with an unfinished last line."""
        size = self.tail.shell.bytes_in(self.tail.path)
        yield self.read(to_the_end=to_the_end)
        while self.tail.is_behind and self.tail.offset < size:
            yield self.read(to_the_end=to_the_end)
        if to_the_end and self.rest:  # the last piece was full, or the log has grown since
            yield f"{self.node}| {self.rest}\n"
            self.rest = ""

    def read(self, *, to_the_end: bool = False) -> str:
        """The new lines. An unfinished line is held back, unless it exceeds PIECE_BYTES or the log has ended."""
        text = self.rest + self.tail.read()
        at = text.rfind("\n") + 1
        text, self.rest = text[:at], text[at:]
        if self.rest and (len(self.rest) > PIECE_BYTES or (to_the_end and not self.tail.is_behind)):
            text, self.rest = f"{text}{self.rest}\n", ""
        if not text:
            return ""
        # Not line by line: a stranger's log of short lines would take sixty times its size.
        return f"{self.node}| " + text[:-1].replace("\n", f"\n{self.node}| ") + "\n"


def last_lines(shell: Shell, folder: RunFolder, reason: str | None = None) -> list[str]:
    """The last telling lines of the log, as evidence in an error message that has the `reason`."""
    size = shell.bytes_in(folder.log)
    if not size:
        return []
    return last_words(shell.read(folder.log, max(0, size - EVIDENCE_BYTES), EVIDENCE_BYTES), reason)
