"""Exact nearest neighbours by cosine. The only place that knows FAISS.

Letters: N rows in the bank, Q queries, D size, k neighbours.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

NONE = -1  # no such neighbour: fewer than k others


def nearest(
    bank: NDArray[np.float32], queries: NDArray[np.int64], k: int, *, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k most similar other rows of `bank` [N, D] (unit vectors) for each of the rows `queries` [Q].

    Returns ids and cosines [Q, k], most similar first; NONE and -inf where the bank has fewer than k other rows. The
    row itself is taken out by its id, wherever it stands: among duplicates it need not come first.
    """
    faiss.omp_set_num_threads(threads)
    wanted = min(k + 1, len(bank))
    if not len(queries) or wanted < 2:
        return np.full((len(queries), k), NONE, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    cosine, ids = faiss.knn(bank[queries], bank, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    # Most similar first, equal ones by id: the answer must not depend on how queries were shared out.
    order = np.lexsort((ids, -cosine), axis=1)
    ids, cosine = np.take_along_axis(ids, order, 1), np.take_along_axis(cosine, order, 1)
    is_self = ids == queries[:, None]
    # A row that fell off its own list (more than k equal ones) gives its place to the last.
    is_self[~is_self.any(1), -1] = True
    ids, cosine = ids[~is_self].reshape(len(queries), -1), cosine[~is_self].reshape(len(queries), -1)
    missing = k - ids.shape[1]
    if missing > 0:
        ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=NONE)
        cosine = np.pad(cosine, ((0, 0), (0, missing)), constant_values=-np.inf)
    return ids, cosine
