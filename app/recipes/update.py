"""One optimizer update, from the order of an epoch to its verdict: the hot path of training.

The host launches an update without waiting for the device. The device decides whether the update counts; the host reads
that later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.config import Config
from app.data.dataset import Dataset, chances, epoch_order
from app.data.loader import Asked, parcels
from app.recipes.recipe import Batch, Recipe, arrived, wanted
from app.runtime import dist
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.optimizer import clip_gradients


def batches(config: Config, recipe: Recipe, data: Dataset, state: TrainState, here: World) -> Iterator[Batch]:
    """Yield this rank's micro-batches from the current position to the end of the epoch.

    The order of an epoch is split into pieces of `batch.size`, dealt to the ranks in turn. The randomness of a piece
    depends only on the seed and its place in that order, not on the rank. So a resumed run, with more or fewer
    processes too, continues with the same images, partners and augmentations.

    With shards each machine has an order of its own images, split among its processes in the same way. An epoch takes
    equally many images of each machine. So a machine with fewer starts its order again, and one with more leaves some
    out of this epoch.
    """
    size, accumulate = config.train.batch.size, config.train.batch.grad_accum_steps
    seed, epoch = config.train.seed, state.epoch
    shard, machines, processes, own = 0, 1, here.size, here.rank
    if data.shard is not None:
        shard, machines, own = data.shard.number, data.shard.of, data.shard.place_of(here.rank)
        processes = here.size // machines
    order = epoch_order(data.own_rows, seed=seed, epoch=epoch, shard=shard)
    an_update = size * here.size * accumulate
    end = state.seen + -(-(len(data.train_rows) - state.seen) // an_update) * an_update
    # Places in the order of this machine. Each update takes equally many images of every machine.
    places = range(state.seen // machines + own * size, end // machines, size * processes)

    def asked() -> Iterator[Asked]:
        for place in places:
            # The last update of an epoch is padded from the beginning of its order.
            piece = np.take(order, np.arange(place, place + size), mode="wrap")
            rows = recipe.pick(piece, chances(place, size, seed=seed, epoch=epoch, shard=shard))
            entropy = [seed, epoch, place, *([shard] if shard else [])]
            drawn = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
            yield wanted(recipe, rows, seed=int(drawn[0] >> 1))

    for number, parcel in enumerate(parcels(data.images, asked(), here.device), start=1):
        yield arrived(parcel, last=number % accumulate == 0)


class Late:
    """An asynchronous copy of numbers from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self.there: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.there = torch.cuda.Event()
            self.there.record()
        else:
            self.numbers = numbers.clone()

    def read(self) -> list[float]:
        """The numbers; waits until the device has copied them."""
        if self.there is not None:
            self.there.synchronize()
        values: list[float] = self.numbers.tolist()
        return values


@dataclass(frozen=True)
class Verdict:
    """The outcome of an update, the same on all ranks."""

    taken: bool  # False: a loss or gradient was not finite on some rank; only the fp16 scale has changed
    stop: bool  # some rank was asked to stop
    scale: float  # next scale of fp16's losses; 1 without fp16


@dataclass(frozen=True)
class Update:
    """A launched update; its numbers are still on the device."""

    metrics: dict[str, Tensor]  # means over its micro-batches
    numbers: Late
    images: int = 0  # of all ranks, from this epoch's order

    def verdict(self) -> Verdict:
        """Wait until the device has finished the update, and return whether it counts."""
        not_finite, stop, scale = self.numbers.read()
        return Verdict(not not_finite, bool(stop), scale)


def update(
    config: Config,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: Iterator[Batch],
    lr: float,
    here: World,
    *,
    stop: bool = False,
) -> Update:
    """Launch one optimizer step over `grad_accum_steps` micro-batches, without waiting for the device.

    If a loss or gradient is not finite on some rank, only the fp16 scale changes. The device decides this and returns
    it together with whether a rank was asked to `stop`.
    """
    settings = config.train
    accumulate = settings.batch.grad_accum_steps
    for group in optimizer.param_groups:
        group["lr"] = lr
    recipe.modules.train()
    sums: dict[str, Tensor] = {}
    for _ in range(accumulate):
        batch = next(micro_batches)
        torch.manual_seed(batch.seed)  # for dropout and the like
        loss, metrics = recipe.loss(batch)
        scaler.scale(loss if settings.batch.parity_sum else loss / accumulate).backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums[name] + value / accumulate if name in sums else value / accumulate
    one = torch.ones((), device=here.device)
    grad_scale = scaler.scale(one)
    scaler.unscale_(optimizer)
    sums["grad_norm"] = clip_gradients(optimizer, settings.optimizer.clip_grad_norm)
    finite = torch.isfinite(sums["loss"] + sums["grad_norm"])
    told = dist.greatest(torch.stack([1 - finite.float(), torch.full_like(one, stop)]), here)
    optimizer.found_inf = told[0]  # torch's fused optimizers skip the step themselves
    optimizer.step()
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    recipe.after_step(lr, grad_scale, taken=1 - told[0])
    return Update(sums, Late(torch.cat([told, scaler.scale(one)[None]])))
