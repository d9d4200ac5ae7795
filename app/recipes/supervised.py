"""The supervised recipe: a margin head over class centres that are sharded and sampled (ArcFace with Partial FC)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from app.config import Config
from app.data.augment import Augment
from app.data.dataset import Dataset, Rows, open_configured, with_classes
from app.errors import WrongUse
from app.mining.refresh import Interlude
from app.models import build_backbone
from app.models.average import Average
from app.models.batch_norm import calibrate
from app.models.collapse import spread
from app.models.distillation import NoHead
from app.models.partial_fc import PartialFC
from app.recipes.recipe import Batch, RunningAverages, decay_groups, first_views, half_precision, with_graphs
from app.runtime.arcface_torch import converted
from app.runtime.data_parallel import data_parallel, gradients_meet
from app.runtime.dist import World, buffers_from_main, together
from app.runtime.weights import load_backbone, load_centres


class Supervised:
    """Learn the classes of `data`. Evaluation uses the network itself, or the running mean of its weights."""

    def __init__(self, config: Config, data: Dataset, here: World) -> None:
        self.config, self.data, self.here = config, data, here
        # Without classes, which only recipe distill allows, there is no head.
        self.classes = np.zeros(len(data.images), np.int64) if data.classes is None else data.classes
        values = np.zeros(0, np.int64) if data.class_labels is None else data.class_labels
        self.labels = torch.from_numpy(values)  # [C] the value of each class in labels.npy
        torch.manual_seed(config.train.seed)  # the same start on every rank
        backbone = build_backbone(config.backbone)
        if config.train.channels_last:
            backbone = backbone.to(memory_format=torch.channels_last)
        self.backbone = backbone.to(here.device)
        self.head: PartialFC | NoHead = NoHead()
        if len(values):
            self.head = PartialFC(
                len(values),
                config.backbone.embedding_dim,
                config.recipe.head,
                config.train.optimizer,
                here,
                seed=config.train.seed,
            ).to(here.device)
        # Every other command looks for the name `embedder` in a checkpoint.
        self.modules = nn.ModuleDict({"embedder": self.backbone, "head": self.head})
        self.embedder = self.backbone
        self.average: Average | None = None
        if config.recipe.ema > 0:
            self.average = Average(self.backbone, config.recipe.ema)
            self.embedder = self.average.network
            self.modules = nn.ModuleDict(
                {"backbone": self.backbone, "embedder": self.embedder, "average": self.average, "head": self.head}
            )
        self.augment = Augment(config.recipe.augment, config.backbone.image_size)
        self.trained = self.to_train()
        self.parallel = data_parallel(torch.compile(self.trained) if config.train.compile else self.trained, here)
        self.averages = RunningAverages(self.backbone)
        self.last = torch.zeros(0, config.backbone.embedding_dim)  # the last batch's embeddings

    @staticmethod
    def training_data(config: Config) -> Dataset:
        return with_classes(open_configured(config.data), config.data)

    def to_train(self) -> nn.Module:
        """Return the network that the optimizer trains."""
        return self.backbone

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the network's parameters; the head updates its class centres itself, a sampled part at a time."""
        return decay_groups(self.trained, decay_all=self.config.train.optimizer.decay_all)

    def warm_start(self, path: Path) -> None:
        mean = [] if self.average is None else [self.average.network]
        load_backbone(path, self.backbone, *mean, new_fourier=True, here=self.here)
        if self.config.recipe.head.warm_start:
            centres, labels = load_centres(path, self.here)
            place = torch.searchsorted(labels, self.labels).clamp(max=len(labels) - 1)
            self.head.take_centres(centres, torch.where(labels[place] == self.labels, place, -1))

    def foreign(self, path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Return a checkpoint of arcface_torch, to be continued with its centres and optimizer state."""
        copies = ["embedder", *(["backbone", "average.network"] if self.average is not None else [])]
        return converted(path, self.modules, self.backbone, copies, optimizer)

    def calibrate(self, *, backbone: bool = True) -> None:
        if not backbone:  # only the backbone has BN
            return
        calibrate(self.backbone, first_views(self.data, self.augment, self.config.train.seed, self.here.device))
        buffers_from_main(self.backbone, self.here)
        if self.average is not None:
            self.average.network.load_state_dict(self.backbone.state_dict())

    def capture(self) -> None:
        self.parallel = with_graphs(self.trained, self.config, self.here.device)

    def begin_epoch(self, epoch: int, interlude: Interlude | None) -> None:
        """Nothing to do: labels do not change."""

    def pick(self, rows: Rows, chance: NDArray[np.float64]) -> Rows:  # noqa: ARG002 - nothing is drawn
        return rows

    def targets(self, rows: Rows) -> NDArray[np.int64]:
        """Return the class of each image."""
        return self.classes[rows]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over the classes, with a margin on the own one; see app/models/partial_fc.py."""
        self.averages.remember()
        views = self.augment(batch.images, batch.draws)  # [B, 3, S, S]
        with half_precision(self.config, self.here.device), gradients_meet(self.parallel, now=batch.last):
            embeddings = self.parallel(views)
        self.last = embeddings.detach()
        return self.head(embeddings, batch.targets)

    def after_step(self, lr: float, grad_scale: Tensor, *, taken: Tensor) -> None:
        """Update the sampled centres and the running mean."""
        self.averages.settle(self.here, taken)
        self.head.step(lr, grad_scale=grad_scale, taken=taken)
        if self.average is not None:
            self.average.follow(self.backbone, taken)

    def catch_up(self) -> None:
        """Nothing is pending."""

    def tables(self) -> dict[str, Tensor]:
        """Return the class centres and their optimizer state, one row per class, and the label of each."""
        tables = self.head.tables()
        return {**tables, "labels": self.labels} if tables else {}

    def table_bytes(self) -> int:
        return self.head.table_bytes() + self.labels.nbytes

    def take_tables(self, tables: dict[str, Tensor]) -> None:
        """Give the head its tables. Raises WrongUse if the checkpoint has as many labels, and they differ."""
        labels = tables.get("labels")
        with together(self.here):
            if labels is not None and len(labels) == len(self.labels) and not torch.equal(labels, self.labels):
                raise WrongUse(
                    "the checkpoint was trained with other labels, as many as these; "
                    "give the labels it was trained with, or its "
                    "path as train.warm_start, not train.resume"
                )
        self.head.take_tables({name: table for name, table in tables.items() if name != "labels"})

    def facts(self) -> dict[str, Any]:
        return {}

    def health(self) -> dict[str, Any]:
        """The spread of the last batch's embeddings; see app/models/collapse.py."""
        return spread(F.normalize(self.last.float(), dim=1))
