"""Validate documents: status.json, a checkpoint's JSON, events, and the output of programs on the machine."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.border.places import Name
from deploy.border.values import (
    LISTED_MOST,
    dollars,
    mapping,
    names,
    number,
    sha256,
    shown,
    size,
    strings,
    text,
    unix_time,
    whole,
)
from deploy.errors import BadAnswer
from deploy.pod.agent.frames import HEAD_BYTES
from deploy.pod.base.checkpoints import CHECKPOINT
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES
from deploy.pod.base.text import visible

GIB = 1 << 30
DOCUMENT_BYTES = 256 << 10  # status.json, a checkpoint's JSON, guard.json
DOCUMENT_READ_BYTES = DOCUMENT_BYTES + 1  # to read of one: a byte more shows that it is too long
EVENT_BYTES = 8 << 10  # one line of metrics.jsonl
VALUES_MOST = 250_000  # in one document: a value takes up to thirty times its bytes in memory
DEPTH_MOST = 32
EVENT_VALUES = 256  # in one event, nested ones included
GPUS_MOST = 64  # of one machine
RESULTS_MOST = 200  # files that one command downloads
RESERVE_BYTES = 256 << 20  # free space on the laptop's disk that downloads never use
# Size limit of one file, by kind.
FILE_BYTES = {
    "config.yaml": 1 << 20,
    "status.json": DOCUMENT_BYTES,
    "metrics.jsonl": 256 << 20,
    "train.log": 4 * GIB,
    "report.html": 4 << 20,
    "verification.json": 4 << 20,
    "picture": 16 << 20,
    "curves": 256 << 20,
    "result": 16 * GIB,
    "checkpoint": 64 * GIB,
}

_NUMBERS = {
    "time", "epoch", "step", "epochs", "steps_per_epoch", "seconds", "seconds_left", "images_per_s", "loss", "done",
    "total", "train_rows", "world_size", "in_a_row", "count", "coverage", "purity", "accuracy", "rank1",
    "validation_accuracy",
}  # fmt: skip
_SHARES = {"validation_accuracy"}  # from 0 to 1
_WORDS = {"event", "what", "name", "file", "sha256", "resumed_from"}
# Fields without which an event of this kind cannot be displayed.
_NEEDED = {"mining": ("count", "coverage"), "eval": ("what", "accuracy"), "step": ("step",)}


def document(
    data: bytes | str, what: str, most: int = DOCUMENT_BYTES, *, odd: Callable[[str], Any] = lambda _: None
) -> dict[str, Any]:
    """Parse a small file or answer as a JSON object. Raises BadAnswer.

    `odd` converts the words NaN and Infinity: to None, or with `float` to numbers that no check of the border accepts.
    """
    if len(data) > most:
        raise BadAnswer(f"{what} has more than {most} bytes")
    opened, more = (_occurrences(data, marks) for marks in ("[{", ","))
    if opened + more > VALUES_MOST:
        raise BadAnswer(f"{what} has more than {VALUES_MOST} values")
    try:
        value = json.loads(data, parse_constant=odd)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"{what} is not a JSON object") from error
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is not a JSON object")
    if opened > DEPTH_MOST and _is_deep(value):
        raise BadAnswer(f"{what} has values more than {DEPTH_MOST} levels deep")
    return value


def _occurrences(data: bytes | str, marks: str) -> int:
    return sum(data.count(mark) if isinstance(data, str) else data.count(mark.encode()) for mark in marks)


def _is_deep(value: object) -> bool:
    """Return whether lists and objects are nested so deep that code which walks through them could fail."""
    level = [value]
    for _ in range(DEPTH_MOST):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for one in inner for each in one if isinstance(each, dict | list)]
    return bool(level)


def read_document(path: Path) -> dict[str, Any]:
    """Parse a file on the laptop that a machine may have written. Returns {} for a missing or invalid file."""
    try:
        with open(path, "rb") as file:
            return document(file.read(DOCUMENT_BYTES + 1), str(path))
    except (OSError, BadAnswer):
        return {}


@dataclass(frozen=True)
class Gpu:
    """How busy one GPU of a machine is."""

    busy_pct: float
    used_bytes: int
    all_bytes: int


@dataclass(frozen=True)
class RunStatus:
    """The fields of a run's status.json, each within its bounds."""

    state: str
    attempt: int
    heartbeat: float = 0.0  # Unix seconds of the machine's clock
    epoch: int | None = None
    step: int | None = None
    images_per_s: float | None = None
    spend_usd: float = 0.0
    reason: str | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    gpus: tuple[Gpu, ...] = ()


