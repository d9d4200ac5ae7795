"""What can go wrong on the laptop, as one small family.

DeployError            message, evidence (last lines seen), next command to type
├── StepFailed         1  the job or a step failed
│   └── BadAnswer      1  a machine or a provider said something that does not fit
├── WrongUse           2  the request cannot be carried out as typed
└── NoMachine          3  the machine could not be had
    └── CannotTrain    3  it is there, and cannot use its GPUs
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence

from deploy.pod.base.addresses import hide
from deploy.pod.base.redact import Redactor, of_environment

OUR_OWN = "SNIPERFACE_"


class DeployError(Exception):
    """A failure that is told to the user in one message, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, evidence: Sequence[str] = (), next_command: str | None = None) -> None:
        redact = Redactor(_secrets())  # whoever shows or keeps it need not think of that
        self.message: str = redact(hide(message))
        super().__init__(self.message)
        self.evidence: tuple[str, ...] = tuple(redact(hide(line)) for line in evidence)
        self.next_command = next_command


class StepFailed(DeployError):
    """The job, or a step on the way to it, failed."""

    exit_code = 1


class BadAnswer(StepFailed):
    """A machine or a provider said something that does not fit; the message names it and the field."""


class WrongUse(DeployError):
    """The request cannot be carried out; nothing was touched."""

    exit_code = 2


class NoAccount(WrongUse):
    """No account of this provider is set up on this computer."""


class NoMachine(DeployError):
    """The machine could not be had."""

    exit_code = 3


class CannotTrain(NoMachine):
    """The machine is there, and the environment on it cannot use its GPUs."""


def _secrets() -> list[str]:
    """Of this computer's environment, as their names tell; a path that is there, such as a key's, is none."""
    named = {name: value for name, value in os.environ.items() if not name.startswith(OUR_OWN)}
    return [value for value in of_environment(named) if not os.path.exists(value)]


def bootstrap_command() -> str:
    """What installs the packages for training: bootstrap.py, called as this user calls it."""
    return f"{os.environ.get('SNIPERFACE_INVOKE') or 'python bootstrap.py invoke'} train"


def command(words: str) -> str:
    """`invoke …` as this user types it: bootstrap.py says so when the command came through it."""
    return f"{os.environ.get('SNIPERFACE_INVOKE') or 'invoke'} {words}"


def unknown(kind: str, wrong: str, right: Iterable[str]) -> WrongUse:
    """The complaint about a name that is not in a list: the nearest right one, then all of them."""
    choices = sorted(right)
    near = difflib.get_close_matches(wrong, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return WrongUse(f"unknown {kind} '{wrong}': {hint}there are: {', '.join(choices)}")
