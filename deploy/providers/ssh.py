"""Provider for existing hosts reached by SSH: nothing is created, billed or released."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from deploy.shell.ssh_config import parts
from deploy.specs.machine import Address, Card, Machine, MachineSpec, Rental, Volume, node_name, node_of
from deploy.specs.settings import Settings, Ssh, key_file


class SshProvider:
    """Provide the hosts that the target's file names. Whether a host answers shows only at its first use."""

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.target.options, Ssh)
        self.settings = settings
        self.say: Callable[[str], None] = lambda _: None
        self.check: Callable[[Machine], None] = lambda _: None  # unused: checked later, once there is an environment
        self.options = settings.target.options

    def acquire(self, spec: MachineSpec) -> Machine:
        return self._machine(node_name(spec.family.rstrip("-"), spec.node))

    def find(self, name: str) -> Machine | None:
        return self._machine(name) if node_of(name) < max(1, len(self.options.hosts)) else None

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
        """Return nothing: no host costs anything here, so none can be an orphan."""
        return []

    def volumes(self) -> Sequence[Volume]:
        return ()

    def release(self, machine: Machine) -> None:
        """Do nothing: the host stays."""

    def log(self, machine: Machine) -> Iterator[str]:  # noqa: ARG002 - part of the Provider protocol
        return iter(())

    def _machine(self, name: str) -> Machine:
        options = self.options
        user, host, port = parts(options.hosts[node_of(name)] if options.hosts else options.host)
        return Machine(
            name=name,
            provider="ssh",
            root=self.settings.root,
            python=options.python,
            address=Address(
                host=host,
                port=port or options.port,
                user=user or options.user,
                key=str(key_file(self.settings, options.key)) if options.key else None,
                fingerprint=options.fingerprint,
            ),
        )