def status(said: Mapping[str, Any], what: str) -> RunStatus:
    """Validate a status.json document. Raises BadAnswer for the first invalid field."""

    def some(key: str, check: Any, *bounds: float) -> Any:
        return None if said.get(key) is None else check(said[key], f"{what}, {key}", *bounds)

    if said.get("state") not in (*FINAL_STATES, *LIVE_STATES):
        raise BadAnswer(f"{what}, state is {shown(said.get('state'))} instead of a state such as running")
    return RunStatus(
        state=said["state"],
        attempt=whole(said.get("attempt"), f"{what}, attempt", 0, 1_000_000),
        heartbeat=unix_time(said.get("heartbeat"), f"{what}, heartbeat"),
        epoch=some("epoch", whole, -1),
        step=some("step", whole, -1),
        images_per_s=some("images_per_s", number, 0, 1e9),
        spend_usd=some("spend_usd", number, 0) or 0.0,
        reason=some("reason", text),
        started=some("started", unix_time),
        ended=some("ended", unix_time),
        exit_code=some("exit_code", whole, -(1 << 32), 1 << 32),
        gpus=_gpus(said.get("gpus"), what),
    )


def _gpus(said: object, what: str) -> tuple[Gpu, ...]:
    """The GPUs that were measured. Nothing depends on them, so an invalid one is left out."""
    found = []
    for each in said[:GPUS_MOST] if isinstance(said, list) else []:
        try:
            told = mapping(each, what)
            busy_pct = number(told.get("utilization_pct"), what, 0, 100)
            used, every = (size(told.get(key), what, 1 << 50) for key in ("memory_used_bytes", "memory_bytes"))
        except BadAnswer:
            continue
        found.append(Gpu(busy_pct, used, every))
    return tuple(found)


def checkpoint_note(data: bytes | Mapping[str, Any], what: str) -> dict[str, Any]:
    """Validate the JSON beside a checkpoint: every field that other code relies on. Raises BadAnswer."""
    note = dict(data) if isinstance(data, Mapping) else document(data, what)
    note["file"] = str(Name(note.get("file"), what, like=CHECKPOINT))
    for key in ("epoch", "step"):
        note[key] = whole(note.get(key), f"{what}, {key}")
    note["sha256"] = sha256(note.get("sha256"), f"{what}, sha256")
    if note.get("bytes") is not None:
        note["bytes"] = size(note["bytes"], f"{what}, bytes", FILE_BYTES["checkpoint"])
    if note.get("fraction") is not None:
        note["fraction"] = number(note["fraction"], f"{what}, fraction", 0, 1)
    if not isinstance(note.get("epoch_complete", True), bool):
        raise BadAnswer(f"{what}, epoch_complete is {shown(note['epoch_complete'])} instead of true or false")
    for key in ("eval", "model", "facts"):
        if note.get(key) is not None and not isinstance(note[key], dict):
            raise BadAnswer(f"{what}, {key} is {shown(note[key])} instead of an object")
    measured = note.get("eval") or {}
    if measured.get("accuracy") is not None:
        number(measured["accuracy"], f"{what}, eval.accuracy")
    if measured.get("validation_accuracy") is not None:
        number(measured["validation_accuracy"], f"{what}, eval.validation_accuracy", 0, 1)
    _check_sets(measured.get("sets", {}), what)
    return note


def _check_sets(sets: Any, what: str) -> None:
    """Raise BadAnswer unless `sets` maps names to objects, and each `accuracy` present is a number."""
    if not isinstance(sets, dict):
        raise BadAnswer(f"{what}, eval.sets is {shown(sets)} instead of an object")
    for name, numbers in sets.items():
        if not isinstance(numbers, dict):
            raise BadAnswer(f"{what}, eval.sets.{shown(name)} is {shown(numbers)} instead of an object")
        if numbers.get("accuracy") is not None:
            number(numbers["accuracy"], f"{what}, eval.sets.{shown(name)}.accuracy")


def event(line: str | bytes) -> dict[str, Any] | None:
    """Parse one line of metrics.jsonl. Returns None for a line that is no valid event."""
    try:
        found = document(line, "an event", EVENT_BYTES)
    except BadAnswer:
        return None
    if _count(found) > EVENT_VALUES:
        return None
    for key, value in found.items():
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        if (key in _NUMBERS and not is_number) or (key in _WORDS and not isinstance(value, str)):
            return None
        if key in _SHARES and not 0 <= value <= 1:
            return None
    needed = _NEEDED.get(str(found.get("event")), ())
    return None if any(found.get(key) is None for key in needed) else found


