"""Find the offset that all embeddings share, and subtract it.

Networks that were trained for distances put all faces into one part of the sphere, so that even strangers have a high
cosine. Only a small part of each embedding then tells people apart, and mining would measure the large one. Without the
offset, strangers have a median cosine of 0.

The median cosine of random pairs is |m|^2 for an offset m. Its direction is that of the mean of all images, and nearly
all images lie along it. Embeddings without an offset also have a mean: in few dimensions, or if most images show a few
people. Then the median is no larger than the spread of the cosines, or many images do not lie along the mean.

Letters: n images of this process (its contiguous share), N of all, S sampled ones, D embedding size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from app.mining.arrays import Floats
from app.mining.lists import usable
from app.mining.look_alikes import LOWER_HALF
from app.mining.sample import usable_of_all
from app.mining.shared_direction import ROWS_AT_ONCE, mean_direction
from app.runtime.dist import World, from_main

CLEAR = 1.0  # standard deviations of the cosines of random pairs
COMPARED = 512  # images, in pairs
OTHERS = 0.05  # share of the images that need not lie half as far along the offset as the median image
STEPS = 2.0**28  # of a coordinate; sums of whole numbers do not depend on their order


def common_cosine(sample: Floats) -> float:
    """Return the median cosine of two images of the `sample` [S, D] if an offset causes it, otherwise 0."""
    some = sample[:: -(-len(sample) // COMPARED) or 1]
    cosine = (some @ some.T)[np.triu_indices(len(some), k=1)]
    if not len(cosine):
        return 0.0
    lower, median = np.quantile(cosine.astype(np.float64), [0.25, 0.5])
    least, half_way = np.quantile(some @ some.mean(axis=0), [OTHERS, 0.5]) * (1, 0.5)
    is_offset = CLEAR * (median - lower) / LOWER_HALF < median < 1 and least > half_way
    return float(median) if is_offset else 0.0


def without_offset(shard: Tensor, sample: Floats, here: World) -> tuple[Tensor, float]:
    """Return this rank's unit rows [n, D] without the offset, of length 1 again, and its squared length (0: none).

    `sample` [S, D] are embeddings of random images, without copies. Unusable rows become zero. Where there is no offset
    the rows are `shard` itself. The same for every number of ranks.
    """
    common = from_main(common_cosine(sample), here)
    if not common:
        return shard, 0.0
    part = usable_of_all(shard, here)
    offset = mean_direction(part, shard, here).double() * common**0.5
    rest = torch.empty_like(shard)
    for rows, into in zip(shard.split(ROWS_AT_ONCE), rest.split(ROWS_AT_ONCE), strict=True):
        left = ((rows.double() - offset) * STEPS).round().long()
        length = (left**2).sum(1, keepdim=True).double().sqrt()
        into.copy_(torch.where(usable(rows)[:, None] & (length > 0), left / length, 0))
    return rest, common
