"""Find a direction that images of different people share, and remove it from all embeddings.

Blurry images drift to one direction. They resemble each other more than the sharp images of their people, and become
one large cluster. Such a cluster differs from a person by what remains without its direction m, that of the mean of its
images. Images of a person are left with noise: they resemble an image outside the cluster only by chance. Images that
only share m still resemble the images of their people, as often as any image has a neighbour at all.

So a cluster shows no person if, without m, the share of its images with a neighbour outside is nearer to the share of
the other images with a neighbour than to chance. Its direction is then removed from all images, unless this costs more
than it brings. It brings the images that lie as far along m as the cluster. It costs all others what they differ along
m, as a share of their variance. In embeddings of few dimensions each direction is needed.

Blurry images of people who have no other image look like one person to this test, and stay a cluster.

Letters: N images mined, n of this process (its contiguous share), D embedding size, s images of a sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.mining.candidates import full_precision
from app.mining.cluster import first_row, upper_quantile
from app.mining.lists import usable
from app.mining.sample import owned
from app.runtime.dist import World, from_main, gather_rows, greatest, total

EXAMINED = 16  # clusters, the largest ones: a cluster of many people harms by the square of its images
LEAST = 32  # images of a cluster; of fewer the share is not sure
LOOKED_AT = 256  # images of a cluster
STRANGERS = 512  # images from which the cosine that chance gives is read
QUARTILES = 1.349  # standard deviations between the quartiles of a normal distribution
STEPS = 2**20  # of a coordinate; sums of whole numbers do not depend on the number of processes
ROWS_AT_ONCE = 2**16
Mask = NDArray[np.bool_]


class Facts(NamedTuple):
    """What is known of one cluster and its direction: shares from 0 to 1."""

    images: float  # of all images, those as far along the direction as most of the cluster
    outside: float  # of the cluster's images, those with a neighbour outside once the direction is removed
    others: float  # of the images outside, those with a neighbour
    variance: float  # of the variance of most images, that along the direction


def is_shared(facts: Facts, chance: float) -> bool:
    """Return whether a cluster shows no person, and to remove its direction brings more than it costs.

    `chance` is the share of images of a person that have a neighbour outside by chance.
    """
    return facts.outside > (chance + facts.others) / 2 and facts.images > facts.variance


def shared_direction(
    labels: NDArray[np.int64],
    shard: Tensor,
    near: Mask,
    sample: NDArray[np.float32],
    false_edges_per_image: float,
    here: World,
) -> Tensor | None:
    """Return the direction [D] of the largest cluster that shows no person, or None. The same on every rank.

    `labels` [N] are clusters, `shard` [n, D] this rank's unit embeddings, a row of zeros for an image that takes no
    part. `near` [N]: the image has a neighbour above the floor. `sample` [S, D]: random embeddings without copies.
    """
    part = gather_rows(usable(shard).to(torch.uint8), here).cpu().numpy() > 0
    size = np.bincount(labels[part], minlength=1)
    largest = np.lexsort((np.arange(len(size)), -size))[:EXAMINED]
    strangers = torch.from_numpy(sample[:: -(-len(sample) // STRANGERS) or 1]).to(shard.device)
    chance = -float(np.expm1(-false_edges_per_image))
    with full_precision(shard.device):
        for name in largest[size[largest] >= LEAST]:
            inside = part & (labels == name)
            apart = part & ~inside
            direction = mean_direction(inside, shard, here)
            outside, as_far = _measure(inside, shard, direction, strangers, false_edges_per_image, here)
            facts = Facts(
                images=as_far / int(part.sum()),
                outside=outside,
                others=float(near[apart].mean()) if apart.any() else 1.0,
                variance=variance_along(direction, strangers),
            )
            # All ranks follow rank 0: CPUs of several kinds may round the last bit of a product differently.
            if from_main(is_shared(facts, chance), here):
                return direction
    return None


def without(rows: Tensor, direction: Tensor) -> Tensor:
    """Return unit rows [*, D] without their part along the unit `direction` [D]; a row without a rest becomes zero.

    The result does not depend on how many rows there are, to the bit.
    """
    rest = torch.empty_like(rows)
    exact = direction.double()
    for part, into in zip(rows.split(ROWS_AT_ONCE), rest.split(ROWS_AT_ONCE), strict=True):
        along = ((part.double() @ exact) * STEPS).round() / STEPS
        left = part.double() - along[:, None] * exact
        length = ((left**2).sum(1) * STEPS).round().div(STEPS).sqrt()[:, None]
        into.copy_(torch.where(length == 0, 0, left / length))
    return rest


def mean_direction(inside: Mask, shard: Tensor, here: World) -> Tensor:
    """Return the unit direction [D] of the mean of the images `inside` [N], the same on every rank."""
    added = torch.zeros(shard.shape[1], dtype=torch.int64, device=shard.device)
    for own in _own(inside, shard, here).split(ROWS_AT_ONCE):
        added += (shard[own].double() * STEPS).round().long().sum(0)
    mean = total(added, here).cpu().numpy().astype(np.float64)
    unit = from_main((mean / max(float(np.linalg.norm(mean)), 1.0)).tolist(), here)
    return torch.tensor(unit, dtype=shard.dtype, device=shard.device)


def _measure(
    inside: Mask, shard: Tensor, direction: Tensor, strangers: Tensor, false_edges_per_image: float, here: World
) -> tuple[float, int]:
    """Measure a sample of the images `inside` [N]; the same for any number of ranks.

    Return the share of them that have a neighbour outside, without `direction`, and how many of all images are as far
    along it as three of four of them. A neighbour's cosine is one that `false_edges_per_image` strangers reach.
    """
    ids = np.flatnonzero(inside)
    drawn = np.sort(np.random.default_rng(0).choice(ids, min(LOOKED_AT, len(ids)), replace=False))
    places = owned(torch.from_numpy(drawn).to(shard.device), shard, here)[1]
    rows = gather_rows(shard[places], here)  # [s, D]
    far = float(np.quantile((rows @ direction).cpu().numpy(), 0.25))
    rows = without(rows, direction)
    by_chance = (rows @ without(strangers, direction).T).flatten().cpu().numpy()
    tail = min(0.5, false_edges_per_image / max(1, len(inside) - 1))
    floor = float(upper_quantile(by_chance, np.array([tail]))[0])
    hidden = ~usable(shard)
    hidden[_own(inside, shard, here)] = True
    best = torch.full((len(rows),), -torch.inf, device=shard.device)
    as_far = torch.zeros((), dtype=torch.int64, device=shard.device)
    for part, unseen in zip(shard.split(ROWS_AT_ONCE), hidden.split(ROWS_AT_ONCE), strict=True):
        if len(part):
            # `rows` have no part along the direction, so only the length of the others without it is missing.
            along = part @ direction
            length = (1 - along**2).clamp_min(1 / STEPS).sqrt()
            best = torch.maximum(best, ((rows @ part.T) / length).masked_fill(unseen, -torch.inf).amax(1))
            as_far += (along >= far).sum()
    return float((greatest(best, here) >= floor).double().mean()), int(total(as_far, here))


def variance_along(direction: Tensor, strangers: Tensor) -> float:
    """Return the variance along `direction` [D] of the `strangers` [S, D], as a share of all their variance; or 1.

    It is read from the quartiles, which the few images that share the direction hardly change.
    """
    whole = 1 - float(strangers.double().mean(0).square().sum()) if len(strangers) else 0.0
    if not whole > 1 / STEPS:
        return 1.0
    lower, upper = np.quantile((strangers @ direction).cpu().numpy().astype(np.float64), [0.25, 0.75])
    return float(((upper - lower) / QUARTILES) ** 2 / whole)


def _own(among: Mask, shard: Tensor, here: World) -> Tensor:
    """Return which rows of this rank's shard are in `among` [N]."""
    return torch.from_numpy(np.flatnonzero(among[first_row(len(among), here) :][: len(shard)])).to(shard.device)