@dataclass(frozen=True)
class Frame:
    """The JSON of one message from an agent."""

    number: int | None  # of the request that this message answers; None: a heartbeat
    more: bool  # the answer continues in another message
    head: dict[str, Any]


def frame(data: bytes) -> Frame:
    """Validate the head of a message. Raises BadAnswer."""
    head = document(data, "a message", HEAD_BYTES)
    number, more = head.get("id"), head.get("more", False)
    if "id" in head:
        whole(number, "the number of a message")
    if not isinstance(more, bool):
        raise BadAnswer(f"more of a message is {shown(more)} instead of true or false")
    return Frame(number, more, head)


def standing(data: bytes, what: str) -> dict[str, Any]:
    """Validate the state that a machine reports: the fields of deploy/pod/watchdog/report.py. Raises BadAnswer."""
    said = document(data, what)
    if not isinstance(said.get("guarded"), bool):
        raise BadAnswer(f"{what}, guarded is {shown(said.get('guarded'))} instead of true or false")
    copies = strings(said.get("only_copies"), f"{what}, only_copies")
    return {
        "at_work": [visible(each, newlines=False) for each in names(said.get("at_work"), f"{what}, at_work")],
        "guarded": said["guarded"],
        "state": None if said.get("state") is None else text(said["state"], f"{what}, state", 20),
        "decision": None if said.get("decision") is None else text(said["decision"], f"{what}, decision"),
        "only_copies": {text(run, what, 200): text(file, what, 200) for run, file in copies.items()},
    }


def restorable(data: str, what: str) -> dict[str, Any]:
    """Validate the output of deploy/pod/backup/restore.py, which may come from a bucket that others write to.

    Invalid checkpoint notes are reported in `damaged`. Raises BadAnswer for any other fault.
    """
    said = document(data, what, 1 << 20)
    notes = said.get("checkpoints")
    if not isinstance(notes, list) or len(notes) > LISTED_MOST:
        raise BadAnswer(f"{what}, checkpoints is {shown(notes)} instead of a list")
    found, wrong = [], []
    for each in notes:
        try:
            note = checkpoint_note(mapping(each, f"{what}, a checkpoint"), what)
            size(note.get("bytes"), f"{what}, bytes", FILE_BYTES["checkpoint"])
            found.append(note)
        except BadAnswer as error:
            wrong.append(error.message)
    return {
        "checkpoints": found,
        "damaged": [*names(said.get("damaged"), f"{what}, damaged"), *wrong][:20],
        "log_bytes": size(said.get("log_bytes"), f"{what}, log_bytes"),
        "spend": dollars(said.get("spend"), f"{what}, spend"),
    }


def progress(line: str, what: str) -> dict[str, Any]:
    """Validate a progress line of a program: done_bytes, all_bytes, and optionally sha256 at the end."""
    said = document(line, what, 8 << 20)
    told = {key: size(said.get(key), f"{what}, {key}") for key in ("done_bytes", "all_bytes")}
    if "sha256" not in said:
        return told
    listed = said["sha256"] if isinstance(said["sha256"], list) else [None]
    return {**told, "sha256": [sha256(each, f"{what}, sha256") for each in listed]}


class Newest:
    """A bounded buffer of a run's events: the newest OF_EACH of each kind, for the first KINDS kinds."""

    KINDS = 16
    OF_EACH = 40

    def __init__(self) -> None:
        self._number = 0
        self._kinds: dict[str, deque[tuple[int, dict[str, Any]]]] = {}

    def add(self, events: Sequence[dict[str, Any]]) -> None:
        for each in events:
            self._number += 1
            kind = str(each.get("event"))
            if kind in self._kinds or len(self._kinds) < self.KINDS:
                self._kinds.setdefault(kind, deque(maxlen=self.OF_EACH)).append((self._number, each))

    def events(self) -> list[dict[str, Any]]:
        """Return the kept events in the order in which they were added."""
        every = [each for kind in self._kinds.values() for each in kind]
        return [each for _, each in sorted(every, key=lambda pair: pair[0])]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl on the laptop that a machine has written. Returns the newest events of each kind."""
    kept = Newest()
    for each in each_event(path):
        kept.add([each])
    return kept.events()


def each_event(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a metrics.jsonl on the laptop. A missing file has none. Invalid lines are left out."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        while line := file.readline(EVENT_BYTES + 2):
            if found := event(line):
                yield found


def _count(value: object) -> int:
    """Count the values in a JSON value, itself and nested ones included."""
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1
