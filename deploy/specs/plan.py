"""PURE: make the plan of a run from settings, request and facts. `--dry-run` prints the plan and exits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from deploy.pod.agent.environment import MEANT
from deploy.pod.base.folder import RunFolder
from deploy.pod.base.limits import OF_TARGET, Limits
from deploy.pod.job.restarts import resuming
from deploy.specs import memory, mining
from deploy.specs.estimate import Phase, kind_of, predict, training_minutes
from deploy.specs.facts import CodeFacts, DataFacts, Facts
from deploy.specs.machine import Hardware, Image, Machine, Place
from deploy.specs.memory import Need
from deploy.specs.names import machine_name
from deploy.specs.request import DATA_KEY, LABELS_KEY, Request, hydra_override, user_overrides
from deploy.specs.settings import Settings
from deploy.specs.staged import fraction_mark, wanted_path

GRACE_S = 60  # for the checkpoint, between stop request and kill
NO_COMMIT = "none"
TINY_SHM_BYTES = 256 << 20
DEVICES = "SNIPERFACE_DEVICES"  # number of GPUs that a machine's job must find; 0: train on the CPU
TRAIN_LABELS = "train_labels.npy"  # beside staged images


@dataclass(frozen=True)
class Plan:
    """All decisions about one attempt of a run, printable and comparable. Paths are the machine's."""

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
    snapshot: str | None  # None until the snapshot is taken, if files have changed since the commit
    data: DataFacts
    data_path: str
    stage: bool
    fraction: float
    recipe: str
    backbone: Mapping[str, Any]  # the whole section: a measured speed belongs to one network, and a name covers many
    epochs: int
    batch_size: int
    overrides: tuple[str, ...]
    resume: str
    precision: str  # as the job will resolve it; auto where not known yet
    memory: Need | None  # per GPU; None on a CPU, and where the GPUs are not known
    gpu: str | None  # name; None, like the next two, until the machine is reached
    gpus: int | None
    no_gpu: str | None  # why there is no GPU, where known
    cores: int | None
    processes: int | None  # per machine
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
    warm: str | None = None  # name of the rented machine that is used again
    image: Image | None = None  # where it decides who makes the environment
    spot: bool = False  # the provider may end the machine at any moment
    rents: tuple[tuple[str, ...], int] | None = None  # GPUs that are tried, and how many of each; see Options.rents
    search: mining.Search | None = None  # of mining; None without, and where the images are not known
    container_image: str | None = None  # "" if there is none yet; None: no container, or the engine did not answer

    def to_json(self) -> dict[str, Any]:
        told = {**dataclasses.asdict(self), "limits": self.limits.to_json()}
        value: dict[str, Any] = json.loads(json.dumps(told, default=sorted))
        return value


def make(settings: Settings, request: Request, facts: Facts, *, tryout: bool) -> Plan:
    """Make the plan of one attempt of a run."""
    root = facts.machine.root if facts.machine else settings.root
    run_id, attempt = _identity(request.name or facts.data.name, request.fraction, facts)
    run_dir = root / "runs" / run_id
    resume = facts.continues.resume if facts.continues else _resume(request.resume, run_dir)
    processes = _processes(settings, facts)
    nodes = request.nodes or settings.target.nodes
    gpus = memory.Gpus(facts.hardware, facts.card, settings.target.device, nodes, settings.target.processes)
    data_path = facts.data_path or wanted_path(settings, root, facts.data, request.fraction, facts.user)
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
        created=facts.now.isoformat(timespec="milliseconds"),
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
        precision=gpus.precision(facts.config),
        memory=gpus.need(facts.config, facts.memory, facts.data.rows, facts.data.classes),
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
        env={**_environment(facts, processes), **_own_environment(request)},
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
        warm=facts.warm,
        image=facts.image if facts.image and facts.image.has_environment is not None and not facts.warm else None,
        spot=settings.target.options.is_preemptible,
        rents=settings.target.options.rents,
        search=mining.search(facts.config, facts.data.train_rows),
        container_image=facts.image.name if facts.image and not facts.warm else None,
    )


