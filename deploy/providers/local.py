"""Provider for this computer: always available, free, never released."""

from __future__ import annotations

import sys
from pathlib import Path, PurePath

from deploy.providers.existing import Existing
from deploy.specs.machine import Machine, MachineSpec
from deploy.specs.provider import Provider


class LocalProvider(Existing, Provider):
    """Provide this computer. The first step on it tests whether its root can be written."""

    def acquire(self, spec: MachineSpec) -> Machine:
        return self._machine(spec.name, Path(spec.root))

    def find(self, name: str) -> Machine | None:
        root = self.settings.root
        return self._machine(name, root) if Path(root).is_dir() else None

    def _machine(self, name: str, root: PurePath) -> Machine:
        return Machine(name=name, root=root, python=sys.executable)
