"""Count on a CPU what a training step costs the host: waits for the device, copies to it, and launches.

A dispatch mode sees every operation of a step. Some operations would make the host wait for a GPU, because they read a
number or have a shape that depends on data. Others would copy new numbers to it. A step may do neither: its only wait
is for the verdict of the previous step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app.config import load
from app.recipes import RECIPES, Batch, Recipe, SelfSupervised
from app.recipes.update import Late, batches, update
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.optimizer import build_optimizer
from tests.app.support.ranks import run_ranks
from tests.app.support.training import TINY

WAITS = (
    *("_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "equal", "is_nonzero", "bincount"),
    *(
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "linalg_inv_ex",
        "linalg_eigh",
        "_linalg_svd",
        "repeat_interleave",
    ),
)
COPIES = ("lift_fresh", "lift_fresh_copy", "_pin_memory")  # lift_fresh: a tensor made from Python's numbers
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
FREE = (
    *("view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "expand", "slice", "select", "split"),
    *("split_with_sizes", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "unbind", "chunk", "empty"),
    *(
        "empty_like",
        "new_empty",
        "empty_strided",
        "new_empty_strided",
        "is_same_size",
        "narrow",
        "diagonal",
        "view_as_real",
    ),
)


class Budget(TorchDispatchMode):
    """While active, counts operations that would wait for a GPU, copy to it or launch on it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.copies, self.launches = Counter[str](), Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        is_mask = name in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in WAITS or is_mask:
            self.waits[name] += 1
        if name in COPIES:
            self.copies[name] += 1
        if name not in FREE:
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))


def counted(data: Path, alone: World, *words: str, kind: type | None = None, accumulate: int = 1) -> Budget:
    """Count one update, after two that fill caches."""
    config = load([*TINY, f"data.binary_cache_path={data}", f"train.batch.grad_accum_steps={accumulate}", *words])
    recipe_type = kind or RECIPES[config.recipe.name]
    recipe: Recipe = recipe_type(config, recipe_type.training_data(config), alone)
    recipe.calibrate()
    optimizer = build_optimizer(config.train.optimizer, recipe.param_groups())
    scaler = torch.amp.GradScaler("cpu", enabled=config.train.precision == "fp16", init_scale=16.0)
    recipe.begin_epoch(0, None)
    micro_batches = batches(config, recipe, recipe.data, TrainState(), alone)

    def step() -> None:
        ahead = [next(micro_batches) for _ in range(accumulate)]  # the feed's work does not count
        update(config, recipe, optimizer, scaler, iter(ahead), 0.01, alone)

    step()
    step()
    with Budget() as budget:
        step()
    return budget


SUPERVISED = ["recipe=supervised", "recipe.head.scale=16"]
STEPS = {
    "moco": [],
    "moco fp16": ["train.precision=fp16"],
    "moco, bank, several positives": ["mining.features=bank", "recipe.moco.multi_positive=true"],
    "moco, every augmentation": ["recipe.augment.amplitude_mix=0.5", "recipe.augment.rotation_deg=9"],
    "moco adamw": ["train.optimizer.name=adamw"],
    "vit": ["backbone.name=vit", "backbone.layers=[2]", "backbone.width=16", "backbone.fourier=vit"],
    **{
        f"{head}": [*SUPERVISED, f"recipe.head.name={head}"] for head in ("arcface", "cosface", "sphereface", "adaface")
    },
    **{f"{head}": [*SUPERVISED, f"recipe.head.name={head}"] for head in ("magface", "curricularface", "combined")},
    "mean": [*SUPERVISED, "recipe.ema=0.9", "train.precision=bf16"],
    "sampled": [*SUPERVISED, "recipe.head.sample_rate=0.5", "train.batch.size=4"],
    "sampled adamw": [*SUPERVISED, "recipe.head.sample_rate=0.5", "train.batch.size=4", "train.optimizer.name=adamw"],
    "sampled, dense": [*SUPERVISED, "recipe.head.sample_rate=0.5", "recipe.head.update=dense", "train.batch.size=4"],
    "filtered, dense": [*SUPERVISED, "recipe.head.filter_above=0.4", "recipe.head.update=dense"],
}
# Launches of one step of a tiny network, measured with torch 2.13. Many more would slow a GPU down, because a step with
# a small batch takes as long as its launches.
LAUNCHES = {
    "moco": 441,
    "moco fp16": 463,
    "moco, bank, several positives": 469,
    "moco, every augmentation": 461,
    "moco adamw": 445,
    "vit": 460,
    "arcface": 347,
    "cosface": 339,
    "sphereface": 354,
    "adaface": 419,
    "magface": 410,
    "curricularface": 396,
    "combined": 347,
    "mean": 345,
    "sampled": 359,
    "sampled adamw": 384,
    "sampled, dense": 353,
    "filtered, dense": 350,
}
# Of a step of two micro-batches. A CPU with AVX-512 launches 5 less, another one 5 more: see onednn_is_fast.
ACCUMULATED = {"moco": 860, "arcface": 671, "sampled": 708}
SLACK = 8


