"""conf/deploy/<target>.yaml, then environment, then flags, into frozen values. The later one wins."""

from __future__ import annotations

import copy
import functools
import io
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from deploy.border.text_files import NotText, read_text
from deploy.errors import WrongUse, unknown

ENVIRONMENT_PREFIX = "SNIPERFACE_"  # each key of a target's file has a variable: SNIPERFACE_STAGE_TO, ...
TMUX_SOCKET = "SNIPERFACE_TMUX_SOCKET"


@dataclass(frozen=True)
class Local:
    """This computer needs nothing more."""


@dataclass(frozen=True)
class Ssh:
    """A host that is there. `host` may be an alias of the user's own ssh configuration, gateways included."""

    host: str = ""
    hosts: tuple[str, ...] = ()  # instead, for runs on several: each as name, or user@name:port
    port: int | None = None
    user: str | None = None
    key: str | None = None
    fingerprint: str | None = None  # "SHA256:...", as `ssh-keygen -lf` prints it: pins the host key
    python: str = "auto"  # of the training environment; auto: our image's, or a venv made once a lock file


@dataclass(frozen=True)
class Docker:
    """A container of our image on the local engine, or on the one that `docker_host` names."""

    image: str | None = None  # None: the one that `invoke build` makes of this project
    docker_host: str | None = None  # None: DOCKER_HOST, else the local engine
    ssh_host: str | None = None  # where the container's SSH port is reached; None: the engine's host
    key: str | None = None  # None: a key of this project's own, made once
    gpus: str = "auto"  # auto: all that the engine has; none; all; or a number
    shm_gib: float = 2.0
    cpus: float | None = None  # None: all of the engine's
    memory_gib: float | None = None
    network: str | None = None
    volumes: tuple[str, ...] = ()  # host:container, as `docker run -v` takes them


@dataclass(frozen=True)
class RunPod:
    """A pod. GPU candidates are tried in this order, each in each data centre."""

    gpus: tuple[str, ...] = ()  # as RunPod calls them: "NVIDIA RTX A4500"
    image: str = ""  # as pushed: name, or name:tag; without a tag `invoke push` has put the environment's own
    api: str = "v2"  # v2: REST; sdk: the runpod package's GraphQL
    gpu_count: int = 1
    data_centers: tuple[str, ...] = ()  # none: any
    cloud: str = "SECURE"  # or COMMUNITY
    max_usd_per_hour: float | None = None  # for one whole machine; where there are several, for each
    min_cuda: str | None = None  # of the host's driver; None: the CUDA that our image is made for
    min_memory_gib: float | None = None  # a machine with less is given back after boot
    disk_gib: int = 40
    volume: str | None = None  # id of a network volume, mounted at volume_path
    volume_path: str = "/workspace"
    registry: str | None = None  # id of registry credentials that RunPod keeps
    key: str | None = None  # None: a key of this project's own, made once
    wait_min: float = 20.0  # for a machine to answer, pull of the image included


Options = Local | Ssh | Docker | RunPod
OPTIONS: dict[str, type[Options]] = {"local": Local, "ssh": Ssh, "docker": Docker, "runpod": RunPod}
CHOICES = {
    "api": ("v2", "sdk"),
    "cloud": ("SECURE", "COMMUNITY"),
    "device": ("auto", "cuda", "cpu"),
    "on_end": ("keep", "stop", "terminate"),
    "on_lost_node": ("end", "go_on"),
    "trust": (None, "own", "rented"),
}


