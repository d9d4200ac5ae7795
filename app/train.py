"""Train: torchrun … -m app.train key=value …   (or `python -m app.train …` for one process).

Reads from top to bottom: configuration, data, recipe, optimizer, where to start, then the one loop. Options and their
meaning are in app/config/schema.py; what the run leaves behind is in app/runtime/folder.py.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app import evaluate
from app.config import Config, load, save_resolved
from app.data.dataset import Dataset, Rows, epoch_order, open_dataset
from app.data.feed import feed
from app.errors import EXIT_WRONG_USE, WrongUse
from app.recipes import RECIPES, Batch, Recipe
from app.runtime import checkpoint, dist
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.schedule import learning_rate
from app.runtime.stop import Stop
from app.runtime.track import Tracker, tracker

PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(argv: list[str]) -> int:
    stop = Stop().listen()
    try:
        config = load(argv)
        data = open_data(config)
    except WrongUse as error:
        if os.environ.get("RANK", "0") == "0":  # every rank sees the same; one says it
            print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    with dist.world() as here:
        default = f"runs/by-hand-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = RunFolder(Path(dist.from_main(config.run.dir or default, here)))
        track = tracker(config, folder, here)
        try:
            train(config, data, folder, here, track, stop)
        except WrongUse as error:
            track.event("end", TrainState(), reason="wrong_use", message=str(error), seconds=0.0)
            return EXIT_WRONG_USE
        except NotFinite as error:
            last_good = checkpoint.newest(folder) if here.is_main else None
            message = f"{error}; the last good checkpoint is {last_good.name if last_good else 'none yet'}"
            track.event("end", TrainState(), reason="failed", message=message, seconds=0.0)
            return 1
        finally:
            track.close()
    return 0


def train(config: Config, data: Dataset, folder: RunFolder, here: World, track: Tracker, stop: Stop) -> None:
    """The whole run. Raises WrongUse for a checkpoint that does not fit or a disk without room."""
    started = time.monotonic()
    settings = config.train
    recipe = RECIPES[config.recipe.name](config, data, here)
    optimizer = build_optimizer(config, recipe.param_groups())
    scaler = torch.amp.GradScaler(here.device.type, enabled=settings.precision == "fp16")
    meter = evaluate.Meter(config, data, recipe.embedder, here)
    update_size = settings.batch.size * here.size * settings.batch.grad_accum_steps  # images an update, all ranks
    steps_per_epoch = math.ceil(len(data.train_rows) / update_size)
    if here.is_main:
        checkpoint.refuse_without_room(folder, recipe.modules, optimizer)
        save_resolved(config, folder.config)

    state, resumed_from = TrainState(), to_resume(settings.resume, folder, here)
    untrained = list(meter.baselines())  # before anything is loaded: every run folder tells what training was worth
    if resumed_from is not None:
        state = checkpoint.load(resumed_from, recipe.modules, optimizer, scaler)
    track.event(
        "start",
        state,
        world_size=here.size,
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch,
        global_batch=update_size,
        train_rows=len(data.train_rows),
        dataset_id=data.dataset_id,
        fraction=data.fraction,
        resumed_from=resumed_from.name if resumed_from else None,
    )
    for what, baseline in untrained:
        track.event("eval", state, what=what, **baseline)

    first_step, stopped = state.step, False
    saved_step = state.step if resumed_from and resumed_from.parent == folder.checkpoints else None
    while state.epoch < settings.epochs and not stopped:
        epoch_started = time.monotonic()
        # An epoch that is resumed keeps the pseudo-IDs it began with: they are in the checkpoint.
        found = recipe.begin_epoch(state.epoch, refresh=state.step_in_epoch == 0)
        if found:
            track.event("mining", state, **found)
        pace = Pace()
        micro_batches = batches(config, recipe, data, state, here)
        while state.step_in_epoch < steps_per_epoch and not (stopped := dist.any_rank(stop.asked.is_set(), here)):
            lr = learning_rate(
                settings.optimizer.lr, settings.lr_schedule, state.step, steps_per_epoch, settings.epochs
            )
            pace.count(update_size, update(config, recipe, optimizer, scaler, micro_batches, lr, here))
            state.step += 1
            state.step_in_epoch += 1
            if state.step % settings.log_every_steps == 0 or state.step_in_epoch == steps_per_epoch:
                seconds_a_step = (time.monotonic() - started) / (state.step - first_step)  # mining and all included
                left = (settings.epochs * steps_per_epoch - state.step) * seconds_a_step
                track.event("step", state, lr=lr, **pace.report(here), seconds_left=left)
        epoch_complete = state.step_in_epoch == steps_per_epoch
        measured: dict[str, float] | None = None
        if epoch_complete:
            track.event("epoch", state, loss=pace.epoch_loss(here), seconds=time.monotonic() - epoch_started)
            done = state.epoch + 1
            if done % settings.eval.every_epochs == 0 or done == settings.epochs:
                measured = meter.measure()
            if measured:
                track.event("eval", state, what="trained", **measured)
            state.epoch, state.step_in_epoch = done, 0
            stopped = dist.any_rank(stop.asked.is_set(), here)
        due = state.epoch % settings.checkpoint.every_epochs == 0 or state.epoch == settings.epochs
        # A stop between two epochs finds its checkpoint written already.
        if here.is_main and (stopped or (epoch_complete and due)) and state.step != saved_step:
            saved = checkpoint.save(
                folder,
                state,
                recipe.modules,
                optimizer,
                scaler,
                keep=settings.checkpoint.keep,
                facts={**facts_of(config, data, here), "eval": measured},
            )
            track.event(
                "checkpoint",
                state,
                **{key: saved[key] for key in ("epoch", "step", "file", "sha256", "bytes")},
            )
            saved_step = state.step
    reason = "done" if state.epoch == settings.epochs else "stopped"
    track.event("end", state, reason=reason, message="", seconds=time.monotonic() - started)


def open_data(config: Config) -> Dataset:
    """The data set that the configuration names, with the rows of its fraction."""
    if config.data.binary_cache_path is None:
        raise WrongUse("data.binary_cache_path is not set; give the path of an images.npy, such as data/orl/images.npy")
    return open_dataset(
        Path(config.data.binary_cache_path),
        labels_path=Path(config.data.labels_path) if config.data.labels_path else None,
        fraction=config.data.data_fraction,
        block_rows=config.data.block_size,
    )


def build_optimizer(config: Config, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    o = config.train.optimizer
    if o.name == "adamw":
        return torch.optim.AdamW(groups, lr=o.lr, weight_decay=o.weight_decay)
    return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay)


def to_resume(wish: str | None, folder: RunFolder, here: World) -> Path | None:
    """The checkpoint to go on from: `auto` is the newest whole one of this run folder, none is a fresh start."""
    if wish in (None, "none"):
        return None
    if wish == "auto":
        return dist.from_main(checkpoint.newest(folder) if here.is_main else None, here)
    return Path(wish)


def batches(config: Config, recipe: Recipe, data: Dataset, state: TrainState, here: World) -> Iterator[Batch]:
    """This rank's micro-batches from where the state stands to the end of the epoch.

    Every random number depends only on the seed, the update, the micro-batch and the rank, so a resumed run draws
    the same ones.
    """
    size, accumulate, seed = config.train.batch.size, config.train.batch.grad_accum_steps, config.train.seed
    world_size = size * here.size
    order = epoch_order(data.train_rows, seed=seed, epoch=state.epoch, multiple_of=world_size * accumulate)
    first_update = state.step - state.step_in_epoch

    def keys() -> Iterator[tuple[int, list[int]]]:
        for place in range(state.step_in_epoch * world_size * accumulate, len(order), world_size):
            micro = place // world_size
            yield (
                place + here.rank * size,
                [seed, first_update + micro // accumulate, micro % accumulate, here.rank],
            )

    def rows() -> Iterator[Rows]:
        for place, key in keys():
            yield recipe.pick(order[place : place + size], np.random.default_rng(key))

    for (_, key), (picked, images) in zip(keys(), feed(data.images, rows(), here.device), strict=True):
        draws = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        yield Batch(images, picked, torch.Generator().manual_seed(draws))


def update(
    config: Config,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: Iterator[Batch],
    lr: float,
    here: World,
) -> dict[str, Tensor]:
    """One optimizer step over `grad_accum_steps` micro-batches; returns their mean metrics, still on the device."""
    settings = config.train
    accumulate = settings.batch.grad_accum_steps
    for group in optimizer.param_groups:
        group["lr"] = lr
    recipe.modules.train()
    sums: dict[str, Tensor] = {}
    for _ in range(accumulate):
        batch = next(micro_batches)
        torch.manual_seed(batch.generator.initial_seed())  # for dropout and the like
        with torch.autocast(here.device.type, PRECISION[settings.precision], enabled=settings.precision != "fp32"):
            loss, metrics = recipe.loss(batch)
        scaler.scale(loss / accumulate).backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0) + value / accumulate
    scaler.unscale_(optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    sums["grad_norm"] = torch.nn.utils.clip_grad_norm_(trained, settings.optimizer.clip_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    recipe.after_step()
    return sums


class Pace:
    """Speed and mean metrics since the last report; nothing is read from the device in between."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self._restart()

    def _restart(self) -> None:
        self.since, self.images, self.metrics = time.monotonic(), 0, list[dict[str, Tensor]]()

    def count(self, images: int, metrics: dict[str, Tensor]) -> None:
        self.images += images
        self.metrics.append(metrics)
        self.losses.append(metrics["loss"])

    def report(self, here: World) -> dict[str, float]:
        """Mean metrics over steps and ranks, images a second of all ranks. Raises on a loss that is not finite."""
        names = list(self.metrics[0])
        values = torch.stack([torch.stack([m[name] for name in names]) for m in self.metrics]).mean(0)
        means = dict(zip(names, dist.mean(values, here).tolist(), strict=True))
        if not math.isfinite(means["loss"]):
            raise NotFinite(f"the loss is {means['loss']}: continue with a lower train.optimizer.lr")
        means["images_per_s"] = self.images / (time.monotonic() - self.since)
        self._restart()
        return means

    def epoch_loss(self, here: World) -> float:
        return float(dist.mean(torch.stack(self.losses).mean(), here))


class NotFinite(Exception):
    """Training diverged; the checkpoints before it are good."""


def facts_of(config: Config, data: Dataset, here: World) -> dict[str, Any]:
    """What a checkpoint's JSON says besides its own state."""
    return {
        "commit": config.run.commit,
        "dataset_id": data.dataset_id,
        "fraction": data.fraction,
        "world_size": here.size,
        "recipe": config.recipe.name,
        "model": config.model(),
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
