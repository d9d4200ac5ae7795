"""The user's request as a value, and conversion of values to Hydra overrides."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deploy.errors import WrongUse
from deploy.pod.base.redact import SECRET_NAME
from deploy.specs.flags import (
    GPUS,
    HOW,
    NO_SPOT,
    NODES,
    ON,
    PACK,
    PARSED_BY,
    SPOT,
    WHAT,
    WHERE,
    Flag,
    flagged,
    overrides,
)
from deploy.specs.gpus import Renting, parse_gpus
from deploy.specs.settings import pack_kind

TRYOUT = "experiment=tryout"
# of recipes with their own try-out
TRYOUTS = {"supervised": "experiment=tryout_supervised", "distill": "experiment=tryout_distill"}
DATA_KEY = "data.binary_cache_path"
LABELS_KEY = "data.train_labels_path"
# The launcher sets these keys by a flag or decides them itself. --set still accepts those with a flag.
KEYS_WITH_FLAGS = {
    DATA_KEY: "data",
    LABELS_KEY: "labels",
    "data.data_fraction": "fraction",
    "train.resume": "resume",
    "recipe": "recipe",
}
KEYS_DECIDED_HERE = ("run.dir", "run.commit")
NAME_CHARACTERS = 32
ASKED_ANEW = {"target", "run", "env", "queue"}  # never compared with the run that is continued
NOTHING = {"data": ("null", ""), "labels": ("null", ""), "resume": ("",)}  # texts that mean the default
ENV_DECIDED_HERE = ("PATH", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "RANK", "LOCAL_RANK", "WORLD_SIZE")


def _number(text: str) -> float:
    """The number that a text is, NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_fraction(text: str) -> float:
    """Validate a share of the data. Raises WrongUse."""
    fraction = _number(text)
    if not 0 < fraction <= 1:
        raise WrongUse(f"--fraction {text} is not a share of the data: give a number above 0 and up to 1, such as 0.01")
    return fraction


def parse_env(assignments: Sequence[str]) -> tuple[str, ...]:
    """Validate variables given as KEY=VALUE. If a name occurs twice, the last value wins.

    Raises WrongUse for an invalid name or value, a name that the launcher sets, or the name of a secret.
    """
    found: dict[str, str] = {}
    for each in assignments:
        name, equals, value = each.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise WrongUse(f"--env {each} is not a variable: write --env KEY=VALUE, such as --env NCCL_DEBUG=INFO")
        if name.startswith(("SNIPERFACE_", "CUDA_VISIBLE_")) or name in ENV_DECIDED_HERE:
            raise WrongUse(f"--env {name} is decided by the launcher: leave it out")
        if SECRET_NAME.search(name):
            raise WrongUse(
                f"--env {name} has the name of a secret, and plans are stored: list it in the target's file instead, "
                f"secrets: [{name}]; its value then comes from this computer's environment"
            )
        if "\0" in value:
            raise WrongUse(f"--env {name} has a NUL byte, which no variable can hold")
        found[name] = value
    return tuple(f"{name}={value}" for name, value in found.items())


def parse_name(text: str) -> str:
    """Validate the name of a run: it becomes the beginning of its id, of folders and of machines' names.

    Raises WrongUse.
    """
    if re.fullmatch(rf"[a-z0-9](_?[a-z0-9]){{0,{NAME_CHARACTERS - 1}}}", text) and len(text) <= NAME_CHARACTERS:
        return text
    near = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:NAME_CHARACTERS].rstrip("_") or "lr_03"
    raise WrongUse(
        f"--name {text} is not a name: give up to {NAME_CHARACTERS} lower-case letters, digits and single "
        f"underscores, such as {near}"
    )


def parse_nodes(text: str) -> int:
    """Validate a number of machines. Raises WrongUse."""
    if not text.isdecimal() or int(text) < 1:
        raise WrongUse(f"--nodes {text} is not a number of machines: give a whole number from 1, such as 2")
    return int(text)


@dataclass(frozen=True)
class How:
    """How `train` carries a request out: the flags that change nothing in the plan."""

    detach: bool = False
    dry_run: bool = False
    keep: bool = False
    yes: bool = False