def going_on(plan: Plan) -> Plan:
    """Return the plan, resuming from the newest complete checkpoint in the run's folder, whatever it started from."""
    return dataclasses.replace(plan, resume="auto", argv=tuple(resuming(plan.argv)))


def limits_of(settings: Settings, machine: Machine | None, nodes: int = 1) -> Limits:
    """Return the limits of a run. Each of several machines enforces the cost limit of all of them together."""
    return Limits(
        **{name: getattr(settings.target, name) for name in OF_TARGET},
        paid_since=machine.paid_since if machine else None,
        usd_per_hour=machine.usd_per_hour * nodes if machine else 0.0,
        release=settings.target.options.release,
    )


def _identity(name: str, fraction: float, facts: Facts) -> tuple[str, int]:
    if facts.continues:
        return facts.continues.run_id, facts.continues.attempt
    stamp = facts.now.strftime("%Y%m%d-%H%M%S")
    return f"{name}{fraction_mark(fraction)}-{stamp}-{facts.token}", 1


def _resume(told: str, run_dir: PurePath) -> str:
    """Return the checkpoint to resume from. A named one is copied to the run folder, which then explains the run."""
    if told in ("none", "auto"):
        return "none"
    return str(RunFolder(run_dir).resume_from / PurePath(told).name)


def _processes(settings: Settings, facts: Facts) -> int | None:
    """Return one process per GPU. Without GPUs two, if there are two cores: distributed, yet light for a laptop.

    One on Windows: torch has no NCCL there.
    """
    hardware = facts.hardware
    if settings.target.processes is not None:
        return settings.target.processes
    if facts.windows:
        return 1
    return (hardware.gpus or min(2, hardware.cores)) if hardware else None


def _launcher(settings: Settings, facts: Facts, processes: int | None, nodes: int, run_id: str) -> tuple[str, ...]:
    """Return torchrun's arguments (https://pytorch.org/docs/stable/elastic/run.html). The supervisor does restarts."""
    each = f"--nproc-per-node={processes or '<one per GPU>'}"
    torchrun = ("-m", "torch.distributed.run")
    if nodes == 1:
        # Torch for Windows lacks libuv, and torchrun's own stores need it: so its launcher meets in a temporary file.
        of_windows = ("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", "--signals-to-handle=SIGTERM,SIGINT")
        meets = of_windows if facts.windows else ("--standalone",)
        # Else ranks meet at the machine's name, which laptops and hosts in a strange network often do not resolve.
        return (*torchrun, *meets, "--local-addr=127.0.0.1", each, "-m", "app.train")
    place = facts.place or Place(0, "<its address>", "", "<address of the first machine>", 29400)
    join_s = _join_s(settings)
    # go_on: once the first machine has joined, the others have join_s to join. Otherwise all must join within join_s.
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
    """Return overrides for labels: unchanged if images are read in place, else beside staged images.

    The laptop's train labels go to the run folder if the images are read in place on a remote machine.
    """
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
        # The app refuses to train with fewer GPUs, or on a CPU instead.
        **({DEVICES: str(facts.hardware.gpus)} if facts.hardware else {}),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",  # the user's terminal encoding would crash a job that logs a name outside it
    }
    if _has_tiny_shm(facts.hardware):
        values["NCCL_SHM_DISABLE"] = "1"  # NCCL then uses other transports instead of failing
    if facts.place and facts.place.interface:
        values |= {"GLOO_SOCKET_IFNAME": facts.place.interface, "NCCL_SOCKET_IFNAME": f"={facts.place.interface}"}
    if facts.windows:
        return {**values, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # the ranks make a store that needs no libuv
    # Segments of GPU memory grow in place, so mining between two epochs does not fragment training's memory.
    return {**values, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def _own_environment(request: Request) -> dict[str, str]:
    """Return the variables of --env. An environment that is made on a machine ignores a PYTHONPATH of the login."""
    own = dict(each.split("=", 1) for each in request.env)
    return {**own, MEANT: "1"} if "PYTHONPATH" in own else own


def _has_tiny_shm(hardware: Hardware | None) -> bool:
    """Return whether several GPUs share a container's 64 MB /dev/shm. NCCL takes 10 MB per channel of two ranks."""
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
