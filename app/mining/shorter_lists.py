"""Split clusters again by shorter lists, where the lists reach past a person's images to those of others.

A network that tells people apart badly puts strangers near to each other. A person of few images then has others in the
list, above any floor of the whole data set, and clusters hold several people who look alike. Shorter lists reach less
far. But they may also split a person of many images, or of images along a curve. Without labels, the silhouette tells:
pieces of a person lie near to each other, people farther apart. So the split stays if clusters then lie farther apart,
and most images are still in one: of images that chance put together, few stay.

Letters: N images, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from app.config import MiningConfig
from app.mining.arrays import Longs
from app.mining.clustered import Clustered, shortened
from app.mining.pieces import in_pieces
from app.mining.separation import Separation, separation
from app.runtime.dist import World
from app.runtime.stop import Poll

CLEAR = 0.99  # share of images that are more like their own cluster: then the lists do not reach too far
KEPT = 0.9  # share of the images in clusters that still are after a split
PARTS = (2, 4)  # of a list, each tried
LEAST = 6  # entries of a list: fewer hardly share neighbours


def split_by_shorter_lists(
    of: Clustered, labels: Longs, people: Callable[[Clustered], Longs], config: MiningConfig, here: World, poll: Poll
) -> tuple[Longs, Separation]:
    """Return clusters [N] that are `labels` [N] or split further, and how far apart they lie; the same on every rank.

    `people` returns the clusters [N] that likely show one person each, of lists and clusters like `of`.
    """
    best = before = separation(labels, of.rows, of.original, here)
    chosen = labels
    poll()
    if before.separated >= CLEAR:
        return labels, before
    for parts in PARTS:
        length = config.neighbours // parts
        if length < LEAST:
            break
        finer = in_pieces(labels, people(shortened(of, length, config, here, poll)))
        apart = separation(finer, of.rows, of.original, here)
        poll()
        stay = in_clusters(finer) >= KEPT * in_clusters(labels)
        if stay and apart.silhouette > best.silhouette:
            best, chosen = apart, finer
    return chosen, best


def in_clusters(labels: Longs) -> int:
    """Return how many images [N] are not alone in their cluster."""
    return int(np.count_nonzero(np.bincount(labels)[labels] > 1))
