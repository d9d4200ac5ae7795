"""Search a bank that one process holds, for chosen rows only: what tests and benchmarks compare with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from app.mining.knn import choose_backend, search, set_threads
from app.mining.lists import nothing, usable


def nearest(
    bank: NDArray[np.float32], queries: NDArray[np.int64], k: int, *, threads: int, backend: str = "faiss"
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return ids and cosines [Q, k] of the k other rows of `bank` [N, D] most similar to its rows `queries` [Q]."""
    rows, own = torch.from_numpy(bank), torch.from_numpy(queries)
    set_threads(threads, rows.device)
    good = usable(rows)[own]
    ids, cosine = nothing(len(own), k, rows.device)
    ids[good], cosine[good] = search(rows, 0, rows[own[good]], own[good], k, choose_backend(backend, rows.device, k))
    return ids.int().numpy(), cosine.numpy()
