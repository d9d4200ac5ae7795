"""A training run without files: the loop's recipe, optimizer, batches and update, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch

from app.config import load
from app.data.dataset import Dataset
from app.recipes import RECIPES, Batch
from app.recipes.update import batches, update
from app.runtime import graphs
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.optimizer import build_optimizer
from benchmarks.gpu.rig import Rig


def dataset(rig: Rig) -> Dataset:
    """Return a data set of all the rig's images to train on, with their people as classes."""
    rows = np.arange(len(rig.images))
    return Dataset(
        images=rig.images,
        labels=rig.labels,
        train_rows=rows,
        held_out_rows=rows[:0],
        dataset_id=None,
        fraction=1.0,
        classes=rig.labels.astype(np.int64),
        class_labels=np.unique(rig.labels).astype(np.int64),
    )


class Trainer:
    """A trainer for the command line `words`. Each `step` launches one update without waiting for it."""

    def __init__(self, rig: Rig, words: Sequence[str]) -> None:
        self.here = World(0, 1, rig.device)
        self.config = load([f"data.binary_cache_path={rig.data_path}", *words])
        self.data = dataset(rig)
        self.recipe = RECIPES[self.config.recipe.name](self.config, self.data, self.here)
        self.optimizer = build_optimizer(self.config.train.optimizer, self.recipe.param_groups())
        self.scaler = torch.amp.GradScaler(rig.device.type, enabled=self.config.train.precision == "fp16")
        self.recipe.calibrate()
        if graphs.is_on(self.config):
            self.recipe.capture()
        self.recipe.begin_epoch(0, None)
        self.batches = self._batches()

    def _batches(self) -> Iterator[Batch]:
        """Yield batches of one epoch after the other, without end."""
        for epoch in count():
            yield from batches(self.config, self.recipe, self.data, TrainState(epoch=epoch), self.here)

    def step(self) -> Any:
        lr = self.config.train.optimizer.lr
        return update(self.config, self.recipe, self.optimizer, self.scaler, self.batches, lr, self.here)
