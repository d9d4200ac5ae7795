"""A host that is there already, reached by SSH: nothing is made, nothing is paid for, nothing is released."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deploy.machine import Address, Machine, MachineSpec
from deploy.settings import Settings, Ssh, key_file


class SshProvider:
    """The one machine that the target's file names. Whether it answers shows when it is first asked for something."""

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.target.options, Ssh)
        self.settings = settings
        self.say: Callable[[str], None] = lambda _: None
        self.options = settings.target.options

    def acquire(self, spec: MachineSpec) -> Machine:
        return self._machine(spec.family.rstrip("-"))

    def find(self, name: str) -> Machine | None:
        return self._machine(name)

    def price(self) -> float | None:
        return 0.0

    def list(self) -> list[Machine]:
        """Nothing is ever owed for it here, so nothing can be left behind."""
        return []

    def release(self, machine: Machine) -> None:
        """The host stays."""

    def log(self, machine: Machine) -> Iterator[str]:  # noqa: ARG002 - as of every provider
        return iter(())

    def _machine(self, name: str) -> Machine:
        options = self.options
        return Machine(
            name=name,
            provider="ssh",
            root=self.settings.root,
            python=options.python,
            address=Address(
                host=options.host,
                port=options.port,
                user=options.user,
                key=str(key_file(self.settings, options.key)) if options.key else None,
                fingerprint=options.fingerprint,
            ),
        )
