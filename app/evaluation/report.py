"""What was measured, as a table to read and a JSON document to compute with. Letters: S sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.evaluation.image_set import ImageSet
from app.evaluation.protocols import Outcome
from app.files import write_json


@dataclass
class Row:
    """One file of weights. `outcomes` by the name of a set; None: its embeddings were not finite."""

    file: Path
    short: str  # tells it from the others in a picture
    sha256: str
    config: dict[str, Any]
    outcomes: dict[str, Outcome | None] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)  # XNorm by the name of a set

    @property
    def mean(self) -> float:
        """The mean of the main numbers over the sets it was measured on; below every number where one is missing."""
        values = [o.numbers[o.headline] if o else -math.inf for o in self.outcomes.values()]
        return sum(values) / len(values) if values else -math.inf


def best_first(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row.mean)  # stable: equal ones keep the order of their names


def table(rows: Sequence[Row], sets: Sequence[ImageSet]) -> str:
    """A line for each file of weights, best first, in per cent. A column says what it shows of its set."""
    headings = ["weights", "mean", *(f"{images.name}: {_what(rows, images.name)}" for images in sets)]
    lines = [headings]
    for row in best_first(rows):
        mean = f"{row.mean:.2%}" if math.isfinite(row.mean) else "-"
        lines.append([str(row.file), mean, *(_cell(row, images.name) for images in sets)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _what(rows: Sequence[Row], name: str) -> str:
    outcome = next((row.outcomes[name] for row in rows if row.outcomes.get(name)), None)
    if outcome is None:
        return "accuracy"
    if outcome.headline != "accuracy":
        return outcome.headline.replace("tar_at_far_", "TAR at FAR ")
    beside = ", rank-1" if "rank1" in outcome.numbers else " (threshold tuned on the test pairs)"
    return f"10-fold accuracy{beside}"


def _cell(row: Row, name: str) -> str:
    if name not in row.outcomes:
        return "-"
    outcome = row.outcomes[name]
    if outcome is None:
        return "not finite"
    numbers = outcome.numbers
    if outcome.headline != "accuracy":
        return f"{numbers[outcome.headline]:.2%}"
    beside = f", {numbers['rank1']:.2%}" if "rank1" in numbers else f" ({numbers['accuracy_tuned_on_test']:.2%})"
    return f"{numbers['accuracy']:.2%} ± {numbers['accuracy_std']:.2%}{beside}"


def write(path: Path, rows: Sequence[Row], sets: Sequence[ImageSet], *, flip: bool, world_size: int) -> None:
    """eval.json: every number of every file of weights, and what exactly was measured."""
    document = {
        "flip": flip,
        "world_size": world_size,
        "sets": {
            images.name: {
                "path": images.path,
                "sha256": images.sha256,
                "images": images.count,
                "pairs": images.protocol.pairs,
            }
            for images in sets
        },
        "weights": [
            {
                "file": str(row.file),
                "sha256": row.sha256,
                "mean": row.mean if math.isfinite(row.mean) else None,
                "sets": {name: _numbers(row, name) for name in row.outcomes},
                "config": row.config,
            }
            for row in best_first(rows)
        ],
    }
    write_json(path, document)


def _numbers(row: Row, name: str) -> dict[str, float] | None:
    outcome = row.outcomes[name]
    return None if outcome is None else {**outcome.numbers, "xnorm": row.lengths[name]}
