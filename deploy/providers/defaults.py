"""The answers of a provider that has nothing to say: it rents, lists, bills and releases nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from deploy.specs.machine import Card, Image, Machine, Rental, Volume
from deploy.specs.settings import Settings
from deploy.specs.trial import Trial


class Defaults:
    """Right as they are for machines that exist anyway. A provider adds `acquire`, `find` and what it has."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.say: Callable[[str], None] = lambda _: None
        self.check: Callable[[Machine], None] = lambda _: None

    def price(self) -> float | None:
        return 0.0

    def card(self) -> Card | None:
        return None

    def image(self) -> Image | None:
        return None

    def offers(self) -> Sequence[Rental] | None:
        return None

    def trial(self) -> Trial | None:
        return None

    def list(self) -> list[Machine]:
        """Return nothing: these machines cost nothing, so none can be an orphan."""
        return []

    def volumes(self) -> Sequence[Volume]:
        return ()

    def release(self, machine: Machine) -> None:
        """Do nothing: the machine stays."""

    def log(self, machine: Machine) -> Iterator[str]:  # noqa: ARG002 - part of the Provider protocol
        return iter(())
