"""The bar of a run that is followed in a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from deploy.border import Gpu
from deploy.ui.gauges import GIB
from deploy.ui.progress import CURVE_EVENTS, Bars

START = {"event": "start", "epochs": 2, "steps_per_epoch": 5}


def step(number: int, loss: float | None, epoch: int = 1) -> dict[str, Any]:
    return {"event": "step", "step": number, "epoch": epoch, "loss": loss, "images_per_s": 40.0, "seconds_left": 0}


def shown(events: list[dict[str, Any]], width: int, encoding: str = "utf-8", **bar: Any) -> list[str]:
    """The lines of the bar, without colours and the blanks at their end."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    bars = Bars(console, bar.get("limit_usd"))
    bars.update("", [START, *events])
    bars.gauges(bar.get("gpus", ()), bar.get("spend_usd", 0.0))
    with console.capture() as captured:
        console.print(bars._shown())
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_bar_ends_with_the_newest_accuracy() -> None:
    """The last evaluation comes after the last step. The bar used to keep the accuracy before it."""
    told = io.StringIO()
    with Bars(Console(file=told, force_terminal=True, width=110, highlight=False)) as bar:
        bar.update("", [START, step(10, 6.017)])
        bar.update("", [{"event": "eval", "what": "trained", "accuracy": 0.8858, "rank1": 0.96}])
    assert "loss 6.017  accuracy 88.6%" in told.getvalue()
    assert "trained: accuracy 0.8858, rank-1 0.9600" in told.getvalue()


def test_a_set_that_is_measured_while_training_has_a_line_of_its_own() -> None:
    told = io.StringIO()
    with Bars(Console(file=told, force_terminal=True, width=110, highlight=False)) as bar:
        bar.update(
            "", [START, step(10, 6.017), {"event": "eval", "what": "trained", "accuracy": 0.8858, "rank1": 0.96}]
        )
        bar.update("", [{"event": "eval", "what": "sets/lfw", "accuracy": 0.9952, "measure": "10-fold accuracy"}])
    assert "lfw: accuracy 0.9952" in told.getvalue()
    assert "loss 6.017  accuracy 88.6%" in told.getvalue()  # the bar shows the held-out people
    assert "99.5%" not in told.getvalue()


STEPS = [step(2, 7.0, 0), step(5, 6.0, 0), step(7, 5.0), step(10, 4.0)]
ACCURACY = {"event": "eval", "what": "trained", "accuracy": 0.8858, "rank1": 0.96}


@pytest.mark.parametrize(
    ("width", "below"),
    [
        (60, ["loss 4.000 █▆▃▁  accuracy 88.6%  GPU 97% busy, 61/80 GiB", "$0.42 of $5.00"]),
        (80, ["loss 4.000 █▆▃▁  accuracy 88.6%  GPU 97% busy, 61/80 GiB  $0.42 of $5.00"]),
        (120, ["loss 4.000 █▆▃▁  accuracy 88.6%  GPU 97% busy, 61/80 GiB  $0.42 of $5.00"]),
        (30, ["loss 4.000 █▆▃▁", "accuracy 88.6%", "GPU 97% busy, 61/80 GiB", "$0.42 of $5.00"]),
    ],
)
def test_loss_accuracy_gpus_and_cost_are_below_the_bar(width: int, below: list[str]) -> None:
    gpu = Gpu(97.0, 61 * GIB, 80 * GIB)
    first, *rest = shown([*STEPS, ACCURACY], width, gpus=[gpu], spend_usd=0.42, limit_usd=5.0)
    assert rest[-len(below) :] == below
    assert first.startswith("epoch 1 (2/2) ")
    assert all(len(line) < width for line in [first, *rest])


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """As a Windows console with a code page, to which Python cannot write blocks."""
    lines = shown([*STEPS, ACCURACY], 80, encoding="cp1252")
    assert lines[1] == "loss 4.000 @*-_  accuracy 88.6%"
    assert all(line.isascii() for line in lines)


def test_a_run_that_tells_nothing_shows_only_the_bar() -> None:
    (line,) = shown([], 80)
    assert line.startswith("training ")
    assert line.endswith("0%")


def test_a_skipped_step_has_no_loss_and_ends_no_bar() -> None:
    lines = shown([step(5, None), {"event": "step", "step": "x"}, {"event": "mining"}], 80)
    assert lines[0].startswith("epoch 1 (2/2)")
    assert len(lines) == 1


def test_a_long_run_keeps_a_bounded_curve() -> None:
    bars = Bars(Console(file=io.StringIO()))
    refresh = {"event": "mining", "step": 3, "accepted": True, "count": 1, "coverage": 1.0}
    for number in range(5):
        bars.update("", [step(number * CURVE_EVENTS + place, 1.0) for place in range(CURVE_EVENTS)])
        bars.update("", [refresh] * CURVE_EVENTS)
        assert len(bars.drawn) <= CURVE_EVENTS
