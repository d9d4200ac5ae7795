"""The verdict of an evaluation, and the curves that it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.evaluation.image_set import ImageSet
from app.evaluation.protocols import Outcome, People
from app.evaluation.results import Row
from app.report.facts import EVENTS, Facts
from app.report.of_weights import Before, before, curves, sentence

LABELS = np.repeat(np.arange(4, dtype=np.int32), 5)
IMAGES = ImageSet("orl", "images.npy", "0", 20, lambda row: row, People(LABELS), ())
CURVE = {"far": [0.01, 0.1, 1.0], "tar": [0.3, 0.6, 1.0]}
UNTRAINED = {"accuracy": 0.843, "auc": 0.9, "eer": 0.2, "curve": CURVE}
PIXELS = {**UNTRAINED, "accuracy": 0.829}


def row(name: str, headline: str = "accuracy", value: float | None = 0.885) -> Row:
    far, tar = np.array([0.0, 0.1, 1.0]), np.array([0.0, 0.7, 1.0])
    outcome = Outcome({headline: value, "auc": 0.9}, headline, far, tar)
    return Row(Path(f"{name}.pt"), name, "0", {}, {"orl": outcome})


def run(trained: float | None = 0.885, **changes: Any) -> Facts:
    gain = {"untrained": {"low": 0.01, "high": 0.07}, "pixels": {"low": -0.01, "high": 0.1}}
    of = {"untrained": UNTRAINED, "pixels": PIXELS, "trained": {"accuracy": trained, "gain": gain}}
    known = {"images": 20, "pairs_of_one_person": 40, "pairs_of_two_people": 150, "of": of, **changes}
    return Facts("r", {kind: [] for kind in EVENTS}, [], known)


@pytest.mark.parametrize(
    ("rows", "facts", "told"),
    [
        ([row("a")], None, "orl: a judges 88.5% of the pairs correctly, where guessing judges 50%."),
        (
            [row("a")],
            run(),
            "orl: a judges 88.5% of the pairs correctly, where guessing judges 50%: 4.2 points above the untrained "
            "network (+1.0 to +7.0), and not better than raw pixels: the difference of +5.6 points may be chance.",
        ),
        (
            [row("a", value=0.835)],
            run(),
            "orl: a judges 83.5% of the pairs correctly, where guessing judges 50%: not better than the untrained "
            "network (-0.8 points), and 0.6 points above raw pixels (no interval is known).",
        ),
        (
            [row("a"), row("b", value=0.88)],
            None,
            "orl: a judges 88.5% of the pairs correctly, where guessing judges 50%. It is the best of 2, 0.5 points "
            "above b. These images chose it: expect a little less on others.",
        ),
        ([row("a", "rank1")], None, "orl: a finds the right person first in 88.5% of the searches."),
        (
            [row("a", "tar_at_far_1e-4")],
            None,
            "orl: a accepts 88.5% of the pairs of one person, and 1e-4 of those of two people.",
        ),
        ([row("a", "auc")], None, "orl: a has auc 0.9000."),
        (
            [row("a", "rank1", None)],
            None,
            "orl: too small for balanced 10-fold accuracy, so nothing was measured.",
        ),
        (
            [Row(Path("a"), "a", "0", {}, {"orl": None})],
            None,
            "orl: no weights gave finite embeddings, so nothing was measured.",
        ),
    ],
)
def test_the_verdict(rows: list[Row], facts: Facts | None, told: str) -> None:
    assert sentence(rows, IMAGES, before(facts, IMAGES)) == told


@pytest.mark.parametrize(
    "facts",
    [
        run(images=19),
        run(pairs_of_one_person=41),
        run(of=7),
        run(of={"untrained": {**UNTRAINED, "curve": {"far": [0.0, 1.0], "tar": [0.1, 1.0]}}}),
        run(of={"untrained": {**UNTRAINED, "curve": {"far": [0.1, 1.0], "tar": [0.1]}}}),
        run(of={"untrained": {**UNTRAINED, "accuracy": "high"}}),
        run(of={"untrained": [], "trained": {"gain": 3}}),
    ],
)
def test_measurements_of_other_images_and_wrong_ones_are_left_out(facts: Facts) -> None:
    assert list(before(facts, IMAGES).baselines) == []


def test_the_curves_are_of_the_best_three_and_the_baselines() -> None:
    rows = [row(name) for name in "abcde"]
    drawn, left_out = curves(rows, IMAGES, before(run(), IMAGES))
    assert [label.split(":")[0] for label in drawn] == ["a", "b", "c", "the untrained network", "raw pixels"]
    assert left_out == 2
    assert next(iter(drawn)) == "a: AUC 0.900, EER 25.0%"
    drawn, left_out = curves(rows, IMAGES, Before())
    assert (len(drawn), left_out) == (5, 0)
