"""Choose the positive of each image: the image itself, or another one of its pseudo-ID."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.config import NO_ID
from app.data.dataset import Rows


class Positives:
    """Draw positives from an array of pseudo-IDs [N] (NO_ID: none).

    One sorted array holds the members of each cluster next to each other. So a draw is arithmetic on offsets, and its
    cost does not depend on the number of clusters.
    """

    def __init__(self, pseudo_ids: NDArray[np.int64]) -> None:
        self.members = np.argsort(pseudo_ids, kind="stable")  # [N] rows, cluster by cluster
        ids = pseudo_ids[self.members]
        self.start = np.searchsorted(ids, pseudo_ids, side="left")  # [N] where each row's cluster begins
        self.count = np.searchsorted(ids, pseudo_ids, side="right") - self.start
        self.count[pseudo_ids == NO_ID] = 1  # alone
        self.place = np.empty_like(self.start)  # [N] position of each row in `members`
        self.place[self.members] = np.arange(len(pseudo_ids))

    def draw(self, rows: Rows, probability: float, chance: NDArray[np.float64]) -> Rows:
        """Return a positive for each row [B]: with `probability` another image of its cluster, else the same image.

        `chance` [B, 2]: uniform random numbers; the first decides whether to take another image, the second which one.
        """
        other, jump = chance[:, 0] < probability, chance[:, 1]
        count, start = self.count[rows], self.start[rows]
        other &= count > 1
        offset = 1 + (jump * np.maximum(count - 1, 1)).astype(np.int64)  # 1 .. count - 1: never itself
        place = start + (self.place[rows] - start + offset) % count
        return np.where(other, self.members[np.where(other, place, 0)], rows)
