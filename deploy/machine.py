"""A machine as plain data, and the four verbs that every provider has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol


@dataclass(frozen=True)
class MachineSpec:
    """What is asked for. The name carries project and run, so that an orphan is found without any local file."""

    name: str
    root: PurePath


@dataclass(frozen=True)
class Machine:
    """What was had: how to reach it (`transport` picks the shell), where things live on it, and its price."""

    name: str
    provider: str
    transport: str
    root: PurePath
    python: str
    usd_per_hour: float


@dataclass(frozen=True)
class Hardware:
    """What decides how many processes train."""

    gpus: int
    cores: int


class Provider(Protocol):
    """Makes machines of one kind. `find` returns nothing for an unknown name; `release` of what is gone is success."""

    def acquire(self, spec: MachineSpec) -> Machine: ...

    def find(self, name: str) -> Machine | None: ...

    def list(self) -> list[Machine]: ...

    def release(self, machine: Machine) -> None: ...
