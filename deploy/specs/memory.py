"""PURE: how much memory of a GPU one training step takes, and which batch would fit.

The bytes that a network saves for its backward pass are measured, and stand in conf/memory.json. The rest is counted:
tests compare it with the tensors of the app.
What only a GPU could tell, such as cuDNN's workspaces and what the allocator loses to fragments, is a margin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import WrongUse
from deploy.pod.base.folder import read_json
from deploy.specs.machine import Card, Hardware

MIB, GIB = 1 << 20, 1 << 30
HALF, FP32, INT64 = 2, 4, 8  # bytes
STATE = {"sgd": 12, "adamw": 16}  # bytes a trained number: weight, gradient, what the optimizer keeps
LOGITS_KEPT = 8  # arrays [batch, queue] in fp32 that the contrastive loss keeps or makes at once
HEAD_KEPT = 6  # arrays [batch of all ranks, centres of this one] in fp32 that a margin head keeps or makes at once
VIEWS_KEPT = 10  # arrays [batch, 3, S, S] in fp32: two views, and what augmentation makes at once
MARGIN_BYTES = 1536 * MIB  # CUDA's context, cuDNN's and NCCL's buffers; not measured on a GPU yet
MARGIN_SHARE = 0.1  # of what is saved: gradients of activations, fragments; not measured on a GPU yet
BF16_FROM = (8, 0)  # compute capability
BEFORE_AMPERE = re.compile(r"\b(V100|P100|P40|P4|T4|K80|M60|GTX|TITAN|Quadro|RTX (20\d\d|[3-8]000)\b(?! Ada))\b", re.I)
SHAPE = ("name", "layers", "width", "embedding_dim", "patch_size")  # of a backbone: what its figures depend on


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU, None where they are not known, and why not."""

    needed_bytes: int | None
    available_bytes: int | None
    fits: tuple[int, int] | None = None  # batch size and grad_accum_steps that fit, with the same global batch
    why: str = ""

    @property
    def is_too_much(self) -> bool:
        return bool(self.needed_bytes and self.available_bytes and self.needed_bytes > self.available_bytes)

    @property
    def words(self) -> str:
        if self.needed_bytes is None:
            return f"not known: {self.why}"
        there = "an unknown size" if self.available_bytes is None else f"{self.available_bytes / GIB:.1f} GiB"
        return f"about {self.needed_bytes / GIB:.1f} GiB of {there} on each GPU{f' ({self.why})' if self.why else ''}"


@dataclass(frozen=True)
class Extent:
    """What else a step's memory depends on."""

    rows: int = 0  # images in the file
    classes: int | None = None  # that are learnt; None where they are not known, or none are
    ranks: int | None = None  # of all machines; None where the machine decides


@dataclass(frozen=True)
class Gpus:
    """What is known of the GPUs of a run: those of the machine, or those that would be rented first."""

    hardware: Hardware | None
    card: Card | None
    device: str  # the target's key
    nodes: int = 1
    processes: int | None = None  # on each machine; None: one a GPU

    def precision(self, wish: str) -> str:
        """train.precision as the job will settle it; the wish itself where nothing is known yet."""
        if self.hardware:
            return resolve(wish, self.hardware.capability, self.hardware.gpu)
        if self.device == "cpu":
            return resolve(wish, None, None)
        return resolve(wish, None, self.card.name) if self.card else wish

    def need(
        self, config: Mapping[str, Any], table: Mapping[str, Any], precision: str, rows: int, classes: int | None
    ) -> Need | None:
        """None on a CPU, and where nothing is known of the GPUs."""
        if self.hardware:
            count, there = self.hardware.gpus, self.hardware.gpu_memory_bytes
        elif self.card is not None and self.device != "cpu":
            count, there = self.card.count, self.card.memory_bytes
        else:
            return None
        ranks = (self.processes or count) * self.nodes
        return of_step(config, table, precision, there, Extent(rows, classes, ranks)) if count else None


