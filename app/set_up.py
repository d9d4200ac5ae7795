"""Set up a run: all that its steps share, on its device, and the checkpoint or weights that it begins with."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from app.config import Config, save_resolved
from app.data.dataset import Dataset, identity
from app.evaluation.evaluator import Meter
from app.evaluation.validation import NONE
from app.evaluation.while_training import NamedSets
from app.recipes import RECIPES, Recipe
from app.recipes.update import Update
from app.runtime import checkpoint, dist, graphs
from app.runtime.checkpoint import TrainState
from app.runtime.compiler import refuse_without_compiler
from app.runtime.dist import World
from app.runtime.finite import listed
from app.runtime.folder import RunFolder
from app.runtime.optimizer import build_optimizer
from app.runtime.resume import facts_of
from app.runtime.start import to_resume
from app.runtime.stop import Stop
from app.runtime.track import Tracker


@dataclass
class Training:
    """State shared by the steps of one run. `state` is its progress, which every checkpoint contains."""

    config: Config
    data: Dataset
    folder: RunFolder
    here: World
    track: Tracker
    stop: Stop
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    meter: Meter
    sets: NamedSets
    started: float  # by time.monotonic()
    facts: dict[str, Any]  # for a later run that resumes from a checkpoint of this one
    state: TrainState = field(default_factory=TrainState)
    first_image: int = 0  # images done, over all epochs, when this process started
    saved: tuple[int, int] = (0, 0)  # epoch and images done in it, of the last checkpoint
    skipped_in_a_row: int = 0
    taken_this_epoch: int = 0  # steps taken; in a resumed epoch at least one
    pending: Update | None = None  # the last update, whose verdict is not read yet
    stop_heard: bool = False  # the verdict of an update reported that some rank was asked to stop

    @property
    def rows(self) -> int:
        """Images per epoch."""
        return len(self.data.train_rows)

    @property
    def update_size(self) -> int:
        """Images per update, over all ranks."""
        return self.config.train.batch.size * self.here.size * self.config.train.batch.grad_accum_steps

    def stopping(self) -> bool:
        return dist.any_rank(self.stop.asked.is_set(), self.here)

    def stopping_soon(self) -> bool:
        """Like `stopping`, for the loop: several ranks read it from the verdict of an update, without a collective."""
        return self.stop_heard or (self.here.size == 1 and self.stop.asked.is_set())


def set_up(config: Config, data: Dataset, folder: RunFolder, here: World, track: Tracker, stop: Stop) -> Training:
    """Build everything a run needs, on its device, and check the disk for room. Loads no weights yet."""
    started, settings = time.monotonic(), config.train
    with dist.together(here):
        if settings.compile:
            refuse_without_compiler(here.device.type)
        graphs.refuse_unfit(config, here)
    if here.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = settings.tf32
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    recipe = RECIPES[config.recipe.name](config, data, here)
    optimizer = build_optimizer(settings.optimizer, recipe.param_groups())
    scaler = torch.amp.GradScaler(here.device.type, enabled=settings.precision == "fp16")
    meter = Meter(config, data, recipe.embedder, here, stop.asked.is_set)
    with dist.together(here):
        sets = NamedSets(config, recipe.embedder, here)
        if here.is_main:
            checkpoint.refuse_without_room(folder, recipe.modules, optimizer, recipe.table_bytes())
    images = len(data.images) if listed(recipe.modules, "of_data") else None
    validation = NONE if meter.people.validation is None else settings.eval.validation
    facts = facts_of(config, **identity(data), **recipe.facts(), images=images, ranks=here.size, validation=validation)
    return Training(config, data, folder, here, track, stop, recipe, optimizer, scaler, meter, sets, started, facts)


def begin(t: Training) -> None:
    """Measure the baselines, then load the checkpoint or warm start, and record both."""
    settings, recipe, found = t.config.train, t.recipe, None
    resumed_from, in_this_folder = dist.from_main(to_resume(settings.resume, t.folder, t.here), t.here)
    if resumed_from is not None:
        own = in_this_folder and settings.resume == "auto"
        foreign = partial(recipe.foreign, optimizer=t.optimizer)
        found = checkpoint.examine(resumed_from, recipe.modules, t.facts, t.here, own=own, foreign=foreign)
        with dist.together(t.here):
            if t.here.is_main and in_this_folder and not own:
                checkpoint.refuse_earlier(resumed_from, recipe.modules)
    with dist.together(t.here):
        if t.here.is_main:  # only now: config.yaml describes the checkpoints in the folder
            save_resolved(t.config, t.folder.config)
    recipe.calibrate()
    untrained = list(t.meter.baselines())  # before loading: each run records its baselines
    if found is not None:
        t.state = checkpoint.load(found, recipe.modules, recipe.take_tables, t.optimizer, t.scaler, t.here)
        t.sets.measured_step = t.state.step
        if in_this_folder:
            t.saved = t.state.epoch, t.state.seen
    elif settings.warm_start is not None:
        recipe.warm_start(Path(settings.warm_start))
        recipe.calibrate(backbone=False)
    if graphs.is_on(t.config):
        recipe.capture()
    t.taken_this_epoch = int(t.state.seen > 0 and t.state.step > 0)
    t.first_image = t.state.epoch * t.rows + t.state.seen
    t.track.event(
        "start",
        t.state,
        world_size=t.here.size,
        device=t.here.device.type,
        precision=settings.precision,
        epochs=settings.epochs,
        steps_per_epoch=math.ceil(t.rows / t.update_size),
        global_batch=t.update_size,
        train_rows=t.rows,
        dataset_id=t.data.dataset_id,
        fraction=t.data.fraction,
        shards=1 if t.data.shard is None else t.data.shard.of,
        resumed_from=resumed_from.name if resumed_from else None,
        notes=[*(found.verdict.notes if found else ()), *notes(t)],
    )
    for what, baseline in untrained:
        t.track.event("eval", t.state, what=what, **baseline)


def notes(t: Training) -> list[str]:
    """Whether held-out people choose the checkpoint, and whether the run has nothing to evaluate on."""
    found = []
    if t.meter.validation_pairs is not None:
        choose, left = t.meter.people.people()
        found.append(f"{choose} held-out people choose the best checkpoint, the result is of {left} others")
    if t.meter.pairs is None and not t.sets.sets:
        found.append("nothing is measured: no people are held out; train.eval.sets=lfw.bin measures on a set")
    return found