@dataclass(frozen=True)
class Target:
    """One entry of conf/deploy/: which provider makes the machine, and where things live on it."""

    name: str
    provider: str
    root: str
    data: str | None = None
    stage_to: str | None = None
    processes: int | None = None  # of each machine; None: decided from its GPUs and cores
    device: str = "auto"  # auto: the GPUs there, or the CPU where there are none; cuda: GPUs or nothing; cpu: the CPU
    nodes: int = 1  # machines that a run trains on
    join_min: float = 3.0  # that one of several machines waits for the others, at the start and after a restart
    on_lost_node: str = "end"  # or go_on: with the machines that are left, from the newest checkpoint
    trust: str | None = None  # own or rented: whose machine it is; None: rented for runpod, else own
    secrets: tuple[str, ...] = ()  # further names of this computer's environment that a run elsewhere is given
    large_files: tuple[str, ...] = ()  # of the code: files over 50 MB that are meant to travel
    allow_files: tuple[str, ...] = ()  # of the code: files that look like credentials and are meant to travel
    max_restarts: int = 3  # of a job that crashes, each from a newer checkpoint than the last
    max_hours: float | None = None  # ceilings, counted from the moment the machine is paid for
    max_usd: float | None = None
    idle_min: float | None = None  # without a job
    stall_min: float | None = None  # of a job without a new step, with its GPUs idle
    pack: str | None = None  # how images of this laptop travel: none, lossless, or jpeg50 to jpeg100 (lossy)
    sync_to: str | None = None  # where the newest checkpoint goes before a machine is released: a path there, or a URL
    confirm_usd: float = 1.0  # a run that may cost more is asked about first
    on_end: str = "keep"  # or stop, or terminate: what becomes of a machine whose work is done
    options: Options = field(default_factory=Local)


@dataclass(frozen=True)
class Settings:
    project: Path
    target: Target
    tmux_socket: str = "sniperface"

    @property
    def is_local(self) -> bool:
        return isinstance(self.target.options, Local)

    @property
    def is_rented(self) -> bool:
        """Whether the machine belongs to a stranger."""
        trust = self.target.trust or ("rented" if isinstance(self.target.options, RunPod) else "own")
        return trust == "rented"

    @property
    def root(self) -> PurePath:
        """Where things live on the machine; on this computer relative to the project."""
        return self.project / self.target.root if self.is_local else PurePosixPath(self.target.root)

    @property
    def stage_to(self) -> PurePath | None:
        if self.target.stage_to is None:
            return None
        return self.project / self.target.stage_to if self.is_local else PurePosixPath(self.target.stage_to)

    @property
    def runs(self) -> Path:
        return self.project / "runs"

    @property
    def notes(self) -> Path:
        """What the launcher keeps for itself: locks, keys, host keys that were seen."""
        return self.project / ".sniperface"


