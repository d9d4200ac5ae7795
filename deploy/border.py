"""The only door for what a machine, a provider or a stranger's file says: it becomes a typed, bounded value here.

What does not fit raises BadAnswer, one sentence that names the source and the field. `what` names both, such as
"box: status.json of run r1"; the field is added here.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from deploy.errors import BadAnswer, WrongUse
from deploy.pod.folder import FINAL_STATES, LIVE_STATES
from deploy.pod.frames import HEAD_BYTES
from deploy.pod.text import visible

GIB = 1 << 30
DOCUMENT_BYTES = 256 << 10  # status.json, a checkpoint's JSON, guard.json
EVENT_BYTES = 8 << 10  # one line of metrics.jsonl
EVENT_VALUES = 256  # in one event, nested ones included
NAME_CHARACTERS = 120
REASON_CHARACTERS = 1000
LISTED_MOST = 10_000  # names in one folder of a machine
RESULTS_MOST = 200  # files that one command brings home
RESERVE_BYTES = 256 << 20  # of the laptop's disk that a machine never gets
# The most bytes that one file of each kind may have.
FILE_BYTES = {
    "config.yaml": 1 << 20,
    "status.json": DOCUMENT_BYTES,
    "metrics.jsonl": 256 << 20,
    "train.log": 4 * GIB,
    "picture": 16 << 20,
    "result": 16 * GIB,
    "checkpoint": 64 * GIB,
}
CHECKPOINT = re.compile(r"epoch_[A-Za-z0-9_-]{1,60}\.pt")
PICTURE = re.compile(r"[^/\\]{1,100}\.png")
RESULT = re.compile(r"[^/\\]{1,100}\.(npy|json|png)")  # of `mine` and `evaluate`

_FORBIDDEN = set('<>:"/\\|?*')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBERS = {
    "time", "epoch", "step", "epochs", "steps_per_epoch", "seconds", "seconds_left", "images_per_s", "loss", "done",
    "total", "train_rows", "world_size", "in_a_row", "count", "coverage", "purity", "accuracy", "rank1",
}  # fmt: skip
_WORDS = {"event", "what", "name", "file", "sha256", "resumed_from"}
# Without these an event of the kind cannot be shown.
_NEEDED = {"mining": ("count", "coverage"), "eval": ("what", "accuracy", "rank1"), "step": ("step",)}


# Names and places


class Name(str):
    """One component of a path that is a plain file name on Windows, macOS and Linux alike."""

    __slots__ = ()

    def __new__(cls, value: object, what: str = "the machine", *, like: re.Pattern[str] | None = None) -> Name:
        if isinstance(value, Name) and like is None:
            return value
        why = _why_no_name(value)
        if why is None and like is not None and not like.fullmatch(str(value)):
            why = "is not a name that is expected there"
        if why:
            raise BadAnswer(f"{what}: the file name {_shown(value)} {why}")
        return super().__new__(cls, str(value))


def _why_no_name(value: object) -> str | None:
    if not isinstance(value, str):
        return "is no text"
    stem = value.split(".")[0].rstrip(" ")
    reasons = {
        "is empty or too long": not 0 < len(value) <= NAME_CHARACTERS or len(value.encode("utf-8", "replace")) > 240,
        "has a separator, a drive or a character that Windows forbids": bool(_FORBIDDEN & set(value)),
        "has characters that cannot be printed": not value.isprintable(),
        "begins with a dot, a dash or a blank": value[:1] in {".", "-", " ", "~"},
        "ends with a dot or a blank": value[-1:] in {".", " "},
        "is a device on Windows": bool(_RESERVED.fullmatch(stem)),
    }
    return next((why for why, holds in reasons.items() if holds), None)


@dataclass(frozen=True)
class Place:
    """Where a file of a machine goes: a name in a folder below `root`, which the user or the project chose."""

    root: Path
    names: tuple[Name, ...]

    @property
    def path(self) -> Path:
        """The place, checked now. Raises WrongUse where a link leads out of the root."""
        path = self.root
        for name in self.names:
            path = path / name
            if path.is_symlink():
                raise WrongUse(f"{path} is a symbolic link: remove it, for a machine's files must stay in {self.root}")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise WrongUse(f"{path} leads out of {self.root}: remove what leads there")
        return path


def place(root: Path, *names: str, what: str = "the machine") -> Place:
    """The place of a file below `root`; every name is checked."""
    return Place(root, tuple(Name(name, what) for name in names))


def chosen(path: Path) -> Place:
    """The place that the user typed, such as --to: it needs no check."""
    return Place(path.parent, (str.__new__(Name, path.name),))


# Values


def whole(value: object, what: str, least: int = 0, most: int = 1 << 53) -> int:
    """A whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadAnswer(f"{what} is {_shown(value)} instead of a whole number from {least} to {most}")
    return value


def size(value: object, what: str, most: int = 1 << 53) -> int:
    """A number of bytes."""
    return whole(value, what, 0, most)


