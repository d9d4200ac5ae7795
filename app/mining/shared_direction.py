"""Find a direction that images of different people share, and remove it from all embeddings.

Blurry images drift to one direction. They resemble each other more than the sharp images of their people, and become
one large cluster. The test of a cluster removes its direction m, that of the mean of its images. Images of one person
are left with noise, and resemble strangers only by chance. Images that only share m still resemble the sharp images of
their people. Strangers are images that do not lie along m, so other pieces of the person, and people who look alike, do
not count.

A cluster shows no person in two cases:
- The share of its images that resemble strangers is far above chance, and above the median share of the other large
  clusters, in units of their spread. If these are too few or show no people either, a share nearer to that of the
  other images with a neighbour than to chance is a hint.
- The images outside lie along m too, and m is what they have in common. This is the case where nearly all people have
  few images, and so few sharp ones to resemble.

The direction is then removed from all images. The gain is the images that lie as far along m as the cluster; the cost
is the variance along m, which may tell others apart. After a mere hint, or if the cost seems larger, the removal is
only tried: it is undone unless the images of the cluster are then in clusters with others. What remains of the images
of one person is noise, and mostly alone.

The test takes blurry images for one person if their people have no other images.

Letters: N images mined, n of this process (its contiguous share), D embedding size, c clusters, s images of
a sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.mining.arrays import Floats, Longs, Mask
from app.mining.candidates import ROUNDOFF, full_precision
from app.mining.cluster import EVIDENCE, upper_quantile
from app.mining.knn import prefers_faiss
from app.mining.lists import usable
from app.mining.look_alikes import LOWER_HALF
from app.mining.sample import STEPS, in_steps, owned, usable_of_all
from app.runtime.dist import World, from_main, gather_rows, greatest, share, total

EXAMINED = 16  # clusters, the largest ones: a cluster of many people harms by the square of its images
LEAST = 32  # images of a cluster that is judged; of fewer the share is not sure
FEWEST_PEOPLE = 4  # other clusters, to read quartiles from
SURE = 4.0  # standard deviations; of normal measures one in 30,000 is above, and one of 16 is enough to lose a person
SEVERAL = 3  # images of a cluster; two may be near by chance
LOOKED_AT = 128  # images of a cluster
STRANGERS = 512  # images from which the cosine that chance gives is read
QUARTILES = 1.349  # standard deviations between the quartiles of a normal distribution
LIE_ALONG = 0.75  # share of the images outside; half of them do by chance
COMMON = 0.5  # share of the squared length of the mean of the images outside
ROWS_AT_ONCE = 2**12
PRODUCTS_AT_ONCE = 2**22  # the system gives larger blocks of memory anew each time, which takes longer than the product
NEVER = 4.0  # no product of unit rows is as large


class Shared(NamedTuple):
    """A direction that images of different people share."""

    direction: Tensor  # [D], unit
    sure: bool  # its removal surely gains more than it costs; otherwise try it
    inside: Mask  # [N]: the images of the cluster that shares it
    outside: Mask  # [N]: those of other clusters; images that take no part are neither

    def went_to_others(self, labels: Longs) -> bool:
        """Return whether the images of the cluster are in clusters with others, `labels` [N] without the direction.

        As for `resembles_strangers`, their share must be nearer to that of the images outside than to none.
        """
        own, others = np.bincount(labels, self.inside), np.bincount(labels, self.outside)
        several = (own + others >= SEVERAL)[labels]
        went, are = (several & (others > 0)[labels])[self.inside], several[self.outside]
        return bool(went.any() and 2 * went.mean() > are.mean())


class Facts(NamedTuple):
    """What is known of one cluster and its direction."""

    size: int  # images of the cluster
    looked_at: int  # a sample of them
    outside: float  # share of the sample that resembles strangers once the direction is removed
    images: float  # share of all images: those as far along the direction as most of the cluster
    variance: float  # share of the variance of most images: that along the direction
    is_common: bool = False  # all images drift along the direction

    @property
    def pays(self) -> bool:
        """Whether the share of images along the direction is larger than its share of the variance."""
        return self.images > self.variance

    def above(self, typical: float) -> float:
        """Return how many standard deviations `outside` is above the share `typical`.

        The arcsine gives all shares of a sample one spread (Anscombe 1948); small ones are skewed otherwise.
        """
        outside = (self.outside * self.looked_at + 3 / 8) / (self.looked_at + 3 / 4)
        return float(2 * (self.looked_at + 1 / 2) ** 0.5 * (np.arcsin(outside**0.5) - np.arcsin(typical**0.5)))


def resembles_strangers(facts: Facts, chance: float, others: float) -> bool:
    """Return whether the share of a cluster's images that resemble strangers is nearer to `others` than to `chance`.

    `chance` is the share of a person's images that do by chance, `others` that of the images outside with a neighbour.
    """
    return facts.outside > (chance + others) / 2


def stands_out(facts: Facts, people: list[Facts], chance: float) -> bool:
    """Return whether clearly more of a cluster's images resemble strangers than in other clusters, of `people`."""
    if len(people) < FEWEST_PEOPLE:
        return False
    typical = np.maximum(chance, np.median([each.outside for each in people]))
    lower, median = np.quantile([each.above(typical) for each in people], [0.25, 0.5])
    return bool(facts.above(typical) > np.maximum(0, median) + SURE * np.maximum(1, (median - lower) / LOWER_HALF))