@pytest.mark.parametrize("name", STEPS)
def test_a_step_neither_waits_for_the_device_nor_copies_to_it(name: str, small_data: Path, alone: World) -> None:
    budget = counted(small_data, alone, *STEPS[name])
    assert not budget.waits
    assert not budget.copies
    launches = budget.launches.total()
    assert abs(launches - LAUNCHES[name]) <= SLACK, (launches, budget.launches.most_common(12))


@pytest.mark.parametrize("name", ACCUMULATED)
def test_accumulated_micro_batches_do_not_either(name: str, small_data: Path, alone: World) -> None:
    budget = counted(small_data, alone, *STEPS[name], "train.batch.size=4", accumulate=2)
    assert not budget.waits
    assert not budget.copies
    assert abs(budget.launches.total() - ACCUMULATED[name]) <= SLACK


# Each rank counts its own step. The batch is so small that more classes are sampled than it contains.
TWO_RANKS = """
import sys
from pathlib import Path
from app.runtime import dist
from tests.app.shadow.test_step_budget import STEPS, SUPERVISED, counted
with dist.world() as here:
    for name in sys.argv[2:]:
        words = STEPS[name] if name in STEPS else [*SUPERVISED, name]
        budget = counted(Path(sys.argv[1]), here, *words, "train.batch.size=2")
        assert not budget.waits, (name, budget.waits)
        assert not budget.copies, (name, budget.copies)
        assert budget.launches.total() > 100
print("fine")
"""


def test_a_step_of_several_ranks_does_not_either(small_data: Path) -> None:
    """This also holds with sampled class centres, whose number on each rank is random."""
    names = ["moco", "moco, bank, several positives", "arcface", "sampled", "sampled adamw", "sampled, dense"]
    run_ranks(TWO_RANKS, 2, str(small_data), *names, "recipe.head.sample_rate=0")


class Curious(SelfSupervised):
    """The recipe with one wait for the device, or one copy to it, in its loss."""

    how = "item"

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = super().loss(batch)
        if self.how == "item":
            loss = loss * (1.0 if loss.item() > 0 else 2.0)
        elif self.how == "mask":
            loss = loss + 0 * self.queue.keys[self.queue.rows >= 0].sum()
        elif self.how == "if":
            loss = loss if loss > 0 else -loss
        else:
            loss = loss * torch.tensor(1.0)
        return loss, metrics


@pytest.mark.parametrize("how", ["item", "mask", "if", "tensor"])
def test_a_wait_or_a_copy_that_creeps_in_is_seen(
    how: str, small_data: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Curious, "how", how)
    budget = counted(small_data, alone, kind=Curious)
    found = budget.copies if how == "tensor" else budget.waits
    assert found.total() == 1


def test_the_verdict_is_read_once_a_step_and_one_step_late(
    small_data: Path, tmp_path: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import train
    from tests.app.support.training import run

    order: list[str] = []

    def noted(name: str, call: Any) -> Any:
        def wrapped(*args: Any, **more: Any) -> Any:
            order.append(name)
            return call(*args, **more)

        return wrapped

    monkeypatch.setattr(Late, "read", noted("read", Late.read))
    monkeypatch.setattr(train, "update", noted("update", train.update))
    run(small_data, tmp_path, alone, "train.epochs=1", "train.batch.size=4", "train.log_every_steps=4")
    assert order == ["update", *["update", "read"] * 3, "read", *["update"], *["update", "read"] * 3, "read"]


def test_the_same_rows_and_seed_are_packed_and_unpacked_alike() -> None:
    from app.data.loader import Asked, parcels

    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5, 3)).astype(np.uint8)
    tensors = [torch.arange(7), torch.rand(3, 7), torch.tensor(True)]

    def asked() -> Iterator[Asked]:
        for start in range(5):
            rows = np.arange(start, start + 7)
            yield Asked(rows, lambda rows=rows: ([torch.from_numpy(rows), *tensors], "rest"), seed=start)

    kept = list(parcels(images, asked(), torch.device("cpu")))
    for start, parcel in enumerate(kept):
        assert (parcel.asked.seed, parcel.rest) == (start, "rest")
        assert parcel.tensors[0].tolist() == list(range(start, start + 7))  # not overwritten by later batches
        assert all(torch.equal(a, b) for a, b in zip(parcel.tensors[1:], tensors, strict=True))
    assert np.array_equal(kept[-1].images.numpy(), images[4:11])
