"""Pseudo-IDs from embeddings: search, cluster, judge.

Letters: n images mined, D embedding size, k neighbours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.config import NO_ID, MiningConfig
from app.mining.cluster import cluster, similarity_floor
from app.mining.knn import nearest
from app.runtime.dist import World, gather_rows, share


@dataclass(frozen=True)
class Report:
    """What a refresh found. `purity` is None without labels; `why` says what was wrong when not `accepted`."""

    count: int
    coverage: float
    largest: int
    purity: float | None
    floor: float
    accepted: bool
    why: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_pseudo_ids(
    bank: Tensor, labels: NDArray[np.int32] | None, config: MiningConfig, here: World, *, seed: int
) -> tuple[NDArray[np.int64], Report]:
    """Pseudo-IDs [n] (NO_ID: none) of unit embeddings `bank` [n, D] and a report; the same on every rank.

    Every rank searches its own share of the rows in the whole bank; clustering is a pure function that each repeats.
    """
    vectors = np.ascontiguousarray(bank.cpu().numpy())
    ids, cosine = nearest(
        vectors,
        share(np.arange(len(bank)), here),
        min(config.neighbours, len(bank) - 1),
        threads=torch.get_num_threads(),
    )
    floor = similarity_floor(vectors, config.false_edges_per_image, seed)
    found = cluster(
        gather_rows(torch.from_numpy(ids), here).numpy(),  # [n, k]
        gather_rows(torch.from_numpy(cosine), here).numpy(),
        floor=floor,
        min_overlap=config.min_overlap,
        min_size=config.min_cluster,
        max_size=config.max_cluster,
        seed=seed,
    )
    return found, judge(found, labels, config, floor)


def judge(
    pseudo_ids: NDArray[np.int64], labels: NDArray[np.int32] | None, config: MiningConfig, floor: float
) -> Report:
    """Count and weigh a labelling [n], and decide whether it may be used (labels only measure it)."""
    labelled = pseudo_ids != NO_ID
    sizes = np.bincount(pseudo_ids[labelled])
    coverage, largest = float(labelled.mean()), int(sizes.max(initial=0))
    why = ""
    if coverage < config.min_coverage:
        why = f"only {coverage:.1%} of the images are in a cluster, {config.min_coverage:.1%} are needed"
    elif largest > config.max_largest_share * len(pseudo_ids):
        why = f"one cluster holds {largest} of {len(pseudo_ids)} images, over {config.max_largest_share:.0%}"
    return Report(
        count=len(sizes),
        coverage=coverage,
        largest=largest,
        purity=None if labels is None else purity(pseudo_ids[labelled], labels[labelled]),
        floor=floor,
        accepted=not why,
        why=why,
    )


def purity(pseudo_ids: NDArray[np.int64], labels: NDArray[np.int32]) -> float:
    """Share of labelled images that carry the commonest label of their cluster; 1 for none at all."""
    if not len(pseudo_ids):
        return 1.0
    pairs, counts = np.unique(np.stack([pseudo_ids, labels.astype(np.int64)]), axis=1, return_counts=True)
    most = np.zeros(pseudo_ids.max() + 1, np.int64)
    np.maximum.at(most, pairs[0], counts)
    return float(most.sum() / len(pseudo_ids))
