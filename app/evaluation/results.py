"""Format evaluation results as a table and as a JSON document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.evaluation.image_set import ImageSet
from app.evaluation.protocols import Outcome
from app.files import write_json


@dataclass
class Row:
    """Results of one weights file. `outcomes` is by set name; None: the embeddings were not finite."""

    file: Path
    short: str  # a short unique name for tables and plots
    sha256: str
    config: dict[str, Any]
    outcomes: dict[str, Outcome | None] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)  # XNorm by set name

    def mean(self, measure: str, sets: Sequence[ImageSet]) -> float | None:
        """The mean of a measure over the evaluated sets that have it; None if there are none.

        Minus infinity if the embeddings of one of them were not finite.
        """
        outcomes = [
            self.outcomes[images.name]
            for images in sets
            if images.protocol.measure == measure and images.name in self.outcomes
        ]
        values = [(o.numbers[o.headline] or 0.0) if o else -math.inf for o in outcomes]
        return sum(values) / len(values) if values else None


def best_first(rows: Sequence[Row], sets: Sequence[ImageSet]) -> list[Row]:
    """Sort by the mean of the first set's measure; break ties by the next set's measure."""
    measures = measures_of(sets)

    def worth(row: Row) -> list[float]:
        means = [row.mean(measure, sets) for measure in measures]
        return [math.inf if mean is None else -mean for mean in means]

    return sorted(rows, key=worth)  # stable: equal rows keep their order


def measures_of(sets: Sequence[ImageSet]) -> list[str]:
    """The distinct measures, in the order of the sets."""
    return list(dict.fromkeys(images.protocol.measure for images in sets))


def table(rows: Sequence[Row], sets: Sequence[ImageSet]) -> str:
    """Format one line per weights file, best first, in per cent; each column names its set and measure.

    Sets with the same measure also get a mean; different measures are never averaged. Lines below the table list the
    rates that a set has too few pairs for, and the thresholds of the best weights file.
    """
    shared = [m for m in measures_of(sets) if sum(images.protocol.measure == m for images in sets) > 1]
    headings = ["weights", *(f"mean {m}" for m in shared), *(f"{s.name}: {_what(s, rows)}" for s in sets)]
    lines = [headings]
    for row in best_first(rows, sets):
        means = [_per_cent(row.mean(measure, sets)) for measure in shared]
        lines.append([row.short, *means, *(_cell(row, images.name) for images in sets)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    too_few = [_not_measured(images) for images in sets if images.protocol.too_few()]
    return "\n".join([*padded, *too_few, *_thresholds(best_first(rows, sets)[0], sets)])


def _what(images: ImageSet, rows: Sequence[Row]) -> str:
    outcome = next((row.outcomes[images.name] for row in rows if row.outcomes.get(images.name)), None)
    if outcome is None or outcome.headline != "accuracy":
        return images.protocol.measure
    beside = "" if "rank1" in outcome.numbers else " (threshold tuned on the test pairs)"
    return f"{images.protocol.measure}{beside}"


def _cell(row: Row, name: str) -> str:
    if name not in row.outcomes:
        return "-"
    outcome = row.outcomes[name]
    if outcome is None:
        return "not finite"
    numbers = outcome.numbers
    if "rank1" in numbers and outcome.headline == "rank1":
        return _ranks_and_rates(numbers)
    if outcome.headline != "accuracy":
        return _per_cent(numbers[outcome.headline])
    spread = f"{_per_cent(numbers['accuracy'])} ± {_per_cent(numbers['accuracy_std']).removesuffix(' %')}"
    if "rank1" in numbers:
        return f"{spread}  rank-1 {_per_cent(numbers['rank1'])}"
    return f"{spread} ({_per_cent(numbers['accuracy_tuned_on_test'])})"


def _ranks_and_rates(numbers: Mapping[str, float | None]) -> str:
    """The cell of an identification: rank 1, the other ranks, and TPIR at each FPIR that was measured."""
    others = [name for name in numbers if name.startswith("rank") and name != "rank1"]
    ranks = [f"rank-{name[4:]} {_per_cent(numbers[name])}" for name in others]
    tpirs = {name[len(TPIR) :]: rate for name, rate in numbers.items() if name.startswith(TPIR) and rate is not None}
    rates = [f"{_per_cent(rate)} at FPIR {fpir}" for fpir, rate in tpirs.items()]
    told = f"; TPIR {', '.join(rates)}" if rates else ""
    return f"{_per_cent(numbers['rank1'])}, {', '.join(ranks)}{told}"


TAR, TPIR = "tar_at_far_", "tpir_at_fpir_"  # prefixes of the names of rates


def _per_cent(number: float | None) -> str:
    return "-" if number is None or not math.isfinite(number) else f"{100 * number:.2f} %"


CHOSEN_FOR = {"ten_folds": "mean of the ten folds"}


def _thresholds(row: Row, sets: Sequence[ImageSet]) -> list[str]:
    """One line per set: the threshold of the accuracy, and that of the lowest false accept rate."""
    lines = []
    for images in sets:
        outcome = row.outcomes.get(images.name)
        chosen = outcome.thresholds if outcome else {}
        rates = [name for name in chosen if name.startswith("far_")]
        names = [name for name in chosen if name == "ten_folds"] + rates[:1]
        names += [name for name in chosen if name.startswith("fpir_")]
        if names:
            told = "; ".join(f"{chosen[name]} ({CHOSEN_FOR.get(name) or _rate(name)})" for name in names)
            lines.append(f"{images.name}: thresholds of {row.short}: {told}")
    return lines


def _rate(name: str) -> str:
    """FAR 1e-4 for far_1e-4."""
    kind, _, rate = name.partition("_")
    return f"{kind.upper()} {rate}"


def _not_measured(images: ImageSet) -> str:
    needed = images.protocol.too_few()
    searched = any(name.startswith(TPIR) for name in needed)
    prefix, what, of = (TPIR, "TPIR n/a at FPIR", PROBES) if searched else (TAR, "TAR n/a at FAR", PAIRS)
    rates = ", ".join(f"{name.removeprefix(prefix)} ({count:,})" for name, count in needed.items())
    return f"{images.name}: {what} {rates}; in brackets how many {of} it needs"


PAIRS, PROBES = "pairs of two people", "probes of people outside the gallery"


def write(path: Path, rows: Sequence[Row], sets: Sequence[ImageSet], how: Mapping[str, Any]) -> None:
    """Write eval.json: how it was measured, all numbers of all weights files, and a description of the sets."""
    described: dict[str, Any] = {}
    for images in sets:
        facts = images.protocol.facts()
        needed = "probes_of_other_people_needed" if "gallery_people" in facts else "pairs_of_two_people_needed"
        described[images.name] = {
            "path": images.path,
            "sha256": images.sha256,
            "images": images.count,
            **facts,
            "measure": images.protocol.measure,
            needed: images.protocol.too_few(),
        }
    document = {
        **how,
        "sets": described,
        "weights": [
            {
                "file": str(row.file),
                "sha256": row.sha256,
                "means": {measure: _finite(row.mean(measure, sets)) for measure in measures_of(sets)},
                "sets": {name: _numbers(row, name) for name in row.outcomes},
                "config": row.config,
            }
            for row in best_first(rows, sets)
        ],
    }
    write_json(path, document)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _numbers(row: Row, name: str) -> dict[str, Any] | None:
    outcome = row.outcomes[name]
    if outcome is None:
        return None
    thresholds = {purpose: threshold.as_dict() for purpose, threshold in outcome.thresholds.items()}
    return {**outcome.numbers, "xnorm": row.lengths[name], "thresholds": thresholds}
