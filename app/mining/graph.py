"""Graph loops that numpy cannot express, compiled by numba.

Most work on the neighbour lists [n, k] as the search returns them, without a sorted copy or a sparse matrix: 150 MB for
1.2 million images and 32 neighbours. Sums are of integers, so neither their order nor the number of processes changes a
result. Compiled code is cached on disk; the first call on a machine compiles. Rows are copied element by element: for
the copy of a whole row numba also compiles an error message, which takes seconds.

Letters: N images, n rows of this process (contiguous, from `first`), k neighbours, m lists at hand.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from app.mining.arrays import Doubles, Floats, Ints, Longs, Mask

FULL = 65534  # the weight of a mutual edge between images of cosine 1 that share all neighbours

_GOLDEN, _MIX_A, _MIX_B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(2**32 - 1)  # half of a word: products of 32 bits are computed many at a time


@njit(cache=True, nogil=True)
def weigh(
    ids: Ints,
    cosine: Floats,
    first: int,
    lists: Ints,
    place: Ints,
    degree: Ints,
    large: Mask,
    group: Ints,
    min_overlap: float,
    min_common: int,
    weight: NDArray[np.uint16],
    before: Ints,
) -> None:
    """Raise `weight` [n, k] to that of the edges from this process's rows to the images in their lists; 0: no edge.

    ids [n, k]: the own lists, most similar first, and their cosines; lists [m, k]: those of the images in them;
    `place` [N]: the row of an image's list in `lists`, or empty if that is the image's number. The first `degree` [N]
    entries count. large [N]: the image likely shows a person of more than k images; group [N]: edges stay inside a
    group, images of a negative group have none.

    Overlap is the share of entries that two lists, each with its own image, have in common: common / either. The weight
    is cosine times overlap, halved if only one of the two lists contains the other image.

    An edge needs an overlap of `min_overlap`, with one exception. The lists of two images of a person with m > k images
    share only about k / m of their entries, although every entry is right. So two `large` images need only be mutual
    neighbours.

    With `min_common` above 0 an edge must also be mutual, and the two lists must have that many entries in common. Two
    lists that still have their lengths `before` [N] were weighed in an earlier call and are skipped; empty: none were.
    """
    n, k = weight.shape
    bits = 4
    while 1 << bits < 4 * k * k:
        bits += 1
    shift, factor = np.uint32(32 - bits), np.uint32(_GOLDEN & _LOW)
    table = np.full(1 << bits, -1, np.int32)
    at, near = np.empty(k, np.int32), np.empty((k, k), np.int32)
    for row in range(n):
        i = first + row
        if group[i] < 0:
            continue
        found = 0
        for s in range(degree[i]):
            j = ids[row, s]
            known = len(before) > 0 and degree[i] == before[i] and degree[j] == before[j]
            short = degree[j] + 1 < min_common and not (large[i] and large[j])
            if group[j] == group[i] and not known and not short:
                at[found] = s
                found += 1
        if found == 0:
            continue
        # The list of one image, in a table without collisions (Fredman, Komlós and Szemerédi 1984).
        placed = -1
        while placed < degree[i]:
            placed += 1
            j = i if placed == 0 else ids[row, placed - 1]
            slot = np.uint32(np.uint32(j) * factor) >> shift
            if table[slot] >= 0 and table[slot] != j:
                factor, placed = np.uint32(factor * np.uint32(_MIX_A & _LOW)) | np.uint32(1), -1
                table[:] = -1
            else:
                table[slot] = j
        # Copied first, without a branch between: a core then waits for many lists at once.
        for m in range(found):
            j = ids[row, at[m]]
            listed = place[j] if len(place) else j
            for t in range(k):
                near[m, t] = lists[listed, t]
        for m in range(found):
            j = ids[row, at[m]]
            common = 1  # j itself: it is in i's list
            mutual = 0
            for t in range(degree[j]):
                other = near[m, t]
                mutual += other == i
                common += table[np.uint32(np.uint32(other) * factor) >> shift] == other
            overlap = common / (degree[i] + degree[j] + 2 - common)
            proven = overlap >= min_overlap and (min_common <= 0 or (mutual and common >= min_common))
            if proven or (mutual and large[i] and large[j]):
                scale = FULL if mutual else FULL // 2
                weight[row, at[m]] = max(weight[row, at[m]], min(int(scale * overlap * cosine[row, at[m]]), FULL))
        table[np.uint32(np.uint32(i) * factor) >> shift] = -1
        for s in range(degree[i]):
            table[np.uint32(np.uint32(ids[row, s]) * factor) >> shift] = -1


@njit(cache=True, nogil=True)
def mark_near(ids: Ints, first: int, degree: Ints, group: Ints, marked: Mask) -> None:
    """Mark the images [N] that `weigh` may give an edge from the lists `ids` [n, k] of the images from `first`.

    They are those of the same `group` [N] among the first `degree` [N] entries.
    """
    for row in range(len(ids)):
        i = first + row
        if group[i] < 0:
            continue
        for s in range(degree[i]):
            if group[ids[row, s]] == group[i]:
                marked[ids[row, s]] = True


@njit(cache=True, nogil=True)
def sweep(
    ids: Ints,
    degree: Ints,
    weight: NDArray[np.uint16],
    first: int,
    labels: Ints,
    changed: Mask,
    pending: Mask,
    seed: int,
    number: int,
    new: Ints,
) -> int:
    """Run one sweep of label propagation: fill `new` [n] from `labels` [N]; return how many rows are still pending.

    ids [n, k]: the own lists, of which the first `degree` [N] entries count, with their weights [n, k].

    A row becomes pending when a neighbour `changed` [N] in the last sweep; `pending` [n] is kept between sweeps. A
    pending row is updated with probability 1/2, so that two neighbours do not swap labels forever. The coin is a hash
    of seed, sweep `number` and image. The label with the greatest summed weight wins; ties go to the smallest label.
    """
    n, k = weight.shape
    names, own = np.empty(k, np.int32), np.empty(k, np.int32)
    # One bit an image: many are read at a time, and all stay in a near cache.
    bits = np.zeros((len(changed) + 31) // 32, np.uint32)
    for i in range(len(changed)):
        bits[i >> 5] |= np.uint32(changed[i]) << np.uint32(i & 31)
    any_changed = bits.any()
    waiting = 0
    start = np.uint64(seed) + np.uint64(number) * _MIX_B
    for row in range(n):
        i = first + row
        new[row] = labels[i]
        if not pending[row]:
            if not any_changed:
                continue
            near = np.uint32(0)
            for s in range(degree[i]):
                j = np.uint32(ids[row, s])
                near |= np.uint32(bits[j >> np.uint32(5)] >> (j & np.uint32(31))) & np.uint32(weight[row, s] > 0)
            if near & np.uint32(1) == 0:
                continue
        coin = start + np.uint64(i) * _GOLDEN  # splitmix64
        coin = (coin ^ (coin >> np.uint64(30))) * _MIX_A
        coin = (coin ^ (coin >> np.uint64(27))) * _MIX_B
        pending[row] = (coin >> np.uint64(63)) == np.uint64(1)
        if pending[row]:
            waiting += 1
            continue
        for s in range(degree[i]):
            names[s], own[s] = labels[ids[row, s]], weight[row, s]
        best = 0  # a sum and the label that it is of, in one number
        for s in range(degree[i]):
            total = np.int32(0)
            for t in range(degree[i]):
                total = np.int32(total + (own[t] if names[t] == names[s] else np.int32(0)))
            best = max(best, (np.int64(total) << 32) - names[s])
        if best > 0:
            new[row] = -best & 0x7FFFFFFF
    return waiting


@njit(cache=True, nogil=True)
def add_outside(ids: Ints, first: int, labels: Ints, full: Mask, outside: Longs) -> None:
    """Count in `outside` [N], by label, the entries of its `full` [N] images' lists that have another of `labels` [N].

    ids [n, k]: the own lists, of the images from `first`.
    """
    for row in range(len(ids)):
        i = first + row
        if full[i]:
            others = 0
            for s in range(ids.shape[1]):
                others += labels[ids[row, s]] != labels[i]
            outside[labels[i]] += others


@njit(cache=True, nogil=True)
def join(edges: Ints, n: int, limit: int) -> Ints:
    """Join the ends of `edges` [E, 2] in order, where the result has at most `limit` members; return labels [n]."""
    parent = np.arange(n).astype(np.int32)
    size = np.ones(n, np.int32)
    for e in range(len(edges)):
        a, b = edges[e]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a != b and size[a] + size[b] <= limit:
            a, b = min(a, b), max(a, b)
            parent[b] = a
            size[a] += size[b]
    for i in range(n):  # a parent is smaller than its child, so it has been resolved before
        parent[i] = parent[parent[i]]
    return parent


@njit(cache=True, nogil=True)
def most_alike(mean: Doubles, least: int) -> tuple[Doubles, Mask]:
    """Find in each group's tree of average linkage the node with the greatest measure; return it [m] and its images.

    The measure is the mean product of a node's pairs times the root of their number. The images are [m, s]; the node
    and the rest have at least `least` each. `mean` [m, s, s] are the products of s images, symmetric to the bit and
    finite; they are overwritten. The tree follows chains of nearest neighbours (Müllner 2011, arXiv:1109.2378).
    """
    m, s, _ = mean.shape
    measure, one = np.full(m, -np.inf), np.zeros((m, s), np.bool_)
    chain = np.empty(s, np.int64)
    images, inside, node = np.empty(s), np.empty(s), np.empty(s, np.int64)  # a node is named by one of its images
    for group in range(m):
        alike = mean[group]
        for i in range(s):
            alike[i, i], images[i], inside[i], node[i] = -np.inf, 1, 0, i
        length = 0
        for _ in range(s - 1):
            if length == 0:
                chain[0], length = node[0], 1
            while True:
                a = chain[length - 1]
                b = chain[length - 2] if length > 1 else 0
                for other in range(s):
                    if alike[a, other] > alike[a, b]:
                        b = other
                if length > 1 and b == chain[length - 2]:
                    break
                chain[length] = b
                length += 1
            length -= 2
            inside[a] += inside[b] + images[a] * images[b] * alike[a, b]
            both = images[a] + images[b]
            for other in range(s):
                alike[a, other] = alike[other, a] = (images[a] * alike[a, other] + images[b] * alike[b, other]) / both
                if node[other] == b:
                    node[other] = a
            for other in range(s):
                alike[b, other] = alike[other, b] = -np.inf
            images[a] = both
            above = inside[a] / np.sqrt(both * (both - 1) / 2)
            if least <= both <= s - least and above > measure[group]:
                measure[group] = above
                for i in range(s):
                    one[group, i] = node[i] == a
    return measure, one


@njit(cache=True, nogil=True, error_model="numpy")
def settle(alike: Doubles, one: Mask, times: int, least: int) -> None:
    """Move each image to the part, `one` [m, s] or the rest, whose mean is nearer; `times` times. Changes `one`.

    `alike` [m, s, s]: the centred products of the images of m groups. The mean of an image's own part is that of its
    other images. A part keeps at least `least` images.
    """
    m, s, _ = alike.shape
    towards, nearer = np.empty(s), np.empty(s, np.bool_)
    for group in range(m):
        for _ in range(times):
            towards[:] = 0
            count = 0
            for i in range(s):
                if one[group, i]:
                    count += 1
                    for j in range(s):
                        towards[j] += alike[group, i, j]
            within = 0.0
            for i in range(s):
                within += towards[i] if one[group, i] else 0.0
            rest, after, moved = s - count, 0, False
            # The products are centred, so those with the rest are the opposite.
            for i in range(s):
                own, part = alike[group, i, i], int(one[group, i])
                near = (own - 2 * towards[i] / count + within / count**2) * count / max(count + 1 - 2 * part, 1)
                far = (own + 2 * towards[i] / rest + within / rest**2) * rest / max(rest - 1 + 2 * part, 1)
                nearer[i] = near < far
                after += nearer[i]
                moved |= nearer[i] != one[group, i]
            if not moved or min(after, s - after) < least:
                break
            for i in range(s):
                one[group, i] = nearer[i]
