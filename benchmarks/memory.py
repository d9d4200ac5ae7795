"""MiB that a training step saves for its backward pass, per image, by backbone and precision: conf/memory.json.

Every network of conf/backbone makes a forward pass at 112 pixels, on tensors that have a shape and no memory. Each
tensor that autograd saves counts once; parameters and buffers do not count. Two batch sizes separate what grows with
the images from what does not. Claims: 16 bits and recomputing save memory; the measurement agrees with the file.

    python benchmarks/memory.py            measure and compare with conf/memory.json
    python benchmarks/memory.py --write    write conf/memory.json first

For each backbone the file has:

    shape                    what its figures depend on, as conf/backbone sets it
    params                   numbers in the backbone
    saved_mib_per_image      MiB for each image of a batch, with gradient_checkpointing as conf/backbone sets it
    switched_mib_per_image   the same with backbone.gradient_checkpointing the other way round
    saved_mib_fixed          MiB for each step, whatever the batch: weights in 16 bits for the half precisions

`half` is fp16 and bf16. Memory grows with the square of image_size. The tensors are those that CUDA saves: layers that
exist only for CPUs are switched off. With gradient_checkpointing a figure is the inputs of all blocks plus the inside
of the largest block, which exists while its gradients are computed. Not counted: weights, gradients and optimizer state
(12 bytes a number for SGD with momentum, 16 for AdamW); the momentum encoder, the queue, the head and the augmentation;
gradients of activations (a few of the largest tensors); the tensor that CUDA's PReLU makes for the gradient of its
slope, as large as its input; cuDNN's workspaces; the allocator's loss to fragmentation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import load
from app.models import build_backbone, layers
from benchmarks._claims import Claim, report
from deploy.specs.memory import SHAPE

TABLE = Path(__file__).parents[1] / "conf" / "memory.json"
BACKBONES = sorted(path.stem for path in (TABLE.parent / "backbone").glob("*.yaml"))
QUICK = ["iresnet50", "vit_t"]
IMAGE_SIZE = 112
MIB = 2**20


def measure(backbone: str) -> dict[str, Any]:
    """Return the table entry of conf/backbone/`backbone`.yaml."""
    config = load([f"backbone={backbone}", f"backbone.image_size={IMAGE_SIZE}"]).backbone
    with shapes_alone():
        networks = {
            recomputes: build_backbone(dataclasses.replace(config, gradient_checkpointing=recomputes)).train()
            for recomputes in (False, True)
        }
        inside = {half: inside_largest_block(networks[False], half=half) for half in (False, True)}
        plain = {half: saved(networks[False], half=half) for half in (False, True)}
        between = {half: saved(networks[True], half=half) for half in (False, True)}
        params = sum(p.numel() for p in networks[False].parameters())
    whole = {half: per_image for half, (per_image, _) in plain.items()}
    recomputed = {half: per_image + inside[half] for half, (per_image, _) in between.items()}
    as_set, switched = (recomputed, whole) if config.gradient_checkpointing else (whole, recomputed)
    return {
        "shape": shape(backbone),
        "image_size": IMAGE_SIZE,
        "params": params,
        "gradient_checkpointing": config.gradient_checkpointing,
        "saved_mib_per_image": by_precision(as_set),
        "switched_mib_per_image": by_precision(switched),
        "saved_mib_fixed": by_precision({half: fixed for half, (_, fixed) in plain.items()}),
    }


def shape(backbone: str) -> dict[str, Any]:
    """Return the keys of conf/backbone/`backbone`.yaml by which the plan of a run looks up its figures."""
    values = yaml.safe_load((TABLE.parent / "backbone" / f"{backbone}.yaml").read_text(encoding="utf-8"))
    return {key: values[key] for key in SHAPE if key in values}


def by_precision(values: dict[bool, float]) -> dict[str, float]:
    return {"fp32": round(values[False] / MIB, 2), "half": round(values[True] / MIB, 2)}


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Use tensors without memory, and only layers of every device: layers for CPUs save other tensors than CUDA's."""
    with (
        patch.object(layers, "_pays", lambda *_: False),
        patch.object(nn.init, "trunc_normal_", lambda tensor, **_: tensor),  # it reads values, which these tensors lack
        FakeTensorMode(),
    ):
        yield


