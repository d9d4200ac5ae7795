"""The verdict in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from app.report.facts import EVENTS, Event, Facts
from app.report.verdict import sentence


def facts(
    measured: dict[str, float],
    gain: dict[str, tuple[float, float]] | None = None,
    end: Event | None = None,
    done: int = 2,
) -> Facts:
    events: dict[str, list[Event]] = {kind: [] for kind in EVENTS}
    events["start"] = [{"epochs": 2}]
    events["epoch"] = [{}] * done
    events["eval"] = [{"what": what, "accuracy": value, "measure": "accuracy"} for what, value in measured.items()]
    events["end"] = [end] if end else []
    verification: dict[str, Any] = {}
    if gain is not None:
        bounds = {what: {"low": low, "high": high} for what, (low, high) in gain.items()}
        verification = {"of": {"trained": {"low": 0.85, "high": 0.92, "gain": bounds}}}
    return Facts("r", events, [], verification)


DONE = {"reason": "done"}
ALL = {"pixels": 0.83, "untrained": 0.843, "trained": 0.885}


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (
            facts(ALL, {"untrained": (0.01, 0.07), "pixels": (0.02, 0.09)}, DONE),
            "Held-out people are verified with 88.5% accuracy (95% interval 85.0% to 92.0%): 4.2 points above the "
            "untrained network (+1.0 to +7.0), and 5.5 points above raw pixels (+2.0 to +9.0).",
        ),
        (
            facts({**ALL, "trained": 0.85}, {"untrained": (-0.02, 0.03), "pixels": (-0.01, 0.05)}, DONE),
            "Held-out people are verified with 85.0% accuracy (95% interval 85.0% to 92.0%): not better than the "
            "untrained network: the difference of +0.7 points may be chance, and not better than raw pixels: the "
            "difference of +2.0 points may be chance.",
        ),
        (
            facts({**ALL, "trained": 0.8}, {"untrained": (-0.06, -0.02)}, DONE),
            "Held-out people are verified with 80.0% accuracy (95% interval 85.0% to 92.0%): 4.3 points below the "
            "untrained network (-6.0 to -2.0), and not better than raw pixels (-3.0 points).",
        ),
        (
            facts(ALL, None, DONE),
            "Held-out people are verified with 88.5% accuracy: 4.2 points above the untrained network (no interval is "
            "known), and 5.5 points above raw pixels (no interval is known).",
        ),
        (facts({"trained": 0.9}, None, DONE), "Held-out people are verified with 90.0% accuracy."),
        (
            facts({"sets/lfw": 0.95}, None, DONE),
            "On lfw: accuracy 95.0%. It is not compared with the untrained network.",
        ),
        (facts({}, None, DONE), "No accuracy was measured, so nothing shows whether the network has learned."),
        (
            facts({}, None, {"reason": "failed", "message": "the loss was not finite."}, done=1),
            "The run failed after 1 of 2 epochs: the loss was not finite. No accuracy was measured, so nothing shows "
            "whether the network has learned.",
        ),
        (
            facts({"trained": 0.9}, None, {"reason": "stopped"}, done=1),
            "The run was stopped after 1 of 2 epochs. Held-out people are verified with 90.0% accuracy.",
        ),
        (
            facts({"trained": 0.9}),
            "The run has not ended, or was killed after 2 of 2 epochs. "
            "Held-out people are verified with 90.0% accuracy.",
        ),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(known: Facts, told: str) -> None:
    assert sentence(known) == told


@pytest.mark.parametrize("bounds", [(0.07, 0.01), (float("nan"), 1.0), ("a", "b"), (None, None)])
def test_a_wrong_interval_is_no_interval(bounds: Any) -> None:
    assert "no interval is known" in sentence(facts(ALL, {"untrained": bounds, "pixels": bounds}, DONE))
