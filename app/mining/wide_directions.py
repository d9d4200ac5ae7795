"""Find directions along which everybody's images differ more than people do, and remove them from all embeddings.

Pose, light or the camera may move all embeddings along a few wide directions. Then strangers of one pose resemble each
other more than images of one person do, and hardly any image has a neighbour above the floor. Without these directions
the floor is lower, and many more images have one. Directions along which people differ are wide too, but without them
images lose neighbours.

So it is tried to remove the widest direction, the widest two, and so on. In each trial a sample of images is compared
with all images, and the ranks of their lists that are filled above the floor are counted. Along a wide direction that
is left, far more strangers may be above the floor than it allows. About as many are as far below a cosine of 0, where
images of one person hardly are: they are counted there and subtracted. Trials in which images lose neighbours are left
out. Of the others the best one counts, if it surely helps; of equally good ones, the one with fewest directions.

Letters: n images of this process (its contiguous share), D embedding size, S sampled ones, Q of them that are compared
with all, r directions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from app.mining.arrays import Doubles, Floats, Longs
from app.mining.candidates import full_precision
from app.mining.cluster import RESOLVED, upper_quantile
from app.mining.clustered import COPY
from app.mining.lists import usable
from app.mining.sample import STEPS
from app.mining.shared_axes import ROUNDING
from app.mining.shared_direction import PRODUCTS_AT_ONCE, ROWS_AT_ONCE, without
from app.runtime.dist import World, from_main, total
from app.runtime.stop import Poll

TRIED = 8  # directions, and no more than PART of those that the embeddings have
PART = 1 / 4
EVERYBODY = 1 / 3  # least median of the squared places along a direction, as a share of that of normal places
NORMAL = 0.4549  # median of the squares of standard normal numbers
FEWEST = 64  # images that are compared with all; of fewer, a gain is not sure
SCREENED, ASKED = 128, 512  # images that are compared; the others only where the first ones may gain
FOR_FLOORS = 512  # images whose pairs give a floor
RANKS = (1, 2, 4, 8, 16)  # of a list
KEPT = 0.9  # share of the filled ranks; directions that tell people apart took a fifth or more with them
REMAIN = 0.5  # of those above the lower floor
MAYBE, SURE = 1.0, 6.0  # standard errors of a gain
EQUAL = 2.0  # standard errors by which fewer directions may help less and are preferred


def without_wide_directions(
    shard: Tensor, sample: Floats, count: int, false_edges_per_image: float, here: World, poll: Poll
) -> tuple[Tensor, int]:
    """Return this rank's unit rows [n, D] without directions that hide people, and how many these are.

    `sample` [S, D] are embeddings of random images among `count`, without copies. The same on every rank. Where there
    is no such direction the rows are `shard` itself.
    """
    directions = from_main(widest(sample).tolist() if len(sample) >= FEWEST else [], here)
    if not directions:
        return shard, 0
    wide = torch.tensor(directions, dtype=shard.dtype, device=shard.device)
    rows = torch.from_numpy(np.random.default_rng(0).permutation(sample)[:ASKED]).to(shard.device)
    with full_precision(shard.device):
        some = rows[:FOR_FLOORS]
        rests = [normalize(some - (some @ wide[:removed].T) @ wide[:removed]) for removed in range(len(wide) + 1)]
    pairs = [(each @ each.T)[np.triu_indices(len(each), 1)] for each in (rest.cpu().numpy() for rest in rests)]
    tail = np.array([min(0.5, false_edges_per_image / count)])
    lower = max(0.0, float(upper_quantile(pairs[0], tail)[0]))
    floors = from_main([lower, *(floor_of(each, tail) for each in pairs)], here)
    removed = 0
    for asked, errors in ((SCREENED, MAYBE), (ASKED, SURE)):
        (before, *filled), (_, *chance) = _filled(rows[:asked], wide, floors, shard, here)
        removed = from_main(chosen(before, np.array(filled), np.array(chance), errors), here)
        poll()
        if not removed:
            return shard, 0
    rest = torch.empty_like(shard)
    for part, into in zip(shard.split(ROWS_AT_ONCE), rest.split(ROWS_AT_ONCE), strict=True):
        for direction in wide[:removed]:
            part = without(part, direction)
        into.copy_(part)
    return rest, removed


def widest(sample: Floats) -> Doubles:
    """Return the widest directions [r, D] of a `sample` [S, D] that everybody's images lie along, the widest first.

    A direction that is wide only because of a few people with many images does not count: most images hardly lie along.
    """
    rows = sample.astype(np.float64)
    width, directions = np.linalg.eigh(rows.T @ rows)  # ascending
    most = min(TRIED, int(PART * np.count_nonzero(width > ROUNDING * width[-1:])))
    directions = directions[:, ::-1]
    squared = (rows @ directions) ** 2
    everybody = np.median(squared, axis=0) >= EVERYBODY * NORMAL * squared.mean(axis=0)
    return directions[:, everybody][:, :most].T


def floor_of(cosine: Floats, tail: Doubles) -> float:
    """Return the cosine that random pairs exceed with the probability `tail` [1], from the cosines [P] of some.

    If images come in four groups, such as of four cameras, a quarter of the pairs is within a group. The lower half of
    the cosines does not show them, the upper quartile does. So the tail is extrapolated from each; the higher counts.
    """
    cosine = np.sort(cosine)  # once: numpy's selections then take next to no time
    known = cosine.clip(RESOLVED - 1, 1 - RESOLVED)
    mirrored = np.tanh(2 * np.arctanh(np.median(known)) - np.arctanh(known[::-1]))
    return max(0.0, *(float(upper_quantile(each, tail)[0]) for each in (cosine, mirrored)))


def chosen(before: Longs, filled: Longs, chance: Longs, errors: float) -> int:
    """Return how many directions to remove. `filled` [r + 1, Q]: filled ranks of lists without the first 0, 1, … r.

    The removal must help by more than `errors` standard errors, not counting the ranks that strangers fill, `chance`
    [r + 1, Q], and hide hardly any neighbours. Images of few people look like groups of images. So half of the ranks
    that are filled `before` [Q], above the floor of the lower quartile alone, must stay filled.
    """
    remain = np.minimum(before, filled).mean(axis=1) >= REMAIN * before.mean()
    kept = np.minimum(filled[0], filled).mean(axis=1) >= KEPT * filled[0].mean()  # without none, all are
    harmless = np.flatnonzero(remain & kept)
    if not len(harmless):
        return 0
    helped = filled - chance
    best = harmless[helped[harmless].mean(axis=1).argmax()]
    if gain(helped[0], helped[best]) <= errors:
        return 0
    as_good = (
        fewer
        for fewer in harmless
        if fewer and gain(helped[fewer], helped[best]) <= EQUAL and gain(chance[best], chance[fewer]) <= EQUAL
    )
    return int(next(as_good))


def gain(before: Longs, after: Longs) -> float:
    """Return the mean of `after` [Q] minus `before` [Q], in standard errors; 0 if they are equal."""
    more = after - before
    error = more.std() / len(more) ** 0.5
    return float(more.mean() / error) if error else float(np.inf * np.sign(more.mean())) if more.any() else 0.0


def _filled(rows: Tensor, wide: Tensor, floors: list[float], shard: Tensor, here: World) -> tuple[Longs, Longs]:
    """Return how many of RANKS the lists of `rows` [Q, D] fill above `floors` [r + 2], and as far below 0: [r + 2, Q].

    The floors are those without 0, 0, 1, … r directions. Only strangers are so far below 0. Copies of an image, such as
    the image itself, are no neighbours.
    """
    near = torch.zeros((2, len(floors), len(rows)), dtype=torch.float64, device=shard.device)
    with full_precision(shard.device):
        along, length = _along(rows, wide)
        for own in usable(shard).nonzero().flatten().split(PRODUCTS_AT_ONCE // len(rows)):
            part = shard.index_select(0, own)
            of_part, length_of_part = _along(part, wide)
            product = rows @ part.T
            others = product < floors[1] + COPY * (1 - floors[1])
            for trial, floor in enumerate(floors):
                removed = max(0, trial - 1)
                if removed:  # much faster than another product
                    product.addr_(along[removed - 1], of_part[removed - 1], alpha=-1)
                least = torch.outer(floor * length[removed], length_of_part[removed])
                # Floats of 32 bits are exact for sums of so few ones, and several times faster than whole numbers.
                each = (product >= least).logical_and_(others), product <= least.neg_()
                near[:, trial] += torch.stack([found.sum(1, dtype=torch.float32) for found in each])
    counts = total(near, here).cpu().numpy()
    above, below = (counts[..., None] >= np.array(RANKS)).sum(axis=3)
    return above, below


def _along(rows: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parts [r, n] of `rows` [n, D] along `wide` [r, D], and the lengths without the first 0 … r [r + 1, n].

    A row with nothing left has a small length, so that no product reaches a floor.
    """
    along = wide @ rows.T
    squared = rows.square().sum(1) - torch.cat([torch.zeros_like(along[:1]), along.square().cumsum(0)])
    return along, squared.clamp_min(1 / STEPS).sqrt()
