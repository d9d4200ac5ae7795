"""What the commands report about a run."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.runs.documents import of_run
from deploy.runs.records import Record

RECORD = Record("r", "local", "local", "succeeded", 1, "2026-01-01", None, 1.0, "iresnet", "/r", "m")


def mined(count: int, accepted: bool) -> dict[str, Any]:
    return {"event": "mining", "count": count, "coverage": count / 10, "purity": 0.9, "accepted": accepted}


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([], None),
        ([mined(3, True), mined(5, True)], {"count": 5, "coverage": 0.5, "purity": 0.9}),
        ([mined(3, True), mined(1, False)], {"count": 3, "coverage": 0.3, "purity": 0.9}),
        ([mined(1, False)], {"count": 0, "coverage": 0.0, "purity": None}),
    ],
)
def test_refused_pseudo_ids_are_not_told_as_found(events: list[dict[str, Any]], told: dict[str, Any] | None) -> None:
    """The report has the pseudo-ids that training used."""
    assert of_run(RECORD, events, None)["pseudo_ids"] == told
