"""Evaluate a run on named sets during training, with the code of app.evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from app.config import Config
from app.evaluation.embedding import batch_size_for, embed_all, own_rows
from app.evaluation.image_set import Faces, decode
from app.evaluation.protocols import Outcome
from app.evaluation.sets import open_set
from app.runtime.dist import World
from app.runtime.finite import NotFinite
from app.runtime.stop import Stop

SetNumbers = dict[str, dict[str, Any]]  # by set name


class NamedSets:
    """The sets of `train.eval.sets`. Raises WrongUse before training begins if one of them cannot be used."""

    def __init__(self, config: Config, embedder: nn.Module, here: World) -> None:
        self.config, self.embedder, self.here = config, embedder, here
        self.sets = [open_set(Path(path), config.train.eval.fit) for path in config.train.eval.sets]
        self.decoded: dict[str, Faces] = {}  # kept in memory, or streamed
        self.measured_step = 0

    def due(self, step: int) -> bool:
        """Whether a multiple of `train.eval.every_steps` was reached since the last measurement."""
        every = self.config.train.eval.every_steps
        return bool(every and self.sets) and step // every > self.measured_step // every

    def measure(self, step: int, stop: Stop) -> SetNumbers:
        """Return each set's numbers with its threshold on the main process, {} on the others.

        Raises NotFinite on all processes, and Interrupted once they agree to stop.
        """
        self.measured_step = step
        batch_size = batch_size_for(self.config.train.eval.batch_size, self.here)
        found: SetNumbers = {}
        for images in self.sets:
            if images.name not in self.decoded:
                rows = own_rows(images.count, batch_size, self.here)
                self.decoded[images.name] = decode(images, rows, self.here, stop.asked.is_set)
            embeddings, _ = embed_all(
                self.embedder,
                self.decoded[images.name],
                self.config.backbone,
                self.here,
                batch_size=batch_size,
                flip=True,
                interrupted=stop.asked.is_set,
            )
            stop.leave_together(self.here)
            if not np.isfinite(embeddings).all():
                raise NotFinite(f"the embeddings of {images.name} are not finite")
            outcome = images.protocol.judge(embeddings, self.here)
            if outcome is not None:
                found[images.name] = numbers_of(outcome, images.protocol.measure)
        return found


def numbers_of(outcome: Outcome, measure: str) -> dict[str, Any]:
    """The numbers to record for a set: the ranking one as `accuracy`, its name, and the 10-fold threshold."""
    threshold = outcome.thresholds.get("ten_folds")
    return {
        "accuracy": outcome.numbers[outcome.headline],
        "measure": measure,
        **{key: outcome.numbers[key] for key in ("accuracy_std", "auc") if key in outcome.numbers},
        **({"threshold": threshold.cosine} if threshold else {}),
    }