def resolve(wish: str, capability: tuple[int, int] | None, gpu: str | None) -> str:
    """train.precision as the job will settle it, by the GPU, or by its name before it can be asked.

    app/runtime/precision.py has the same rule; a test compares them.
    """
    if wish != "auto":
        return wish
    if capability is not None:
        return "bf16" if capability >= BF16_FROM else "fp16"
    if gpu:
        return "fp16" if BEFORE_AMPERE.search(gpu) else "bf16"
    return "fp32"


def read(project: Path) -> dict[str, Any]:
    """Measured figures by the name of a file in conf/backbone, each with the shape of its network.

    Empty where the project has none. JSON is read in a hundredth of the time that YAML takes.
    """
    return read_json(project / "conf" / "memory.json")


def of_step(
    config: Mapping[str, Any],
    table: Mapping[str, Any],
    precision: str,
    available_bytes: int | None,
    extent: Extent = Extent(),
) -> Need:
    """What the step of a resolved configuration takes, with the nearest batch that fits where it is too much."""
    backbone = config["backbone"]
    figures = next((each for each in table.values() if _is_of(each["shape"], backbone)), None)
    if figures is None:
        return Need(None, available_bytes, why="this backbone was not measured")
    saved_mib = _saved_mib(figures, backbone, precision)
    if saved_mib is None:
        return Need(None, available_bytes, why="this backbone was not measured with backbone.gradient_checkpointing so")
    batch = config["train"]["batch"]
    size, steps = int(batch["size"]), int(batch.get("grad_accum_steps", 1))
    head = head_of(config, extent)
    fixed = _fixed_bytes(config, figures, precision) + tables_bytes(config, extent.rows) + head.fixed_bytes
    each = _bytes_per_image(config, saved_mib) + head.bytes_per_image
    need = Need(fixed + each * size, available_bytes, why=head.why)
    if not need.is_too_much:
        return need
    fits = next((part for part in _parts(size, steps) if fixed + each * part[0] <= (available_bytes or 0)), None)
    return Need(need.needed_bytes, available_bytes, fits, need.why)


def refuse_too_much(need: Need, config: Mapping[str, Any], where: str) -> None:
    """Raise WrongUse for a step that `where` has no memory for, naming the batch that fits."""
    if not need.is_too_much or need.needed_bytes is None or need.available_bytes is None:
        return
    size = config["train"]["batch"]["size"]
    begin = (
        f"a step with train.batch.size={size} needs about {need.needed_bytes / GIB:.1f} GiB of GPU memory, and {where} "
        f"has {need.available_bytes / GIB:.1f} GiB"
    )
    if need.fits:
        raise WrongUse(
            f"{begin}: give --set train.batch.size={need.fits[0]} --set train.batch.grad_accum_steps={need.fits[1]}, "
            "which is the same global batch"
        )
    raise WrongUse(f"{begin}: give --set backbone.gradient_checkpointing=true, or a GPU with more memory")