def number(value: object, what: str, least: float = -1e308, most: float = 1e308) -> float:
    """A finite number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswer(f"{what} is {_shown(value)} instead of a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or not least <= found <= most:
        raise BadAnswer(f"{what} is {_shown(value)} instead of a number from {least:g} to {most:g}")
    return found


def text(value: object, what: str, most: int = REASON_CHARACTERS) -> str:
    """One line that is safe to show; a longer one is cut."""
    if not isinstance(value, str):
        raise BadAnswer(f"{what} is {_shown(value)} instead of text")
    return cut(visible(value[: most + 1], newlines=False), most)


def path_text(value: object, what: str) -> str:
    """A path of the machine, to be sent back to it."""
    if not isinstance(value, str) or not 0 < len(value) <= 4096 or not value.isprintable():
        raise BadAnswer(f"{what} is {_shown(value)} instead of a path")
    return value


def sha256(value: object, what: str) -> str:
    """A hash as 64 hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise BadAnswer(f"{what} is {_shown(value)} instead of a SHA-256")
    return value


def names(value: object, what: str) -> list[str]:
    """The names in a folder of the machine. Each is still to be checked where it names a file of the laptop."""
    if not isinstance(value, list) or len(value) > LISTED_MOST or not all(isinstance(each, str) for each in value):
        raise BadAnswer(f"{what} is {_shown(value)} instead of at most {LISTED_MOST} names")
    return [each for each in value if len(each) <= 255]


