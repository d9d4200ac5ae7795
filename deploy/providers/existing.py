"""What the providers of existing machines share: nothing is created, billed or released."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from deploy.specs.machine import Card, Machine, Rental, Volume
from deploy.specs.settings import Settings


class Existing:
    """The answers of a provider whose machines exist anyway. A provider adds `acquire` and `find`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.say: Callable[[str], None] = lambda _: None
        self.check: Callable[[Machine], None] = lambda _: None  # unused: checked later, once there is an environment

    def price(self) -> float | None:
        return 0.0

    def card(self) -> Card | None:
        return None

    def image(self) -> None:
        """Return None: the machine exists."""

    def offers(self) -> Sequence[Rental] | None:
        return None

    def trial(self) -> None:
        """Return None: no machine is rented."""

    def list(self) -> list[Machine]:
        """Return nothing: these machines cost nothing, so none can be an orphan."""
        return []

    def volumes(self) -> Sequence[Volume]:
        return ()

    def release(self, machine: Machine) -> None:
        """Do nothing: the machine stays."""

    def log(self, machine: Machine) -> Iterator[str]:  # noqa: ARG002 - part of the Provider protocol
        return iter(())