def _parts(size: int, steps: int) -> list[tuple[int, int]]:
    """Smaller batches with as many more steps, the largest first."""
    return [(size // part, steps * part) for part in range(2, size // 2 + 1) if size % part == 0]


def _is_of(shape: Mapping[str, Any], backbone: Mapping[str, Any]) -> bool:
    return all(shape[key] == backbone.get(key) for key in SHAPE if key in shape)


def _saved_mib(figures: Mapping[str, Any], backbone: Mapping[str, Any], precision: str) -> float | None:
    """MiB for each image at the configured size; it grows with the square of it."""
    as_measured = bool(backbone.get("gradient_checkpointing", False)) == bool(figures.get("gradient_checkpointing"))
    saved = figures.get("saved_mib_per_image" if as_measured else "switched_mib_per_image")
    if not saved:
        return None
    scale = (int(backbone.get("image_size", 112)) / int(figures["image_size"])) ** 2
    return float(saved["fp32" if precision == "fp32" else "half"]) * scale


def _bytes_per_image(config: Mapping[str, Any], saved_mib: float) -> int:
    side = int(config["backbone"].get("image_size", 112))
    images = VIEWS_KEPT * 3 * side * side * FP32
    logits = 0
    if config["recipe"]["name"] == "self_supervised":
        logits = LOGITS_KEPT * int(config["recipe"]["moco"]["queue_size"]) * FP32
    return int(saved_mib * (1 + MARGIN_SHARE) * MIB) + images + logits


@dataclass(frozen=True)
class HeadMemory:
    """Bytes of a margin head on one rank."""

    fixed_bytes: int = 0
    bytes_per_image: int = 0  # of this rank's batch
    why: str = ""  # what is not counted


def head_of(config: Mapping[str, Any], extent: Extent) -> HeadMemory:
    """Class centres, their optimizer's state and gradients, and the logits of recipe supervised.

    app/models/partial_fc.py has these tensors: tables of a rank's share of the classes, a copy and a gradient of those
    that are sampled, and arrays of all images by them.
    """
    if config["recipe"]["name"] != "supervised":
        return HeadMemory()
    if extent.classes is None or extent.ranks is None:
        return HeadMemory(why="without the classes of the head")
    width, rate = int(config["backbone"]["embedding_dim"]), float(config["recipe"]["head"]["sample_rate"])
    images, shard = int(config["train"]["batch"]["size"]) * extent.ranks, -(-extent.classes // extent.ranks)
    compared = shard
    if rate < 1:
        mean = max(rate * extent.classes, min(images, extent.classes)) / extent.ranks
        chance = math.ceil(8 * math.sqrt(mean) + 8) + images if extent.ranks > 1 else 0
        compared = min(shard, math.ceil(mean) + chance)
    copies = 2 if rate < 1 else 1  # a gradient, and a copy of the sampled centres
    luck = extent.classes * (FP32 + 1) if rate < 1 else 0
    fixed = shard * centre_bytes(config["train"].get("optimizer", {}).get("name"), width)
    return HeadMemory(fixed + copies * compared * width * FP32 + luck, HEAD_KEPT * extent.ranks * compared * FP32)


def centre_bytes(optimizer: str | None, width: int) -> int:
    """One class in the tables of a head: its centre, what the optimizer keeps of it, and counters."""
    return 2 * width * FP32 + INT64 if optimizer == "sgd" else 3 * width * FP32 + 2 * INT64


def tables_bytes(config: Mapping[str, Any], rows: int) -> int:
    """What recipe self_supervised remembers of each image: its pseudo-ID, and with the bank its last embedding."""
    if config["recipe"]["name"] != "self_supervised":
        return 0
    bank = HALF * int(config["backbone"]["embedding_dim"]) if _mining(config).get("features") == "bank" else 0
    return rows * (INT64 + bank)


def _mining(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("mining") or {}


def _fixed_bytes(config: Mapping[str, Any], figures: Mapping[str, Any], precision: str) -> int:
    """Weights, gradients and optimizer; the momentum encoder and the queue; what is saved whatever the batch."""
    trained, copied, queue = int(figures["params"]), 0, 0
    if config["recipe"]["name"] == "self_supervised":
        moco, width = config["recipe"]["moco"], int(config["backbone"]["embedding_dim"])
        trained += int(moco["projection_hidden"]) * (width + int(moco["projection_dim"]))
        copied = trained
        queue = int(moco["queue_size"]) * (int(moco["projection_dim"]) + INT64 // FP32)  # keys, and their images' rows
    elif float(config["recipe"].get("ema", 0)) > 0:
        copied = trained
    state = trained * STATE.get(config["train"].get("optimizer", {}).get("name"), max(STATE.values()))
    kind = "fp32" if precision == "fp32" else "half"
    in_a_step = float(figures.get("saved_mib_fixed", {}).get(kind, 0.0)) * MIB
    return int(state + (copied + queue) * FP32 + in_a_step) + MARGIN_BYTES
