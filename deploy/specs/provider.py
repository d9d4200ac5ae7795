"""The base of every provider of machines, with the answers of one that has no offers, volumes or log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from deploy.specs.machine import Card, Image, Machine, MachineSpec, Rental, Volume
from deploy.specs.settings import Settings
from deploy.specs.trial import Trial


class Provider(ABC):
    """Creates, finds, lists, prices and releases machines of one kind: each provider says how it does these five.

    `find` returns None for an unknown name. `release` of a machine that is gone succeeds. `say` gets messages about
    waiting. `acquire` calls `check` with each machine, new or found, before it returns it. `check` raises NoMachine for
    a machine that cannot train; a new machine is then released. `waste` gets the dollars of each machine that `acquire`
    made and released.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.say: Callable[[str], None] = lambda _: None
        self.check: Callable[[Machine], None] = lambda _: None
        self.waste: Callable[[float], None] = lambda _: None

    @abstractmethod
    def acquire(self, spec: MachineSpec) -> Machine:
        """Return an existing machine of the family, or create `spec.name`. Raises NoMachine if neither works."""

    @abstractmethod
    def find(self, name: str) -> Machine | None: ...

    @abstractmethod
    def list(self) -> list[Machine]:
        """List all machines of this project that the provider knows, of any target and run.

        Those that cost nothing are left out: none can be an orphan.
        """

    @abstractmethod
    def release(self, machine: Machine) -> None: ...

    @abstractmethod
    def price(self) -> float | None:
        """Return US dollars per hour of what `acquire` would request first. 0: free. None: nothing is available."""

    def card(self) -> Card | None:
        """Return the GPUs of what `acquire` would request first; None where only the machine knows them."""
        return None

    def image(self) -> Image | None:
        """Return the image that `acquire` would create a machine from; None if it creates none."""
        return None

    def offers(self) -> Sequence[Rental] | None:
        """Return what the provider offers now, of any GPU; None if it rents nothing."""
        return None

    def trial(self) -> Trial | None:
        """Return what `doctor` asks and, with --rent, rents for a moment; None where nothing is rented."""
        return None

    def volumes(self) -> Sequence[Volume]:
        """List all billed volumes of the account, whoever created them. Empty if storage is not billed separately."""
        return ()

    def log(self, machine: Machine) -> Iterator[str]:  # noqa: ARG002 - for providers with a log
        """Yield the console output of a machine, even while SSH is down. Empty where there is no console log."""
        return iter(())
