"""A machine as plain data, and the verbs that every provider has: four to have machines, two to look at them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

from deploy.errors import WrongUse

# Of a host: a name, an alias of ssh's configuration, IPv4 or IPv6. Of a user: also Windows' domain\\user.
HOST = re.compile(r"[A-Za-z0-9_:\[][A-Za-z0-9_.:%+\]-]{0,254}")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@\\-]{0,63}\$?")


@dataclass(frozen=True)
class Address:
    """Where SSH finds a machine, with which key, and by which host keys the machine proves that it is the right one."""

    host: str  # a name, an address, or an alias of the user's own ssh configuration
    port: int | None = None  # None: what the ssh configuration says, else 22
    user: str | None = None  # None: what the ssh configuration says, else this computer's user
    key: str | None = None  # a private key file on the laptop; None: agent, ssh configuration, default keys
    # Public host keys ("ssh-ed25519 AAAA...") that came over a way that is authenticated already, such as the engine
    # or the provider's API. With none the user's known_hosts decides, or `fingerprint`, or a question.
    host_keys: tuple[str, ...] = ()
    fingerprint: str | None = None  # "SHA256:...", pinned in the target's file
    first_use: bool = False  # made a moment ago, so that nothing can be known of it: its first key is pinned

    def __post_init__(self) -> None:
        """Raises WrongUse for what is no word of ssh's configuration or command line."""
        for what, value, kind, right in (("host", self.host, HOST, "gpu-1"), ("user", self.user, USER, "root")):
            if value and not kind.fullmatch(value):
                raise WrongUse(f"{what} {value[:80]!r} has characters that no {what} has: give one such as {right}")
        if self.key and not self.key.isprintable():
            raise WrongUse(f"the path of the key {self.key[:200]!r} has characters that cannot be printed")


@dataclass(frozen=True)
class MachineSpec:
    """What is asked for. The name carries project, target and run, so that an orphan is found without any local file.

    A machine whose name begins with `family` belongs to the same project and target: while one of them is alive and
    good, it is the answer, and nothing new is made.

    A run on several machines asks for one after the other, node 0 first; they must be able to reach each other.
    """

    name: str
    family: str
    root: PurePath
    node: int = 0  # which of them this is
    nodes: int = 1

    def fits(self, name: str) -> bool:
        """Whether a machine of this name is of the family, and has this place in it."""
        return name.startswith(self.family) and node_of(name) == self.node


def node_name(name: str, node: int) -> str:
    """The name of one of several machines that were made together; the first has theirs."""
    return f"{name}-node{node}" if node else name


def node_of(name: str) -> int:
    """The reverse of `node_name`."""
    found = re.search(r"-node(\d+)$", name)
    return int(found[1]) if found else 0


@dataclass(frozen=True)
class Machine:
    """What was had: how to reach it, where things live on it, and its price."""

    name: str
    provider: str
    root: PurePath  # absolute, in the machine's own kind of path
    python: str  # the Python of the training environment, on the machine
    usd_per_hour: float = 0.0
    address: Address | None = None  # None: this computer
    id: str = ""  # the provider's own name for it
    created: float | None = None  # Unix seconds: since when it is paid for
    gpu: str | None = None  # as the provider calls it
    gpus: int | None = None  # that are paid for; None where only the machine knows
    is_stopped: bool = False  # it computes nothing; `usd_per_hour` is then what its disk costs
    group: str | None = None  # the provider's name for what it is a part of, and is released with; None: it is alone

    @property
    def is_here(self) -> bool:
        return self.address is None

    def path(self, text: str) -> PurePath:
        """A path of this machine: a Windows laptop must not turn its slashes around."""
        return type(self.root)(text)


@dataclass(frozen=True)
class Volume:
    """Storage of the account that bills by itself, whether or not a machine uses it."""

    id: str
    name: str  # the user's own word for it; two may have the same
    gb: int
    usd_per_month: float
    place: str  # the data centre that it is in
    note: str | None = None  # what is not sure about the price


@dataclass(frozen=True)
class Hardware:
    """What decides how many processes train, and whether the data has room."""

    gpus: int  # that the environment which trains can use; see deploy/workspace/devices.py
    cores: int  # that this machine may use: a container's share, not its host's
    memory_bytes: int | None = None  # likewise; None where it cannot be told
    gpu: str | None = None  # the name of the first one
    gpu_memory_bytes: int | None = None  # of the smallest one
    capability: tuple[int, int] | None = None  # of the oldest one
    driver: str | None = None
    shm_bytes: int | None = None  # size of /dev/shm; None where there is none
    why: str | None = None  # there is no GPU, where a reason is known


@dataclass(frozen=True)
class Card:
    """GPUs of one kind, as a provider offers them."""

    name: str
    count: int
    memory_bytes: int


@dataclass(frozen=True)
class Place:
    """One of several machines that train one run. Addresses are IPv4, as the machines reach each other."""

    rank: int  # of its torchrun agent among them; 0 writes the checkpoints
    address: str
    interface: str  # of the network that leads to the others; empty where it could not be told
    host: str  # the address of rank 0, where all meet
    port: int


class Provider(Protocol):
    """Makes machines of one kind. `find` returns nothing for an unknown name; `release` of what is gone is success.

    `say` is told, in words, what is waited for. `check` is called with each machine that was made or found, before
    `acquire` hands it out; it raises NoMachine for one that cannot train, and what was made is then released.
    """

    say: Callable[[str], None]
    check: Callable[[Machine], None]

    def acquire(self, spec: MachineSpec) -> Machine:
        """A machine of the family that is there already, or a new one named `spec.name`; NoMachine when neither is."""

    def find(self, name: str) -> Machine | None: ...

    def price(self) -> float | None:
        """US dollars an hour of what `acquire` would ask for first; 0 where nothing is paid, None where none is had."""

    def card(self) -> Card | None:
        """The GPUs of what `acquire` would ask for first; None where that is known on the machine alone."""

    def list(self) -> list[Machine]:
        """Every machine of this project, of any target and run, that this provider knows."""

    def volumes(self) -> Sequence[Volume]:
        """Every volume of the account that bills, whoever made it; nothing where storage is not billed by itself."""

    def release(self, machine: Machine) -> None: ...

    def log(self, machine: Machine) -> Iterator[str]:
        """What a machine printed on its console, also while SSH is down; nothing where there is no such thing."""
