"""PURE: estimate the GPU memory of one training step, and find a batch size that fits.

The bytes that a network saves for its backward pass are measured values in conf/memory.json. The rest is computed;
tests compare it with the tensors of the app.
A margin covers what only a GPU can show, such as cuDNN's workspaces and fragmentation in the allocator.
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
STATE = {"sgd": 12, "adamw": 16}  # bytes per trained parameter: weight, gradient, optimizer state
LOGITS_KEPT = 8  # fp32 arrays [batch, queue] that exist at once in the contrastive loss
HEAD_KEPT = 6  # fp32 arrays [batch of all ranks, centres of this rank] that exist at once in a margin head
VIEWS_KEPT = 10  # fp32 arrays [batch, 3, S, S]: two views, and those that exist at once in augmentation
MARGIN_BYTES = 1536 * MIB  # CUDA's context, cuDNN's and NCCL's buffers; not measured on a GPU yet
MARGIN_SHARE = 0.1  # of the saved bytes: activation gradients, fragmentation; not measured on a GPU yet
BF16_FROM = (8, 0)  # compute capability
BEFORE_AMPERE = re.compile(r"\b(V100|P100|P40|P4|T4|K80|M60|GTX|TITAN|Quadro|RTX (20\d\d|[3-8]000)\b(?! Ada))\b", re.I)
SHAPE = ("name", "layers", "width", "embedding_dim", "patch_size")  # keys of a backbone that its figures depend on


@dataclass(frozen=True)
class Need:
    """Memory of one training step on one GPU. None: not known. `why`: the reason, or what is not counted."""

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
    """Further inputs of the memory of a step."""

    rows: int = 0  # images in the file
    classes: int | None = None  # classes to learn; None where not known, or where there are none
    ranks: int | None = None  # on all machines; None where the machine decides


@dataclass(frozen=True)
class Gpus:
    """The known GPUs of a run: those of the machine, or those that would be rented first."""

    hardware: Hardware | None
    card: Card | None
    device: str  # the target's key `device`
    nodes: int
    processes: int | None  # per machine; None: one per GPU

    def precision(self, config: Mapping[str, Any]) -> str:
        """Resolve train.precision as the job will. Returns it unchanged where the GPUs are not known yet."""
        wish = str(config["train"].get("precision", "fp32"))
        if self.hardware:
            return resolve(wish, self.hardware.capability, self.hardware.gpu)
        if self.device == "cpu":
            return resolve(wish, None, None)
        return resolve(wish, None, self.card.name) if self.card else wish

    def need(self, config: Mapping[str, Any], table: Mapping[str, Any], rows: int, classes: int | None) -> Need | None:
        """Return the memory of one step. None on a CPU, and where the GPUs are not known."""
        if self.hardware:
            count, there = self.hardware.gpus, self.hardware.gpu_memory_bytes
        elif self.card is not None and self.device != "cpu":
            count, there = self.card.count, self.card.memory_bytes
        else:
            return None
        ranks = (self.processes or count) * self.nodes
        return of_step(config, table, self.precision(config), there, Extent(rows, classes, ranks)) if count else None


def resolve(wish: str, capability: tuple[int, int] | None, gpu: str | None) -> str:
    """Resolve train.precision as the job will, by compute capability, or by the GPU's name before it is known.

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
    """Read conf/memory.json: measured figures by file name in conf/backbone, each with the shape of its network.

    Empty where the project has none. JSON loads in a hundredth of the time of YAML.
    """
    return read_json(project / "conf" / "memory.json")


def of_step(
    config: Mapping[str, Any],
    table: Mapping[str, Any],
    precision: str,
    available_bytes: int | None,
    extent: Extent = Extent(),
) -> Need:
    """Return the memory of a step with a resolved configuration and, if it is too much, the largest batch that fits."""
    backbone = config["backbone"]
    figures = next((each for each in table.values() if _is_of(each["shape"], backbone)), None)
    if figures is None:
        return Need(None, available_bytes, why="this backbone was not measured")
    saved_mib = _saved_mib(figures, backbone, precision)
    if saved_mib is None:
        return Need(None, available_bytes, why="this value of backbone.gradient_checkpointing was not measured")
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
    """Raise WrongUse for a step that exceeds the memory of `where`. The message gives a batch that fits."""
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
    """List smaller batches with more accumulation steps and the same global batch, largest first."""
    return [(size // part, steps * part) for part in range(2, size // 2 + 1) if size % part == 0]


def _is_of(shape: Mapping[str, Any], backbone: Mapping[str, Any]) -> bool:
    return all(shape[key] == backbone.get(key) for key in SHAPE if key in shape)


def _saved_mib(figures: Mapping[str, Any], backbone: Mapping[str, Any], precision: str) -> float | None:
    """Return MiB per image at the configured image size; grows with the square of the size."""
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
    bytes_per_image: int = 0  # for each image in this rank's batch
    why: str = ""  # what is not counted


def head_of(config: Mapping[str, Any], extent: Extent) -> HeadMemory:
    """Return the memory of class centres, optimizer state, gradients and logits of a margin head.

    app/models/partial_fc.py has these tensors: tables for a rank's share of the classes, a copy and a gradient of the
    sampled centres, and arrays [images of all ranks, sampled centres].
    """
    teacher = "the teacher" if config["recipe"]["name"] == "distill" else ""
    if not learns_classes(config):
        return HeadMemory(why=f"not counting {teacher}" if teacher else "")
    if extent.classes is None or extent.ranks is None:
        return HeadMemory(why=f"not counting the classes of the head{teacher and f' and {teacher}'}")
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
    why = f"not counting {teacher}" if teacher else ""
    return HeadMemory(fixed + copies * compared * width * FP32 + luck, HEAD_KEPT * extent.ranks * compared * FP32, why)


def learns_classes(config: Mapping[str, Any]) -> bool:
    """Whether a resolved configuration has a margin head over classes. app/config/schema.py has the same rule."""
    recipe = config["recipe"]
    if recipe["name"] == "distill":
        return float(recipe["distill"]["head_weight"]) > 0
    return str(recipe["name"]) == "supervised"


def centre_bytes(optimizer: str | None, width: int) -> int:
    """Return the bytes of one class in the tables of a head: centre, optimizer state, counters."""
    return 2 * width * FP32 + INT64 if optimizer == "sgd" else 3 * width * FP32 + 2 * INT64


def tables_bytes(config: Mapping[str, Any], rows: int) -> int:
    """Return the bytes that recipe self_supervised keeps for all images: pseudo-IDs and, with the bank, embeddings."""
    if config["recipe"]["name"] != "self_supervised":
        return 0
    bank = HALF * int(config["backbone"]["embedding_dim"]) if _mining(config).get("features") == "bank" else 0
    return rows * (INT64 + bank)


def _mining(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("mining") or {}


def _fixed_bytes(config: Mapping[str, Any], figures: Mapping[str, Any], precision: str) -> int:
    """Return bytes independent of the batch: weights, gradients, optimizer, encoder copy, queue, saved tensors."""
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
