"""Train: torchrun … -m app.train key=value …   (or `python -m app.train …` for one process).

Reads from top to bottom: configuration, data, recipe, optimizer, where to start, then the one loop. Options and their
meaning are in app/config/schema.py; what the run leaves behind is in app/runtime/folder.py.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.config import Config, TrainConfig, read_command_line, save_resolved
from app.data.dataset import Dataset, Rows, chances, epoch_order
from app.data.feed import feed
from app.errors import EXIT_WRONG_USE, WrongUse
from app.evaluation.meter import Meter
from app.files import make_folder
from app.mining.embed import Interrupted
from app.mining.pseudo_ids import SearchInexact
from app.mining.refresh import PRECISION, Interlude
from app.recipes import RECIPES, Batch, Recipe
from app.runtime import checkpoint, dist
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.pace import Pace
from app.runtime.schedule import learning_rate
from app.runtime.stop import Stop
from app.runtime.track import Tracker, tracker


def main(argv: list[str]) -> int:
    stop = Stop().listen()
    try:
        asked = read_command_line(argv, __doc__ or "")
        runs = [(config, RECIPES[config.recipe.name].training_data(config)) for config in asked.jobs]
        for config in asked.jobs:
            refuse_unfit_files(config)
    except WrongUse as error:
        if dist.is_first():  # every rank sees the same; one says it
            print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    if asked.text is not None:
        print(asked.text if dist.is_first() else "", end="")
        return 0
    with dist.world() as here:
        for number, (config, data) in enumerate(runs):
            exit_code = run(config, data, here, stop, number=number if len(runs) > 1 else None)
            if exit_code or dist.any_rank(stop.asked.is_set(), here):
                return exit_code
    return 0


def run(config: Config, data: Dataset, here: World, stop: Stop, *, number: int | None) -> int:
    """One run in a folder of its own, with its end recorded; `number` is its place in a sweep. The exit code."""
    by_hand = f"runs/{'by-hand' if number is None else 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}"
    place = Path(config.run.dir or by_hand)
    folder = RunFolder(dist.from_main(place if number is None else place / str(number), here))
    track = tracker(config, folder, here)
    try:
        train(config, data, folder, here, track, stop)
    except WrongUse as error:
        track.event("end", TrainState(), reason="wrong_use", message=str(error), seconds=0.0)
        return EXIT_WRONG_USE
    except (NotFinite, SearchInexact) as error:
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
    refuse_without_compiler(settings)
    if here.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = settings.tf32
        torch.backends.cudnn.benchmark = True  # shapes are the same in every step
    recipe = RECIPES[config.recipe.name](config, data, here)
    optimizer = build_optimizer(config, recipe.param_groups())
    scaler = torch.amp.GradScaler(here.device.type, enabled=settings.precision == "fp16")
    meter = Meter(config, data, recipe.embedder, here)
    rows = len(data.train_rows)
    update_size = settings.batch.size * here.size * settings.batch.grad_accum_steps  # images an update, all ranks
    if here.is_main:
        checkpoint.refuse_without_room(folder, recipe.modules, optimizer)
        save_resolved(config, folder.config)

    state, resumed_from = TrainState(), to_resume(settings.resume, folder, here)
    untrained = list(meter.baselines())  # before anything is loaded: every run folder tells what training was worth
    if resumed_from is not None:
        state = checkpoint.load(resumed_from, recipe.modules, recipe.take_tables, optimizer, scaler)
    elif settings.warm_start is not None:
        recipe.warm_start(Path(settings.warm_start))
    track.event(
        "start",
        state,
        world_size=here.size,
        epochs=settings.epochs,
        steps_per_epoch=math.ceil(rows / update_size),
        global_batch=update_size,
        train_rows=rows,
        dataset_id=data.dataset_id,
        fraction=data.fraction,
        resumed_from=resumed_from.name if resumed_from else None,
    )
    for what, baseline in untrained:
        track.event("eval", state, what=what, **baseline)

    def stopping() -> bool:
        return dist.any_rank(stop.asked.is_set(), here)

    first_image = state.epoch * rows + state.seen
    stopped, skipped_in_a_row = False, 0
    saved_step = state.step if resumed_from and resumed_from.parent == folder.checkpoints else None
    while state.epoch < settings.epochs and not stopped:
        epoch_started = time.monotonic()
        # An epoch that is resumed keeps the pseudo-IDs it began with: they are in the checkpoint.
        between = Interlude(folder.mining, stop.asked.is_set, embedding_progress(track, state))
        try:
            found = recipe.begin_epoch(state.epoch, between if state.seen == 0 else None)
        except Interrupted:
            stopped = True
            found = None
        if found:
            track.event("mining", state, **found)
        pace = Pace()
        micro_batches = batches(config, recipe, data, state, here)
        while state.seen < rows and not (stopped := stopped or stopping()):
            lr = learning_rate(
                settings.optimizer.lr, settings.lr_schedule, state.epoch + state.seen / rows, settings.epochs
            )
            metrics = update(config, recipe, optimizer, scaler, micro_batches, lr, here)
            pace.count(update_size, metrics)
            state.step += 1
            state.seen = min(state.seen + update_size, rows)
            # fp16 finds its scale by overflowing; that is no fault until the scale has come down to 1.
            skipped_in_a_row = skipped_in_a_row + 1 if metrics is None and scaler.get_scale() <= 1 else 0
            if metrics is None:
                track.event("skipped", state, in_a_row=skipped_in_a_row)
            if skipped_in_a_row == settings.max_nonfinite_steps:
                raise NotFinite(
                    f"the loss was not finite {skipped_in_a_row} times in a row: "
                    f"continue with a lower train.optimizer.lr than {settings.optimizer.lr:g}"
                )
            if state.step % settings.log_every_steps == 0 or state.seen == rows:
                done = state.epoch * rows + state.seen
                seconds_an_image = (time.monotonic() - started) / (done - first_image)  # mining and all included
                left = (settings.epochs * rows - done) * seconds_an_image
                track.event("step", state, lr=lr, **pace.report(here), seconds_left=left)
        epoch_complete = state.seen == rows
        measured: dict[str, float] | None = None
        if epoch_complete:
            seconds = time.monotonic() - epoch_started
            track.event("epoch", state, loss=pace.epoch_loss(here), seconds=seconds, **recipe.health())
            done_epochs = state.epoch + 1
            if done_epochs % settings.eval.every_epochs == 0 or done_epochs == settings.epochs:
                measured = meter.measure()
            if measured:
                track.event("eval", state, what="trained", **measured)
            state.epoch, state.seen = done_epochs, 0
            stopped = stopping()
        due = state.epoch % settings.checkpoint.every_epochs == 0 or state.epoch == settings.epochs
        # A stop between two epochs finds its checkpoint written already.
        if (stopped or (epoch_complete and due)) and state.step != saved_step:
            facts = {**facts_of(config, data, here), "eval": measured}
            save(folder, state, recipe, optimizer, scaler, settings.checkpoint.keep, facts, here, track)
            saved_step = state.step
    reason = "done" if state.epoch == settings.epochs else "stopped"
    track.event("end", state, reason=reason, message="", seconds=time.monotonic() - started)


def save(
    folder: RunFolder,
    state: TrainState,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    keep: int,
    facts: dict[str, Any],
    here: World,
    track: Tracker,
) -> None:
    """Rank 0 writes a checkpoint; the others send it what they hold a part of."""
    tables = recipe.tables()
    if here.is_main:
        saved = checkpoint.save(folder, state, recipe.modules, tables, optimizer, scaler, keep=keep, facts=facts)
        track.event("checkpoint", state, **{key: saved[key] for key in ("epoch", "step", "file", "sha256", "bytes")})


def embedding_progress(track: Tracker, state: TrainState, every_s: float = 10.0) -> Callable[[int, int], None]:
    """Tells every few seconds how far an embedding pass is; a short one passes in silence."""
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= every_s:
            told = time.monotonic()
            track.event("embedding", state, done=done, total=total)

    return tell


def refuse_unfit_files(config: Config) -> None:
    """Before anything is written: checkpoints to begin with that are not there, and a folder that another run has."""
    resume, warm_start = config.train.resume, config.train.warm_start
    for key, path in (("train.resume", resume), ("train.warm_start", warm_start)):
        if path not in (None, "none", "auto") and not Path(path).is_file():
            raise WrongUse(f"{key}={path} is no file; give one such as runs/RUN/checkpoints/epoch_014.pt")
    if config.run.dir is None:
        return
    folder = RunFolder(Path(config.run.dir))
    make_folder(folder.path, "run.dir")
    if resume in (None, "none") and checkpoint.newest(folder):
        raise WrongUse(
            f"run.dir={folder.path} holds checkpoints of an earlier run; "
            "give train.resume=auto to go on with it, or another run.dir"
        )


def refuse_without_compiler(settings: TrainConfig) -> None:
    """torch.compile finds out in the first step, in pages of it."""
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    if settings.compile and not any(shutil.which(compiler) for compiler in compilers):
        raise WrongUse("train.compile=true needs a C++ compiler such as g++; install one, or give train.compile=false")


def build_optimizer(config: Config, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    o = config.train.optimizer
    rates = {"lr": o.lr, "weight_decay": o.weight_decay, "fused": True}  # one pass over the weights instead of several
    if o.name == "adamw":
        return torch.optim.AdamW(groups, **rates)
    return torch.optim.SGD(groups, momentum=o.momentum, nesterov=o.nesterov, **rates)


def to_resume(wish: str | None, folder: RunFolder, here: World) -> Path | None:
    """The checkpoint to go on from: `auto` is the newest whole one of this run folder, none is a fresh start."""
    if wish in (None, "none"):
        return None
    if wish == "auto":
        return dist.from_main(checkpoint.newest(folder) if here.is_main else None, here)
    return Path(wish)


def batches(config: Config, recipe: Recipe, data: Dataset, state: TrainState, here: World) -> Iterator[Batch]:
    """This rank's micro-batches from where the state stands to the end of the epoch.

    The order of an epoch is dealt out in pieces of `batch.size`, to the ranks in turn. What is random about a piece
    depends on the seed and its place in that order alone, not on who works on it: a run that is resumed, with more or
    fewer processes too, goes on with the same images, partners and augmentations.
    """
    size, accumulate = config.train.batch.size, config.train.batch.grad_accum_steps
    seed, epoch = config.train.seed, state.epoch
    order = epoch_order(data.train_rows, seed=seed, epoch=epoch)
    world_size = size * here.size
    end = state.seen + -(-(len(order) - state.seen) // (world_size * accumulate)) * world_size * accumulate
    places = range(state.seen + here.rank * size, end, world_size)

    def rows() -> Iterator[Rows]:
        for place in places:
            # The last update of an epoch is filled up from the beginning of its order.
            piece = np.take(order, np.arange(place, place + size), mode="wrap")
            yield recipe.pick(piece, chances(place, size, seed=seed, epoch=epoch))

    for number, place, (picked, images) in zip(count(1), places, feed(data.images, rows(), here.device), strict=False):
        draws = int(np.random.SeedSequence([seed, epoch, place]).generate_state(1, np.uint64)[0] >> 1)
        yield Batch(images, picked, torch.Generator().manual_seed(draws), last=number % accumulate == 0)


def update(
    config: Config,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: Iterator[Batch],
    lr: float,
    here: World,
) -> dict[str, Tensor] | None:
    """One optimizer step over `grad_accum_steps` micro-batches; returns their mean metrics, still on the device.

    None when a loss or gradient was not finite on some rank: then nothing has changed but the fp16 scale.
    """
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
        scaler.scale(loss if settings.batch.parity_sum else loss / accumulate).backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0) + value / accumulate
    scaler.unscale_(optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    sums["grad_norm"] = torch.nn.utils.clip_grad_norm_(trained, settings.optimizer.clip_grad_norm)
    taken = not dist.any_rank(not bool(torch.isfinite(sums["loss"] + sums["grad_norm"])), here)
    if taken or scaler.is_enabled():  # the scaler itself steps over gradients that are not finite, and must see them
        scaler.step(optimizer)
    grad_scale = float(scaler.get_scale())
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    recipe.after_step(lr, grad_scale, taken=taken)
    return sums if taken else None


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
    dist.leave(main(sys.argv[1:]))
