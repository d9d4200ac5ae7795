"""Settings: a target's file, then environment, then flags, as frozen values. The later source wins."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from deploy.errors import WrongUse, command, unknown
from deploy.pod.base.limits import ON_END, RUNPOD
from deploy.pod.base.notify import why_not
from deploy.specs import targets
from deploy.specs.options import Mount, Options, Registry, wrong_image
from deploy.specs.settings_file import Source, converted, read_yaml, types_of

TMUX_SOCKET = "SNIPERFACE_TMUX_SOCKET"
EXAMPLE = ("gpu-box", "conf/deploy/ssh.yaml")  # a host that does not exist, and the file of the project that names it


@dataclass(frozen=True)
class Local(Options):
    """This computer. It has no options."""

    provider = "deploy.providers.local:LocalProvider"
    is_local = True

    def refuse_nodes(self, nodes: int, target: str, where: str) -> None:
        """Raise WrongUse for more than one machine."""
        del where
        if nodes > 1:
            raise WrongUse(
                f"--nodes {nodes}: target '{target}' is this computer, which is one machine: give --on another"
            )


@dataclass(frozen=True)
class Ssh(Options):
    """An existing host. `host` may be an alias in the user's SSH configuration, gateways included."""

    host: str = ""  # name, address, or an alias of ~/.ssh/config
    hosts: tuple[str, ...] = ()  # replaces `host` for runs on several machines: each a name, or user@name:port
    port: int | None = None  # null: as in ~/.ssh/config, else 22
    user: str | None = None  # null: as in ~/.ssh/config, else your name here
    key: str | None = None  # private key file; null: the agent, then the default keys
    fingerprint: str | None = None  # "SHA256:...", as `ssh-keygen -lf` prints it: pins the host key
    python: str = "auto"  # of the training environment; auto: the image's, or a venv created once per lock file

    provider = "deploy.providers.ssh:SshProvider"
    is_shared = True

    @property
    def missing(self) -> str | None:
        return None if self.host or self.hosts else "'host', such as host: gpu-box.example.org"

    @property
    def hosts_shown(self) -> str | None:
        return self.host or ", ".join(self.hosts) or None

    def refuse_nodes(self, nodes: int, target: str, where: str) -> None:
        """Raise WrongUse for more machines than hosts."""
        hosts = max(1, len(self.hosts))
        if nodes > hosts:
            raise WrongUse(
                f"--nodes {nodes}: target '{target}' names {hosts} host: list as many in {where}, such as "
                "hosts: [gpu-1, gpu-2]"
            )

    def silent_fix(self, target: str, where: str) -> str:
        del target
        if (self.host, where) == EXAMPLE:
            return f"make a target of your own host: {command('target add ssh --host HOST')}"
        return f"set host, user and key in {where}"


@dataclass(frozen=True)
class Docker(Options):
    """A container of our image on the local engine or on the engine at `docker_host`."""

    image: str | None = None  # null: the image that `invoke build` makes of this project
    docker_host: str | None = None  # null: DOCKER_HOST, else the local engine
    ssh_host: str | None = None  # host that exposes the container's SSH port; null: the engine's host
    key: str | None = None  # null: a key of this project's own, made once
    gpus: str = "auto"  # auto: all GPUs of the engine; none; all; or a number
    shm_gib: float = 2.0  # size of /dev/shm
    cpus: float | None = None  # null: all CPUs of the engine
    memory_gib: float | None = None  # null: all memory of the engine
    network: str | None = None  # null: Docker's default bridge
    volumes: tuple[str, ...] = ()  # host:container, as `docker run -v` takes them

    provider = "deploy.providers.docker:DockerProvider"

    @property
    def wrong(self) -> str | None:
        if self.gpus not in ("auto", "none", "all") and not self.gpus.isdecimal():
            return f"gpus: {self.gpus} must be auto, none, all or a number, such as gpus: 2"
        return wrong_image(self.image)

    @property
    def account(self) -> str | None:
        return self.docker_host


