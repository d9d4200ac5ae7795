"""Distillation of embeddings: a student follows the directions of a frozen teacher's embeddings.

Face recognition compares cosines, so only directions count: both losses are of unit embeddings (as in ShrinkTeaNet,
Duong et al. 2019, arXiv:1905.10620, for the last stage).

Letters: B batch, D size of the student's embedding, T of the teacher's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Student(nn.Module):
    """A backbone and what maps its embedding to the teacher's size: images [B, 3, S, S] -> [B, D] and [B, T]."""

    def __init__(self, backbone: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projection = backbone, projection

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.backbone(images)
        return embeddings, self.projection(embeddings)


def distillation_loss(student: Tensor, teacher: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return the mean loss of embeddings [B, T] of any length, and their mean cosine; both scalars, in fp32.

    cosine: 1 - cos(student, teacher). l2: squared distance of the unit embeddings, 2 - 2 cos.
    """
    with torch.autocast(student.device.type, enabled=False):
        own, wanted = F.normalize(student.float(), dim=1), F.normalize(teacher.float(), dim=1)
        cosine = (own * wanted).sum(1)
        each = (own - wanted).square().sum(1) if kind == "l2" else 1 - cosine
        return each.mean(), cosine.detach().mean()


class NoHead(nn.Module):
    """In place of a margin head where no labels are learnt: its loss is 0 and it has no centres."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        return torch.zeros((), device=embeddings.device), {}

    def step(self, lr: float, **_: Any) -> None:
        """There is nothing to update."""

    def tables(self) -> dict[str, Tensor]:
        return {}

    def table_bytes(self) -> int:
        return 0

    def take_tables(self, tables: dict[str, Tensor]) -> None:
        """There are none."""

    def take_centres(self, weight: Tensor, place: Tensor) -> None:
        """There are none."""
