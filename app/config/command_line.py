"""The arguments of `python -m app.…` are Hydra overrides and options.

key=value …          the configuration; a group such as backbone=iresnet18 is a key too
--help               what can be set, with its defaults
--cfg job            print the configuration instead of running (--package train.optimizer: a part of it)
--multirun, -m       every combination of key=a,b, one after the other, each in a run folder of its own
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from app.config.checks import nearest
from app.config.compose import as_yaml, groups, load, sweep
from app.config.peers import refuse_habits
from app.config.schema import Config, defaults
from app.errors import WrongUse


@dataclass(frozen=True)
class CommandLine:
    """The `jobs` to run, or a `text` to print instead."""

    jobs: Sequence[Config] = ()
    text: str | None = None


def read_command_line(argv: Sequence[str], usage: str) -> CommandLine:
    """Parse a command line into checked configurations. `usage` is the first part of the help. Raises WrongUse."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c")
    parser.add_argument("--resolve", action="store_true")  # accepted only; the output is always resolved
    parser.add_argument("--package", "-p")
    parser.add_argument("--multirun", "-m", action="store_true")
    for word in argv:
        refuse_habits(word, groups()["experiment"])  # before argparse complains about an option
    asked = parser.parse_intermixed_args(list(argv))
    if asked.help:
        return CommandLine(text=manual(usage))
    if asked.cfg not in (None, "job"):
        raise WrongUse(f"--cfg {asked.cfg} is not known; give --cfg job")
    if asked.cfg:
        return CommandLine(text=as_yaml(load(asked.overrides), asked.package))
    if asked.package or asked.resolve:
        raise WrongUse("--package and --resolve belong to --cfg job")
    overrides = sweep(asked.overrides) if asked.multirun else [asked.overrides]
    return CommandLine(jobs=[load(words) for words in overrides])


def own_words(argv: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split arguments into a command's own options (key=value, key in `names`) and configuration overrides.

    Raises WrongUse for an unknown key (with the closest known one), for an argument that is not key=value, and for an
    own option given twice.
    """
    own: dict[str, str] = {}
    others = []
    known = sorted({*names, *defaults(), *groups()})
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            raise WrongUse(f"{word} is not of the form key=value, such as {names[0]}=…; --help shows what can be given")
        if key in own:
            raise WrongUse(f"{key}= is given twice; give it once")
        if key in names:
            own[key] = value
        elif key.lstrip("+~") in known:
            others.append(word)
        else:
            raise WrongUse(f"there is no option {key}; {nearest(key, known)}")
    return own, others


def manual(usage: str) -> str:
    """The help text: usage, every group with its choices, every key with its default."""
    choices = "\n".join(f"  {group}={' | '.join(names)}" for group, names in groups().items())
    keys = "\n".join(f"  {key}={json.dumps(value)}" for key, value in defaults().items())
    return f"{usage.strip()}\n\n{(__doc__ or '').strip()}\n\nGroups:\n{choices}\n\nKeys and their defaults:\n{keys}\n"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUse(f"{message}; --help shows what can be given")
