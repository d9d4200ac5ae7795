"""Loss, GPUs and cost as text."""

from __future__ import annotations

import io
from typing import Any

import pytest

from deploy.border import Gpu, loss_curve
from deploy.ui.gauges import ASCII, BLOCKS, GIB, cost_words, gpu_words, lines_of, loss_line, marks


def step(number: Any, loss: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "loss": loss}


REFRESHED = {"event": "mining", "step": 10, "accepted": True, "count": 3, "coverage": 0.5}


@pytest.mark.parametrize(
    ("events", "curve"),
    [
        ([], []),
        ([step(5, 6.0), step(10, 5.0)], [6.0, 5.0]),
        ([step(10, 5.0), REFRESHED, step(15, 7.0)], [5.0, None, 7.0]),  # a refresh comes after its step
        ([step(10, 5.0), {**REFRESHED, "accepted": False}, step(15, 7.0)], [5.0, 7.0]),  # the old labels stay in use
        ([step(5, 6.0), step(10, 5.0), step(10, 4.0)], [6.0, 4.0]),  # continued: done again
        ([step(5, 6.0), REFRESHED, step(15, 5.0), step(5, 6.5)], [6.5]),
        ([step(5, None), {"event": "step", "loss": 3.0}, {"event": "epoch", "step": 5, "loss": 1.0}], []),
    ],
)
def test_the_loss_of_a_run_with_its_refreshes(events: list[dict[str, Any]], curve: list[float | None]) -> None:
    assert loss_curve(events, "step") == curve


@pytest.mark.parametrize(
    ("curve", "drawn"),
    [
        ([], ""),
        ([5.0], ""),
        ([1.0, 1.9, 3.0], "_=@"),
        ([1.0, 1.9, None, 3.0], "_=|@"),
        ([None, 1.0, 3.0, None], "_@"),  # what is not known on one side needs no mark
        ([1.0, None, None, 3.0], "_|@"),
        (list(range(8)), ASCII),
        (list(range(64)), ASCII),  # as wide as it may be
    ],
)
def test_a_mark_divides_losses_that_are_not_comparable(curve: list[float | None], drawn: str) -> None:
    assert loss_line(curve, ASCII, 8) == drawn


@pytest.mark.parametrize("width", [2, 3, 8, 24])
@pytest.mark.parametrize("every", [1, 2, 7, 100])
def test_a_curve_is_never_wider_than_its_place(width: int, every: int) -> None:
    curve = [None if place % (every + 1) == every else float(place) for place in range(500)]
    drawn = loss_line(curve, BLOCKS, width)
    assert 2 <= len(drawn) <= width or drawn == ""
    assert drawn.count("|") <= width // 4
    assert width < 8 or drawn.endswith("█")


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ([], None),
        ([Gpu(97.2, 61 * GIB, 80 * GIB)], "GPU 97% busy, 61/80 GiB"),
        ([Gpu(97.2, 60 * GIB, 80 * GIB), Gpu(97, 60 * GIB, 80 * GIB)], "2 GPUs 97% busy, 120/160 GiB"),
        ([Gpu(3, 10 * GIB, 80 * GIB), Gpu(100, 60 * GIB, 80 * GIB)], "2 GPUs 3-100% busy, 70/160 GiB"),
    ],
)
def test_gpus_in_words(gpus: list[Gpu], words: str | None) -> None:
    """An idle GPU beside a busy one is seen."""
    assert gpu_words(gpus) == words


def test_curves_are_ascii_where_blocks_cannot_be_shown() -> None:
    utf8, page = (io.TextIOWrapper(io.BytesIO(), encoding=name) for name in ("utf-8", "cp1252"))
    assert marks(utf8, legacy_windows=False) == BLOCKS
    assert marks(utf8, legacy_windows=True) == marks(page, legacy_windows=False) == ASCII
    assert marks(io.StringIO(), legacy_windows=False) == ASCII  # its encoding is not known


def test_cost_in_words() -> None:
    assert [cost_words(None, 5), cost_words(0.0, 5.0)] == [None, None]
    assert [cost_words(0.423, 5.0), cost_words(0.423, None)] == ["$0.42 of $5.00", "$0.42"]


def test_parts_share_a_line_as_far_as_it_is_wide() -> None:
    parts = ["loss 5.190 ____", None, "accuracy 88.1%", "$0.42 of $5.00"]
    assert lines_of(parts, 80) == ["loss 5.190 ____  accuracy 88.1%  $0.42 of $5.00"]
    assert lines_of(parts, 40) == ["loss 5.190 ____  accuracy 88.1%", "$0.42 of $5.00"]
    assert lines_of(parts, 5) == ["loss 5.190 ____", "accuracy 88.1%", "$0.42 of $5.00"]
    assert lines_of([None], 80) == []
