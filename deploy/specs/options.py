"""The closed contract of a provider's keys: facts that plan, limits, release, guard, bills, watch and doctor ask for.

The keys of each provider in a target's file are a frozen dataclass that derives from Options. A default is right for a
provider without the thing. Nothing outside deploy/providers asks which provider it is.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from deploy.errors import command
from deploy.pod.base.limits import NONE

# A name as the Distribution specification has it: registry, path in lower case, tag, digest.
_REGISTRY = r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+(?::\d+)?|[A-Za-z0-9-]+:\d+|localhost)/"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
IMAGE_NAME = re.compile(
    rf"(?:{_REGISTRY})?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII
)


def wrong_image(name: str | None) -> str | None:
    """What is wrong with the key `image`, and a value that works; None if nothing is."""
    if not name or IMAGE_NAME.fullmatch(name):
        return None
    return f"image: {name!r} is not an image name: give one such as me/sniperface:1"


@dataclass(frozen=True)
class Mount:
    """Storage of the account on a machine. Its files outlive the machine. `id`: the provider's, as in Volume."""

    id: str
    path: str


class Options:
    """The keys of one provider in a target's file, and its facts."""

    provider: ClassVar[str]  # "module:Class" of its Provider, imported on first use
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # key -> its values; the first is the default
    is_local: ClassVar[bool] = False  # the machine is this computer
    is_shared: ClassVar[bool] = False  # the machine exists anyway, and other users may be on it
    is_rented: ClassVar[bool] = False  # the machine belongs to someone else, unless the target says `trust: own`
    release: ClassVar[str] = NONE  # who releases a machine when its guard has ended the work: see pod/base/limits.py
    poll_s: ClassVar[float | None] = None  # pause of `watch` between two calls of the provider; None: its own
    account_keys: ClassVar[tuple[str, ...]] = ()  # variables with keys of the account, which never leave this computer

    renting: ClassVar[Mapping[str, str]] = {}  # gpus, gpu_count, spot: the keys for what --gpus and --spot say

    @classmethod
    def normalised(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys' values as the provider spells them."""
        return dict(values)

    @property
    def missing(self) -> str | None:
        """A key that must be given and is not, with an example; None if nothing is missing."""
        return None

    @property
    def wrong(self) -> str | None:
        """What is wrong with a value of the keys, and one that works; None if nothing is."""
        return None

    @property
    def mount(self) -> Mount | None:
        """The account's storage that each machine mounts."""
        return None

    @property
    def hosts_shown(self) -> str | None:
        """The hosts that the keys name, for the list of targets; None if the provider makes the machines."""
        return None

    @property
    def rents(self) -> tuple[tuple[str, ...], int] | None:
        """The GPUs or types of machines that are tried, and the number of GPUs of each; None: no choice of them."""
        if "gpus" not in self.renting:
            return None
        return getattr(self, self.renting["gpus"]), getattr(self, self.renting["gpu_count"])

    def renting_as(self, said: Mapping[str, object]) -> Options:
        """Return the keys with these values of what a command can say about renting, by the words of `renting`."""
        changes: dict[str, Any] = {self.renting[word]: value for word, value in said.items()}
        return replace(self, **changes)  # type: ignore[type-var]  # each provider's keys are a dataclass

    @property
    def lists_all_gpus(self) -> bool:
        """Whether the provider's offers are its whole catalogue, not only the GPUs that the keys name."""
        return True

    @property
    def is_preemptible(self) -> bool:
        """Whether the provider may end a machine at any moment."""
        return False

    @property
    def account(self) -> str | None:
        """What tells two accounts of one provider apart; None if this computer has one."""
        return None

    @property
    def reports_less(self) -> bool:
        """Whether another target of the same account tells more about its machines."""
        return False

    def refuse_nodes(self, nodes: int, target: str, where: str) -> None:
        """Raise WrongUse if a run cannot have so many machines. `where`: the target's file."""

    def silent_fix(self, target: str, where: str) -> str:
        """What to do about a machine that does not answer."""
        del where
        return f"release it: {command(f'down --on {target}')}"


class Registry(Mapping[str, type[Options]]):
    """Provider's name -> its Options, imported from "module:Class" on first use."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> type[Options]:
        found: type[Options] = load_class(self._places[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load_class(place: str) -> Any:
    """Import a class from "module:Class"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
