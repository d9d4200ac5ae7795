"""One tmux session is one job: start it, look at it, read its log, attach, stop. Without tmux: a detached process."""

from __future__ import annotations

import codecs
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, StepFailed, WrongUse, command
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES, LOST_AFTER_S, RunFolder
from deploy.shell import EVIDENCE_LINES, Shell
from deploy.specs.machine import Machine
from deploy.specs.plan import Plan

POLL_S = 0.3
START_LIMIT_S = 30
PIECE_BYTES = 1 << 20  # of a log, in one request


@dataclass(frozen=True)
class Status:
    """What the machine says about a job; `state` is already `lost` when the heartbeat has stopped."""

    state: str
    attempt: int
    heartbeat_age_s: float | None = None
    epoch: int | None = None
    step: int | None = None
    images_per_s: float | None = None
    spend_usd: float = 0.0
    reason: str | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES


@dataclass(frozen=True)
class Position:
    """Where an attempt begins in the files that all attempts of a run append to."""

    log_bytes: int
    metrics_bytes: int


BEGINNING = Position(0, 0)


def session_name(run_id: str) -> str:
    """tmux takes dots and colons for separators."""
    return re.sub(r"[.:]", "_", run_id)


def start(shell: Shell, machine: Machine, plan: Plan, socket: str) -> str:
    """Start the supervisor and wait until it answers; returns how it runs: "tmux" or "detached"."""
    folder = RunFolder(machine.path(plan.run_dir))
    code = machine.path(plan.cwd)
    shell.remove(folder.stop_request)
    shell.remove(folder.status)
    shell.write(folder.plan, (json.dumps(plan.to_json(), indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    argv = [machine.python, "-m", "deploy.pod.supervisor", str(folder.path)]
    how = "detached"
    if shell.which("tmux"):
        shell.run(_tmux_start(socket, session_name(plan.run_id), argv, code, shell.environment()))
        how = "tmux"
    else:
        shell.spawn(argv, cwd=code)
    _wait_until_started(shell, folder, plan)
    return how


def _tmux_start(socket: str, session: str, argv: list[str], cwd: PurePath, env: Mapping[str, str]) -> list[str]:
    """A private server without the user's tmux settings; the session gets this command's environment, not the server's.

    Names alone stand in the command line, values (there may be keys among them) go through tmux's own socket.
    """
    own = {"TERM", "TMUX", "TMUX_PANE", "PWD", "OLDPWD", "SHLVL", "_"}
    names = sorted(name for name in env if re.fullmatch(r"[A-Za-z_]\w*", name) and name not in own)
    settings = [
        "set-option",
        "-g",
        "update-environment",
        " ".join(names),
        ";",
        "set-option",
        "-g",
        "history-limit",
        "50000",
    ]
    session_of = ["new-session", "-d", "-s", session, "-x", "160", "-y", "50", "-c", str(cwd), "--", *argv]
    return ["tmux", "-L", socket, "-f", "/dev/null", "start-server", ";", *settings, ";", *session_of]


def _wait_until_started(shell: Shell, folder: RunFolder, plan: Plan) -> None:
    """A condition with a limit: longer than a job of an earlier attempt may take to leave the machine."""
    deadline = time.monotonic() + START_LIMIT_S + plan.grace_s
    while time.monotonic() < deadline:
        status = look(shell, folder)
        if status and status.attempt == plan.attempt:
            if status.state == "failed" and status.started is None:
                raise WrongUse(f"{status.reason}: wait for it, or stop it", next_command=command("stop"))
            return
        time.sleep(POLL_S / 3)
    raise StepFailed(
        "the supervisor did not answer after its start",
        next_command=f'"{sys.executable}" -m deploy.pod.supervisor "{folder.path}"   (in {plan.cwd})',
    )


def look(shell: Shell, folder: RunFolder) -> Status | None:
    """The job's status now; None before its supervisor has said anything."""
    # The time first: should the connection break between the two, an old answer must not be held against a later time.
    now = shell.clock()
    told = _read_json(shell, folder.status)
    if "state" not in told:
        return None
    said = border.status(told, f"{shell.name}: status.json of run {folder.run_id}")
    age = max(0.0, now - said.heartbeat)
    state, reason = said.state, said.reason
    if state in LIVE_STATES and age > LOST_AFTER_S:
        state, reason = "lost", f"no heartbeat for {age:.0f} s: the supervisor or its machine is gone"
    return Status(
        state=state,
        attempt=said.attempt,
        heartbeat_age_s=round(age, 1),
        epoch=said.epoch,
        step=said.step,
        images_per_s=said.images_per_s,
        spend_usd=said.spend_usd,
        reason=reason,
        started=said.started,
        ended=said.ended,
        exit_code=said.exit_code,
    )


def position(shell: Shell, folder: RunFolder) -> Position:
    return Position(shell.size(folder.log) or 0, shell.size(folder.metrics) or 0)


def attach_argv(shell: Shell, socket: str, folder: RunFolder, *, write: bool) -> list[str]:
    """The command that shows the live session; read-only unless asked otherwise."""
    run_id = folder.run_id
    if not shell.which("tmux"):
        raise StepFailed(
            "tmux is not installed on the machine, so the job has no terminal to attach to; install it "
            "(Debian, Ubuntu: apt-get install tmux; macOS: brew install tmux; Windows: inside WSL only)",
            next_command=command("logs --follow"),
        )
    target = f"={session_name(run_id)}"
    if not shell.run(["tmux", "-L", socket, "has-session", "-t", target], check=False):
        status = look(shell, folder)
        if status and not status.final:  # nothing in it needs a terminal
            words = f"run {run_id} goes on without a terminal: the tmux that it was started in was ended"
            raise StepFailed(words, next_command=command(f"logs --follow --run {run_id}"))
        ended = f"run {run_id} has no live session: it has ended"
        raise StepFailed(ended, next_command=command(f"logs --run {run_id}"))
    return ["tmux", "-L", socket, "attach-session", *([] if write else ["-r"]), "-t", target]


def request_stop(shell: Shell, folder: RunFolder) -> None:
    """Ask for a checkpoint and an end; asking again, or asking what has ended, is fine."""
    shell.write(folder.stop_request, b"")


def wait_for_end(shell: Shell, folder: RunFolder, limit_s: float) -> Status | None:
    """The final status, or the last one seen when the limit has passed."""
    deadline = time.monotonic() + limit_s
    status = look(shell, folder)
    while status and not status.final and time.monotonic() < deadline:
        time.sleep(POLL_S)
        status = look(shell, folder)
    return status


def end(shell: Shell, folder: RunFolder, grace_s: float) -> None:
    """Ask a job that still goes on to end, and wait for it; none at all, or one that ended, is left alone."""
    status = look(shell, folder)
    if status and status.state in LIVE_STATES:
        request_stop(shell, folder)
        wait_for_end(shell, folder, grace_s)


@dataclass
class Tail:
    """Reads a growing file from a byte offset, as text.

    1. Every byte is given out once, in order; `offset` is where the next read begins.
    2. A character cut by the end of the file is held back until the rest of it is there.
    3. Bytes that are no UTF-8 become U+FFFD. 4. A file that is not there yet is an empty file.
    """

    shell: Shell
    path: PurePath
    offset: int = 0
    is_behind: bool = False  # there was more than one read takes
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def read(self) -> str:
        """What is new, at most PIECE_BYTES of it; empty when there is nothing now."""
        try:
            data = self.shell.read(self.path, self.offset, PIECE_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        self.offset += len(data)
        self.is_behind = len(data) == PIECE_BYTES
        return self.decoder.decode(data)


class Events:
    """The whole lines of metrics.jsonl, as they come."""

    def __init__(self, shell: Shell, path: PurePath, offset: int = 0) -> None:
        self.tail = Tail(shell, path, offset)
        self.rest = ""

    def read(self) -> list[dict[str, Any]]:
        """What is new, at most PIECE_BYTES of it."""
        *lines, self.rest = (self.rest + self.tail.read()).split("\n")
        if len(self.rest) > border.EVENT_BYTES:  # no event is that long
            self.rest = ""
        return [event for line in lines if (event := border.event(line)) is not None]


def all_events(shell: Shell, path: PurePath) -> list[dict[str, Any]]:
    """What a run has told: of each kind the newest ones, as many as fit into memory."""
    size = min(shell.size(path) or 0, border.FILE_BYTES["metrics.jsonl"])
    events, kept = Events(shell, path), border.Newest()
    while True:
        kept.add(events.read())
        if not events.tail.is_behind or events.tail.offset >= size:
            return kept.events()


def follow(shell: Shell, folder: RunFolder, since: Position = BEGINNING) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """New log text and new events, again and again until the job has ended.

    The status is read first, so that the last words are not missed.
    """
    log, events = Tail(shell, folder.log, since.log_bytes), Events(shell, folder.metrics, since.metrics_bytes)
    while True:
        status = look(shell, folder)
        yield log.read(), events.read()
        while log.is_behind or events.tail.is_behind:
            yield log.read(), events.read()
        if status is None or status.final:
            return
        time.sleep(POLL_S)


class NodeLines:
    """The log of one of several machines, as whole lines with its number in front."""

    def __init__(self, shell: Shell, folder: RunFolder, node: int) -> None:
        self.tail, self.node, self.rest = Tail(shell, folder.log), node, ""

    def read(self, *, to_the_end: bool = False) -> str:
        """What is new; a line that has no end yet is kept back, unless there will be no more."""
        *lines, self.rest = (self.rest + self.tail.read()).split("\n")
        if self.rest and (len(self.rest) > PIECE_BYTES or (to_the_end and not self.tail.is_behind)):
            lines, self.rest = [*lines, self.rest], ""
        return "".join(f"{self.node}| {line}\n" for line in lines)


def last_lines(shell: Shell, folder: RunFolder) -> list[str]:
    """Evidence: how the log ends."""
    size = shell.size(folder.log) or 0
    if not size:
        return []
    text = shell.read(folder.log, max(0, size - 8192), 8192).decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-EVIDENCE_LINES:]


def _read_json(shell: Shell, path: PurePath) -> dict[str, Any]:
    try:
        return border.document(shell.read(path, limit=border.DOCUMENT_BYTES + 1), f"{shell.name}: {path.name}")
    except (OSError, BadAnswer):  # not there, or half written on a full disk
        return {}
