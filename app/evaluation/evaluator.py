"""Measure a network on held-out people during training. Letters: n held-out images, D embedding size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from app.config import Config
from app.data.dataset import Dataset
from app.evaluation.separation import Scored, document
from app.evaluation.validation import held_out_people
from app.evaluation.verification import (
    Embeddings,
    accuracy_over_folds,
    all_pairs,
    enough,
    fold_thresholds,
    pair_scores,
    rank1,
    verification_accuracy,
)
from app.files import write_json
from app.mining.embed import embed
from app.models.embedder import Embedder
from app.runtime.dist import World, gather_rows
from app.runtime.finite import NotFinite

Measured = dict[str, float]


class Meter:
    """Measure a network on held-out people; returns nothing if labels are missing or give too few pairs.

    All of them are embedded together. Then the people of the result are measured, and those who choose the checkpoint.
    Raises WrongUse for a `train.eval.validation` that does not fit the data.
    """

    def __init__(
        self, config: Config, data: Dataset, embedder: nn.Module, here: World, interrupted: Callable[[], bool]
    ) -> None:
        self.interrupted = interrupted  # whether this process was asked to stop
        self.config, self.data, self.embedder, self.here = config, data, embedder, here
        self.people = held_out_people(data, config.train.eval)
        self.rows, labels, validation = self.people.rows, self.people.labels, self.people.validation
        self.labels = None if labels is None else labels[self.people.result]
        self.pairs = None  # of the people of the result
        self.validation_pairs = None if labels is None or validation is None else all_pairs(labels[validation])
        self.scored: dict[str, Scored] = {}  # the newest scores by embedding, on the main process
        if self.labels is not None and enough(self.labels):
            self.pairs = all_pairs(self.labels)

    def baselines(self) -> Iterator[tuple[str, Measured]]:
        """Yield the baselines for training: raw pixels, and the network before training."""
        if self.pairs is None:
            return
        yield "pixels", self._score(pixels(self.data, self.rows), "pixels")
        try:
            measured = self.measure("untrained")
        except NotFinite:  # a network before its first step may overflow; then there is no such baseline
            return
        assert measured is not None
        yield "untrained", measured

    def measure(self, what: str = "trained") -> Measured | None:
        """Return 10-fold accuracy and rank-1 of flip-summed embeddings, or None; every rank embeds its share.

        If people choose the checkpoint, their accuracy is `validation_accuracy`.

        Raises NotFinite and Interrupted, on all ranks.
        """
        if self.pairs is None:
            return None
        embeddings = embed(
            Embedder(self.embedder, self.config.backbone.image_size, flip=True),
            self.data.images,
            self.rows,
            self.here,
            batch_size=self.config.train.eval.batch_size,
            embedding_dim=self.config.backbone.embedding_dim,
            interrupted=self.interrupted,
        )
        whole = gather_rows(embeddings, self.here).cpu().numpy()
        if not np.isfinite(whole).all():
            broken = int((~np.isfinite(whole)).any(axis=1).sum())
            raise NotFinite(f"the embeddings of {broken} of {len(whole)} held-out images are not finite")
        return self._score(whole, what)

    def keep(self, path: Path, *, epoch: int, step: int) -> None:
        """Write verification.json, for the report, from the newest scores. An error is one line: it must end no run."""
        if "trained" not in self.scored:  # not the main process
            return
        assert self.pairs is not None
        assert self.labels is not None
        rows = self.rows[self.people.result]
        try:
            about = document(self.scored, self.pairs, self.labels, self.data.images, rows, epoch=epoch, step=step)
            write_json(path, about)
        except Exception as error:
            print(f"{path.name} was not written ({type(error).__name__}: {error}); training continues", flush=True)

    def _score(self, embeddings: Embeddings, what: str) -> Measured:
        assert self.pairs is not None
        assert self.labels is not None
        of_all = embeddings
        if self.people.validation is not None:
            embeddings = of_all[self.people.result]
        score = pair_scores(embeddings, self.pairs)
        thresholds = fold_thresholds(score, self.pairs)
        accuracy, std = accuracy_over_folds(score, self.pairs, thresholds)
        if self.here.is_main:
            self.scored[what] = Scored(score, accuracy, float(np.mean(thresholds)))
        measured = {"accuracy": accuracy, "accuracy_std": std, "rank1": rank1(embeddings, self.labels)}
        if self.validation_pairs is not None:
            chosen_by = of_all[self.people.validation]
            measured["validation_accuracy"] = verification_accuracy(chosen_by, self.validation_pairs)[0]
        return measured


def pixels(data: Dataset, rows: NDArray[np.int64]) -> Embeddings:
    """The baseline without a network: flattened pixels in [-1, 1] plus those of the mirrored image [n, 37632]."""
    x = data.images[rows].astype(np.float32) / 127.5 - 1
    return (x + x[:, :, ::-1]).reshape(len(rows), -1)
