"""The self-supervised recipe: momentum contrast (MoCo) with a margin, and pseudo-IDs mined between epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.config import NO_ID, Config
from app.data.augment import Augment
from app.data.dataset import Dataset, Rows, open_configured
from app.data.positives import Positives
from app.mining.knn import refuse_without_faiss
from app.mining.refresh import Interlude, embed_share, refresh
from app.models import build_backbone
from app.models.batch_norm import calibrate
from app.models.collapse import spread
from app.models.moco import EMPTY, Encoder, FeatureBank, MomentumEncoder, Queue, contrastive_loss
from app.recipes.recipe import Batch, RunningAverages, decay_groups, first_views, half_precision, with_graphs
from app.runtime.data_parallel import data_parallel, gradients_meet
from app.runtime.dist import World, buffers_from_main, gather_packed, share
from app.runtime.schedule import by_epoch
from app.runtime.weights import load_backbone


class PseudoIds(nn.Module):
    """Pseudo-IDs [N] as a buffer, so that every checkpoint contains them."""

    of_data = ("ids",)

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("ids", torch.full((count,), NO_ID, dtype=torch.long))


class SelfSupervised:
    """MoCo with a margin. Once there are pseudo-IDs, positives are other images of the same pseudo-ID."""

    def __init__(self, config: Config, data: Dataset, here: World) -> None:
        self.config, self.data, self.here = config, data, here
        moco = config.recipe.moco
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
        self.bank: FeatureBank | None = None
        if config.mining.features == "bank":
            self.bank = FeatureBank(len(data.images), config.backbone.embedding_dim).to(here.device)
            self.modules["bank"] = self.bank
        self.embedder = self.momentum.encoder.backbone
        self.augment = Augment(config.recipe.augment, config.backbone.image_size)
        compiled = torch.compile if config.train.compile else lambda module: module
        self.parallel = data_parallel(compiled(self.encoder), here)
        self.keys_of = compiled(self.momentum)
        self.pushes: list[tuple[Tensor, Tensor, Tensor]] = []  # keys, rows and embeddings since the last step
        self.arriving: tuple[Callable[[], list[Tensor]], Tensor] | None = None  # those of all ranks, and `taken`
        self.averages = RunningAverages(self.encoder)

    @staticmethod
    def training_data(config: Config) -> Dataset:
        refuse_without_faiss(config.mining.backend, config.mining.search)
        return open_configured(config.data)

    def param_groups(self) -> list[dict[str, Any]]:
        return decay_groups(self.encoder, decay_all=self.config.train.optimizer.decay_all)

    def warm_start(self, path: Path) -> None:
        load_backbone(path, self.encoder.backbone, self.momentum.encoder.backbone, new_fourier=True, here=self.here)

    def foreign(self, path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:  # noqa: ARG002
        return None

    def calibrate(self, *, backbone: bool = True) -> None:
        views = first_views(self.data, self.augment, self.config.train.seed, self.here.device)
        calibrate(self.encoder, views, only=None if backbone else self.encoder.projection)
        buffers_from_main(self.encoder, self.here)
        self.momentum.encoder.load_state_dict(self.encoder.state_dict())

    def capture(self) -> None:
        self.parallel = with_graphs(self.encoder, self.config, self.here.device)

    def begin_epoch(self, epoch: int, interlude: Interlude | None) -> dict[str, Any] | None:
        """Refresh the pseudo-IDs when they are due."""
        mining, positives = self.config.mining, self.config.recipe.positives
        due = epoch >= mining.start_epoch and (epoch - mining.start_epoch) % mining.every_epochs == 0
        report = self._refresh(epoch, interlude) if due and interlude is not None else None
        wanted = by_epoch(positives.epochs, positives.probability, epoch)
        self.other_probability = min(wanted, 1 - positives.min_same_image)
        ids = self.pseudo_ids.ids.cpu().numpy()
        # A machine can only show its own images: the positive of an image is one of them.
        self.positives = Positives(ids if self.data.shard is None else self.data.shard.only_own(ids))
        return report

    def _refresh(self, epoch: int, interlude: Interlude) -> dict[str, Any]:
        """Mine new pseudo-IDs, and use them unless they are rejected."""
        started = time.monotonic()
        shard = self._shard(interlude)
        embedded = time.monotonic()
        found, report = refresh(
            shard,
            self.pseudo_ids.ids.cpu().numpy(),
            self.config,
            self.data,
            self.here,
            interlude,
            seed=self.config.train.seed + epoch,
            sheet=interlude.folder / f"epoch_{epoch:03d}.png",
        )
        if report["accepted"]:
            self.pseudo_ids.ids.copy_(torch.from_numpy(found))
        return {**report, "seconds_embedding": embedded - started, "seconds": time.monotonic() - started}

    def _shard(self, interlude: Interlude) -> Tensor:
        """Return embeddings [n, E] of this rank's share of the training images: new ones, or those in the bank."""
        if self.bank is None:
            return embed_share(
                self.embedder, self.config, self.data, self.here, interlude, compiled=self.config.train.compile
            )
        return self.bank.features[torch.from_numpy(share(self.data.train_rows, self.here))].float()

    def pick(self, rows: Rows, chance: NDArray[np.float64]) -> Rows:
        """Return queries [B], then their positives [B]."""
        return np.concatenate([rows, self.positives.draw(rows, self.other_probability, chance)])

    def targets(self, rows: Rows) -> NDArray[np.int64]:
        """Return the rows themselves: pseudo-IDs and the queue are indexed by row."""
        return rows

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE over B = half of the batch's images; see app/models/moco.py."""
        self.averages.remember()
        queries, keys = self.augment(batch.images, batch.draws).chunk(2)  # [B, 3, S, S] each
        rows, key_rows = batch.targets.chunk(2)
        with half_precision(self.config, self.here.device):
            with torch.no_grad():
                k, embeddings = self.keys_of(keys)
            with gradients_meet(self.parallel, now=batch.last):
                q = self.parallel(queries)
        self.pushes.append((k, key_rows, embeddings))
        self.catch_up()
        return contrastive_loss(q, k, self.queue, rows, key_rows, self.pseudo_ids.ids, self.config.recipe.moco)

    def after_step(self, lr: float, grad_scale: Tensor, *, taken: Tensor) -> None:  # noqa: ARG002 - not needed here
        """Update the momentum encoder, and start gathering the keys of all ranks for the queue."""
        pushes, self.pushes = self.pushes, []
        self.averages.settle(self.here, taken)
        self.momentum.follow(self.encoder, taken)
        keys, rows, *features = (torch.cat(parts) for parts in zip(*pushes, strict=True))
        met = [features[0].to(torch.float16)] if self.bank is not None else []
        self.arriving = gather_packed([keys, rows, *met], self.here), taken
        if self.here.size == 1:
            self.catch_up()

    def catch_up(self) -> None:
        """Put the gathered keys into the queue. They travelled between ranks while the next batch was embedded."""
        if self.arriving is None:
            return
        (wait, taken), self.arriving = self.arriving, None
        keys, rows, *met = wait()
        self.queue.push(keys, rows, taken)
        if self.bank is not None:
            self.bank.put(rows, met[0], taken)

    def tables(self) -> dict[str, Tensor]:
        return {}

    def table_bytes(self) -> int:
        return 0

    def take_tables(self, tables: dict[str, Tensor]) -> None:
        """There are none."""

    def facts(self) -> dict[str, Any]:
        return {}

    def health(self) -> dict[str, Any]:
        """The spread of the keys in the queue; see app/models/collapse.py."""
        return spread(self.queue.keys[self.queue.rows != EMPTY])
