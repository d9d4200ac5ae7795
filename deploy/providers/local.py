"""Provider for this computer: always available, free, never released."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

from deploy.errors import NoMachine
from deploy.specs.machine import Card, Machine, MachineSpec, Rental, Volume
from deploy.specs.settings import Settings


class LocalProvider:
    """Provide this computer. `acquire` creates the root folder and tests write access; `release` does nothing."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.say: Callable[[str], None] = lambda _: None
        self.check: Callable[[Machine], None] = lambda _: None  # unused: checked later, once there is an environment

    def acquire(self, spec: MachineSpec) -> Machine:
        root = Path(spec.root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / ".write-test"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise NoMachine(
                f"the folder {root} of target '{self.settings.target.name}' cannot be written: {error.strerror}",
                next_command=f"set another root in {self.settings.where}",
            ) from error
        return self._machine(spec.name, root)

    def find(self, name: str) -> Machine | None:
        root = self.settings.root
        return self._machine(name, root) if Path(root).is_dir() else None

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
        """Return nothing: this computer costs nothing, so it cannot be an orphan."""
        return []

    def volumes(self) -> Sequence[Volume]:
        return ()

    def release(self, machine: Machine) -> None:
        """Do nothing: this computer stays."""

    def log(self, machine: Machine) -> Iterator[str]:  # noqa: ARG002 - part of the Provider protocol
        return iter(())

    def _machine(self, name: str, root: PurePath) -> Machine:
        return Machine(name=name, provider="local", root=root, python=sys.executable)
