"""conf/deploy/<target>.yaml, then environment, then flags, into frozen values. The later one wins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deploy.errors import WrongUse, unknown

ENVIRONMENT = {
    "root": "SNIPERFACE_ROOT",
    "data": "SNIPERFACE_DATA",
    "stage_to": "SNIPERFACE_STAGE_TO",
    "processes": "SNIPERFACE_PROCESSES",
}
TMUX_SOCKET = "SNIPERFACE_TMUX_SOCKET"


@dataclass(frozen=True)
class Target:
    """One entry of conf/deploy/: which provider makes the machine, and where things live on it."""

    name: str
    provider: str
    root: str
    data: str | None = None
    stage_to: str | None = None
    processes: int | None = None  # None: decided from the machine's GPUs and cores


@dataclass(frozen=True)
class Settings:
    project: Path
    target: Target
    tmux_socket: str = "sniperface"

    @property
    def root(self) -> Path:
        return self.project / self.target.root

    @property
    def data(self) -> Path | None:
        return self.project / self.target.data if self.target.data else None

    @property
    def runs(self) -> Path:
        return self.project / "runs"


def load(project: Path, target: str, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of one target. An unknown target or key is refused with the right ones."""
    files = {path.stem: path for path in sorted((project / "conf" / "deploy").glob("*.yaml"))}
    if target not in files:
        raise (unknown("target", target, files) if files else WrongUse(f"{project}/conf/deploy holds no target"))
    values = _read(files[target])
    values |= {key: environment[name] for key, name in ENVIRONMENT.items() if environment.get(name)}
    return Settings(project, _target(target, values), environment.get(TMUX_SOCKET) or "sniperface")


def _read(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    where = f"conf/deploy/{path.name}"
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise WrongUse(f"{where} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise WrongUse(f"{where} must hold keys and values, such as provider: local")
    known = {field.name for field in fields(Target)} - {"name"}
    for key in values:
        if key not in known:
            raise unknown(f"key in {where}", str(key), known)
    for key in ("provider", "root"):
        if not values.get(key):
            raise WrongUse(f"{where} lacks the key '{key}'")
    return {str(key): value for key, value in values.items()}


def _target(name: str, values: Mapping[str, Any]) -> Target:
    texts = {key: None if values.get(key) is None else str(values[key]) for key in ("data", "stage_to")}
    return Target(
        name=name,
        provider=str(values["provider"]),
        root=str(values["root"]),
        data=texts["data"],
        stage_to=texts["stage_to"],
        processes=_processes(values.get("processes", "auto")),
    )


def _processes(value: Any) -> int | None:
    if value is None or value == "auto":
        return None
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise WrongUse(f"processes must be auto or a whole number from 1, such as 2, not {value}")
    return int(value)
