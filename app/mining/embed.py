"""Embeddings of many images: each process its own share, chunk by chunk, so that it can be stopped and gone on with.

Letters: N images of all ranks, n of this rank, D embedding size, S side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from app.data.dataset import Rows
from app.data.feed import plain_views
from app.files import atomic
from app.runtime.dist import World, any_rank, share
from app.runtime.stop import Interrupted

CPU_BATCH = 16  # a batch is what a stop waits for; a CPU gains nothing from a larger one
CHUNK_ROWS = 8192  # what an interruption may cost, and how long it may take until it is heard


@dataclass(frozen=True)
class Kept:
    """Where finished chunks are kept, and what they are embeddings of: never mix those of different weights."""

    folder: Path
    stamp: str

    def clear(self) -> None:
        """Remove every kept chunk, whatever its stamp; may be called on each rank, and twice."""
        self._remove(all_but="")

    def open(self, what: str) -> str:
        """Make the folder, remove chunks of anything else, and say how the paths of these chunks begin."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(f"{self.stamp}\0{what}".encode()).hexdigest()[:16]
        self._remove(all_but=digest)
        return str(self.folder / digest)

    def _remove(self, *, all_but: str) -> None:
        for file in self.folder.glob("*.chunk.npy*"):  # with what an interrupted write left
            if not all_but or not file.name.lstrip(".").startswith(all_but):
                file.unlink(missing_ok=True)  # other ranks tidy up too


@torch.no_grad()
def embed(
    embedder: nn.Module,
    images: NDArray[np.uint8],
    rows: Rows,
    here: World,
    *,
    image_size: int,
    batch_size: int,
    embedding_dim: int,
    flip_sum: bool = False,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
    interrupted: Callable[[], bool] | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """Unit embeddings [n, D], fp32 on `here.device`, of this rank's share of `rows` [N] of `images` [*, S, S, 3].

    `flip_sum` adds the embedding of the mirrored image first, as verification protocols do. The embedder is put into
    eval mode and back; autocast is the caller's. After each chunk all ranks agree whether to go on (a rank with fewer
    chunks, or none, takes part): where `interrupted` says stop on one of them, all raise Interrupted. With `kept`,
    chunks that an earlier call finished are read instead of computed; the caller clears them once it has the result.
    `progress` is told images done and images in all, on rank 0, as estimated from its own share.
    """
    if here.device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    own = share(rows, here)
    result = torch.empty(len(own), embedding_dim, device=here.device)
    begins = None
    if kept is not None:
        # The batch size may change between two attempts (a GPU ran out of memory); what is embedded, and how, may not.
        settings = [here.size, len(images), image_size, embedding_dim, flip_sum, chunk_rows]
        begins = kept.open(f"{settings} {hashlib.sha256(rows.tobytes()).hexdigest()}")
    was_training = embedder.training
    embedder.eval()
    try:
        # No rank has more rows than rank 0: all count the chunks of its share, so all meet after each.
        for start in range(0, -(-len(rows) // here.size), chunk_rows):
            part, z = own[start : start + chunk_rows], result[start : start + chunk_rows]
            whole = True
            file = Path(f"{begins}-{here.rank}-{start:09d}.chunk.npy") if begins and len(part) else None
            if file is not None and file.is_file():
                z.copy_(torch.from_numpy(np.load(file)))
            else:
                views = plain_views(images, part, image_size, batch_size, here.device)
                whole = _embed_chunk(embedder, views, z, flip_sum, interrupted)
                if whole and file is not None:
                    with atomic(file) as open_file:
                        np.save(open_file, z.cpu().numpy())
            if progress is not None and here.is_main:
                progress(min(len(rows), (start + len(part)) * len(rows) // len(own)), len(rows))
            if any_rank(not whole or (interrupted is not None and interrupted()), here):
                raise Interrupted
    finally:
        embedder.train(was_training)
    return result


def _embed_chunk(
    embedder: nn.Module, views: Iterable[Tensor], into: Tensor, flip_sum: bool, interrupted: Callable[[], bool] | None
) -> bool:
    """Unit embeddings of batches [B, 3, S, S], one after the other, into the rows of `into`.

    False, and not all of them, when this rank was interrupted: the ranks agree about that after the chunk.
    """
    done = 0
    for x in views:
        if done and interrupted is not None and interrupted():
            return False
        z = embedder(x)
        if flip_sum:
            z = z + embedder(x.flip(3))
        into[done : done + len(x)] = F.normalize(z.float(), dim=1)
        done += len(x)
    return True
