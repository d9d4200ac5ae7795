"""Identification of probes in a gallery (1:N), closed-set and open-set.

Letters: N images, D embedding size, G people of the gallery, M probes of these people, O probes of other people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation.measures import Answers, Numbers
from app.evaluation.protocols import Axes, Outcome
from app.evaluation.threshold import Threshold, impostors_needed
from app.evaluation.verification import Embeddings
from app.runtime.dist import World

RANKS = (1, 5, 10)
FPIRS = (1e-3, 1e-2, 1e-1)
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

    @property
    def measure(self) -> str:
        return "rank-1 identification"

    def facts(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "gallery_people": len(self.people),
            "gallery_images": int(self.in_gallery.sum()),
            "probes_of_gallery_people": int(self.mated.sum()),
            "probes_of_other_people": int((~self.mated).sum()),
        }

    def too_few(self) -> dict[str, int]:
        strangers = int((~self.mated).sum())
        needed = {rate_name(fpir): impostors_needed(fpir) for fpir in FPIRS}
        return {name: count for name, count in needed.items() if strangers < count}

    def judge(self, embeddings: Embeddings, here: World) -> Outcome | None:
        if not here.is_main:
            return None
        found = search(embeddings, self.person, self.in_gallery)
        numbers: dict[str, float | None] = {f"rank{k}": float((found.rank <= k).mean()) for k in RANKS}
        if not len(found.of_strangers):
            rates = dict.fromkeys(map(rate_name, FPIRS))
            return Outcome({**numbers, **rates}, "rank1", np.empty(0), np.empty(0), {}, AXES)
        thresholds, fpir, tpir = curve(found)
        chosen: dict[str, Threshold] = {}
        for wanted in FPIRS:
            name, place = rate_name(wanted), lowest_at(fpir, wanted)
            numbers[name] = None if name in self.too_few() else float(tpir[place])
            if numbers[name] is not None and math.isfinite(thresholds[place]):
                chosen[f"fpir_1e{round(math.log10(wanted))}"] = Threshold(float(thresholds[place]))
        return Outcome(numbers, "rank1", fpir, tpir, chosen, AXES)


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    rank: NDArray[np.int64]  # [M] 1: the probe's person is the most similar
    of_mates: Numbers  # [M] the score of the probe's person
    of_strangers: Numbers  # [O] the highest score of a probe of another person


def rate_name(fpir: float) -> str:
    """tpir_at_fpir_1e-2 for 0.01."""
    return f"tpir_at_fpir_1e{round(math.log10(fpir))}"


def search(embeddings: Embeddings, person: NDArray[np.int64], in_gallery: Answers) -> Found:
    """Compare each probe with each person of the gallery; embeddings [N, D], person [N], in_gallery [N]."""
    unit = normalised(embeddings.astype(np.float64))
    people, place = np.unique(person[in_gallery], return_inverse=True)
    templates = np.zeros((len(people), unit.shape[1]))
    np.add.at(templates, place, unit[in_gallery])
    templates = normalised(templates)
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


def normalised(rows: Numbers) -> Numbers:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def curve(found: Found) -> tuple[Numbers, Numbers, Numbers]:
    """Descending thresholds, of which the first accepts nothing, with FPIR and TPIR at each."""
    first, strangers = np.sort(found.of_mates[found.rank == 1]), np.sort(found.of_strangers)
    thresholds = np.append(np.inf, np.unique(np.concatenate([first, strangers]))[::-1])
    fpir = 1 - np.searchsorted(strangers, thresholds, side="left") / len(strangers)
    tpir = (len(first) - np.searchsorted(first, thresholds, side="left")) / len(found.rank)
    return thresholds, fpir, tpir


def lowest_at(fpir: Numbers, wanted: float) -> int:
    """The place of the lowest threshold whose FPIR is at most `wanted`; 0 if only the first is."""
    return int(np.flatnonzero(fpir <= wanted + 1e-9)[-1])