@dataclass(frozen=True)
class Request:
    """The user's request, validated as far as possible without I/O. Each field with a flag declares a flag of train."""

    target: str = flagged("local", ON)
    fraction: float = flagged(
        1.0,
        Flag("fraction", "share of the data, above 0 and up to 1 (default: 1)", "SHARE", group=WHAT),
        parse_fraction,
    )
    resume: str = flagged(
        "none",
        Flag(
            "resume",
            "auto: continue the newest unfinished run; none: a new run (default); PATH: start from a checkpoint",
            "auto|none|PATH",
            group=WHAT,
        ),
    )
    run: str | None = flagged(  # None: the newest unfinished run
        None,
        Flag("run", "with --resume auto: which unfinished run (default: the newest of the target)", "RUN", group=WHERE),
    )
    recipe: str | None = flagged(
        None, Flag("recipe", "name of a file in conf/recipe (default: the configuration's)", "RECIPE", group=WHAT)
    )
    data: str | None = flagged(
        None,
        Flag(
            "data",
            "images.npy, images.jpegs, or the folder it is in (default: the target's, else the ORL try-out)",
            "PATH",
            group=WHAT,
        ),
    )
    labels: str | None = flagged(
        None,
        Flag(
            "labels",
            "for --recipe supervised, labels to learn instead of labels.npy, such as the pseudo_ids.npy of mine",
            "PATH",
            group=WHAT,
        ),
    )
    overrides: tuple[str, ...] = flagged(
        (), overrides("key=value of the configuration, such as --set train.epochs=5; repeatable", WHAT), tuple
    )
    env: tuple[str, ...] = flagged(
        (),
        Flag(
            "env",
            "KEY=VALUE, a variable of the job's environment; repeatable; no secrets",
            "KEY=VALUE",
            repeats=True,
            group=WHAT,
        ),
        parse_env,
    )
    pack: str = flagged("none", PACK, lambda text: pack_kind(text, PACK.typed))  # upload format of the laptop's images
    nodes: int | None = flagged(None, NODES, parse_nodes)  # None: the target's value
    gpus: tuple[str, ...] = flagged((), GPUS, parse_gpus)  # NAME or NAME:COUNT; (): the target's
    spot: bool = flagged(False, SPOT)  # False, and no_spot too: the target's value
    no_spot: bool = flagged(False, NO_SPOT)
    name: str | None = flagged(  # None: the name of the data
        None,
        Flag("name", "name of the run; its id begins with it (default: the name of the data)", "NAME", group=WHAT),
        parse_name,
    )
    queue: bool = flagged(
        False,
        Flag("queue", "if another run is on the machine, wait there for its end; the data stays cached", group=HOW),
    )
    given: frozenset[str] = frozenset()  # fields that the user set, to compare with a run that is continued
    combination: str | None = None  # of a sweep: what identifies it, see deploy/specs/sweep.py

    @property
    def renting(self) -> Renting:
        return Renting(self.gpus, self.spot, self.no_spot)


def parse_request(**typed: Any) -> Request:
    """Validate flags, given by their fields' names, and return a Request. None is a flag that is not given.

    Raises WrongUse for an invalid value, and if a flag and a --set give different values.
    """
    values = {name: value for name, value in typed.items() if value not in (None, False, (), [])}
    values = _with_overrides(values)
    if "run" in values and values.get("resume") != "auto":
        raise WrongUse(f"--run {values['run']} continues an earlier run: add --resume auto")
    if "spot" in values and "no_spot" in values:
        raise WrongUse("--spot and --no-spot contradict each other: give one of them")
    given = frozenset(values) - ASKED_ANEW
    for name in ("data", "labels", "resume"):
        if values.get(name) in NOTHING[name]:
            del values[name]
    parsers = {each.name: each.metadata.get(PARSED_BY) for each in fields(Request)}
    parsed = {name: parser(value) if (parser := parsers[name]) else value for name, value in values.items()}
    return Request(**parsed, given=given)


def _with_overrides(values: dict[str, Any]) -> dict[str, Any]:
    """Move each --set of a key that has a flag to the flag's field."""
    values = dict(values)
    others = []
    for override in values.pop("overrides", ()):
        key, equals, value = override.partition("=")
        if not equals and not key.startswith("~"):
            raise WrongUse(f"--set {override} has no '=': write --set key=value, such as --set train.epochs=5")
        if not key.strip("+~"):
            raise WrongUse(f"--set {override} names no key: write --set key=value, such as --set train.epochs=5")
        if key in KEYS_DECIDED_HERE:
            raise WrongUse(f"--set {key} is decided by the launcher: leave it out")
        flag = KEYS_WITH_FLAGS.get(key)
        if flag is None:
            others.append(override)
        elif values.setdefault(flag, unquoted(value)) != unquoted(value):
            raise WrongUse(f"--{flag} {values[flag]} and --set {override} differ: give one of them")
    return {**values, "overrides": others} if others else values


def contradictions(request: Request, earlier: Request) -> list[str]:
    """Flags of a request that contradict the run that it would continue, as typed."""
    found = []
    for name in ("fraction", "labels", "pack", "name", "recipe", "data"):
        told, was = getattr(request, name), getattr(earlier, name)
        is_same_file = name == "data" and str(Path(told or "").absolute()) == was
        if name in request.given and told != was and not is_same_file:
            found.append(f"--{name} {told:g}" if isinstance(told, float) else f"--{name} {told}")
    found += [f"--env {item}" for item in request.env if item not in earlier.env]
    return [*found, *(f"--set {item}" for item in request.overrides if item not in earlier.overrides)]


def parse_dollars(text: str | None) -> float | None:
    """Validate an amount of money. Raises WrongUse."""
    if text is None:
        return None
    dollars = _number(text)
    if not 0 < dollars < math.inf:
        raise WrongUse(f"--max-usd {text} is not an amount of money: give a number above 0, such as 20")
    return dollars


def hydra_override(key: str, value: str | float) -> str:
    """Return `key=value` quoted so that Hydra's grammar reads back exactly this value, with any characters.

    Inside single quotes only the quote itself needs a backslash, and backslashes count only before a quote. OmegaConf
    needs a backslash before `${` too, and halves those in front of it.
    """
    if not isinstance(value, str):
        return f"{key}={value!r}"
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    text = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    text = re.sub(r"(\\+)\Z", lambda match: match[1] * 2, text)
    return f"{key}='{text}'"


def user_overrides(request: Request, *, tryout: bool) -> tuple[str, ...]:
    """Return the request as Hydra overrides, before the launcher adds paths. `tryout`: no data is configured."""
    its_own = TRYOUTS.get(request.recipe or "", TRYOUT)
    chosen = [its_own] if tryout and not any(item.startswith("experiment=") for item in request.overrides) else []
    recipe = [f"recipe={request.recipe}"] if request.recipe else []
    return (*chosen, *recipe, *request.overrides)


def unquoted(value: str) -> str:
    """Remove Hydra's quotes from a value, for the few keys that the launcher handles."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace(f"\\{value[0]}", value[0])
    return value
