"""Lists of neighbours: what they look like, how they are ordered, who has none.

Letters: n images of this rank, Q queries, c candidates, D size, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

NONE = -1  # no such neighbour: fewer than k others


@dataclass(frozen=True)
class Neighbours:
    """The most similar first, equal ones by id; NONE and -inf where there are fewer."""

    ids: NDArray[np.int32]  # [n, k] positions among the images of all ranks
    cosine: NDArray[np.float32]  # [n, k]
    unusable: int = 0  # images of all ranks without a direction (zero, or not finite): nobody's neighbour


def ranked(ids: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k of each row [Q, c], the highest score first and equal ones by id; filled up with NONE to k."""
    # One sort of one number: above, whole numbers that order as the scores do, turned round; below, the id. (+ 0.0
    # makes one zero of two.)
    bits = (score + 0.0).view(torch.int32)
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    order = ((~ascending << 32) | (ids & 0xFFFFFFFF)).argsort(dim=1)[:, :k]
    missing = k - order.shape[1]
    ids, score = ids.gather(1, order), score.gather(1, order)
    return F.pad(ids, (0, missing), value=NONE), F.pad(score, (0, missing), value=-torch.inf)


def nothing(queries: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Lists [Q, k] of no neighbours."""
    ids = torch.full((queries, k), NONE, dtype=torch.int64, device=device)
    return ids, torch.full((queries, k), -torch.inf, device=device)


def usable(rows: Tensor) -> Tensor:
    """Which rows [Q, D] have a direction: [Q] bool."""
    length = torch.linalg.vector_norm(rows, dim=1)
    return (length > 0) & length.isfinite()
