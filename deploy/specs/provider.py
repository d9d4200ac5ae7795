"""The interface that every provider of machines implements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from deploy.specs.machine import Card, Image, Machine, MachineSpec, Rental, Volume
from deploy.specs.trial import Trial


class Provider(Protocol):
    """Creates, finds and releases machines of one kind.

    `find` returns None for an unknown name. `release` of a machine that is gone succeeds. `say` gets messages about
    waiting. `acquire` calls `check` with each machine, new or found, before it returns it. `check` raises NoMachine for
    a machine that cannot train; a new machine is then released.
    """

    say: Callable[[str], None]
    check: Callable[[Machine], None]

    def acquire(self, spec: MachineSpec) -> Machine:
        """Return an existing machine of the family, or create `spec.name`. Raises NoMachine if neither works."""

    def find(self, name: str) -> Machine | None: ...

    def price(self) -> float | None:
        """Return US dollars per hour of what `acquire` would request first. 0: free. None: nothing is available."""

    def card(self) -> Card | None:
        """Return the GPUs of what `acquire` would request first; None where only the machine knows them."""

    def image(self) -> Image | None:
        """Return the image that `acquire` would create a machine from; None if it creates none."""

    def offers(self) -> Sequence[Rental] | None:
        """Return what the provider offers now, of any GPU; None if it rents nothing."""

    def trial(self) -> Trial | None:
        """Return what `doctor` asks and, with --rent, rents for a moment; None where nothing is rented."""

    def list(self) -> list[Machine]:
        """List all machines of this project that the provider knows, of any target and run."""

    def volumes(self) -> Sequence[Volume]:
        """List all billed volumes of the account, whoever created them. Empty if storage is not billed separately."""

    def release(self, machine: Machine) -> None: ...

    def log(self, machine: Machine) -> Iterator[str]:
        """Yield the console output of a machine, even while SSH is down. Empty where there is no console log."""
