"""Neighbour lists: their format and order, and which rows cannot have one.

Letters: n images of this rank, Q queries, c candidates, D size, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from app.mining.arrays import Floats, Ints

NONE = -1  # fills lists of fewer than k neighbours


@dataclass(frozen=True)
class Neighbours:
    """Neighbour lists, most similar first, ties by id; NONE and -inf fill lists of fewer than k."""

    ids: Ints  # [n, k] positions among the images of all ranks
    cosine: Floats  # [n, k]
    unusable: int = 0  # images of all ranks without a direction (zero, or not finite): never a neighbour


def ranked(ids: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k of each row [Q, c], highest score first, ties by id; NONE pads to k."""
    # Sort once, by one int64: the high half is an integer in descending order of the scores, the low half is the id.
    # Adding 0.0 turns -0.0 into 0.0.
    bits = (score + 0.0).view(torch.int32)
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    order = ((~ascending << 32) | (ids & 0xFFFFFFFF)).argsort(dim=1)[:, :k]
    missing = k - order.shape[1]
    ids, score = ids.gather(1, order), score.gather(1, order)
    return F.pad(ids, (0, missing), value=NONE), F.pad(score, (0, missing), value=-torch.inf)


def nothing(queries: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return lists [Q, k] without neighbours."""
    ids = torch.full((queries, k), NONE, dtype=torch.int64, device=device)
    return ids, torch.full((queries, k), -torch.inf, device=device)


def usable(rows: Tensor) -> Tensor:
    """Return which rows [Q, D] have a direction: [Q] bool."""
    length = torch.linalg.vector_norm(rows, dim=1)
    return (length > 0) & length.isfinite()