def shared_direction(
    labels: Longs,
    shard: Tensor,
    near: Mask,
    sample: Floats,
    false_edges_per_image: float,
    here: World,
    *,
    must_pay: bool = False,
) -> Shared | None:
    """Return the direction of the largest cluster that shows no person, or None. The same on every rank.

    With `must_pay` only a direction that pays (`Facts.pays`). `labels` [N] are clusters, `shard` [n, D] this rank's
    unit embeddings, a row of zeros for an image that takes no part. `near` [N]: the image has a neighbour above the
    floor. `sample` [S, D]: random embeddings without copies.
    """
    part = usable_of_all(shard, here)
    size = np.bincount(labels[part], minlength=1)
    largest = np.lexsort((np.arange(len(size)), -size))[:EXAMINED]
    largest = largest[size[largest] >= EVIDENCE]
    if not len(largest) or size[largest[0]] < LEAST:
        return None
    strangers = torch.from_numpy(sample[:: -(-len(sample) // STRANGERS) or 1]).to(shard.device)
    place = np.full(labels.max() + 1, -1, np.int8)
    place[largest] = range(len(largest))
    place = np.where(part, place[labels], -1)
    with full_precision(shard.device):
        directions = [mean_direction(place == at, shard, here) for at in range(len(largest))]
        facts = _measured(place, directions, int(part.sum()), shard, strangers, false_edges_per_image, here)
    chance = -float(np.expm1(-false_edges_per_image))
    for at, (each, direction) in enumerate(zip(facts, directions, strict=True)):
        if each.size < LEAST:
            break
        apart = part & (place != at)
        others = float(near[apart].mean()) if apart.any() else 1.0
        no_person = stands_out(each, facts[:at] + facts[at + 1 :], chance) or each.is_common
        hint = no_person or resembles_strangers(each, chance, others)
        # All ranks follow rank 0: CPUs of several kinds may round the last bit of a product differently.
        if from_main(hint and (each.pays or not must_pay), here):
            return Shared(direction, from_main(no_person and each.pays, here), place == at, apart)
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
    own = torch.from_numpy(np.flatnonzero(share(inside, here))).to(shard.device)
    for rows in own.split(ROWS_AT_ONCE):
        added += in_steps(shard.index_select(0, rows)).long().sum(0)
    mean = total(added, here).cpu().numpy().astype(np.float64)
    unit = from_main((mean / max(float(np.linalg.norm(mean)), 1.0)).tolist(), here)
    return torch.tensor(unit, dtype=shard.dtype, device=shard.device)


def _measured(
    place: NDArray[np.int8],
    directions: list[Tensor],
    images: int,
    shard: Tensor,
    strangers: Tensor,
    false_edges_per_image: float,
    here: World,
) -> list[Facts]:
    """Measure c clusters by a sample of each; `place` [N] is the number of an image's cluster, or -1.

    Strangers are images outside that are less than half as far along the direction as the cluster. An image resembles
    one if their cosine without the direction is one that an image has with `false_edges_per_image` strangers by chance.
    """
    samples, limits, common, tail = [], [], [], min(0.5, false_edges_per_image / max(1, len(place) - 1))
    for at, direction in enumerate(directions):
        ids = np.flatnonzero(place == at)
        drawn = np.sort(np.random.default_rng(0).choice(ids, min(LOOKED_AT, len(ids)), replace=False))
        rows = gather_rows(shard[owned(torch.from_numpy(drawn).to(shard.device), shard, here)[1]], here)
        quarter, typical = np.quantile((rows @ direction).cpu().numpy(), [0.25, 0.5])
        samples.append(without(rows, direction))
        by_chance = (samples[-1] @ without(strangers, direction).T).flatten().cpu().numpy()
        between = (float(typical) + float(np.median((strangers @ direction).cpu().numpy()))) / 2
        common.append(is_common(direction, strangers[strangers @ direction < between]))
        limits.append([float(quarter), between, float(upper_quantile(by_chance, np.array([tail]))[0])])
    far, half_way, floor = torch.tensor(limits, device=shard.device).T
    own = torch.from_numpy(share(place, here)).to(shard.device)
    along = shard @ torch.stack(directions).T  # [n, c]
    stranger = (own[:, None] != torch.arange(len(directions), device=shard.device)) & (along < half_way)
    # The samples have no part along the direction, so only the length of the others without it is missing.
    least = torch.where(stranger, floor * (1 - along**2).clamp_min(1 / STEPS).sqrt(), NEVER)
    as_far = total((along >= far).sum(0), here) / images
    looked_at = [len(rows) for rows in samples]
    of = torch.arange(len(samples)).repeat_interleave(torch.tensor(looked_at)).to(shard.device)
    reached = reaches(torch.cat(samples), of, shard, least, here).split(looked_at)
    outside = [float(each.double().mean()) for each in reached]
    variance = [variance_along(direction, strangers) for direction in directions]
    size = np.bincount(place[place >= 0]).tolist()
    return [Facts(*each) for each in zip(size, looked_at, outside, as_far.tolist(), variance, common, strict=True)]


def is_common(direction: Tensor, outside: Tensor) -> bool:
    """Return whether the images `outside` [S, D] lie along the unit `direction` [D], and share hardly any other one.

    Otherwise half of them lie the other way, and their mean has no more of this direction than of others.
    """
    if len(outside) < LEAST:
        return False
    along, mean = outside @ direction, outside.mean(0)
    lie_along = float((along > 0).double().mean()) > LIE_ALONG
    return lie_along and bool((mean @ direction) ** 2 > COMMON * mean.square().sum())


def reaches(rows: Tensor, of: Tensor, shard: Tensor, least: Tensor, here: World) -> Tensor:
    """Return which unit `rows` [S, D] have a product with a row of any rank's shard [n, D] of at least `least` [n, c].

    `of` [S] is the column of `least` that counts. A product in 16 bits decides where its error does not matter.
    """
    half = torch.float16 if shard.is_cuda else torch.bfloat16
    error = (1 + ROUNDOFF[half]) ** 2 - 1 + ROUNDOFF[half]  # both rows are rounded, and `least`
    exact = from_main(prefers_faiss(shard.device), here)
    # One product gives all differences: the identity picks the column of `least` that counts for a row.
    queries = torch.cat([rows, -torch.eye(least.shape[1], device=rows.device)[of]], 1)
    rounded, best = queries.to(half), torch.full((len(rows),), -NEVER, device=rows.device)
    for own in usable(shard).nonzero().flatten().split(PRODUCTS_AT_ONCE // max(1, len(rows)) or 1):
        bank = torch.cat([each.index_select(0, own) for each in (shard, least)], 1)
        if exact:
            greater = (queries @ bank.T).amax(1)
        else:
            greater = (rounded @ bank.to(half).T).amax(1).float()
            unsure = (greater.abs() <= error).nonzero().flatten()
            greater[unsure] = (queries[unsure] @ bank.T).amax(1)
        best = torch.maximum(best, greater)
    return greatest(best, here) >= 0


def variance_along(direction: Tensor, strangers: Tensor) -> float:
    """Return the variance along `direction` [D] of the `strangers` [S, D], as a share of all their variance; or 1.

    It is read from the quartiles, which the few images that share the direction hardly change.
    """
    whole = 1 - float(strangers.double().mean(0).square().sum()) if len(strangers) else 0.0
    if not whole > 1 / STEPS:
        return 1.0
    lower, upper = np.quantile((strangers @ direction).cpu().numpy().astype(np.float64), [0.25, 0.75])
    return float(((upper - lower) / QUARTILES) ** 2 / whole)
