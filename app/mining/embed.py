"""Embeddings of many images, each process its own share.

Letters: B batch, S side, n images of this rank, N of all ranks, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.runtime.dist import World, gather_rows


@torch.no_grad()
def embed(
    embedder: nn.Module, views: Iterable[Tensor], here: World, *, embedding_dim: int, flip_sum: bool = False
) -> Tensor:
    """Unit embeddings [N, D]: of this rank's views, batches [B, 3, S, S], followed by those of the ranks after it.

    The result is the same on every rank; a rank may have no views at all. `flip_sum` adds the embedding of the
    mirrored image first, as verification protocols do. The embedder is put into eval mode and back.
    """
    was_training = embedder.training
    embedder.eval()
    parts = [torch.zeros(0, embedding_dim, device=here.device)]
    for x in views:
        z = embedder(x)
        if flip_sum:
            z = z + embedder(x.flip(3))
        parts.append(F.normalize(z.float(), dim=1))
    embedder.train(was_training)
    return gather_rows(torch.cat(parts), here)
