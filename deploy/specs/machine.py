"""A machine as plain data, and what a provider says of machines, images and storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from deploy.errors import WrongUse

# HOST: a name, an alias in the SSH configuration, IPv4 or IPv6. USER: also Windows' domain\\user.
HOST = re.compile(r"[A-Za-z0-9_:\[][A-Za-z0-9_.:%+\]-]{0,254}")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@\\-]{0,63}\$?")


@dataclass(frozen=True)
class Address:
    """SSH address of a machine: host, login key, and the host keys that identify it."""

    host: str  # a name, an address, or an alias in the user's SSH configuration
    port: int | None = None  # None: from the SSH configuration, else 22
    user: str | None = None  # None: from the SSH configuration, else this computer's user
    key: str | None = None  # a private key file on the laptop; None: agent, SSH configuration, default keys
    # Public host keys ("ssh-ed25519 AAAA...") received over an authenticated channel, such as the engine or the
    # provider's API. Without any, `fingerprint` or the user's known_hosts decides, or the user is asked.
    host_keys: tuple[str, ...] = ()
    fingerprint: str | None = None  # "SHA256:...", pinned in the target's file
    first_use: bool = False  # the machine was just created, so no key can be known: its first key is pinned

    def __post_init__(self) -> None:
        """Raises WrongUse for values that do not fit into ssh's configuration or command line."""
        for what, value, kind, right in (("host", self.host, HOST, "gpu-1"), ("user", self.user, USER, "root")):
            if value and not kind.fullmatch(value):
                raise WrongUse(f"{what} {value[:80]!r} has characters invalid in a {what}: give one such as {right}")
        if self.key and not self.key.isprintable():
            raise WrongUse(f"the path of the key {self.key[:200]!r} has characters that cannot be printed")


@dataclass(frozen=True)
class MachineSpec:
    """A request for a machine. The name holds project, target and run, so orphans are found without local files.

    Machines whose names begin with `family` belong to the same project and target. If one of them is alive and usable,
    it is reused; otherwise a new machine is created.

    A run on several machines requests them one by one, node 0 first. They must be able to reach each other.
    """

    name: str
    family: str
    root: PurePath
    node: int = 0  # index of this machine in the run
    nodes: int = 1
    data_bytes: int = 0  # of the images that it may have to store on its own disk

    def fits(self, name: str) -> bool:
        """Return whether a machine of this name belongs to the family and has the same node index."""
        return name.startswith(self.family) and node_of(name) == self.node


def node_name(name: str, node: int) -> str:
    """Return the name of one of several machines created together. Node 0 has the plain name."""
    return f"{name}-node{node}" if node else name


def node_of(name: str) -> int:
    """Return the node index in a name made by `node_name`."""
    found = re.search(r"-node(\d+)$", name)
    return int(found[1]) if found else 0


@dataclass(frozen=True)
class Machine:
    """A provisioned machine: how to reach it, its folders, and its price."""

    name: str
    root: PurePath  # absolute, in the machine's own path type
    python: str  # the Python of the training environment, on the machine
    usd_per_hour: float = 0.0
    address: Address | None = None  # None: this computer
    id: str = ""  # the provider's id
    created: float | None = None  # Unix seconds by this computer's clock: start of billing
    clock_ahead_s: float = 0.0  # of its clock to this computer's, in whole minutes; measured where it is settled
    gpu: str | None = None  # as the provider names it
    gpus: int | None = None  # GPUs paid for; None where only the machine knows
    is_stopped: bool = False  # computes nothing; `usd_per_hour` is then the price of its disk
    group: str | None = None  # the provider's id of the group that it is part of and released with; None: no group
    fault: str | None = None  # why the provider's entry about it cannot be read; its price is then unknown

    @property
    def is_here(self) -> bool:
        return self.address is None

    @property
    def paid_since(self) -> float | None:
        """Start of billing by the machine's own clock, which may be wrong by hours."""
        return None if self.created is None else max(0.0, self.created + self.clock_ahead_s)

    @property
    def can_be_reached(self) -> bool:
        """Whether this is all that a connection needs. If not, `Provider.find` may know more than `list`."""
        address = self.address
        has_address = address is not None and bool(address.host and address.port)
        return has_address and not self.is_stopped and bool(address and (address.host_keys or address.first_use))

    def path(self, text: str) -> PurePath:
        """Make a path of the machine's type, so that a Windows laptop does not convert its slashes."""
        return type(self.root)(text)


@dataclass(frozen=True)
class Volume:
    """Storage of the account that is billed separately, even when no machine uses it."""

    id: str
    name: str  # chosen by the user; not unique
    gb: int
    usd_per_month: float
    place: str  # data centre
    note: str | None = None  # what is uncertain about the price
    fault: str | None = None  # why the provider's entry cannot be read; then only id and name may be known


@dataclass(frozen=True)
class Hardware:
    """Hardware of a machine. It decides how many processes train, and whether the data fits."""

    gpus: int  # usable by the training environment; see deploy/workspace/devices.py
    cores: int  # usable by this machine: a container's share, not its host's
    memory_bytes: int | None = None  # likewise; None where not known
    gpu: str | None = None  # name of the first GPU
    gpu_memory_bytes: int | None = None  # of the smallest GPU
    capability: tuple[int, int] | None = None  # compute capability of the oldest GPU
    shm_bytes: int | None = None  # size of /dev/shm; None where there is none
    why: str | None = None  # why there is no GPU, where known


@dataclass(frozen=True)
class Card:
    """GPUs of one kind, as a provider offers them."""

    name: str
    count: int
    memory_bytes: int


@dataclass(frozen=True)
class Image:
    """The image that a new machine starts. Without the environment, pip makes it there, in the root of the target."""

    name: str  # empty if it must be made first
    has_environment: bool | None = None  # None: the provider's images are made with it
    is_kept: bool = False  # the root is on a network volume, so that the next machine finds the environment


@dataclass(frozen=True)
class Rental:
    """A machine that a provider offers. `why_not`: why this target would not rent it; empty if it would."""

    gpu: str
    count: int
    memory_gib: float | None  # of one GPU; None where not known
    usd_per_hour: float  # of the whole machine
    data_centers: tuple[str, ...]  # with stock; empty where not known
    in_target: bool  # whether the target names the GPU
    why_not: str
    title: str = ""  # another name of the GPU
    counts: tuple[int, ...] = ()  # numbers of GPUs that a machine of this kind can have


@dataclass(frozen=True)
class Place:
    """One of several machines that train one run. Addresses are IPv4, those that the machines use among themselves."""

    rank: int  # of its torchrun agent; rank 0 writes the checkpoints
    address: str
    interface: str  # network interface to the other machines; empty where not known
    host: str  # address of rank 0, the rendezvous host
    port: int
