"""What the user asked for, as a value; and how values become words of Hydra's command line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.errors import WrongUse
from deploy.pod.base.redact import SECRET_NAME
from deploy.specs.settings import pack_kind

TRYOUT = "experiment=tryout"
TRYOUTS = {"supervised": "experiment=tryout_supervised"}  # of recipes that have one of their own
DATA_KEY = "data.binary_cache_path"
LABELS_KEY = "data.train_labels_path"
# The launcher has a flag, or its own decision, for these keys; --set may name the first ones all the same.
KEYS_WITH_FLAGS = {
    DATA_KEY: "data",
    LABELS_KEY: "labels",
    "data.data_fraction": "fraction",
    "train.resume": "resume",
    "recipe": "recipe",
}
KEYS_DECIDED_HERE = ("run.dir", "run.commit")
ENV_DECIDED_HERE = ("PATH", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked as far as it can be without looking at anything."""

    target: str = "local"
    fraction: float = 1.0
    resume: str = "none"
    run: str | None = None  # of `resume: auto`: which unfinished run goes on; None: the newest
    recipe: str | None = None
    data: str | None = None
    labels: str | None = None
    overrides: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # variables of the job, each as KEY=VALUE
    pack: str = "none"  # how images of the laptop travel
    nodes: int | None = None  # machines for this run; None: what the target says
    queue: bool = False  # wait for the machine's turn, where another run is on it
    given: frozenset[str] = frozenset()  # which of the above the user typed


def parse_request(
    *,
    target: str,
    fraction: str | None = None,
    resume: str | None = None,
    run: str | None = None,
    recipe: str | None = None,
    data: str | None = None,
    labels: str | None = None,
    pack: str | None = None,
    nodes: str | None = None,
    overrides: Sequence[str] = (),
    env: Sequence[str] = (),
    queue: bool = False,
) -> Request:
    """Flags to a checked Request. A flag and a --set that say two things about one value are refused."""
    flags = {"fraction": fraction, "resume": resume, "recipe": recipe, "data": data, "labels": labels, "pack": pack}
    values = {name: value for name, value in flags.items() if value is not None}
    others = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals and not key.startswith("~"):
            raise WrongUse(f"--set {override} has no '=': write --set key=value, such as --set train.epochs=5")
        if key in KEYS_DECIDED_HERE:
            raise WrongUse(f"--set {key} is decided by the launcher: leave it out")
        flag = KEYS_WITH_FLAGS.get(key)
        if flag is None:
            others.append(override)
        elif values.setdefault(flag, _unquote(value)) != _unquote(value):
            raise WrongUse(f"--{flag} {values[flag]} and --set {override} differ: give one of them")
    if run is not None and values.get("resume") != "auto":
        raise WrongUse(f"--run {run} is for a run that goes on: give --resume auto with it")
    given = frozenset([*values, *(["overrides"] if others else []), *(["nodes"] if nodes is not None else [])])
    for flag in ("data", "labels"):
        if values.get(flag) in ("null", ""):
            del values[flag]
    return Request(
        target=target,
        fraction=parse_fraction(values.get("fraction", "1")),
        resume=values.get("resume", "none") or "none",
        run=run,
        recipe=values.get("recipe"),
        data=values.get("data"),
        labels=values.get("labels"),
        overrides=tuple(others),
        env=parse_env(env),
        pack=pack_kind(values.get("pack", "none"), "--pack"),
        nodes=None if nodes is None else parse_nodes(nodes),
        queue=queue,
        given=given,
    )


def parse_fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise WrongUse(f"--fraction {text} is not a share of the data: give a number above 0 and up to 1, such as 0.01")
    return fraction


def parse_env(assignments: Sequence[str]) -> tuple[str, ...]:
    """Variables as KEY=VALUE, each name once; of two values the last one counts.

    Raises: WrongUse for what is no name, decided by the launcher, or secret by its name.
    """
    found: dict[str, str] = {}
    for each in assignments:
        name, equals, value = each.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise WrongUse(f"--env {each} is no variable: write --env KEY=VALUE, such as --env NCCL_DEBUG=INFO")
        if name.startswith(("SNIPERFACE_", "CUDA_VISIBLE_")) or name in ENV_DECIDED_HERE:
            raise WrongUse(f"--env {name} is decided by the launcher: leave it out")
        if SECRET_NAME.search(name):
            raise WrongUse(
                f"--env {name} is a secret by its name, and a plan is kept: name it in the target's file instead, "
                f"secrets: [{name}], and its value is taken from this computer's environment"
            )
        if "\0" in value:
            raise WrongUse(f"--env {name} has a zero byte, which no variable can hold")
        found[name] = value
    return tuple(f"{name}={value}" for name, value in found.items())


def parse_nodes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise WrongUse(f"--nodes {text} is no number of machines: give a whole number from 1, such as 2")
    return int(text)


def parse_dollars(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        dollars = float(text)
    except ValueError:
        dollars = math.nan
    if not 0 < dollars < math.inf:
        raise WrongUse(f"--max-usd {text} is no amount of money: give a number above 0, such as 20")
    return dollars


def hydra_override(key: str, value: str | float) -> str:
    """`key=value` that Hydra's grammar reads back as exactly this value, whatever characters it holds.

    Inside single quotes only the quote itself needs a backslash, and backslashes count only in front of a quote. Before
    `${` OmegaConf wants one too, and halves those in front of it.
    """
    if not isinstance(value, str):
        return f"{key}={value!r}"
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    text = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    text = re.sub(r"(\\+)\Z", lambda match: match[1] * 2, text)
    return f"{key}='{text}'"


def user_overrides(request: Request, *, tryout: bool) -> tuple[str, ...]:
    """What the request means to the app, before the launcher adds paths. `tryout`: no data is configured."""
    its_own = TRYOUTS.get(request.recipe or "", TRYOUT)
    chosen = [its_own] if tryout and not any(item.startswith("experiment=") for item in request.overrides) else []
    recipe = [f"recipe={request.recipe}"] if request.recipe else []
    return (*chosen, *recipe, *request.overrides)


def _unquote(value: str) -> str:
    """The text inside Hydra's quotes, for the few keys that the launcher takes over."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace(f"\\{value[0]}", value[0])
    return value
