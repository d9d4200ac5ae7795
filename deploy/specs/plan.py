"""PURE: settings, request and facts in; everything that will be done out. `--dry-run` prints it and ends there."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath
from typing import Any

from deploy.pod.base.folder import RunFolder
from deploy.pod.job.restarts import resuming
from deploy.specs import memory
from deploy.specs.estimate import Measured, Phase, kind_of, predict, training_minutes
from deploy.specs.machine import Card, Hardware, Machine, Place
from deploy.specs.memory import Need
from deploy.specs.request import DATA_KEY, LABELS_KEY, Request, hydra_override, user_overrides
from deploy.specs.settings import Settings

GRACE_S = 60  # for the checkpoint, between a stop and the kill
NO_COMMIT = "none"
TINY_SHM_BYTES = 256 << 20
DEVICES = "SNIPERFACE_DEVICES"  # how many GPUs a machine's job must find; 0: it trains on the CPU
TRAIN_LABELS = "train_labels.npy"  # beside staged images


@dataclass(frozen=True)
class CodeFacts:
    """The working tree as it stands; `tree` is its id where nothing has changed since the commit."""

    kind: str  # "git", or "copy" where the folder is no git repository
    commit: str | None
    changed_files: int
    tree: str | None
    untracked: tuple[str, ...] = ()  # files that travel although git does not track them
    suspicious: tuple[str, ...] = ()  # tracked files that look like credentials
    left_out: tuple[str, ...] = ()  # what a user may expect to travel, and does not


@dataclass(frozen=True)
class DataFacts:
    """The images that will be used; `ready` is false for photographs that are still to be prepared."""

    name: str
    path: str
    rows: int
    train_rows: int  # after the fraction
    bytes: int  # of the file that training reads, after the fraction where it is staged
    dataset_id: str | None
    labels: str | None = None  # only where they do not lie beside the images
    train_labels: str | None = None  # what is learnt instead of them, such as pseudo-IDs
    ready: bool = True
    where: str = "here"  # or "machine", or "url"
    packed: str | None = None  # sent as `lossless`, or lossy as `jpeg95`
    packed_bytes: int | None = None  # None: still to be packed
    classes: int | None = None  # that recipe supervised learns; None where they were not counted


@dataclass(frozen=True)
class Continuation:
    """An unfinished run that goes on: which, which attempt this is, and from where."""

    run_id: str
    attempt: int
    resume: str


@dataclass(frozen=True)
class Limits:
    """What a run may take, and what happens then; read by the supervisor and by the guard of the machine."""

    max_restarts: int
    max_hours: float | None
    max_usd: float | None
    idle_min: float | None
    stall_min: float | None
    sync_to: str | None
    on_end: str
    paid_since: float | None  # Unix seconds; None where nothing is paid
    usd_per_hour: float
    release: str  # how the machine can be released from inside: "none" or "runpod"


@dataclass(frozen=True)
class Facts:
    """Everything that was looked up, so that the plan itself looks at nothing.

    Before a remote machine is had, what only it can tell is None; the plan is made again when it is known.
    """

    now: datetime
    token: str  # four hexadecimal digits that keep two runs of one second apart
    python: str
    code: CodeFacts
    data: DataFacts
    config: Mapping[str, Any]  # what `python -m app.config` resolved
    hardware: Hardware | None
    windows: bool = False
    measured: Sequence[Measured] = ()  # the newest first
    phases: Sequence[Mapping[str, float]] = ()  # seconds by phase, of earlier runs on this target
    usd_per_hour: float | None = 0.0  # None: the provider does not tell
    continues: Continuation | None = None
    machine: Machine | None = None
    snapshot: str | None = None
    data_path: PurePath | None = None  # where the images are read, once the room there is known
    place: Place | None = None  # of this machine, once several of them have met
    card: Card | None = None  # what the provider would rent first, before the machine can be asked
    memory: Mapping[str, Any] = field(default_factory=dict)  # what conf/memory.json says of each backbone
    secrets: tuple[str, ...] = ()  # names of variables of this computer that the machine is given


@dataclass(frozen=True)
class Plan:
    """All that is decided, printable and comparable. Paths are the machine's."""

    run_id: str
    attempt: int
    target: str
    provider: str
    machine: str
    created: str
    root: str
    run_dir: str
    busy_lock: str
    code: CodeFacts
    snapshot: str | None  # None until the snapshot is made, when files have changed since the commit
    data: DataFacts
    data_path: str
    stage: bool
    fraction: float
    recipe: str
    backbone: Mapping[str, Any]  # all of it: a rate belongs to one network, and a name covers many
    epochs: int
    batch_size: int
    overrides: tuple[str, ...]
    resume: str
    precision: str  # as the job will settle it; auto where that is not known yet
    memory: Need | None  # of one GPU; None on a CPU, and where nothing is known of the GPUs
    gpu: str | None  # its name; None, like the next two, until the machine is there
    gpus: int | None
    no_gpu: str | None  # why there is none, where a reason is known
    cores: int | None
    processes: int | None  # on each machine
    nodes: int
    place: Place | None
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    queue: bool
    grace_s: int
    join_s: int
    limits: Limits
    usd_per_hour: float | None
    phases: tuple[Phase, ...]
    expected_minutes: float | None
    expected_from: str
    expected_usd: float | None
    request: Request
    secrets: tuple[str, ...] = ()
    rented: bool = False

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=sorted))
        return value


