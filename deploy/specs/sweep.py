"""PURE: a sweep: the combinations of its values, each a request of its own, and what happens after each run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.errors import WrongUse
from deploy.pod.base.folder import LIVE_STATES
from deploy.specs.plan import Plan
from deploy.specs.request import KEYS_DECIDED_HERE, KEYS_WITH_FLAGS, NAME_CHARACTERS, Request, parse_request

MOST_RUNS = 64
EXAMPLE = "train.optimizer.lr=0.03,0.1"
EXAMPLE_TARGETS = "gpu1,gpu2"
OPENS, CLOSES, QUOTES = "([{", ")]}", "'\""
FUNCTIONS = re.compile(r"(range|interval|choice|glob|shuffle|sort|tag)\(")  # of Hydra's sweeps
NOT_COMPARED = {"given", "queue", "name", "combination", "spot", "no_spot"}  # they do not change what a run trains
Settings = tuple[tuple[str, str], ...]  # key and value of each swept setting, as typed


@dataclass(frozen=True)
class Combination:
    """One run of a sweep."""

    name: str
    settings: Settings
    request: Request

    @property
    def words(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.settings)


def combinations(sweeps: Sequence[str], typed: Mapping[str, Any]) -> list[Combination]:
    """Return all combinations of the values in `sweeps`, texts such as `key=a,b`; the last one varies first.

    `typed`: the other flags, by the fields of Request. Raises WrongUse for texts or flags that make no sweep.
    """
    base = parse_request(**{name: value for name, value in typed.items() if name not in ("resume", "run")})
    if typed.get("run") is not None:
        raise WrongUse(f"--run {typed['run']} continues an earlier run, and --sweep starts new ones: give one of them")
    swept: dict[str, list[str]] = {}
    for text in sweeps:
        key, values = _values(text)
        if key in swept:
            raise WrongUse(f"--sweep {key} is given twice: give all its values in one --sweep {key}=…")
        _refuse_given(key, typed)
        swept[key] = values
    rows = [tuple(zip(swept, row, strict=True)) for row in itertools.islice(itertools.product(*swept.values()), 10**4)]
    if len(rows) > MOST_RUNS:
        many = "more than 9999" if len(rows) == 10**4 else str(len(rows))
        raise WrongUse(f"--sweep makes {many} runs, and {MOST_RUNS} are the most: give fewer values")
    if len(rows) == 1:
        (key, value), *_ = rows[0]
        raise WrongUse(f"--sweep {key}={value} has one value: give several, such as {EXAMPLE}, or --set {key}={value}")
    names = _names(base.name, rows)
    return [_combination(name, row, typed) for name, row in zip(names, rows, strict=True)]


def _combination(name: str, row: Settings, typed: Mapping[str, Any]) -> Combination:
    overrides = [*(typed.get("overrides") or ()), *(f"{key}={value}" for key, value in row)]
    try:
        request = parse_request(**{**typed, "name": name, "overrides": overrides})
    except WrongUse as error:  # the other flags are right, so it is one of the swept values
        raise WrongUse(f"--sweep {' '.join(f'{key}={value}' for key, value in row)}: {error.message}") from error
    if request.resume == "auto":
        raise WrongUse("--resume auto continues one run, and --sweep starts new ones: give one of them")
    return Combination(name, row, request)


def _values(text: str) -> tuple[str, list[str]]:
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise WrongUse(f"--sweep {text} has no 'key=': write --sweep key=value,value, such as --sweep {EXAMPLE}")
    if key.startswith("~") or key in KEYS_DECIDED_HERE or KEYS_WITH_FLAGS.get(key) == "resume":
        raise WrongUse(f"--sweep {key} is not possible: it is no setting that differs between runs; leave it out")
    if FUNCTIONS.match(rest):
        raise WrongUse(f"--sweep {text} is no list: write the values, separated by commas, such as --sweep {EXAMPLE}")
    values = split(rest)
    if values is None:
        raise WrongUse(f"--sweep {text} has a bracket or a quote that does not end: end it")
    if "" in values:
        raise WrongUse(f"--sweep {text} has an empty value: write --sweep {key}=value,value without a comma too many")
    seen: set[str | float] = set()
    for value in values:
        if _same(value) in seen:
            raise WrongUse(f"--sweep {text} has the value {value} twice: give each value once")
        seen.add(_same(value))
    return key, values


def split(text: str) -> list[str] | None:
    """Split at commas outside of quotes and brackets, as in `[1,2],[3]`. None: one of them does not end."""
    parts, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = letter == "\\" and not escaped
        elif letter in QUOTES:
            quote = letter
        else:
            depth += (letter in OPENS) - (letter in CLOSES)
            if depth < 0:
                return None
    return None if depth or quote else [part.strip() for part in parts]


def _same(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


def _refuse_given(key: str, typed: Mapping[str, Any]) -> None:
    """Raise WrongUse for a swept key that another flag sets, too."""
    for override in typed.get("overrides") or ():
        if override.partition("=")[0].lstrip("+~") == key.lstrip("+"):
            raise WrongUse(f"--sweep {key} and --set {override} set the same key: give one of them")
    flag = KEYS_WITH_FLAGS.get(key)
    if flag and typed.get(flag) not in (None, "", "none"):
        raise WrongUse(f"--sweep {key} and --{flag} {typed[flag]} set the same key: give one of them")


def _names(name: str | None, rows: Sequence[Settings]) -> list[str]:
    """Names from the values, such as lr_0_03, after `name`; numbers if a name would be too long or not its own."""
    keys = [key for key, _ in rows[0]]
    short = dict(zip(keys, short_keys(keys), strict=True))
    begin = [name] if name else []
    told = ["_".join([*begin, *(_word(f"{short[key]}_{value}") for key, value in row)]) for row in rows]
    has_words = all(_word(value) for row in rows for _, value in row)
    if has_words and len(set(told)) == len(rows) and max(map(len, told)) <= NAME_CHARACTERS:
        return told
    stem = (name or "sweep")[: NAME_CHARACTERS - 3].rstrip("_")
    return [f"{stem}_{number:02}" for number in range(1, len(rows) + 1)]


def short_keys(keys: Sequence[str]) -> list[str]:
    """Return the last part of each key, or as many last parts as make the keys differ."""
    for count in range(1, 10):
        short = [".".join(key.split(".")[-count:]) for key in keys]
        if len(set(short)) == len(keys):
            return short
    return list(keys)


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def identity(request: Request) -> str:
    """Identify what a combination trains, as far as the request tells: not its name, nor how it waits for its turn.

    The request must be checked, so that its paths do not depend on the current folder.
    """
    told = {key: value for key, value in asdict(request).items() if key not in NOT_COMPARED}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8")).hexdigest()[:16]


def refuse_same(combos: Sequence[Combination], configs: Sequence[Mapping[str, Any]]) -> None:
    """Raise WrongUse for two combinations with the same resolved configuration, such as of true and True."""
    seen: dict[str, Combination] = {}
    for combo, config in zip(combos, configs, strict=True):
        first = seen.setdefault(json.dumps(config, sort_keys=True), combo)
        if first is not combo:
            raise WrongUse(f"{first.words} and {combo.words} are the same configuration: leave one of them out")


@dataclass(frozen=True)
class Total:
    """Minutes and dollars of all runs of a sweep. None: not known of at least one run."""

    minutes: float | None
    usd: float | None


def total(plans: Sequence[Plan]) -> Total:
    minutes = [plan.expected_minutes for plan in plans]
    dollars = [plan.expected_usd for plan in plans]
    return Total(_of_all(sum, minutes), _of_all(sum, dollars))


def _of_all(join: Callable[[Sequence[float]], float], values: Sequence[float | None]) -> float | None:
    """The sum or the greatest of the values; None if one of them is not known."""
    known = [value for value in values if value is not None]
    return round(join(known), 2) if len(known) == len(values) else None


def dearest(plans: Mapping[str, Sequence[Plan]]) -> float | None:
    """Dollars of all runs if each ran on the target where it costs most. None: not known of at least one.

    `plans`: of each target, for the same runs in the same order.
    """
    runs = zip(*plans.values(), strict=True)
    return _of_all(sum, [_of_all(max, [plan.expected_usd for plan in of_run]) for of_run in runs])


def limit_notes(plan: Plan, all_together: Total) -> Iterator[str]:
    """Yield sentences: how the target's limits hold for a sweep, and whether one of them will end it."""
    limits, is_paid = plan.limits, plan.usd_per_hour != 0
    hours = None if all_together.minutes is None else all_together.minutes / 60
    kinds = (("max_hours", limits.max_hours, hours), ("max_usd", limits.max_usd, all_together.usd))
    named = {name: (most, expected) for name, most, expected in kinds if most is not None}
    if not is_paid:
        named.pop("max_usd", None)
        if named:
            yield f"max_hours {limits.max_hours:g} holds for each run"
        return
    words = " and ".join(f"{name} {most:g}" for name, (most, _) in named.items())
    if words:
        yield f"{words}: for the machine since its creation, so all runs on it share it"
    for name, (most, expected) in named.items():
        if expected is not None and expected > most:
            yield f"warning: about {expected:.2f} is more than {name} {most:g}, which will end the sweep"


