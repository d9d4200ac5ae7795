"""Provider for existing hosts reached by SSH: nothing is created, billed or released."""

from __future__ import annotations

from deploy.errors import WrongUse
from deploy.providers.existing import Existing
from deploy.shell.ssh_config import parts
from deploy.specs.machine import Address, Machine, MachineSpec, node_name, node_of
from deploy.specs.provider import Provider
from deploy.specs.settings import Settings, Ssh, key_file


class SshProvider(Existing, Provider):
    """Provide the hosts that the target's file names. Whether a host answers shows only at its first use."""

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.target.options, Ssh)
        super().__init__(settings)
        self.options = settings.target.options

    def acquire(self, spec: MachineSpec) -> Machine:
        return self._machine(node_name(spec.family.rstrip("-"), spec.node))

    def find(self, name: str) -> Machine | None:
        return self._machine(name) if node_of(name) < max(1, len(self.options.hosts)) else None

    def _machine(self, name: str) -> Machine:
        options = self.options
        user, host, port = parts(options.hosts[node_of(name)] if options.hosts else options.host)
        key = str(key_file(self.settings, options.key)) if options.key else None
        try:
            address = Address(host, port or options.port, user or options.user, key, fingerprint=options.fingerprint)
        except WrongUse as error:
            raise WrongUse(f"{self.settings.where}: {error.message}") from error
        return Machine(name=name, root=self.settings.root, python=options.python, address=address)
