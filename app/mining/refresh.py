"""Refresh the pseudo-IDs once: embed, search, cluster, judge, and draw a contact sheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from app.config import NO_ID, Config
from app.data.dataset import Dataset
from app.mining.arrays import Longs
from app.mining.embed import embed
from app.mining.exchange import exchanged
from app.mining.kept import Kept
from app.models.embedder import Embedder
from app.runtime.checkpoint import weights_digest
from app.runtime.dist import World, any_rank
from app.runtime.memory import emptied_cache
from app.runtime.precision import dtype_of
from app.runtime.stop import Interrupted

CHUNK_ROWS = {"cuda": 8192, "cpu": 512}  # images between two checks for a stop: some seconds


@dataclass(frozen=True)
class Interlude:
    """What long work between two epochs receives from the loop."""

    folder: Path  # for unfinished work and for pictures
    interrupted: Callable[[], bool]  # whether this process was asked to stop
    progress: Callable[[int, int], None]  # images done, total images; called on rank 0

    def poll(self, here: World) -> None:
        """Raise Interrupted on all ranks if one of them was asked to stop."""
        if any_rank(self.interrupted(), here):
            raise Interrupted


def embed_share(
    embedder: nn.Module, config: Config, data: Dataset, here: World, interlude: Interlude, *, compiled: bool = False
) -> Tensor:
    """Return unit embeddings [n, D] of this rank's contiguous share of the training images. Raises Interrupted.

    With shards each machine embeds its own images, and the embeddings are then exchanged.

    A long pass stores its finished chunks until it is complete: a later call with the same weights resumes there.
    """
    kept = Kept(interlude.folder / "embedding", weights_digest(embedder))
    side, precision = config.backbone.image_size, dtype_of(config.train.precision, here.device)
    with emptied_cache(here.device):
        shard = embed(
            Embedder(embedder, side, precision=precision, flip=config.mining.flip_sum, compiled=compiled),
            data.images,
            data.train_rows,
            here,
            batch_size=config.mining.batch_size,
            embedding_dim=config.backbone.embedding_dim,
            kept=kept,
            progress=interlude.progress,
            interrupted=interlude.interrupted,
            chunk_rows=CHUNK_ROWS[here.device.type],
            shard=data.shard,
        )
        if data.shard is not None:
            shard = exchanged(shard, data.shard.places(data.train_rows), here)
    if here.first_of_machine:  # on each machine, as disks may not be shared
        kept.clear()
    return shard


def refresh(
    shard: Tensor,
    previous: Longs,
    config: Config,
    data: Dataset,
    here: World,
    interlude: Interlude,
    *,
    seed: int,
    sheet: Path,
) -> tuple[Longs, dict[str, Any]]:
    """Return pseudo-IDs [N] of all images (NO_ID: none, as for images not trained on) and the report on them.

    `previous` [N] are the current ones; the new ones come from `shard` [n, D]. `sheet` is the path of the contact
    sheet, a PNG. Raises Interrupted.
    """
    # Imported here because clustering needs Numba and SciPy, and the picture Pillow: a run that mines nothing starts
    # without them.
    from app.mining.contact_sheet import contact_sheet
    from app.mining.pseudo_ids import find_pseudo_ids

    started = time.monotonic()
    rows = data.train_rows
    labels = None if data.labels is None else data.labels[rows]
    with emptied_cache(here.device):
        found, report = find_pseudo_ids(
            shard, previous[rows], labels, config.mining, here, seed=seed, poll=partial(interlude.poll, here)
        )
    interlude.poll(here)
    if here.is_main:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        there = None if data.part is None or data.shard is None else np.isin(rows, data.own_rows, assume_unique=True)
        contact_sheet(sheet, data.images, rows, found, seed, report, labels=labels, there=there)
    ids = np.full(len(data.images), NO_ID, np.int64)
    ids[rows] = found
    return ids, {**report.as_dict(), "seconds": time.monotonic() - started}
