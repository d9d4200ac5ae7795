"""The distillation recipe: a student learns the embeddings of a frozen teacher, with or without a margin head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.config import Config
from app.data.dataset import Dataset, open_configured, with_classes
from app.errors import WrongUse
from app.models.distillation import Student, distillation_loss
from app.recipes.recipe import Batch, half_precision
from app.recipes.supervised import Supervised
from app.recipes.teacher import Teacher
from app.runtime.data_parallel import gradients_meet
from app.runtime.dist import World


class Distill(Supervised):
    """Recipe supervised with a second loss. Without a head weight it needs no labels."""

    def __init__(self, config: Config, data: Dataset, here: World) -> None:
        self.teacher = Teacher(config, here)
        own, wanted = config.backbone.embedding_dim, self.teacher.dim
        if own != wanted and not config.recipe.distill.projection:
            raise WrongUse(
                f"the teacher's embeddings have {wanted} numbers and the student's {own}; "
                f"give backbone.embedding_dim={wanted}, or recipe.distill.projection=true to learn a matrix"
            )
        torch.manual_seed(config.train.seed)  # the same start on every rank
        self.projection: nn.Module = nn.Identity()
        if config.recipe.distill.projection:
            self.projection = nn.Linear(own, wanted, bias=False).to(here.device)
        super().__init__(config, data, here)
        self.modules["projection"] = self.projection

    @staticmethod
    def training_data(config: Config) -> Dataset:
        data = open_configured(config.data)
        return with_classes(data, config.data) if config.has_head else data

    def to_train(self) -> nn.Module:
        return Student(self.backbone, self.projection)

    def foreign(self, path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:  # noqa: ARG002
        return None  # it has no teacher

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the distance to the teacher's embeddings and of the margin loss, if there is a head."""
        settings = self.config.recipe.distill
        self.averages.remember()
        views = self.augment(batch.images, batch.draws)  # [B, 3, S, S]
        wanted = self.teacher(views, batch)
        with half_precision(self.config, self.here.device), gradients_meet(self.parallel, now=batch.last):
            embeddings, projected = self.parallel(views)
        self.last = embeddings.detach()
        apart, cosine = distillation_loss(projected, wanted, settings.loss)
        margin, metrics = self.head(embeddings, batch.targets)
        loss = settings.weight * apart + settings.head_weight * margin
        return loss, {"distillation": apart.detach(), "teacher_cosine": cosine, **metrics}

    def facts(self) -> dict[str, Any]:
        return {"teacher": {"file": self.teacher.path.name, "sha256": self.teacher.sha256}}
