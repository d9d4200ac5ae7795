"""Read what a run leaves for comparison: its settings and its curves. Code on a machine has written both files."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.border.documents import each_event
from deploy.border.values import cut
from deploy.pod.base.text import visible

EPOCHS_MOST = 10_000
SPEEDS_KEPT = 1000
SETS_MOST = 20
OF_SET = "sets/"  # begins the name of an evaluation on a set
SETTINGS_MOST = 2000
SETTINGS_BYTES = 128 << 10  # of a config.yaml; parsed, it takes 300 times as much memory
SETTING_CHARACTERS = 200

Setting = str | int | float | bool | None
Curve = tuple[tuple[int, float], ...]  # epoch, value


@dataclass(frozen=True)
class History:
    """Curves of a run: a value per epoch, in order of epochs. `images_per_s`: the median of the newest steps."""

    loss: Curve
    accuracy: Curve  # on the held-out people of the result
    images_per_s: float | None
    sets: Mapping[str, Curve] = field(default_factory=dict)  # accuracy by name of a set of train.eval.sets
    validation: Curve = ()  # accuracy on the held-out people who choose the checkpoint; empty if there are none


def read_history(path: Path) -> History:
    """Read the curves from a metrics.jsonl on the laptop. A missing file has none. Invalid lines are left out.

    Of an epoch that was trained twice, because the run was continued, the later value counts.
    """
    loss: dict[int, float] = {}
    accuracy: dict[int, float] = {}
    validation: dict[int, float] = {}
    sets: dict[str, dict[int, float]] = {}
    speeds: deque[float] = deque(maxlen=SPEEDS_KEPT)
    for told in each_event(path):
        kind, epoch, what = told.get("event"), told.get("epoch"), str(told.get("what"))
        if kind == "step" and told.get("images_per_s") is not None:
            speeds.append(float(told["images_per_s"]))
        if not isinstance(epoch, int):
            continue
        if kind == "epoch" and told.get("loss") is not None:
            _keep(loss, epoch, told["loss"])
        if kind == "eval" and what == "trained":
            _keep(accuracy, epoch, told["accuracy"])
            if told.get("validation_accuracy") is not None:
                _keep(validation, epoch, told["validation_accuracy"])
        if kind == "eval" and what.startswith(OF_SET):
            name = _inside("", what.removeprefix(OF_SET))
            if name in sets or len(sets) < SETS_MOST:
                _keep(sets.setdefault(name, {}), epoch, told["accuracy"])
    speed = round(statistics.median(speeds), 1) if speeds else None
    of_sets = {name: _curve(values) for name, values in sets.items()}
    return History(_curve(loss), _curve(accuracy), speed, of_sets, _curve(validation))


def loss_curve(events: Iterable[Mapping[str, Any]], kind: str) -> list[float | None]:
    """The losses of events of this kind, and None where pseudo-IDs were refreshed. A repeated step replaces the first.

    `events`: in their order, as `event` returns them.
    """
    found: list[tuple[float, float | None]] = []
    for told in events:
        step, is_refresh = told.get("step"), told.get("event") == "mining" and told.get("accepted", True)
        if step is None or not (is_refresh or (told.get("event") == kind and told.get("loss") is not None)):
            continue
        kept = step if is_refresh else step - 1  # a refresh comes after the step that it names
        while found and found[-1][0] > kept:
            found.pop()
        found.append((step, None if is_refresh else told["loss"]))
    return [value for _, value in found]


def read_settings(path: Path) -> dict[str, Setting] | None:
    """Read a run's config.yaml on the laptop as dotted keys and values. A list is text.

    Returns None for a file that is missing, invalid, or larger than any configuration of ours.
    """
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read(SETTINGS_BYTES + 1)
        if len(data) > SETTINGS_BYTES:
            return None
        values = yaml.safe_load(data)
    except (
        OSError,
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        LookupError,
        RecursionError,
    ):
        return None
    found: dict[str, Setting] = {}
    waiting = [("", values)]
    seen = 0
    while waiting:
        key, value = waiting.pop()
        seen += 1
        if max(seen, len(waiting)) > SETTINGS_MOST:  # references inside the file can make a small one endless
            return None
        if isinstance(value, dict):
            waiting += [(_inside(key, name), each) for name, each in list(value.items())[:SETTINGS_MOST]]
        else:
            found[key] = _setting(value)
    return found if isinstance(values, dict) else None


def _curve(values: Mapping[int, float]) -> Curve:
    return tuple(sorted(values.items()))


def _keep(curve: dict[int, float], epoch: int, value: float) -> None:
    if epoch in curve or len(curve) < EPOCHS_MOST:
        curve[epoch] = float(value)


def _inside(key: str, name: Any) -> str:
    own = cut(visible(_words(name)[:SETTING_CHARACTERS], newlines=False), 80)
    return f"{key[:SETTING_CHARACTERS]}.{own}" if key else own


def _setting(value: Any) -> Setting:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 1 << 53:
        return value
    if isinstance(value, list):
        value = ", ".join(_words(each) for each in value[:20] if not isinstance(each, list | dict))
    return cut(visible(_words(value)[: SETTING_CHARACTERS + 1], newlines=False), SETTING_CHARACTERS)


def _words(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to write a huge number
        return "a huge number" if isinstance(value, int) else f"a {type(value).__name__}"