def saved(network: nn.Module, *, half: bool) -> tuple[float, float]:
    """Return the bytes that a forward pass saves for each image, and the fixed bytes."""
    two, four = (sum(storages_saved(network, some_images(count), half=half).values()) for count in (2, 4))
    return (four - two) / 2, 2 * two - four


def inside_largest_block(network: nn.Module, *, half: bool) -> float:
    """Return the bytes per image that one block saves besides its input: recomputing needs them again for a moment."""
    two, four = (
        {block: inside(block, x, half=half) for block, x in block_inputs(network, count, half=half).items()}
        for count in (2, 4)
    )
    return max((four[block] - two[block]) / 2 for block in two)


def inside(block: nn.Module, x: Tensor, *, half: bool) -> int:
    x = x.detach().requires_grad_()
    return sum(size for storage, size in storages_saved(block, x, half=half).items() if storage != storage_of(x))


def block_inputs(network: nn.Module, count: int, *, half: bool) -> dict[nn.Module, Tensor]:
    """Return the input of each recomputable block in a forward pass of `count` images."""
    given: dict[nn.Module, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda block, arguments: given.update({block: arguments[0]}))
        for module in network.modules()
        if type(module).__name__ in ("Block", "Bottleneck")
    ]
    with torch.no_grad(), half_precision(half):
        network(some_images(count))
    for handle in handles:
        handle.remove()
    return given


def storages_saved(network: nn.Module, x: Tensor, *, half: bool) -> dict[int, int]:
    """Return every storage that autograd saves in a forward pass of x, with its bytes; no parameters or buffers."""
    own = {storage_of(tensor) for tensor in (*network.parameters(), *network.buffers())}
    found: dict[int, Tensor] = {}  # keeps the tensors alive: the address of a freed storage would be reused

    def keep(tensor: Tensor) -> Tensor:
        if storage_of(tensor) not in own:
            found.setdefault(storage_of(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), half_precision(half):
        network(x)
    return {storage: tensor.untyped_storage().nbytes() for storage, tensor in found.items()}


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def some_images(count: int) -> Tensor:
    return torch.empty(count, 3, IMAGE_SIZE, IMAGE_SIZE).to(memory_format=torch.channels_last)


def half_precision(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def as_json(table: dict[str, dict[str, Any]]) -> str:
    """Return the whole file, one line per backbone."""
    lines = (f"  {json.dumps(backbone)}: {json.dumps(entry)}" for backbone, entry in table.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def worst_difference(measured: dict[str, dict[str, Any]]) -> float:
    """Return the largest relative difference between the measurement and conf/memory.json."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    numbers = ("saved_mib_per_image", "switched_mib_per_image")
    return max(
        abs(entry[key][precision] / table[backbone][key][precision] - 1)
        for backbone, entry in measured.items()
        for key in numbers
        for precision in entry[key]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two backbones alone; writes nothing")
    parser.add_argument("--write", action="store_true", help="write conf/memory.json as measured")
    asked = parser.parse_args()
    measured = {backbone: measure(backbone) for backbone in (QUICK if asked.quick else BACKBONES)}
    if asked.write and not asked.quick:
        TABLE.write_text(as_json(measured), encoding="utf-8")
    iresnet50 = measured["iresnet50"]
    whole, recomputed = iresnet50["saved_mib_per_image"], iresnet50["switched_mib_per_image"]
    claims = [
        compared("16 bits against fp32, iresnet50", whole["half"], whole["fp32"], 1.9),
        compared("recomputed against kept, iresnet50, 16 bits", recomputed["half"], whole["half"], 2.0),
        agreement(measured),
    ]
    return report("memory", claims, is_quick=asked.quick)


def compared(name: str, ours: float, peer: float, at_least: float) -> Claim:
    return Claim(name, ours, peer, "MiB an image", peer / ours, at_least)


def agreement(measured: dict[str, dict[str, Any]]) -> Claim:
    share = 1 - worst_difference(measured)
    return Claim(f"conf/memory.json, {len(measured)} backbones", share, 1.0, "agreement", share, 0.999)


if __name__ == "__main__":
    raise SystemExit(main())
