"""Leave out images that resemble the others of their cluster no more than strangers do.

A stranger joins a cluster if it is close by chance to one or two of its images. To all others it is a stranger still.
So an image stays if the mean of its cosines with the others is nearer to that of the images of a person than to that of
two strangers. The former is the median over all images that are in a cluster.

Letters: N images, n of this process (its contiguous share), D embedding size, S sampled images.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.mining.cluster import by_smallest_member
from app.mining.lists import usable
from app.mining.whole_clusters import by_size, whole_clusters
from app.runtime.dist import World, from_main, gather_rows, total
from app.runtime.stop import Poll, undisturbed

STEPS = 2**20  # of a cosine: it does not depend on the last bits
Ids = NDArray[np.int64]


def without_strangers(
    labels: Ids,
    shard: Tensor,
    original: NDArray[np.int32],
    sample: NDArray[np.float32],
    largest: int,
    here: World,
    poll: Poll = undisturbed,
) -> Ids:
    """Return clusters [N] where the strangers in a cluster are alone; the same on every rank.

    `labels` [N] are clusters, those of more than `largest` images stay. `shard` [n, D] are this rank's unit embeddings,
    `original` [N] the image that an image is a near-copy of, else itself; copies follow. `sample` [S, D]: embeddings of
    random images, without copies.
    """
    part = (gather_rows(usable(shard).to(torch.uint8), here).cpu().numpy() > 0) & (original == np.arange(len(labels)))
    names, cluster = np.unique(np.where(part, labels, -1), return_inverse=True)
    size = np.bincount(cluster, minlength=len(names))
    chosen = (size >= 2) & (size <= largest) & (names >= 0)
    if not chosen.any():
        return labels
    cosine = np.zeros(len(labels), np.int64)
    for ids, rows in whole_clusters(cluster, size, chosen, shard, here):
        for places, images in by_size(cluster[ids], rows):
            cosine[ids[places]] = np.rint(with_others(images) * STEPS)
        poll()
    cosine = total(torch.from_numpy(cosine), here).numpy()
    joined = chosen[cluster]
    limit = from_main((between_strangers(sample) + float(np.median(cosine[joined])) / STEPS) / 2, here)
    alone = np.where(joined & (cosine < limit * STEPS), len(labels) + np.arange(len(labels)), labels)
    return by_smallest_member(np.where(labels == labels[original], alone[original], alone))


def with_others(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean cosine [m, s] of each of the unit `images` [m, s, D] with the others of its cluster."""
    others = images.sum(axis=1, keepdims=True) - images
    return (images * others).sum(axis=2) / (images.shape[1] - 1)


def between_strangers(sample: NDArray[np.float32]) -> float:
    """Return the mean cosine of two images of the `sample` [S, D]; 0 for fewer than two."""
    count = len(sample)
    added = sample.sum(axis=0, dtype=np.float64)
    return float((added @ added - (sample.astype(np.float64) ** 2).sum()) / max(1, count * (count - 1)))
