"""The table of `status`."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.runs.documents import newest
from deploy.specs.estimate import plural
from deploy.ui.status_table import epoch_of, status_rows

ANSWER: dict[str, Any] = {
    "target": "ssh", "state": "running", "attempt": 1, "epoch": 14, "step": 350, "images_per_s": 812.4,
    "seconds_left": 90.0, "heartbeat_age_s": 2.0, "spend_usd": 0.0, "reason": None, "epochs": 40,
    "loss": 5.1902, "accuracy": 0.8812, "note": None,
}  # fmt: skip


def test_a_live_run_in_words() -> None:
    assert status_rows(ANSWER) == [
        ("target", "ssh"),
        ("state", "running"),
        ("progress", "epoch 14 (15/40), step 350"),
        ("loss", "5.190"),
        ("accuracy", "88.1% on held-out people"),
        ("speed", "812 images a second"),
        ("time left", "1:30"),
        ("heartbeat", "0:02 ago"),
    ]


def test_a_run_that_is_over_has_no_heartbeat_and_no_speed() -> None:
    over = {**ANSWER, "state": "failed", "attempt": 2, "epoch": 40, "seconds_left": None, "spend_usd": 1.239}
    assert status_rows({**over, "reason": "out of memory", "loss": None, "accuracy": None}) == [
        ("target", "ssh"),
        ("state", "failed: out of memory"),
        ("attempt", "2"),
        ("progress", "all 40 epochs done, step 350"),
        ("cost", "$1.24"),
    ]


def test_a_run_that_has_not_started_has_no_progress() -> None:
    unknown = ("epoch", "epochs", "step", "images_per_s", "seconds_left", "loss", "accuracy", "heartbeat_age_s")
    waiting = {**ANSWER, "state": "preparing", **dict.fromkeys(unknown)}
    assert status_rows(waiting) == [("target", "ssh"), ("state", "preparing")]


def test_an_epoch_has_the_number_of_its_checkpoint() -> None:
    assert (epoch_of(0, 24), epoch_of(23, 24), epoch_of(3, 0)) == ("epoch 0 (1/24)", "epoch 23 (24/24)", "epoch 3")


@pytest.mark.parametrize(
    ("count", "words", "told"),
    [(1, ("file",), "1 file"), (0, ("file",), "0 files"), (2, ("process", "processes"), "2 processes")],
)
def test_one_thing_is_not_several(count: int, words: tuple[str, ...], told: str) -> None:
    assert plural(count, *words) == told


def test_a_number_of_an_event_is_a_number() -> None:
    """A machine writes the events, so values that are not numbers are left out."""
    events = [{"event": "step", "loss": 5.19}, {"event": "step", "loss": "<b>"}, {"event": "step", "loss": True}]
    assert newest(events, "step", "loss") == 5.19
    assert newest(events, "trained", "accuracy") is None


def test_gpus_cost_and_the_loss_by_epoch_are_shown() -> None:
    """The machine reports them since long; nobody showed them."""
    gpus = [{"busy_pct": 97.0, "used_bytes": 61 << 30, "all_bytes": 80 << 30}]
    told = {"gpus": gpus, "loss_curve": [6.0, 5.0, None, 7.1], "spend_usd": 0.42, "run_usd": 0.42, "limit_usd": 5.0}
    rows = dict(status_rows({**ANSWER, **told}))
    assert (rows["loss"], rows["GPU"], rows["cost"]) == (
        "5.190  by epoch =_|@",
        "GPU 97% busy, 61/80 GiB",
        "$0.42 of $5.00",
    )
    assert list(rows)[3:7] == ["loss", "accuracy", "speed", "time left"]
    over = dict(status_rows({**ANSWER, **told, "state": "succeeded"}))
    assert "GPU" not in over
    assert over["cost"] == "$0.42"


def test_a_run_on_a_warm_machine_tells_its_own_cost_beside_that_of_the_machine() -> None:
    """The limit counts what the machine has cost since it was rented, by other runs too."""
    told = {**ANSWER, "spend_usd": 1.2, "run_usd": 0.3, "limit_usd": 5.0}
    assert dict(status_rows(told))["cost"] == "$0.30; the machine since it was rented: $1.20 of $5.00"
