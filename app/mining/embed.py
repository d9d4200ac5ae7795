"""Embed many images: each process embeds its own share, chunk by chunk, so that it can stop and resume.

Letters: N images of all ranks, n of this rank, D embedding size, S side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from app.data.dataset import Rows
from app.data.loader import plain_views
from app.data.shards import Images, Shard
from app.mining.kept import Chunks, Kept
from app.models.embedder import Embedder
from app.runtime.dist import World, any_rank, share
from app.runtime.stop import Interrupted

CPU_BATCH = 16  # a stop waits for one batch; a larger one gains nothing on a CPU
CHUNK_ROWS = 8192  # images; an interruption loses or waits for one chunk at most


@torch.no_grad()
def embed(
    embedder: Embedder,
    images: Images,
    rows: Rows,
    here: World,
    *,
    batch_size: int,
    embedding_dim: int,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
    interrupted: Callable[[], bool] = lambda: False,
    chunk_rows: int = CHUNK_ROWS,
    shard: Shard | None = None,
) -> Tensor:
    """Return unit embeddings [n, D] of this rank's share of `rows` [N] of `images` [*, S, S, 3].

    With `shard` it is the share of `shard.places(rows)`, of images that this machine reads.

    The embeddings are fp32 on `here.device`. Those of a network in 16 bits are rounded to fp16, stored or not. After
    each chunk all ranks agree whether to continue, also those with fewer chunks; if `interrupted` is true on one, all
    raise Interrupted. With `kept`, a pass that is expected to take long stores its chunks, and chunks of an earlier
    call are read instead of computed. The caller clears them once it has the result. On rank 0 `progress` receives the
    images done and the total, estimated from that rank's share.
    """
    if here.device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    sizes, own = None, share(rows, here)
    if shard is not None:
        places = shard.places(rows)
        sizes, own = [len(each) for each in places], rows[places[here.rank]]
    result = torch.empty(len(own), embedding_dim, device=here.device)
    begins = None
    if kept is not None:
        # The batch size may change between two attempts (a GPU ran out of memory). The data and the other settings may
        # not.
        settings = [here.size, len(images), embedder.image_size, embedding_dim, embedder.flip, chunk_rows]
        settings += [] if shard is None else shard.of_rank
        digest = hashlib.sha256(rows.tobytes()).hexdigest()
        begins = kept.open(f"{settings} {embedder.precision} {here.device.type} {digest}")
    with Chunks(begins, here.rank, len(own)) as chunks:
        # All ranks count the chunks of the largest share, so that all synchronise after each.
        for start in range(0, max(sizes) if sizes else -(-len(rows) // here.size), chunk_rows):
            part, z = own[start : start + chunk_rows], result[start : start + chunk_rows]
            stored = z if embedder.precision == torch.float32 else torch.empty_like(z, dtype=torch.float16)
            whole = chunks.read(start, stored)
            if not whole:
                views = plain_views(images, part, embedder.image_size, batch_size, here.device)
                whole = _embed_chunk(embedder, views, z, interrupted)
                if whole:
                    chunks.write(start, stored.copy_(z))
            if stored is not z:  # the same numbers, read or computed
                z.copy_(F.normalize(stored.float(), dim=1))
            if here.is_main:
                progress(min(len(rows), (start + len(part)) * len(rows) // len(own)), len(rows))
            if any_rank(not whole or interrupted(), here):
                raise Interrupted
    return result


def _embed_chunk(embedder: Embedder, views: Iterable[Tensor], into: Tensor, interrupted: Callable[[], bool]) -> bool:
    """Write unit embeddings of successive batches [B, 3, S, S] into the rows of `into`; return whether it finished.

    False: this rank was interrupted. The ranks agree on that after the chunk.
    """
    done = 0
    for x in views:
        if done and interrupted():
            return False
        into[done : done + len(x)] = F.normalize(embedder(x)[0], dim=1)
        done += len(x)
    return True
