"""What the providers of existing machines share: nothing is created, billed or released."""

from __future__ import annotations

from deploy.specs.machine import Machine
from deploy.specs.provider import Provider


class Existing(Provider):
    """Machines that exist anyway. A provider adds `acquire` and `find`."""

    def list(self) -> list[Machine]:
        return []

    def release(self, machine: Machine) -> None:
        """Do nothing: the machine stays."""

    def price(self) -> float | None:
        return 0.0