def load(project: Path, target: str, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of one target. An unknown target, key or value is refused with the right ones."""
    files = {path.stem: path for path in sorted((project / "conf" / "deploy").glob("*.yaml"))}
    if target not in files:
        raise (unknown("target", target, files) if files else WrongUse(f"{project}/conf/deploy holds no target"))
    where = f"conf/deploy/{files[target].name}"
    values = read_yaml(files[target], where)
    provider = environment.get("SNIPERFACE_PROVIDER") or values.get("provider")
    if not provider:
        raise WrongUse(f"{where} lacks the key 'provider', such as provider: local")
    if provider not in OPTIONS:
        raise unknown(f"provider in {where}", str(provider), OPTIONS)
    of_target, of_options = _keys(Target), _keys(OPTIONS[provider])
    del of_target["name"], of_target["options"]
    for key in values:
        if key not in of_target | of_options:
            raise unknown(f"key in {where}", str(key), of_target | of_options)
    for key in of_target | of_options:
        if environment.get(ENVIRONMENT_PREFIX + key.upper()):
            values[key] = environment[ENVIRONMENT_PREFIX + key.upper()]
    if not values.get("root"):
        raise WrongUse(f"{where} lacks the key 'root', a folder on the machine, such as root: .sniperface/{target}")
    if values.get("processes") == "auto":
        values["processes"] = None
    told = {key: _value(where, key, values[key], kind) for key, kind in of_target.items() if key in values}
    its_own = {key: _value(where, key, values[key], kind) for key, kind in of_options.items() if key in values}
    if "data_centers" in its_own:  # RunPod's own names; the API takes others, and finds no machine
        its_own["data_centers"] = tuple(name.upper() for name in its_own["data_centers"])
    options = OPTIONS[provider](**its_own)
    _check(where, told, options)
    return Settings(project, Target(name=target, options=options, **told), environment.get(TMUX_SOCKET) or "sniperface")


def key_file(settings: Settings, text: str) -> Path:
    """A key's path as the user wrote it: with ~, relative to the project, or a Windows path."""
    path = Path(text).expanduser()
    return path if path.is_absolute() or PureWindowsPath(text).is_absolute() else settings.project / path


def pack_kind(text: str, key: str) -> str:
    """A way to pack images, as it was typed for `key`; refused with those that there are."""
    if re.fullmatch("none|lossless|jpeg(100|[5-9][0-9])", text):
        return text
    raise WrongUse(f"{key} {text} is no way to pack images: give none, lossless, or jpeg50 to jpeg100, such as jpeg95")


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises WrongUse that calls it `where`."""
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text = ""
    try:
        text = read_text(path)
        values = copy.deepcopy(_parse(text))
    except (OmegaConfBaseException, YAMLError, NotText, OSError) as error:
        quoted = re.search(r'"[A-Za-z]:\\', text)
        hint = ": write a Windows path without quotes, or with / for each \\" if quoted else ""
        raise WrongUse(f"{where} cannot be read: {str(error).splitlines()[0]}{hint}") from error
    if not isinstance(values, dict):
        raise WrongUse(f"{where} must hold keys and values, such as provider: local")
    return {str(key): value for key, value in values.items()}


@functools.cache
def _parse(text: str) -> Any:
    """What a YAML document holds; `ps` reads the file of each target several times."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True)


def _keys(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _value(where: str, key: str, value: Any, kind: Any) -> Any:
    """A value of the file or the environment as the type that its key has."""
    optional = isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)
    if value is None and (optional or typing.get_origin(kind) is tuple):
        return None if optional else ()
    wanted = next(each for each in typing.get_args(kind) if each is not type(None)) if optional else kind
    if typing.get_origin(wanted) is tuple:
        several = value if isinstance(value, list) else str(value).split(",")
        return tuple(str(each).strip() for each in several if str(each).strip())
    if wanted is str and not isinstance(value, (dict, list)):
        return "" if value is None else str(value)
    try:
        number = wanted(str(value))
    except ValueError:
        number = 0
    if isinstance(value, bool) or not 0 < number < float("inf"):
        example = {"processes": "auto or a whole number from 1, such as 2", "port": "a port, such as 22"}.get(
            key, "a whole number from 1, such as 1" if wanted is int else "a number above 0, such as 1.5"
        )
        raise WrongUse(f"{key} in {where} must be {example}, not {value}")
    return number


def _check(where: str, told: Mapping[str, Any], options: Options) -> None:
    for key, right in CHOICES.items():
        value = told.get(key, getattr(options, key, right[0]))
        if value not in right:
            raise unknown(f"{key} in {where}", str(value), [each for each in right if each])
    for key in ("host", "image"):
        required = {each.name for each in fields(options) if each.default == "" and each.default is not MISSING}
        if key in required and not getattr(options, key) and not getattr(options, "hosts", ()):
            example = {"host": "host: gpu-box.example.org", "image": "image: me/sniperface"}[key]
            raise WrongUse(f"{where} lacks the key '{key}', such as {example}")
    if isinstance(options, RunPod) and not options.gpus:
        raise WrongUse(f"{where} lacks the key 'gpus', such as gpus: [NVIDIA RTX A4500, NVIDIA A40]")
    remote = not isinstance(options, Local)
    if told.get("pack"):
        pack_kind(told["pack"], f"pack: in {where}:")
    for key in ("root", "stage_to"):
        text = told.get(key)
        if remote and text and not text.startswith(("/", "~/")):
            raise WrongUse(f"{key} in {where} must be a whole path on the machine, such as /workspace/sniperface")
