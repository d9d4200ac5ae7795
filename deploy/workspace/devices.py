"""Find the GPUs that the training environment can use, and decide whether a run may start with them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, CannotTrain, StepFailed
from deploy.shell import Shell
from deploy.specs.estimate import plural
from deploy.specs.machine import Hardware
from deploy.specs.settings import Settings

PROBE = Path(__file__).parents[1] / "pod" / "agent" / "devices.py"
PROBE_S = 180  # for torch from a cold disk, and a context on each GPU
MOST_GPUS = 64
AUTO, CUDA, CPU = "auto", "cuda", "cpu"


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class Devices:
    """What deploy/pod/agent/devices.py found on a machine."""

    gpus: tuple[Gpu, ...] = ()  # those that torch computes on
    listed: int | None = None  # number of GPUs in nvidia-smi's list; None without an answer
    visible: str | None = None  # CUDA_VISIBLE_DEVICES there
    torch: str | None = None  # version; None: not imported, for lack of NVIDIA software or as in `why`
    cuda: str | None = None  # version that torch is built for
    driver: str | None = None
    why: str | None = None  # reason for missing GPUs

    @property
    def versions(self) -> str:
        if self.torch is None and not self.why:
            return "no NVIDIA driver found"
        return f"torch {self.torch or 'none'}, CUDA {self.cuda or 'none'}, NVIDIA driver {self.driver or 'unknown'}"


def ask(shell: Shell, python: str, cwd: PurePath | None = None) -> Devices:
    """Run the probe with the training Python. Raises StepFailed without a valid answer."""
    return _probed(shell, [python, "-"], f"{python} could not detect which GPUs it can use", cwd)


def ask_driver(shell: Shell) -> Devices:
    """Run the probe where the training Python does not exist yet: without torch. Raises StepFailed."""
    return _probed(shell, ["python3", "-", "driver"], "python3 could not ask nvidia-smi for the GPUs")


def _probed(shell: Shell, argv: list[str], failed: str, cwd: PurePath | None = None) -> Devices:
    result = shell.run(argv, stdin=PROBE.read_bytes(), cwd=cwd, limit_s=PROBE_S, check=False, again=True)
    devices = parse(result.text) if result else None
    if devices is None:
        raise StepFailed(failed, evidence=result.complaint)
    return devices


def parse(text: str) -> Devices | None:
    """Parse the probe's document; None if it is invalid."""
    try:
        told = border.document(text, "the answer about GPUs")
        gpus = tuple(_gpu(each) for each in told["gpus"][:MOST_GPUS])
        listed = told["listed"]
        words = {key: _text(told[key]) for key in ("visible", "torch", "cuda", "driver", "why")}
        return Devices(gpus, None if listed is None else int(listed), **words)
    except (BadAnswer, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return None


def here(shell: Shell, settings: Settings) -> Hardware:
    """Return the hardware of this computer, probed with the running Python. Raises CannotTrain."""
    return seen(shell, settings, sys.executable, settings.project, is_here=True)


def seen(
    shell: Shell,
    settings: Settings,
    python: str,
    cwd: PurePath,
    *,
    is_here: bool = False,
    known: Devices | None = None,
    promised: int | None = None,
) -> Hardware:
    """Return a machine's hardware, with the GPUs that its job will use. Raises CannotTrain.

    `known`: an earlier probe. `promised`: number of GPUs paid for.
    """
    found = known or ask(shell, python, cwd)
    if why := fault(found, settings.target.device, promised=promised, is_here=is_here):
        raise CannotTrain(why, next_command=advice(settings.target.name))
    return combine(shell.hardware(), found, settings.target.device)


def fault(devices: Devices, device: str, *, promised: int | None = None, is_here: bool = False) -> str | None:
    """PURE: return why a run must not start on a machine with these devices; None if it may.

    `device`: the target's key. `promised`: number of GPUs paid for. `is_here`: this computer, which may train on its
    CPU if its driver is broken, as long as the reason is reported.
    """
    count, because = len(devices.gpus), f" ({devices.versions})" + (f": {devices.why}" if devices.why else "")
    if device == CPU:
        return None
    if promised and count < promised:
        return f"{plural(promised, 'GPU is', 'GPUs are')} paid for and torch can use {count}{because}"
    if device == CUDA and not count:
        return f"the target requires device: cuda and torch can use no GPU{because}"
    expected = devices.listed or 0 if devices.visible is None else named(devices.visible)
    if count < expected and (devices.cuda or not is_here):
        if devices.visible is None:
            return f"the machine has {plural(expected, 'GPU')} and torch can use {count}{because}"
        names = f"CUDA_VISIBLE_DEVICES={devices.visible} names {plural(expected, 'GPU')}"
        return f"{names} and torch can use {count}{because}"
    if not count and devices.why and devices.listed is None and not is_here and "No devices" not in devices.why:
        return f"torch can use no GPU{because}"
    return None


def named(visible: str) -> int:
    """PURE: return how many GPUs CUDA_VISIBLE_DEVICES names, by index or UUID, up to the first word that is neither.

    Slices of a GPU (MIG) count as one: CUDA gives a process only the first.
    """
    found = []
    for word in map(str.strip, visible.split(",")):
        if not re.match(r"\d+$|GPU-|MIG-", word):
            break
        found.append(word)
    slices = [word for word in found if word.startswith("MIG-")]
    return len(found) - len(slices) + bool(slices)


def driver_fault(devices: Devices, device: str, promised: int | None) -> str | None:
    """PURE: the same before torch is there. What nvidia-smi does not answer is left to `fault`."""
    if device == CPU or not promised:
        return None
    if devices.listed is not None and devices.listed < promised:
        return f"{plural(promised, 'GPU is', 'GPUs are')} paid for and nvidia-smi lists {devices.listed}"
    return (
        f"{plural(promised, 'GPU is', 'GPUs are')} paid for and cannot be used: {devices.why}" if devices.why else None
    )


def advice(target: str) -> str:
    """Return the advice for a fault if no other machine is tried."""
    return (
        f"set device: cpu in the file of target '{target}' to train on the CPU; or repair the driver there, or name "
        "the GPUs that work in CUDA_VISIBLE_DEVICES"
    )


def combine(machine: Hardware, devices: Devices, device: str) -> Hardware:
    """Return a machine's cores and memory, with the GPUs that its job will use."""
    gpus = () if device == CPU else devices.gpus
    return replace(
        machine,
        gpus=len(gpus),
        gpu=gpus[0].name if gpus else None,
        gpu_memory_bytes=min((each.memory_bytes for each in gpus), default=None),
        capability=min((each.capability for each in gpus), default=None),
        why=None if gpus else "device: cpu in the target's file" if device == CPU and devices.gpus else devices.why,
    )


def _gpu(told: Any) -> Gpu:
    major, minor = told["capability"]
    return Gpu(str(told["name"])[:100], (int(major), int(minor)), int(told["memory_bytes"]))


def _text(value: Any) -> str | None:
    return None if value is None else "".join(letter for letter in str(value) if letter.isprintable())[:600]
