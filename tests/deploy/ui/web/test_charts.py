"""The charts of the page: whatever the curve, its drawing stays inside its frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.ui.web.charts import POINTS_MOST, chart, number, share, thinned, ticks

VALUES = st.floats(-1e12, 1e12, allow_nan=False)


@given(st.lists(VALUES, min_size=1, max_size=700))
def test_every_point_is_inside_the_frame(values: list[float]) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    made = chart("loss", [("loss", points)], form=number, across="step", marks=[-1.0, 0.5, 1e9])
    assert made is not None
    left, top, right, bottom = made["frame"]
    line = made["lines"][0]
    drawn = [tuple(map(float, pair.split(","))) for pair in line["path"].split()] + line["dots"]
    assert drawn
    for x, y in [*drawn, *((right, y) for y, _ in made["rows"]), *((x, top) for x, _ in made["columns"])]:
        assert left <= x <= right
        assert top - 0.1 <= y <= bottom + 0.1
    assert len(line["path"].split()) <= POINTS_MOST


def test_a_long_curve_keeps_its_mean_and_its_end() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    few = thinned(points)
    assert len(few) <= POINTS_MOST
    assert few[-1] == points[-1]
    assert all(abs(value - 0.5) < 0.05 for _, value in few[:-1])


def test_ticks_are_few_and_round() -> None:
    assert ticks(0, 10) == [0, 2.5, 5, 7.5, 10]
    assert ticks(0.81, 0.88) == [0.82, 0.84, 0.86, 0.88]
    assert ticks(3, 3) == [3]
    assert chart("empty", [("a", []), ("b", [])], form=number, across="step") is None


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.5, 0.95), (0.9975, 0.99833), (0.99983, 0.99984), (12.341, 12.349)]
)
def test_no_two_lines_of_a_grid_have_one_label(low: float, high: float) -> None:
    """A good network's accuracy is within a few thousandths over many epochs."""
    for form in (share, number):
        made = chart("a", [("a", [(0, low), (1, high)])], form=form, across="epoch")
        assert made is not None
        labels = [label for _, label in made["rows"]]
        assert len(labels) == len({*labels}) > 1
        assert max(map(len, labels)) <= 8  # more than the margin has room for
    assert [share(value, [0.5, 0.6]) for value in (0.5, 0.6)] == ["50.0%", "60.0%"]
