"""Provider for this computer: always available, free, never released."""

from __future__ import annotations

import sys
from pathlib import Path, PurePath

from deploy.errors import NoMachine
from deploy.pod.base.folder import remove
from deploy.providers.existing import Existing
from deploy.specs.machine import Machine, MachineSpec
from deploy.specs.provider import Provider


class LocalProvider(Existing, Provider):
    """Provide this computer. `acquire` creates the root folder and tests write access; `release` does nothing."""

    def acquire(self, spec: MachineSpec) -> Machine:
        """Return this computer. Raises NoMachine if the root cannot be written."""
        root = Path(spec.root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / ".write-test"
            probe.write_bytes(b"")
            remove(probe)
        except OSError as error:
            raise NoMachine(
                f"the folder {root} of target '{self.settings.target.name}' cannot be written: {error.strerror}",
                next_command=f"set another root in {self.settings.where}",
            ) from error
        return self._machine(spec.name, root)

    def find(self, name: str) -> Machine | None:
        root = self.settings.root
        return self._machine(name, root) if Path(root).is_dir() else None

    def _machine(self, name: str, root: PurePath) -> Machine:
        return Machine(name=name, root=root, python=sys.executable)