def make(settings: Settings, request: Request, facts: Facts, *, tryout: bool) -> Plan:
    """Decide everything about one attempt of a run."""
    root = facts.machine.root if facts.machine else settings.root
    run_id, attempt = _identity(request, facts)
    run_dir = root / "runs" / run_id
    resume = facts.continues.resume if facts.continues else _resume(request, run_dir)
    processes = _processes(settings, facts.hardware)
    nodes = request.nodes or settings.target.nodes
    gpus = memory.Gpus(facts.hardware, facts.card, settings.target.device, nodes, settings.target.processes)
    precision = gpus.precision(str(facts.config["train"].get("precision", "fp32")))
    data_path = facts.data_path or wanted_path(settings, root, facts.data, request.fraction)
    snapshot = facts.snapshot or facts.code.tree
    overrides = user_overrides(request, tryout=tryout)
    minutes, source = _minutes(facts, processes, nodes)
    each = facts.machine.usd_per_hour if facts.machine else facts.usd_per_hour
    rate = None if each is None else each * nodes
    return Plan(
        run_id=run_id,
        attempt=attempt,
        target=settings.target.name,
        provider=settings.target.provider,
        machine=facts.machine.name if facts.machine else machine_name(settings, run_id, attempt),
        created=facts.now.isoformat(timespec="seconds"),
        root=str(root),
        run_dir=str(run_dir),
        busy_lock=str(root / "busy.lock"),
        code=facts.code,
        snapshot=snapshot,
        data=facts.data,
        data_path=str(data_path),
        stage=str(data_path) != facts.data.path,
        fraction=request.fraction,
        recipe=str(facts.config["recipe"]["name"]),
        backbone=facts.config["backbone"],
        epochs=int(facts.config["train"]["epochs"]),
        batch_size=int(facts.config["train"]["batch"]["size"]),
        overrides=overrides,
        resume=resume,
        precision=precision,
        memory=gpus.need(facts.config, facts.memory, precision, facts.data.rows, facts.data.classes),
        gpu=facts.hardware.gpu if facts.hardware else None,
        gpus=facts.hardware.gpus if facts.hardware else None,
        no_gpu=facts.hardware.why if facts.hardware else None,
        cores=facts.hardware.cores if facts.hardware else None,
        processes=processes,
        nodes=nodes,
        place=facts.place,
        argv=(
            facts.python,
            *_launcher(settings, facts, processes, nodes, run_id),
            *overrides,
            *_decided(facts, data_path, request.fraction, resume, run_dir),
        ),
        cwd=str(root / "code" / (snapshot or "<snapshot>")),
        env={**_environment(facts, processes), **dict(each.split("=", 1) for each in request.env)},
        queue=request.queue,
        grace_s=GRACE_S,
        join_s=_join_s(settings),
        limits=limits_of(settings, facts.machine, nodes),
        usd_per_hour=rate,
        phases=predict(facts.phases, None if minutes is None else minutes * 60, rate),
        expected_minutes=minutes,
        expected_from=source,
        expected_usd=_dollars(minutes, rate),
        request=request,
        secrets=facts.secrets,
        rented=settings.is_rented,
    )


