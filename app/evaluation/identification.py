"""Identification of probes in a gallery (1:N), closed-set and open-set.

Letters: N images, D embedding size, G people of the gallery, M probes of these people, O probes of other people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.evaluation.measures import Answers, Numbers
from app.evaluation.protocols import Axes, Outcome, Pooled
from app.evaluation.threshold import Threshold, rate_name, too_small_for
from app.evaluation.verification import Embeddings, normalise
from app.runtime.dist import World

RANKS = (1, 5, 10)
FPIRS = (1e-3, 1e-2, 1e-1)
TPIR = "tpir_at_fpir"
SCORES_AT_ONCE = 2**24  # 128 MB
AXES = Axes("tpir", "false positive identification rate", "true positive identification rate")


@dataclass(frozen=True)
class Identification:
    """Images of a gallery and probes: how often a probe finds its person, and how often a stranger is taken for one.

    The measures are those of NIST's FRVT 1:N (Grother, Ngan, Hanaoka 2019, NISTIR 8271) and of the open-set protocol of
    IJB-C (Maze et al. 2018). A person of the gallery has one template, the mean of the normalised embeddings; each
    probe is one image, and scores are cosines. Rank k (CMC): the share of probes of gallery people whose person is
    among the k most similar. FPIR at a threshold (FAR in older papers): the share of probes of other people with any
    score at or above it. TPIR (also DIR; 1 - FNIR): the share of probes of gallery people whose person is the most
    similar, at or above the threshold. Equal scores count against the network.
    """

    person: NDArray[np.int64]  # [N] a number for each person
    in_gallery: Answers  # [N] whether the image belongs to the gallery; the others are probes

    @property
    def people(self) -> NDArray[np.int64]:
        """The people of the gallery [G], ascending."""
        return np.unique(self.person[self.in_gallery])

    @property
    def mated(self) -> Answers:
        """Which of the probes show a person of the gallery [M + O]."""
        return np.isin(self.person[~self.in_gallery], self.people)

    @property
    def pairs(self) -> int:
        """The number of comparisons: each probe with each person of the gallery."""
        return int((~self.in_gallery).sum()) * len(self.people)

    measure = "rank-1 identification"

    def facts(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "gallery_people": len(self.people),
            "gallery_images": int(self.in_gallery.sum()),
            "probes_of_gallery_people": int(self.mated.sum()),
            "probes_of_other_people": int((~self.mated).sum()),
        }

    def too_few(self) -> dict[str, int]:
        return too_small_for(TPIR, FPIRS, int((~self.mated).sum()))

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        if not here.is_main:
            return None
        found = search(embeddings, self.person, self.in_gallery)
        return measured(found, [found])


class Listed(NamedTuple):
    """Templates of a gallery or of probes: positions in the ascending templates, and the person of each."""

    position: NDArray[np.int64]
    person: NDArray[np.int64]


@dataclass(frozen=True)
class TemplateSearch:
    """Probe templates in the galleries of IJB-B or IJB-C, each template of several images: their 1:N protocol.

    Ranks are of the search in all galleries together, where each probe has its person (closed set). TPIR and FPIR are
    of the search in each gallery alone, where the people of the other ones are strangers (open set): the mean over the
    galleries (Maze et al. 2018).
    """

    pooled: Pooled
    galleries: tuple[Listed, ...]
    probes: Listed

    @property
    def mated(self) -> Answers:
        """Which probes show a person of any gallery."""
        return np.isin(self.probes.person, np.concatenate([gallery.person for gallery in self.galleries]))

    @property
    def strangers(self) -> list[int]:
        """Of each gallery, the number of probes of other people."""
        return [int((~np.isin(self.probes.person, gallery.person)).sum()) for gallery in self.galleries]

    @property
    def people(self) -> int:
        return sum(len(np.unique(gallery.person)) for gallery in self.galleries)

    @property
    def pairs(self) -> int:
        """The number of comparisons: each probe with each person of a gallery."""
        return len(self.probes.person) * self.people

    measure = "rank-1 identification"

    def facts(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "galleries": len(self.galleries),
            "gallery_people": self.people,
            "gallery_templates": sum(len(gallery.person) for gallery in self.galleries),
            "probes_of_gallery_people": int(self.mated.sum()),
            "probes_of_other_people": min(self.strangers),
        }

    def too_few(self) -> dict[str, int]:
        return too_small_for(TPIR, FPIRS, min(self.strangers))

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        if not here.is_main:
            return None
        features = self.pooled.features(embeddings)
        each = [self._search(features, [gallery]) for gallery in self.galleries]
        return measured(self._search(features, self.galleries), each)

    def _search(self, features: Embeddings, galleries: Sequence[Listed]) -> Found:
        """Search for the probes in these galleries together; features [T, D] of all templates."""
        positions, people = (np.concatenate(parts) for parts in zip(*galleries, self.probes, strict=True))
        return search(features[positions], people, np.arange(len(people)) < len(people) - len(self.probes.person))


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    rank: NDArray[np.int64]  # [M] 1: the probe's person is the most similar
    of_mates: Numbers  # [M] the score of the probe's person
    of_strangers: Numbers  # [O] the highest score of a probe of another person


def measured(closed: Found, opened: Sequence[Found]) -> Outcome:
    """Ranks of one search, TPIR as the mean over searches.

    A threshold is the highest of the searches, which keeps the FPIR in each. The curve is of all searches together.
    """
    numbers: dict[str, float | None] = {f"rank{k}": float((closed.rank <= k).mean()) for k in RANKS}
    fewest = min(len(found.of_strangers) for found in opened)
    if not fewest or not all(len(found.rank) for found in opened):
        rates = {rate_name(TPIR, wanted): None for wanted in FPIRS}
        return Outcome({**numbers, **rates}, "rank1", np.empty(0), np.empty(0), {}, AXES)
    curves = [curve(found) for found in opened]
    chosen: dict[str, Threshold] = {}
    for wanted in FPIRS:
        name = rate_name(TPIR, wanted)
        if name in too_small_for(TPIR, FPIRS, fewest):
            numbers[name] = None
            continue
        # The lowest threshold of each search whose FPIR is at most `wanted`; the first one accepts nothing.
        lowest = [int(np.flatnonzero(fpir <= wanted + 1e-9)[-1]) for _, fpir, _ in curves]
        numbers[name] = float(np.mean([tpir[at] for at, (_, _, tpir) in zip(lowest, curves, strict=True)]))
        highest = max(thresholds[at] for at, (thresholds, _, _) in zip(lowest, curves, strict=True))
        if math.isfinite(highest):
            chosen[rate_name("fpir", wanted)] = Threshold(float(highest))
    _, fpir, tpir = curve(together(opened))
    return Outcome(numbers, "rank1", fpir, tpir, chosen, AXES)


def together(found: Sequence[Found]) -> Found:
    """Several searches as one."""
    return Found(*(np.concatenate([getattr(each, part.name) for each in found]) for part in fields(Found)))


def search(embeddings: Embeddings, person: NDArray[np.int64], in_gallery: Answers) -> Found:
    """Compare each probe with each person of the gallery; embeddings [N, D], person [N], in_gallery [N]."""
    unit = normalise(embeddings.astype(np.float64))
    people, place = np.unique(person[in_gallery], return_inverse=True)
    templates = np.zeros((len(people), unit.shape[1]))
    np.add.at(templates, place, unit[in_gallery])
    templates = normalise(templates)
    probes, of = unit[~in_gallery], person[~in_gallery]
    mate = np.searchsorted(people, of).clip(max=len(people) - 1)
    mated = people[mate] == of
    rank, own, top = np.empty(len(of), np.int64), np.empty(len(of)), np.empty(len(of))
    step = max(1, SCORES_AT_ONCE // len(people))
    for start in range(0, len(of), step):
        part = slice(start, start + step)
        scores = probes[part] @ templates.T
        own[part] = scores[np.arange(len(scores)), mate[part]]
        rank[part] = (scores >= own[part, None]).sum(1)
        top[part] = scores.max(1)
    return Found(rank[mated], own[mated], top[~mated])


def curve(found: Found) -> tuple[Numbers, Numbers, Numbers]:
    """Descending thresholds, of which the first accepts nothing, with FPIR and TPIR at each."""
    first, strangers = np.sort(found.of_mates[found.rank == 1]), np.sort(found.of_strangers)
    thresholds = np.append(np.inf, np.unique(np.concatenate([first, strangers]))[::-1])
    fpir = 1 - np.searchsorted(strangers, thresholds, side="left") / len(strangers)
    tpir = (len(first) - np.searchsorted(first, thresholds, side="left")) / len(found.rank)
    return thresholds, fpir, tpir
