"""A rented machine that is a folder of this computer: the provider is an account in memory, the shell a real one."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from deploy.pod.base.folder import write_json
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.shell import LocalShell, Shell
from deploy.specs.machine import Address, Machine, Volume
from deploy.specs.settings import Settings, Target

SOURCE = Path(__file__).parents[3]
LIVES = Address("127.0.0.1")
FINAL = {"attempt": 1, "epoch": 0, "step": 3, "spend_usd": 0.5, "ended": 1000.0, "exit_code": 0}


@dataclass
class Account:
    """What a provider has rented out. `released` has the names of the machines that were given back."""

    machines: dict[str, Machine] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    fault: DeployError | None = None  # the list cannot be read
    stored: Sequence[Volume] = ()

    def list(self) -> list[Machine]:
        if self.fault:
            raise self.fault
        return [*self.machines.values()]

    def find(self, name: str) -> Machine | None:
        found = self.machines.get(name)
        return found if found and not found.is_stopped else None

    def release(self, machine: Machine) -> None:
        self.machines.pop(machine.name, None)
        self.released.append(machine.name)

    def volumes(self) -> Sequence[Volume]:
        return self.stored


class Noting(LocalShell):
    """This computer's shell; notes what would be started in the background instead of starting it."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[list[str]] = []

    def spawn(self, argv: Sequence[str], **_: Any) -> None:
        self.spawned.append([*argv])


class Near(Reach):
    """A target whose machines are folders of this computer."""

    def __init__(self, settings: Settings, account: Account) -> None:
        super().__init__(settings)
        self.provider = account  # type: ignore[assignment]
        self.near = Noting()

    def shell(self, machine: Machine) -> Shell:
        del machine
        return self.near


@dataclass
class Rented:
    """A project with the target `rented`, and its account."""

    project: Path
    account: Account = field(default_factory=Account)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the target

    @property
    def settings(self) -> Settings:
        return Settings(self.project, Target("rented", "local", str(self.project / "root"), **self.options))

    def machine(self, name: str = "m", *, hours: float = 1.0, **about: Any) -> Machine:
        """Rent a machine for 2 USD an hour that was created `hours` ago."""
        told = {"usd_per_hour": 2.0, "address": LIVES, "created": time.time() - hours * 3600, **about}
        root = self.project / "machines" / name
        root.mkdir(parents=True, exist_ok=True)
        made = self.account.machines[name] = Machine(name, root, sys.executable, **told)
        return made

    def record(self, run_id: str = "a", machine: str = "m", state: str = "succeeded", **about: Any) -> Record:
        """A run as this laptop has noted it."""
        folder = self.project / "machines" / machine / "runs" / run_id
        told = {"session": "detached", "target": "rented", **about}
        made = Record(
            run_id, provider="local", state=state, attempt=1, created="2026-11-28T10:00:00", commit=None, fraction=1.0,
            backbone="tiny", run_dir=str(folder), machine=machine, **told,
        )  # fmt: skip
        write_json(self.project / "runs" / run_id / "run.json", asdict(made))
        return made

    def plan(self, run_id: str = "a", **told: Any) -> None:
        write_json(self.project / "runs" / run_id / "plan.json", {"epochs": 1, "grace_s": 0.1, **told})

    def ran(self, run_id: str = "a", machine: str = "m", state: str = "succeeded", epochs: int = 1) -> Path:
        """What a run has left on its machine: its status and a checkpoint after each epoch. Returns its folder."""
        folder = self.project / "machines" / machine / "runs" / run_id
        self.checkpoints(folder, epochs)
        write_json(folder / "status.json", {**FINAL, "state": state, "heartbeat": time.time()})
        return folder

    def checkpoints(self, folder: Path, epochs: int) -> None:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for epoch in range(epochs):
            data, file = f"weights {epoch}".encode(), folder / "checkpoints" / f"epoch_{epoch:03d}.pt"
            file.write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            about = {"file": file.name, "epoch": epoch, "step": epoch, "sha256": sha256, "bytes": len(data)}
            file.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")

    def guarded(self, machine: str = "m", **status: Any) -> None:
        """The machine has the code that reports on it; `status`: what its guard has reported last."""
        root = self.project / "machines" / machine
        write_json(root / "guard.json", {"code": str(SOURCE)})
        if status:
            write_json(root / "guard-status.json", {"heartbeat": 1.0, **status})

    def home(self, run_id: str = "a") -> list[str]:
        """Checkpoints of a run on the laptop."""
        return sorted(each.name for each in (self.project / "runs" / run_id / "checkpoints").glob("*.pt"))

    def reach(self) -> Iterator[Near]:
        with Near(self.settings, self.account) as at:
            yield at
