"""Decision thresholds for pairs, as cosine and as squared distance, the two units that libraries use.

Letters: P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.evaluation import measures
from app.evaluation.measures import Answers, Numbers

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Threshold:
    """A pair is one person if the cosine of its embeddings is at least `cosine`; `squared_distance` is equivalent."""

    cosine: float

    @classmethod
    def of_distance(cls, squared: float) -> Threshold:
        return cls(1 - squared / 2)

    @property
    def squared_distance(self) -> float:
        return 2 - 2 * self.cosine

    def as_dict(self) -> dict[str, float]:
        return {"cosine": self.cosine, "squared_distance": self.squared_distance}

    def __str__(self) -> str:
        return f"cosine {self.cosine:.4f}, squared distance {self.squared_distance:.4f}"


Thresholds = Mapping[str, Threshold]  # by purpose


def at_rates(cosine: Numbers, same: Answers) -> dict[str, Threshold]:
    """The lowest threshold for each false accept rate that these pairs [P] suffice for."""
    impostors = int((~same).sum())
    found = {}
    for far in FARS:
        if impostors >= impostors_needed(far):
            lowest = measures.threshold_at_far(cosine, same, far)
            if math.isfinite(lowest):
                found[rate_name("far", far)] = Threshold(lowest)
    return found


def rate_name(kind: str, rate: float) -> str:
    """tar_at_far_1e-4 for the kind tar_at_far at 0.0001."""
    return f"{kind}_1e{round(math.log10(rate))}"


def too_small_for(kind: str, rates: Sequence[float], impostors: int) -> dict[str, int]:
    """The rates that this number of pairs, or probes, cannot show, each with the number that it needs."""
    needed = {rate_name(kind, rate): impostors_needed(rate) for rate in rates}
    return {name: count for name, count in needed.items() if impostors < count}


def impostors_needed(far: float) -> int:
    """The number of pairs of two people at which a false accept rate corresponds to one of them."""
    return round(1 / far)