def going_on(plan: Plan) -> Plan:
    """The same, from the newest whole checkpoint of the run's own folder, whatever it once began from."""
    return dataclasses.replace(plan, resume="auto", argv=tuple(resuming(plan.argv)))


def limits_of(settings: Settings, machine: Machine | None, nodes: int = 1) -> Limits:
    """Several machines spend together, and each of them guards what all of them may spend."""
    target = settings.target
    return Limits(
        max_restarts=target.max_restarts,
        max_hours=target.max_hours,
        max_usd=target.max_usd,
        idle_min=target.idle_min,
        stall_min=target.stall_min,
        sync_to=target.sync_to,
        on_end=target.on_end,
        paid_since=machine.created if machine else None,
        usd_per_hour=machine.usd_per_hour * nodes if machine else 0.0,
        release="runpod" if target.provider == "runpod" else "none",
    )


def family_name(settings: Settings) -> str:
    """How the names of all machines of this project and target begin."""
    return f"sniperface-{slug(settings.project.name)}-{slug(settings.target.name)}-"


def machine_name(settings: Settings, run_id: str, attempt: int) -> str:
    """Carries project, target and run, so that an orphan is found without any local file.

    Each attempt has a name of its own: a machine that answers to it was made for this attempt, and holds nothing yet
    that could be lost.
    """
    return family_name(settings) + run_id + (f"-{attempt}" if attempt > 1 else "")


def slug(name: str) -> str:
    """A name for folders and sessions: ASCII letters, digits and single underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower() or "data"


def fraction_mark(fraction: float) -> str:
    return "" if fraction == 1 else f"-f{fraction:g}"


def wanted_path(settings: Settings, root: PurePath, data: DataFacts, fraction: float) -> PurePath:
    """Where training reads if there is room: in place, in the staging folder, or, where neither can be, on disk."""
    if settings.stage_to is None and (settings.is_local or data.where == "machine"):
        return type(root)(data.path)
    return staged_path(settings.stage_to or disk_folder(root, data), data, fraction)


def disk_folder(root: PurePath, data: DataFacts) -> PurePath:
    """The machine's disk, for images that must be brought and have no room in RAM."""
    return root / "data" / data.name


def staged_path(folder: PurePath, data: DataFacts, fraction: float) -> PurePath:
    """In a staging folder; a part has a folder of its own beside the whole."""
    return (folder if fraction == 1 else folder / f"{data.name}{fraction_mark(fraction)}") / "images.npy"


def _identity(request: Request, facts: Facts) -> tuple[str, int]:
    if facts.continues:
        return facts.continues.run_id, facts.continues.attempt
    stamp = facts.now.strftime("%Y%m%d-%H%M%S")
    return f"{facts.data.name}{fraction_mark(request.fraction)}-{stamp}-{facts.token}", 1


def _resume(request: Request, run_dir: PurePath) -> str:
    """A checkpoint that the user names travels into the run folder, so that the run can be explained from it."""
    if request.resume in ("none", "auto"):
        return "none"
    return str(RunFolder(run_dir).resume_from / PurePath(request.resume).name)


def _processes(settings: Settings, hardware: Hardware | None) -> int | None:
    """One a GPU; without GPUs two where there are two cores: enough to be the real thing, few enough for a laptop."""
    if settings.target.processes is not None:
        return settings.target.processes
    return (hardware.gpus or min(2, hardware.cores)) if hardware else None


