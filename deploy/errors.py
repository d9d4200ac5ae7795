"""Exceptions of the laptop half, with their exit codes.

DeployError            message, evidence (last lines seen), next command to type
├── StepFailed         1  the job or a step failed
│   └── BadAnswer      1  a machine or a provider sent an invalid answer
├── WrongUse           2  the request cannot be carried out as typed
│   └── NoAccount      2  the provider has no account on this computer
└── NoMachine          3  no usable machine could be provisioned
    └── CannotTrain    3  the machine runs, but cannot use its GPUs
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Sequence

from deploy.pod.base.addresses import hide
from deploy.pod.base.redact import Redactor, of_environment

OUR_OWN = "SNIPERFACE_"


class DeployError(Exception):
    """A failure that the user sees as one message, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, evidence: Sequence[str] = (), next_command: str | None = None) -> None:
        redact = Redactor(_secrets())  # so that printing or storing the error is safe
        self.message: str = redact(hide(message))
        super().__init__(self.message)
        self.evidence: tuple[str, ...] = tuple(redact(hide(line)) for line in evidence)
        self.next_command = next_command


class StepFailed(DeployError):
    """The job, or a step before it, failed."""

    exit_code = 1


class BadAnswer(StepFailed):
    """A machine or a provider sent an invalid answer. The message names the source and the field."""


class WrongUse(DeployError):
    """The request cannot be carried out as typed."""

    exit_code = 2


class NoAccount(WrongUse):
    """No account of this provider is set up on this computer."""


class NoMachine(DeployError):
    """No usable machine could be provisioned."""

    exit_code = 3


class CannotTrain(NoMachine):
    """The machine runs, but the environment on it cannot use its GPUs."""


def _secrets() -> list[str]:
    """Secret values of the environment, by variable name. Skips our own variables and existing paths (key files)."""
    named = {name: value for name, value in os.environ.items() if not name.startswith(OUR_OWN)}
    return [value for value in of_environment(named) if not os.path.exists(value)]


def bootstrap_command(words: str = "train", extra: str = "app") -> str:
    """`invoke …` so that it installs packages first, those of `extra`: by bootstrap.py or uv, as this user calls it."""
    otherwise = f"uv run --extra {extra} invoke" if _is_uv_run() else "python bootstrap.py invoke"
    return f"{os.environ.get('SNIPERFACE_INVOKE') or otherwise} {words}"


def command(words: str) -> str:
    """`invoke …` as this user types it. bootstrap.py sets SNIPERFACE_INVOKE if it started the command."""
    otherwise = "uv run invoke" if _is_uv_run() else "invoke"
    return f"{os.environ.get('SNIPERFACE_INVOKE') or otherwise} {words}"


def _is_uv_run() -> bool:
    """Whether `uv run` started this command: its environment is not activated in the user's terminal."""
    return bool(os.environ.get("UV") and os.environ.get("UV_RUN_RECURSION_DEPTH"))


def quoted(path: object, *, windows: bool = os.name == "nt") -> str:
    """A path as a shell of this computer reads it: in a printed command it must neither fall apart nor be expanded."""
    return f'"{path}"' if windows else shlex.quote(str(path))


def program(path: object, *, windows: bool = os.name == "nt") -> str:
    """A path as the first word of a printed command. PowerShell needs & before quotes; cmd, which sets PROMPT, none."""
    if not windows or not re.search(r"[^\w.:/\\~-]", str(path)):
        return str(path) if windows else shlex.quote(str(path))
    return f'"{path}"' if "PROMPT" in os.environ else f'& "{path}"'


def unknown(kind: str, wrong: str, right: Iterable[str]) -> WrongUse:
    """The error for a name that is not in a list. It suggests the nearest name, then lists all."""
    choices = sorted(right)
    begun = [choice for choice in choices if wrong and choice.startswith(wrong)]
    near = begun or difflib.get_close_matches(wrong, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return WrongUse(f"unknown {kind} '{wrong}': {hint}there are: {', '.join(choices)}")