def targets_of(typed: str | None) -> list[str]:
    """Return the targets of `--on a,b`, between which a sweep is divided. Raises WrongUse for one given twice."""
    names = [name.strip() for name in (typed or "").split(",")]
    if len(names) > 1 and (wrong := [name for name in names if not name or names.count(name) > 1]):
        told = f"target '{wrong[0]}' twice" if wrong[0] else "a target without a name"
        raise WrongUse(f"--on {typed} has {told}: give each target once, such as --on {EXAMPLE_TARGETS}")
    return names


def next_place(target: str, left: Sequence[int], refused: Collection[tuple[str, int]]) -> int | None:
    """Return the first place of `left` that a target can take. `refused`: targets and places that could not start."""
    return next((place for place in left if (target, place) not in refused), None)


def end_of_sweep(state: str | None, *, ran: bool, exit_code: int, repeated: bool) -> str | None:
    """Return why the sweep ends after a run, or None if the next combination starts.

    `state`: of the run; None if it was not recorded. `ran`: its job started. `exit_code`: of the failure, 0 for none.
    `repeated`: the run before failed with the same message.
    """
    if state is None:
        return "it could not start"
    if state == "succeeded":
        return None
    if state in LIVE_STATES:
        return "the run continues without this command"
    if state == "stopped":
        return "the run was stopped"
    if state == "expired":
        return "a limit of the target was reached"
    if state == "lost":
        return "the run was lost"
    if ran:
        return None  # the job of this combination failed
    if exit_code == 2 and not repeated:
        return None  # this combination does not fit the machine
    return "the next combination would fail in the same way"
