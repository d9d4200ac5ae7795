"""A provider as somebody adds one: sheds with a computer, let by the hour. A folder is the account, a file a shed."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.pod.base.limits import LAPTOP
from deploy.specs.machine import Address, Machine, MachineSpec
from deploy.specs.options import Options
from deploy.specs.provider import Provider
from deploy.specs.settings import Settings


@dataclass(frozen=True)
class Shed(Options):
    """A shed with a computer in it."""

    account_folder: str = ""
    usd_per_hour: float = 0.5
    host: str = "127.0.0.1"
    port: int = 22
    login_key: str | None = None
    fingerprint: str | None = None

    provider = "deploy.providers.shed:ShedProvider"
    is_rented = True
    release = LAPTOP

    @property
    def missing(self) -> str | None:
        return None if self.account_folder else "'account_folder', such as account_folder: /srv/sheds"


class ShedProvider(Provider):
    """Let a shed, and take it back."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        assert isinstance(settings.target.options, Shed)
        self.options = settings.target.options
        self.let = Path(self.options.account_folder)

    def price(self) -> float:
        return self.options.usd_per_hour

    def acquire(self, spec: MachineSpec) -> Machine:
        name = next((each.name for each in self.list() if each.name.startswith(spec.family)), spec.name)
        if not (self.let / name).exists():
            (self.let / name).write_text(json.dumps(time.time()), encoding="utf-8")
        machine = self._machine(name)
        self.check(machine)
        return machine

    def find(self, name: str) -> Machine | None:
        return self._machine(name) if (self.let / name).is_file() else None

    def list(self) -> list[Machine]:
        return [self._machine(file.name) for file in sorted(self.let.iterdir())]

    def release(self, machine: Machine) -> None:
        (self.let / machine.name).unlink(missing_ok=True)

    def _machine(self, name: str) -> Machine:
        options = self.options
        return Machine(
            name=name,
            root=self.settings.root,
            python=sys.executable,
            usd_per_hour=options.usd_per_hour,
            address=Address(
                host=options.host, port=options.port, key=options.login_key, fingerprint=options.fingerprint
            ),
            created=float((self.let / name).read_text(encoding="utf-8")),
        )
