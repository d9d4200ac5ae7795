"""The interface between the training loop and a recipe: a batch and the `Recipe` protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from app.config import Config
from app.data.augment import Augment, Draws
from app.data.dataset import Dataset, Rows
from app.data.loader import Asked, Parcel
from app.mining.refresh import Interlude
from app.models import batch_norm
from app.runtime.dist import World, averages_of, mean, put_averages
from app.runtime.graphs import captured
from app.runtime.precision import dtype_of


@dataclass(frozen=True)
class Batch:
    """Images of `rows` and their targets and random draws; every tensor is on the device."""

    images: Tensor  # uint8 [B, 112, 112, 3]
    rows: Rows  # [B]
    targets: Tensor  # int64 [B], see `Recipe.targets`
    draws: Draws
    seed: int  # for random numbers drawn on the device, such as those of dropout
    last: bool = True  # last of its update; earlier micro-batches need not reduce gradients across ranks


class Recipe(Protocol):
    """All that the loop uses of a recipe; it never checks which one it runs."""

    modules: nn.Module  # everything whose state is saved; the same on every rank
    embedder: nn.Module  # the network for evaluation, mining and export
    augment: Augment

    @staticmethod
    def training_data(config: Config) -> Dataset:
        """Return the images to train on. Raises WrongUse."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for the optimizer."""

    def warm_start(self, path: Path) -> None:
        """Load the backbone from this file, which rank 0 reads. Raises WrongUse if it does not fit."""

    def foreign(self, path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Return another trainer's checkpoint in our form, see app/runtime/arcface_torch.py, or None if it is none.

        Called on rank 0. Raises WrongUse if it does not fit.
        """

    def calibrate(self, *, backbone: bool = True) -> None:
        """Set BN's running averages to the statistics of some training images, the same on every rank.

        Without `backbone` its averages stay, as after a warm start, where they belong to its weights.
        """

    def capture(self) -> None:
        """Capture the passes of the trained network as CUDA graphs; see app/runtime/graphs.py."""

    def begin_epoch(self, epoch: int, interlude: Interlude | None) -> dict[str, Any] | None:
        """Do the work between epochs and return a report on it. Without an interlude the epoch is being resumed.

        Raises Interrupted when asked to stop; the next call resumes the work.
        """

    def pick(self, rows: Rows, chance: NDArray[np.float64]) -> Rows:
        """Return the images that a batch of these rows [B] needs; `chance` [B, 2] supplies its random numbers."""

    def targets(self, rows: Rows) -> NDArray[np.int64]:
        """Return what the loss needs to know of the images of these rows, one number each. Called in another thread."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise and metrics, all scalars on the device."""

    def after_step(self, lr: float, grad_scale: Tensor, *, taken: Tensor) -> None:
        """Follow up on the optimizer's step of rate `lr`, whose losses were multiplied by `grad_scale`.

        If `taken` is 0 instead of 1, undo what the losses since the last step changed. `taken` is on the device, and
        the host has not read it yet.
        """

    def catch_up(self) -> None:
        """Finish the pending work of the last step, before anything but the next loss reads the recipe."""

    def tables(self) -> dict[str, Tensor]:
        """Return what is saved besides `modules`: sharded tables, whole on rank 0. Called on all ranks."""

    def table_bytes(self) -> int:
        """Return the size of what `tables` returns on rank 0, without gathering it."""

    def take_tables(self, tables: dict[str, Tensor]) -> None:
        """Load what `tables` returned, on any number of ranks: rank 0 passes the tables, the others {}.

        Raises WrongUse, on all ranks, for tables of another shape.
        """

    def facts(self) -> dict[str, Any]:
        """Return facts for checkpoints that only the recipe knows, see app/runtime/resume.py. Equal on every rank."""

    def health(self) -> dict[str, Any]:
        """Report whether the embeddings still differ between images; `collapsed` means they do not."""


def wanted(recipe: Recipe, rows: Rows, seed: int) -> Asked:
    """Request a batch of these rows from the feed, whose thread looks up targets and draws random numbers."""

    def prepare() -> tuple[list[Tensor], Draws]:
        draws = recipe.augment.draw(len(rows), Generator().manual_seed(seed))
        return [torch.from_numpy(recipe.targets(rows)), *draws.tensors()], draws

    return Asked(rows, prepare, seed)


def arrived(parcel: Parcel, *, last: bool) -> Batch:
    """Return the requested batch, on the device."""
    targets, *tensors = parcel.tensors
    asked = parcel.asked
    return Batch(parcel.images, asked.rows, targets, parcel.rest.with_tensors(tensors), asked.seed, last)


def first_views(data: Dataset, augment: Augment, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Yield views [B, 3, S, S] of this machine's training images, spread evenly over them."""
    own = data.own_rows
    rows = own[np.linspace(0, len(own) - 1, batch_norm.IMAGES).astype(np.int64)]
    for number, some in enumerate(np.split(rows, batch_norm.IMAGES // batch_norm.BATCH)):
        images = torch.from_numpy(np.ascontiguousarray(data.images[some])).to(device)
        yield augment(images, Generator().manual_seed(seed + number))


def half_precision(config: Config, device: torch.device, *, cached: bool = True) -> AbstractContextManager[None]:
    """Autocast for the forward pass of a network only: views, losses and heads compute in fp32."""
    precision = dtype_of(config.train.precision, device)
    return torch.autocast(device.type, precision, enabled=precision != torch.float32, cache_enabled=cached)


def with_graphs(network: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """Return the network with captured passes, for the batches of this configuration."""
    side = config.backbone.image_size
    images = torch.zeros(config.train.batch.size, 3, side, side, device=device)
    with half_precision(config, device, cached=False):  # a cached copy of the weights would not follow them
        return captured(network, images.contiguous(memory_format=torch.channels_last))


# Not weights of a sum: ViT's position embedding and mask token, and the Fourier layer's gain, whose neutral value is 1.
RESTING = ("pos_embed", "mask_token", "learnable_param")


def decay_groups(module: nn.Module, *, decay_all: bool) -> list[dict[str, Any]]:
    """Return parameter groups in which only weights of convolutions and linear layers decay.

    Biases, BN, PReLU and `RESTING` do not decay. With `decay_all` everything does, as in the published margin recipes.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if decay_all:
        return [{"params": [p for _, p in named]}]
    decays = {name for name, p in named if p.ndim > 1 and not name.endswith(RESTING)}
    return [
        {"params": [p for name, p in named if name in decays]},
        {"params": [p for name, p in named if name not in decays], "weight_decay": 0.0},
    ]


class RunningAverages:
    """Keeps BN's running averages from before a step, to restore them if the step is not taken.

    Values that are not finite reach the averages too and would stay there.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.before: Tensor | None = None

    def remember(self) -> None:
        """Save the averages. Called before each loss; only the first call since the last step counts."""
        if self.before is None:
            self.before = averages_of(self.network)

    def settle(self, here: World, taken: Tensor) -> None:
        """Give every rank the mean of the averages or, if the step was not `taken` (1 or 0), the saved ones."""
        if self.before is not None:
            now = mean(averages_of(self.network), here)
            put_averages(self.network, torch.where(taken > 0, now, self.before))
        self.before = None
