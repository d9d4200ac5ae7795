"""Divide the held-out people: those who choose the best checkpoint, and the people of the reported result.

A checkpoint that is chosen by the people of the result looks better than it is: it is the luckiest of several.

Letters: n held-out images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.config.schema import EvalConfig
from app.data.dataset import Dataset, Rows
from app.errors import WrongUse
from app.evaluation.verification import enough

AUTO, NONE = "auto", "none"
LEAST_PEOPLE = 10  # of each part, for `auto`

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class HeldOut:
    """The held-out images that a run uses. `labels` is None without labels, `validation` without a division."""

    rows: Rows  # [n] of the data set
    labels: Labels | None  # [n]
    result: NDArray[np.int64]  # positions in `rows` of the people of the result; without a division, all
    validation: NDArray[np.int64] | None  # positions in `rows` of the people who choose the checkpoint

    def people(self) -> tuple[int, int]:
        """How many people choose the checkpoint, and how many the result is of."""
        if self.labels is None or self.validation is None:
            return 0, 0 if self.labels is None else len(np.unique(self.labels))
        return len(np.unique(self.labels[self.validation])), len(np.unique(self.labels[self.result]))


def held_out_people(data: Dataset, config: EvalConfig) -> HeldOut:
    """The held-out images of a run, and how `train.eval.validation` divides them.

    Raises WrongUse for a share that leaves one part too few pairs.
    """
    rows = data.held_out_rows
    if data.labels is not None:
        rows = rows[data.labels[rows] >= 0]  # of the others nobody knows who they are
    rows = rows[: config.max_images]
    labels = None if data.labels is None else data.labels[rows]
    everyone = np.arange(len(rows))
    if labels is None or not enough(labels):  # nothing is measured
        return HeldOut(rows, labels, everyone, None)
    chooses = choosing(labels, config.validation)
    if chooses is None:
        return HeldOut(rows, labels, everyone, None)
    return HeldOut(rows, labels, everyone[~chooses], everyone[chooses])


def choosing(labels: Labels, asked: str) -> NDArray[np.bool_] | None:
    """Which images [n] show people who choose the checkpoint; None: no division. `asked` is a valid setting.

    Raises WrongUse for a share that leaves one part too few pairs.
    """
    if asked == NONE:
        return None
    people = in_fixed_order(labels)
    if asked == AUTO:
        count = len(people) // 2
        chooses = np.isin(labels, people[:count])
        return chooses if count >= LEAST_PEOPLE and _both_enough(labels, chooses) else None
    count = round(float(asked) * len(people))
    chooses = np.isin(labels, people[:count])
    if not _both_enough(labels, chooses):
        half = np.isin(labels, people[: len(people) // 2])
        instead = "give 0.5, or none" if _both_enough(labels, half) else "give none"
        raise WrongUse(
            f"train.eval.validation={asked} takes {count} of {len(people)} held-out people, which leaves too few pairs "
            f"to measure {'them' if not enough(labels[chooses]) else 'the others'}; {instead}"
        )
    return chooses


def in_fixed_order(labels: Labels) -> NDArray[np.int32]:
    """The people, ordered by a hash of their label: the same for any run, and independent of who else is there."""
    people = np.unique(labels)
    return np.array(sorted(people, key=lambda label: hashlib.sha256(str(int(label)).encode()).digest()), people.dtype)


def _both_enough(labels: Labels, chooses: NDArray[np.bool_]) -> bool:
    return enough(labels[chooses]) and enough(labels[~chooses])
