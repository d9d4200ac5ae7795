"""What is trained, and how a batch becomes a number. `RECIPES` names what `recipe.name` may choose."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn

from app.config import NO_ID, Config
from app.data.augment import Augment
from app.data.dataset import Dataset, Rows
from app.data.feed import plain_views
from app.data.positives import Positives
from app.mining.embed import embed
from app.mining.pseudo_ids import find_pseudo_ids
from app.models import build_backbone
from app.models.moco import Encoder, MomentumEncoder, Queue, contrastive_loss
from app.runtime.dist import World, average_buffers, data_parallel, gather_rows, share
from app.runtime.schedule import by_epoch


@dataclass(frozen=True)
class Batch:
    """Images of `rows` on the device, and the random numbers that belong to this batch."""

    images: Tensor  # uint8 [B, 112, 112, 3]
    rows: Rows  # [B]
    generator: Generator


class Recipe(Protocol):
    """All that the loop knows of a recipe; it never asks which one it runs."""

    modules: nn.Module  # everything whose state is saved
    embedder: nn.Module  # what is evaluated, mined with and exported

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer."""

    def begin_epoch(self, epoch: int, *, refresh: bool) -> dict[str, Any] | None:
        """Work between epochs, and what to report of it. Without `refresh` the epoch is being resumed."""

    def pick(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """The images that a batch of these rows [B] needs."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and metrics, all scalars on the device."""

    def after_step(self) -> None:
        """What follows the optimizer's step."""


class PseudoIds(nn.Module):
    """Pseudo-IDs [N] as a buffer, so that they are part of every checkpoint."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("ids", torch.full((count,), NO_ID, dtype=torch.long))


class SelfSupervised:
    """MoCo with a margin, whose positives are other images of the same pseudo-ID once there are any."""

    def __init__(self, config: Config, data: Dataset, here: World) -> None:
        self.config, self.mining, self.data, self.here = config.recipe, config.mining, data, here
        self.backbone_config, self.seed = config.backbone, config.train.seed
        moco = self.config.moco
        torch.manual_seed(config.train.seed)  # the same start on every rank
        encoder = Encoder(
            build_backbone(config.backbone),
            config.backbone.embedding_dim,
            moco.projection_hidden,
            moco.projection_dim,
        )
        if config.train.channels_last:
            encoder = encoder.to(memory_format=torch.channels_last)
        self.encoder = encoder.to(here.device)
        self.momentum = MomentumEncoder(self.encoder, moco.momentum)
        self.queue = Queue(moco.queue_size, moco.projection_dim).to(here.device)
        self.pseudo_ids = PseudoIds(len(data.images)).to(here.device)
        self.modules = nn.ModuleDict(
            {
                "encoder": self.encoder,
                "momentum": self.momentum,
                "queue": self.queue,
                "pseudo_ids": self.pseudo_ids,
            }
        )
        self.embedder = self.momentum.encoder.backbone
        self.augment = Augment(self.config.augment, config.backbone.image_size)
        self.parallel = data_parallel(self.encoder, here)
        self.pushes: list[tuple[Tensor, Tensor]] = []  # keys and rows since the last step

    def param_groups(self) -> list[dict[str, Any]]:
        """Weights of convolutions and linear layers decay; biases, BN and PReLU do not."""
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def begin_epoch(self, epoch: int, *, refresh: bool) -> dict[str, Any] | None:
        """Refresh the pseudo-IDs when they are due."""
        mining, positives = self.mining, self.config.positives
        due = epoch >= mining.start_epoch and (epoch - mining.start_epoch) % mining.every_epochs == 0
        report = self._refresh(self.seed + epoch) if due and refresh else None
        self.other_probability = by_epoch(positives.epochs, positives.probability, epoch)
        self.positives = Positives(self.pseudo_ids.ids.cpu().numpy())
        return report

    def _refresh(self, seed: int) -> dict[str, Any]:
        """Embed the training images, find new pseudo-IDs, and take them unless they are refused."""
        started = time.monotonic()
        data, mining, size = self.data, self.mining, self.backbone_config.image_size
        rows = data.train_rows
        views = plain_views(data.images, share(rows, self.here), size, mining.batch_size, self.here.device)
        width = self.backbone_config.embedding_dim
        bank = embed(self.embedder, views, self.here, embedding_dim=width, flip_sum=mining.flip_sum)
        labels = None if data.labels is None else data.labels[rows]
        found, report = find_pseudo_ids(bank, labels, mining, self.here, seed=seed)
        if report.accepted:
            ids = np.full(len(data.images), NO_ID, np.int64)
            ids[rows] = found
            self.pseudo_ids.ids.copy_(torch.from_numpy(ids))
        return {**report.as_dict(), "seconds": time.monotonic() - started}

    def pick(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """Queries [B], then their positives [B]."""
        return np.concatenate([rows, self.positives.draw(rows, self.other_probability, rng)])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE over B = half of the batch's images; see app/models/moco.py."""
        moco = self.config.moco
        views = self.augment(batch.images, batch.generator)
        queries, keys = views.chunk(2)  # [B, 3, S, S] each
        rows, key_rows = torch.from_numpy(batch.rows).to(self.here.device).chunk(2)
        with torch.no_grad():
            k = self.momentum(keys)
        q = self.parallel(queries)
        self.pushes.append((k, key_rows))
        return contrastive_loss(
            q,
            k,
            self.queue,
            rows,
            key_rows,
            self.pseudo_ids.ids,
            temperature=moco.temperature,
            margin=moco.margin,
            mask_most_similar=moco.mask_most_similar,
        )

    def after_step(self) -> None:
        """The momentum encoder follows, and the keys of all ranks enter the queue."""
        average_buffers(self.encoder, self.here)
        self.momentum.follow(self.encoder)
        keys, rows = (torch.cat(parts) for parts in zip(*self.pushes, strict=True))
        self.pushes.clear()
        self.queue.push(gather_rows(keys, self.here), gather_rows(rows, self.here))


RECIPES = {"self_supervised": SelfSupervised}
