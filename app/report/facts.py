"""Read a run's folder for its report. Nothing in it is trusted: wrong or missing values become None or are left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.config.compose import plain_yaml
from app.errors import WrongUse
from app.runtime.folder import RunFolder

DOCUMENT_BYTES = 4 << 20  # of a JSON or YAML file
LINE_BYTES = 64 << 10  # of an event
STEPS_MOST = 200_000  # events of one kind that are kept
SETTINGS_MOST = 400
TEXT_CHARACTERS = 300
MOST_NUMBERS = 1000  # in a list
EVENTS = ("start", "step", "epoch", "mining", "eval", "checkpoint", "skipped", "end")

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the folder of a run says. The events are those of the run as it is now, without steps done again."""

    name: str
    events: Mapping[str, Sequence[Event]]
    settings: Sequence[tuple[str, str]]
    verification: Mapping[str, Any]  # {} unless it belongs to the newest measurement
    status: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    def last(self, kind: str) -> Event:
        """The newest event of a kind; {} without one."""
        return self.events[kind][-1] if self.events[kind] else {}

    def setting(self, key: str) -> str | None:
        return dict(self.settings).get(key)

    def measured(self, what: str) -> list[Event]:
        """Evaluations of one embedding or set that have a finite accuracy."""
        found = [each for each in self.events["eval"] if each.get("what") == what]
        return [each for each in found if number(each.get("accuracy")) is not None]

    def sets(self) -> list[str]:
        """Names of the evaluated sets, as in `sets/lfw`."""
        names = (text(each.get("what")) for each in self.events["eval"])
        return list(dict.fromkeys(name for name in names if name.startswith("sets/")))


def read(folder: RunFolder) -> Facts:
    """Read the folder of a run. Raises WrongUse if it has neither events nor a configuration."""
    if not folder.metrics.is_file() and not folder.config.is_file():
        raise WrongUse(
            f"{folder.path} is not the folder of a run: it has no {folder.metrics.name}; give one such as runs/RUN"
        )
    events = kept(read_events(folder.metrics))
    verification = read_json(folder.verification)
    trained = [each for each in events["eval"] if each.get("what") == "trained"]
    if not trained or trained[-1].get("step") != verification.get("step"):
        verification = {}
    documents = (read_json(folder.status), read_plan(folder), read_json(folder.run))
    return Facts(folder.path.resolve().name, events, read_settings(folder.config), verification, *documents)


def read_plan(folder: RunFolder) -> dict[str, Any]:
    """Read the plan as it was carried out: with the placement, if that is of the same attempt."""
    plan, placement = read_json(folder.plan), read_json(folder.placement)
    return {**plan, **placement} if placement.get("attempt") == plan.get("attempt") else plan


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a metrics.jsonl. Skips lines that are no JSON object, or too long."""
    try:
        with path.open("rb") as file:
            while line := file.readline(LINE_BYTES + 1):
                event = parsed(line) if len(line) <= LINE_BYTES else {}
                if event.get("event") in EVENTS:
                    yield event
    except OSError:
        return


def kept(events: Iterator[dict[str, Any]]) -> dict[str, list[Event]]:
    """Group events by kind. A new start drops the earlier run of the folder; a resumed one drops what is done again."""
    found: dict[str, list[Event]] = {kind: [] for kind in EVENTS}
    for event in events:
        if event["event"] == "start":
            step = number(event.get("step")) if event.get("resumed_from") else None
            for kind, before in found.items():
                if kind != "start" or step is None:
                    found[kind] = [] if step is None else [each for each in before if _before(each, step)]
            found["eval"] = [each for each in found["eval"] if each.get("what") not in ("pixels", "untrained")]
        if len(found[event["event"]]) < STEPS_MOST:
            found[event["event"]].append(event)
    return found


def _before(event: Event, step: float) -> bool:
    own = number(event.get("step"))
    return own is not None and own <= step and event["event"] != "end"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing, too large or something else."""
    return parsed(_bytes(path))


def parsed(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_settings(path: Path) -> list[tuple[str, str]]:
    """The settings in config.yaml, such as ("train.epochs", "24"); [] if they cannot be read."""
    try:
        value = plain_yaml(_bytes(path))
    except Exception:  # the parser lets errors of several kinds through, and settings are no reason for no report
        return []
    found: list[tuple[str, str]] = []
    _leaves(value, "", 0, found)
    return found


def _leaves(value: Any, key: str, depth: int, found: list[tuple[str, str]]) -> None:
    if len(found) >= SETTINGS_MOST or depth > 10:
        return
    if isinstance(value, dict):
        for name, each in value.items():
            _leaves(each, f"{key}.{name}"[:TEXT_CHARACTERS] if key else text(name), depth + 1, found)
    elif key:
        found.append((key, text(value)))


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(DOCUMENT_BYTES + 1)
    except OSError:
        return b""
    return data if len(data) <= DOCUMENT_BYTES else b""


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) and abs(found) < 1e300 else None


def numbers(value: object) -> list[float] | None:
    """A list of finite numbers, or None if it is something else, empty or too long."""
    if not isinstance(value, list) or not 0 < len(value) <= MOST_NUMBERS:
        return None
    found = [number(each) for each in value]
    return None if None in found else [each for each in found if each is not None]


def text(value: object) -> str:
    """A value as one short line; '' for None."""
    if value is None:
        return ""
    words = value if isinstance(value, str) else json.dumps(value, default=str)
    words = "".join(letter if letter.isprintable() else " " for letter in words[: TEXT_CHARACTERS + 1])
    return words if len(words) <= TEXT_CHARACTERS else f"{words[: TEXT_CHARACTERS - 2]} …"


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object; {} for anything else."""
    return value if isinstance(value, dict) else {}