@dataclass(frozen=True)
class RunPod(Options):
    """A pod. GPU types are tried in the given order, each in every data centre."""

    gpus: tuple[str, ...] = ()  # RunPod's names: "NVIDIA RTX A4500"
    image: str | None = (
        None  # null: RunPod's own; name or name:tag of any other. Without a tag: as `invoke push` puts it
    )
    api: str = "v2"  # v2: REST; sdk: the runpod package's GraphQL
    gpu_count: int = 1  # GPUs per machine
    data_centers: tuple[str, ...] = ()  # empty: any
    cloud: str = "SECURE"  # or COMMUNITY
    spot: bool = False  # a spot pod, at the lowest bid: cheaper, but RunPod may stop it at any moment
    max_usd_per_hour: float | None = None  # for one whole machine; with several machines, for each
    min_cuda: str | None = None  # lowest CUDA version of the host's driver; null: what our torch needs
    min_memory_gib: float | None = None  # requested if the live API can; a machine with less is released after boot
    disk_gib: int | None = None  # container disk, lost when the pod ends; null: 40, or more if the images need it
    volume: str | None = None  # id of a network volume, mounted at volume_path
    volume_path: str = "/workspace"  # mount point of the volume
    registry: str | None = None  # id of registry credentials stored at RunPod
    key: str | None = None  # null: a key of this project's own, made once
    wait_min: float = 20.0  # most minutes until a machine answers, including the image pull
    silent_s: float = 20.0  # a new pod whose log stays empty for so long, in an unchanged status, is released
    unattended_min: float = 15.0  # a new machine without a login and a guard for so long releases itself

    provider = "deploy.providers.runpod:RunPodProvider"
    choices = {"api": ("v2", "sdk"), "cloud": ("SECURE", "COMMUNITY")}  # noqa: RUF012 - a dataclass field if annotated
    is_rented = True
    renting = {"gpus": "gpus", "gpu_count": "gpu_count", "spot": "spot"}  # noqa: RUF012 - a dataclass field if annotated
    release = RUNPOD
    poll_s = 5  # an account has 60 calls a minute; we limit ourselves to 15
    account_keys = ("RUNPOD_API_KEY",)

    @classmethod
    def normalised(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the names of data centres in upper case: for others the API finds no machine."""
        centers = {"data_centers": tuple(name.upper() for name in values.get("data_centers", ()))}
        return {**values, **centers}

    @property
    def missing(self) -> str | None:
        return None if self.gpus else "'gpus', such as gpus: [NVIDIA RTX A4500, NVIDIA A40]"

    @property
    def wrong(self) -> str | None:
        if self.spot and self.api == "sdk":
            return "api: sdk rents no spot pods: set api: v2, or leave spot: true and --spot out"
        return wrong_image(self.image)

    @property
    def mount(self) -> Mount | None:
        return Mount(self.volume, self.volume_path) if self.volume else None

    @property
    def is_preemptible(self) -> bool:
        return self.spot

    @property
    def lists_all_gpus(self) -> bool:
        return self.api != "sdk"

    @property
    def reports_less(self) -> bool:
        """RunPod's own package reports neither the creation time nor the kind of volume."""
        return self.api == "sdk"


# The registry of providers: name in a target's file -> its keys and facts, imported on first use.
OPTIONS = Registry(
    {
        "local": "deploy.specs.settings:Local",
        "ssh": "deploy.specs.settings:Ssh",
        "docker": "deploy.specs.settings:Docker",
        "runpod": "deploy.specs.settings:RunPod",
        "lambda": "deploy.providers.lambda_cloud:LambdaCloud",
    }
)
PERSONAL = ("notify", "notify_pct", "notify_command")  # keys that a person's settings.yaml may have
CHOICES: dict[str, tuple[str | None, ...]] = {
    "device": ("auto", "cuda", "cpu"),
    "on_end": ON_END,
    "on_lost_node": ("end", "go_on"),
    "trust": (None, "own", "rented"),
}


@dataclass(frozen=True)
class Target:
    """One entry of conf/deploy/: the provider, the folders on the machine, and the limits."""

    name: str
    provider: str
    root: str  # the project's folder on the machine: code, environments, live run folders
    data: str | None = None  # images.npy here, machine:/path/images.npy there, or https://...; null: the ORL try-out
    stage_to: str | None = None  # folder in RAM for the images, such as /dev/shm; null: read in place
    processes: int | None = None  # of the training, per machine; null: decided from its GPUs and cores
    device: str = "auto"  # auto: the GPUs, or the CPU if there are none; cuda: GPUs only; cpu: the CPU
    nodes: int = 1  # machines per run
    join_min: float = 3.0  # how long each machine waits for the others, at the start and after a restart
    on_lost_node: str = "end"  # or go_on: continue on the remaining machines from the newest checkpoint
    trust: str | None = None  # own or rented: who owns the machine; null: rented if the provider rents it out
    secrets: tuple[str, ...] = ()  # further environment variables of this computer that remote runs get
    large_files: tuple[str, ...] = ()  # code files over 50 MB that are uploaded anyway
    allow_files: tuple[str, ...] = ()  # code files that look like credentials and are uploaded anyway
    exclude: tuple[str, ...] = ()  # patterns, as in .gitignore, of code files that are not uploaded
    max_restarts: int = 3  # of a job that crashes, each from a newer checkpoint than the one before
    max_hours: float | None = None  # a ceiling, counted from the start of billing; then checkpoint, copy, release
    max_usd: float | None = None  # the same in US dollars, of all machines of the run
    idle_min: float | None = None  # minutes without a job or a command of yours; then the same
    stall_min: float | None = None  # minutes of a job without a new step while its GPUs are idle; then the same
    pack: str | None = None  # upload format of the laptop's images: none, lossless, or jpeg50 to jpeg100 (lossy)
    sync_to: str | None = None  # where the machine copies checkpoints and log: a path on a volume, or s3://...
    confirm_usd: float = 1.0  # a run that may cost more needs confirmation
    on_end: str = "keep"  # keep a machine with the only copy of a checkpoint, until max_usd; or stop it; or terminate
    notify: str | None = None  # secret: webhook (https) that the machine tells how a run ends; in no tracked file
    notify_pct: float = 80.0  # share of max_usd in percent at which the webhook is told too
    notify_command: str | None = None  # shell command on this computer, once `train` or `watch` sees the end of a run
    options: Options = field(default_factory=Local)


@dataclass(frozen=True)
class Settings:
    project: Path
    target: Target
    tmux_socket: str = "sniperface"
    file: str = ""  # of the target, for messages

    @property
    def where(self) -> str:
        """The target's file, for messages."""
        return self.file or f"conf/deploy/{self.target.name}.yaml"

    @property
    def is_local(self) -> bool:
        return self.target.options.is_local

    @property
    def is_rented(self) -> bool:
        """Whether the machine belongs to someone else."""
        return self.target.options.is_rented if self.target.trust is None else self.target.trust == "rented"

    @property
    def shares_ram(self) -> bool:
        """Whether other users may stage images on the machine. A rented machine belongs to the run alone."""
        return self.target.options.is_shared and not self.is_rented

    @property
    def root(self) -> PurePath:
        """The project's folder on the machine; on this computer relative to the project."""
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
        """Folder of the launcher's own files: locks, keys, known host keys."""
        return self.project / ".sniperface"


def load(project: Path, target: str, environment: Mapping[str, str] = os.environ) -> Settings:
    """Load the settings of one target. Raises WrongUse for an unknown target, key or value, with the valid ones."""
    file = targets.find(project, target, environment)
    values = read_yaml(file.path, file.where)
    own = targets.personal_folder(environment).parent / "settings.yaml"
    if values.get("notify") and file.kind == targets.SHIPPED:
        raise WrongUse(f"notify in {file.where} is a secret in a file that git tracks: move it to {targets.shown(own)}")
    return parse(project, target, {**_personal(own), **values}, file.where, environment)


def parse(
    project: Path, target: str, values: dict[str, Any], where: str, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Check the keys and values of the target's file `where`; the environment overrides them. Raises WrongUse.

    A message about a value names the file or the variable that it is from.
    """
    values, source = dict(values), Source(where, environment)
    provider = source.variables("provider").get("provider") or values.get("provider")
    if not provider:
        raise WrongUse(f"{where} lacks the key 'provider', such as provider: local")
    if provider not in OPTIONS:
        raise unknown(f"provider in {source.of('provider')}", str(provider), OPTIONS)
    of_target, of_options = types_of(Target), types_of(OPTIONS[provider])
    del of_target["name"], of_target["options"]
    for key in values:
        if key not in of_target | of_options:
            raise unknown(f"key in {where}", str(key), of_target | of_options)
    values |= source.variables(*of_target, *of_options)
    if not values.get("root"):
        raise WrongUse(f"{where} lacks the key 'root', a folder on the machine, such as root: .sniperface/{target}")
    if values.get("processes") == "auto":
        values["processes"] = None
    told = {key: converted(source.of(key), key, values[key], kind) for key, kind in of_target.items() if key in values}
    its_own = {
        key: converted(source.of(key), key, values[key], kind) for key, kind in of_options.items() if key in values
    }
    options = OPTIONS[provider](**OPTIONS[provider].normalised(its_own))
    _check(source, told, options, source.of_all(of_options))
    socket = environment.get(TMUX_SOCKET) or "sniperface"
    return Settings(project, Target(name=target, options=options, **told), socket, where)


def _personal(path: Path) -> dict[str, Any]:
    """A person's settings for all targets; {} without a file. Raises WrongUse for a key that is none of them."""
    values = read_yaml(path, targets.shown(path)) if path.is_file() else {}
    for key in values:
        if key not in PERSONAL:
            raise unknown(f"key in {targets.shown(path)}", key, PERSONAL)
    return values


def key_file(settings: Settings, text: str) -> Path:
    """Return a key's path as the user wrote it: with ~, relative to the project, or a Windows path."""
    path = Path(text).expanduser()
    return path if path.is_absolute() or PureWindowsPath(text).is_absolute() else settings.project / path


def pack_kind(text: str, key: str) -> str:
    """Validate the packing format given for `key`. Raises WrongUse with the valid formats."""
    if re.fullmatch("none|lossless|jpeg(100|[5-9][0-9])", text):
        return text
    raise WrongUse(f"{key} {text} is not a packing format: give none, lossless, or jpeg50 to jpeg100, such as jpeg95")


def _check(source: Source, told: Mapping[str, Any], options: Options, where: str) -> None:
    """Check values that have the right types. `where`: the sources of the provider's options."""
    for key, right in {**CHOICES, **options.choices}.items():
        value = told.get(key, getattr(options, key, right[0]))
        if value not in right:
            raise unknown(f"{key} in {source.of(key)}", str(value), [each for each in right if each])
    if options.missing:
        raise WrongUse(f"{where} lacks the key {options.missing}")
    if options.wrong:
        raise WrongUse(f"{where}: {options.wrong}")
    if told.get("notify") and (reason := why_not(told["notify"])):
        notify = source.of("notify") if source.variables("notify") else f"{source.file} or in your settings.yaml"
        words = "give the https address of a webhook, or http to this machine"
        raise WrongUse(f"notify in {notify} is not a webhook, {reason}: {words}")
    if "\0" in (told.get("notify_command") or ""):
        raise WrongUse(
            f"notify_command in {source.file} has a NUL character: give a shell command, such as notify-send done"
        )
    if told.get("notify_pct", 1) > 100:
        raise WrongUse(f"notify_pct in {source.of('notify_pct')} must be a percentage up to 100, such as 80")
    remote = not options.is_local
    if told.get("pack"):
        pack_kind(told["pack"], f"pack: in {source.of('pack')}:")
    for key in ("root", "stage_to"):
        text = told.get(key)
        if remote and text and not text.startswith(("/", "~/")):
            raise WrongUse(
                f"{key} in {source.of(key)} must be an absolute path on the machine, such as /workspace/sniperface"
            )