def mapping(value: object, what: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is {_shown(value)} instead of an object")
    return value


def hashes(value: object, count: int, what: str, holes: bool = False) -> list[str]:
    """So many hashes; with `holes`, '' for a range without bytes."""
    if not isinstance(value, list) or len(value) != count:
        raise BadAnswer(f"{what} is {_shown(value)} instead of {count} hashes")
    return [each if holes and each == "" else sha256(each, what) for each in value]


def cut(words: str, most: int) -> str:
    """A text of at most `most` characters, with a mark where it was cut."""
    return words if len(words) <= most else words[: most - 4] + " ..."


# Documents


def document(data: bytes | str, what: str, most: int = DOCUMENT_BYTES) -> dict[str, Any]:
    """The JSON object in a small file or answer. NaN and Infinity become None."""
    if len(data) > most:
        raise BadAnswer(f"{what} has more than {most} bytes")
    try:
        value = json.loads(data, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"{what} is no JSON object") from error
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is no JSON object")
    return value


def read_document(path: Path, most: int = DOCUMENT_BYTES) -> dict[str, Any]:
    """The JSON object in a file of the laptop that a machine may have filled; {} where there is none."""
    try:
        with open(path, "rb") as file:
            return document(file.read(most + 1), str(path), most)
    except (OSError, BadAnswer):
        return {}


@dataclass(frozen=True)
class Status:
    """What status.json of a run says, each field within its bounds."""

    state: str
    attempt: int
    heartbeat: float
    epoch: int | None
    step: int | None
    images_per_s: float | None
    spend_usd: float
    reason: str | None
    started: float | None
    ended: float | None
    exit_code: int | None


def status(said: Mapping[str, Any], what: str) -> Status:
    """`said` is the document. Raises BadAnswer for the first field that does not fit."""

    def some(key: str, check: Any, *bounds: float) -> Any:
        return None if said.get(key) is None else check(said[key], f"{what}, {key}", *bounds)

    if said.get("state") not in (*FINAL_STATES, *LIVE_STATES):
        raise BadAnswer(f"{what}, state is {_shown(said.get('state'))} instead of a state such as running")
    return Status(
        state=said["state"],
        attempt=whole(said.get("attempt"), f"{what}, attempt", 0, 1_000_000),
        heartbeat=number(said.get("heartbeat"), f"{what}, heartbeat", 0, 1e11),
        epoch=some("epoch", whole, -1),
        step=some("step", whole, -1),
        images_per_s=some("images_per_s", number, 0, 1e9),
        spend_usd=some("spend_usd", number, 0) or 0.0,
        reason=some("reason", text),
        started=some("started", number, 0, 1e11),
        ended=some("ended", number, 0, 1e11),
        exit_code=some("exit_code", whole, -(1 << 32), 1 << 32),
    )


def checkpoint_note(data: bytes | Mapping[str, Any], what: str) -> dict[str, Any]:
    """The JSON beside a checkpoint, with everything that is relied on checked."""
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
        raise BadAnswer(f"{what}, epoch_complete is {_shown(note['epoch_complete'])} instead of true or false")
    for key in ("eval", "model"):
        if note.get(key) is not None and not isinstance(note[key], dict):
            raise BadAnswer(f"{what}, {key} is {_shown(note[key])} instead of an object")
    if (note.get("eval") or {}).get("accuracy") is not None:
        number(note["eval"]["accuracy"], f"{what}, eval.accuracy")
    return note


def event(line: str | bytes) -> dict[str, Any] | None:
    """One line of metrics.jsonl; None for what is no event, which is passed over."""
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
    needed = _NEEDED.get(str(found.get("event")), ())
    return None if any(found.get(key) is None for key in needed) else found


@dataclass(frozen=True)
class Frame:
    """The JSON of one message of an agent."""

    number: int | None  # of the request that it answers; None: a beat
    more: bool  # the answer goes on in another message
    head: dict[str, Any]


def frame(data: bytes) -> Frame:
    head = document(data, "a message", HEAD_BYTES)
    number, more = head.get("id"), head.get("more", False)
    if "id" in head:
        whole(number, "the number of a message")
    if not isinstance(more, bool):
        raise BadAnswer(f"more of a message is {_shown(more)} instead of true or false")
    return Frame(number, more, head)


def standing(data: bytes, what: str) -> dict[str, Any]:
    """How a machine stands, by its own word: the fields of deploy/pod/standing.py, each checked."""
    said = document(data, what)
    if not isinstance(said.get("guarded"), bool):
        raise BadAnswer(f"{what}, guarded is {_shown(said.get('guarded'))} instead of true or false")
    copies = strings(said.get("only_copies"), f"{what}, only_copies")
    return {
        "at_work": [visible(each, newlines=False) for each in names(said.get("at_work"), f"{what}, at_work")],
        "guarded": said["guarded"],
        "state": None if said.get("state") is None else text(said["state"], f"{what}, state", 20),
        "decision": None if said.get("decision") is None else text(said["decision"], f"{what}, decision"),
        "only_copies": {text(run, what, 200): text(file, what, 200) for run, file in copies.items()},
    }


def snapshot_state(value: object, what: str) -> tuple[bool, list[str]]:
    """Whether a snapshot of the code is on the machine, and the commits there: they go into command lines of git."""
    said = mapping(value, what)
    commits = names(said.get("commits"), what)
    if not isinstance(said.get("there"), bool) or not all(_COMMIT.fullmatch(each) for each in commits):
        raise BadAnswer(f"{what} is {_shown(value)} instead of a state of snapshots")
    return said["there"], commits


def address(value: object, what: str) -> str:
    """An IPv4 address."""
    try:
        return str(IPv4Address(value if isinstance(value, str) else ""))
    except ValueError:
        raise BadAnswer(f"{what} is {_shown(value)} instead of an IPv4 address") from None


def interface(value: object, what: str) -> str:
    """The name of a network interface; empty where it could not be told."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:@-]{0,15}", value):
        raise BadAnswer(f"{what} is {_shown(value)} instead of a network interface")
    return value


def heard(value: object, what: str) -> list[tuple[str, str, str]]:
    """How a machine reaches another: the other's address, its own, the interface."""
    if not isinstance(value, list) or not all(isinstance(each, list) and len(each) == 3 for each in value):
        raise BadAnswer(f"{what} is {_shown(value)} instead of ways to another machine")
    return [(address(each[0], what), address(each[1], what), interface(each[2], what)) for each in value]


def restorable(data: str, what: str) -> dict[str, Any]:
    """What deploy/pod/restore.py found: a bucket that others write to may be behind it."""
    said = document(data, what, 1 << 20)
    notes = said.get("checkpoints")
    if not isinstance(notes, list) or len(notes) > LISTED_MOST:
        raise BadAnswer(f"{what}, checkpoints is {_shown(notes)} instead of a list")
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
    """One line of a program that tells its progress: done_bytes, all_bytes, at its end perhaps sha256."""
    said = document(line, what, 8 << 20)
    told = {key: size(said.get(key), f"{what}, {key}") for key in ("done_bytes", "all_bytes")}
    if "sha256" not in said:
        return told
    listed = said["sha256"] if isinstance(said["sha256"], list) else [None]
    return {**told, "sha256": [sha256(each, f"{what}, sha256") for each in listed]}


class Newest:
    """Events of a run, bounded: of each kind the newest, and every kind counts for itself."""

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
        """In the order in which they were told."""
        every = [each for kind in self._kinds.values() for each in kind]
        return [each for _, each in sorted(every, key=lambda pair: pair[0])]


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events in a metrics.jsonl of the laptop, which a machine has filled: of each kind the newest."""
    kept = Newest()
    try:
        with open(path, "rb") as file:
            while line := file.readline(EVENT_BYTES + 2):
                found = event(line)
                kept.add([found] if found else [])
    except OSError:
        return []
    return kept.events()


def strings(value: object, what: str) -> dict[str, str]:
    """Names and values, all text."""
    if not isinstance(value, dict) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise BadAnswer(f"{what} is {_shown(value)} instead of names and values")
    return value


def dollars(value: object, what: str, machines: Sequence[str] = ()) -> dict[str, float]:
    """What machines have cost, by name; only of those that are known, where they are given."""
    if not isinstance(value, dict) or len(value) > 1000:
        raise BadAnswer(f"{what} is {_shown(value)} instead of dollars by machine")
    told = {str(name): number(usd, f"{what}, {text(name, what)}", 0, 100_000) for name, usd in value.items()}
    return {name: usd for name, usd in told.items() if not machines or name in machines}


def _count(value: object) -> int:
    """How many values a JSON value is made of."""
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


def _shown(value: object) -> str:
    """A value in an error: short, and safe on a terminal."""
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a huge number"
    return cut(visible(repr(value)[:200], newlines=False), 80)
