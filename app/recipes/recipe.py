"""What the loop knows of a recipe: a batch, and the few things that can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from app.data.dataset import Rows
from app.mining.refresh import Interlude


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

    def warm_start(self, path: Path) -> None:
        """Begin with the backbone of this file. Raises WrongUse when it does not fit."""

    def begin_epoch(self, epoch: int, interlude: Interlude | None) -> dict[str, Any] | None:
        """Work between epochs, and what to report of it; without an interlude the epoch is being resumed.

        Raises Interrupted when asked to leave; called again, it goes on where it was.
        """

    def pick(self, rows: Rows, chance: NDArray[np.float64]) -> Rows:
        """The images that a batch of these rows [B] needs; `chance` [B, 2]: the random numbers for it."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and metrics, all scalars on the device."""

    def after_step(self, *, taken: bool) -> None:
        """What follows the optimizer's step. Not `taken`: what the losses since the last one changed is undone."""

    def health(self) -> dict[str, Any]:
        """Whether what is learnt still tells images apart; `collapsed` says no."""