def _launcher(settings: Settings, facts: Facts, processes: int | None, nodes: int, run_id: str) -> tuple[str, ...]:
    """torchrun: https://pytorch.org/docs/stable/elastic/run.html. Restarts are the supervisor's, on each machine."""
    each = f"--nproc-per-node={processes or '<one a GPU>'}"
    torchrun = ("-m", "torch.distributed.run")
    if nodes == 1:
        return (*torchrun, "--standalone", each, "-m", "app.train")
    place = facts.place or Place(0, "<its address>", "", "<address of the first machine>", 29400)
    join_s = _join_s(settings)
    # Who goes on with fewer gives the others this time to come, once the first is there; else all must come in it.
    least, waiting = nodes, f"join_timeout={join_s}"
    if settings.target.on_lost_node == "go_on":
        least, waiting = 1, f"last_call_timeout={join_s},join_timeout={join_s + 60}"
    return (
        *torchrun,
        f"--nnodes={least}:{nodes}",
        each,
        "--max-restarts=0",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place.host}:{place.port}",
        f"--rdzv-id={run_id}",
        f"--rdzv-conf=is_host={int(place.rank == 0)},{waiting}",
        f"--local-addr={place.address}",
        "-m",
        "app.train",
    )


def _join_s(settings: Settings) -> int:
    return max(1, round(settings.target.join_min * 60))


def _decided(facts: Facts, data_path: PurePath, fraction: float, resume: str, run_dir: PurePath) -> tuple[str, ...]:
    return (
        hydra_override(DATA_KEY, str(data_path)),
        hydra_override("data.data_fraction", fraction),
        *_labels(facts.data, data_path, run_dir),
        hydra_override("train.resume", resume),
        hydra_override("run.dir", str(run_dir)),
        hydra_override("run.commit", facts.code.commit or NO_COMMIT),
    )


def _labels(data: DataFacts, data_path: PurePath, run_dir: PurePath) -> tuple[str, ...]:
    """Labels keep their place where the images do; beside staged images, or in the run's folder, where they do not."""
    staged = str(data_path) != data.path
    files = {}
    if data.labels:
        files["data.labels_path"] = str(data_path.with_name("labels.npy")) if staged else data.labels
    if data.train_labels:
        carried = str(run_dir / TRAIN_LABELS) if data.where != "here" else data.train_labels
        files[LABELS_KEY] = str(data_path.with_name(TRAIN_LABELS)) if staged else carried
    return tuple(hydra_override(key, path) for key, path in files.items())


def _environment(facts: Facts, processes: int | None) -> dict[str, str]:
    cores = facts.hardware.cores if facts.hardware else 1
    values = {
        "SNIPERFACE_SUPERVISED": "1",
        "OMP_NUM_THREADS": str(max(1, cores // (processes or 1))),
        # The app refuses to train with fewer, and on a CPU instead of them.
        **({DEVICES: str(facts.hardware.gpus)} if facts.hardware else {}),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",  # the user's own, made for a terminal, would end a job that logs a name in it
    }
    if _has_tiny_shm(facts.hardware):
        values["NCCL_SHM_DISABLE"] = "1"  # it exchanges by other ways then, instead of failing there
    if facts.place and facts.place.interface:
        values |= {"GLOO_SOCKET_IFNAME": facts.place.interface, "NCCL_SOCKET_IFNAME": f"={facts.place.interface}"}
    if facts.windows:
        return {**values, "USE_LIBUV": "0"}
    # Blocks of GPU memory grow in place: mining between two epochs leaves training no fragments.
    return {**values, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def _has_tiny_shm(hardware: Hardware | None) -> bool:
    """Several GPUs, and a /dev/shm of a container's 64 MB: NCCL takes 10 MB for each channel between two ranks."""
    return bool(hardware and hardware.gpus > 1 and (hardware.shm_bytes or TINY_SHM_BYTES) < TINY_SHM_BYTES)


def _dollars(minutes: float | None, usd_per_hour: float | None) -> float | None:
    if usd_per_hour == 0:
        return 0.0
    return None if minutes is None or usd_per_hour is None else round(minutes / 60 * usd_per_hour, 2)


def _minutes(facts: Facts, processes: int | None, nodes: int) -> tuple[float | None, str]:
    images = facts.data.train_rows * int(facts.config["train"]["epochs"])
    guess = (facts.config.get("plan") or {}).get("images_per_s")
    seen = facts.hardware
    kind = kind_of(seen.gpu, seen.gpus, seen.cores) if seen else None
    return training_minutes(
        images, facts.measured, kind, float(guess) * processes * nodes if guess and processes else None
    )
