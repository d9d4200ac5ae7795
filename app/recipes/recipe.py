"""What the loop knows of a recipe: a batch, and the few things that can be asked."""

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
from app.mining.refresh import PRECISION, Interlude
from app.models import batch_norm
from app.runtime.dist import World, averages_of, mean, put_averages
from app.runtime.precision import of_device


@dataclass(frozen=True)
class Batch:
    """Images of `rows` and what belongs to them; every tensor is on the device."""

    images: Tensor  # uint8 [B, 112, 112, 3]
    rows: Rows  # [B]
    targets: Tensor  # int64 [B], as `Recipe.targets` says
    draws: Draws
    seed: int  # for random numbers that are drawn on the device, such as those of dropout
    last: bool = True  # of its update: gradients of micro-batches before it need not meet those of other ranks


class Recipe(Protocol):
    """All that the loop knows of a recipe; it never asks which one it runs."""

    modules: nn.Module  # everything whose state is saved, the same on every rank
    embedder: nn.Module  # what is evaluated, mined with and exported
    augment: Augment

    @staticmethod
    def training_data(config: Config) -> Dataset:
        """The images it learns from. Raises WrongUse."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer."""

    def warm_start(self, path: Path) -> None:
        """Begin with the backbone of this file, which rank 0 reads. Raises WrongUse when it does not fit."""

    def calibrate(self, *, backbone: bool = True) -> None:
        """Give BN's running averages the statistics of some training images; every rank gets the same.

        Without `backbone` its averages stay, as after a warm start, where they belong to its weights.
        """

    def begin_epoch(self, epoch: int, interlude: Interlude | None) -> dict[str, Any] | None:
        """Work between epochs, and what to report of it; without an interlude the epoch is being resumed.

        Raises Interrupted when asked to leave; called again, it goes on where it was.
        """

    def pick(self, rows: Rows, chance: NDArray[np.float64]) -> Rows:
        """The images that a batch of these rows [B] needs; `chance` [B, 2]: the random numbers for it."""

    def targets(self, rows: Rows) -> NDArray[np.int64]:
        """What the loss has to know of the images of these rows, a number each. Called in another thread."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and metrics, all scalars on the device."""

    def after_step(self, lr: float, grad_scale: Tensor, *, taken: Tensor) -> None:
        """What follows the optimizer's step of rate `lr`, whose losses were multiplied by `grad_scale`.

        Not `taken` (1 or 0, on the device, where nobody reads it yet): what the losses since the last step changed is
        undone.
        """

    def catch_up(self) -> None:
        """Finish what the last step left under way, before anything but the next loss looks at the recipe."""

    def tables(self) -> dict[str, Tensor]:
        """What is saved besides `modules`: tables that ranks hold in parts, here whole, on rank 0. Called on all."""

    def take_tables(self, tables: dict[str, Tensor]) -> None:
        """The reverse of `tables`, on any number of ranks: rank 0 has them, the others give {}.

        Raises WrongUse, on all ranks, for tables of another shape.
        """

    def health(self) -> dict[str, Any]:
        """Whether what is learnt still tells images apart; `collapsed` says no."""


def wanted(recipe: Recipe, rows: Rows, seed: int) -> Asked:
    """A batch of these rows for the feed, whose thread looks up the targets and draws the random numbers."""

    def prepare() -> tuple[list[Tensor], Draws]:
        draws = recipe.augment.draw(len(rows), Generator().manual_seed(seed))
        return [torch.from_numpy(recipe.targets(rows)), *draws.tensors()], draws

    return Asked(rows, prepare, seed)


def arrived(parcel: Parcel, *, last: bool) -> Batch:
    """The batch that was wanted, on the device."""
    targets, *tensors = parcel.tensors
    asked = parcel.asked
    return Batch(parcel.images, asked.rows, targets, parcel.rest.with_tensors(tensors), asked.seed, last)


def first_views(data: Dataset, augment: Augment, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Views [B, 3, S, S] of training images spread evenly over the data, the same on every rank."""
    rows = data.train_rows[np.linspace(0, len(data.train_rows) - 1, batch_norm.IMAGES).astype(np.int64)]
    for number, some in enumerate(np.split(rows, batch_norm.IMAGES // batch_norm.BATCH)):
        images = torch.from_numpy(np.ascontiguousarray(data.images[some])).to(device)
        yield augment(images, Generator().manual_seed(seed + number))


def half_precision(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """Around the forward pass of a network alone: views, losses and heads compute in fp32."""
    precision = PRECISION[of_device(config.train.precision, device)]
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


# What is no weight of a sum: ViT's position embedding and mask token, and the Fourier layer's gain, whose rest is 1.
RESTING = ("pos_embed", "mask_token", "learnable_param")


def decay_groups(module: nn.Module, *, decay_all: bool) -> list[dict[str, Any]]:
    """Parameters for the optimizer: weights of convolutions and linear layers decay; biases, BN, PReLU and `RESTING`
    do not, unless `decay_all`, as the published margin recipes have it.
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
    """BN's running averages of a network as they were before a step, to undo a step that is not taken.

    What was not finite has gone through them too, and would stay there for ever.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.before: Tensor | None = None

    def remember(self) -> None:
        """Called before each loss; only the first since the last step counts."""
        if self.before is None:
            self.before = averages_of(self.network)

    def settle(self, here: World, taken: Tensor) -> None:
        """Give every rank the mean of its averages or, where the step was not `taken` (1 or 0), the ones before it."""
        if self.before is not None:
            now = mean(averages_of(self.network), here)
            put_averages(self.network, torch.where(taken > 0, now, self.before))
        self.before = None
