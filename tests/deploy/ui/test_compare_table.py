"""Curves in text, and the tables of `compare`."""

from __future__ import annotations

from typing import Any

from deploy.ui.compare_table import run_rows, setting_rows
from deploy.ui.gauges import ASCII, BLOCKS, CURVE_CHARACTERS, sparkline


def run(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "run_id": name, "name": None, "note": None, "target": "local", "state": "succeeded",
        "created": "2026-11-28T10:11:12",
        "fraction": 1.0, "trained_on": None, "best_accuracy": None, "best_epoch": None, "images_per_s": None,
        "seconds": None, "run_usd": 0.0, "accuracy": [], "loss": [], **facts,
    }  # fmt: skip


def test_a_sparkline_keeps_the_ends_and_the_scale() -> None:
    assert sparkline([0.0, 0.5, 1.0], 0, 1, BLOCKS) == "▁▅█"
    assert sparkline([0.0, 0.5], 0, 1, ASCII) == "_+"
    assert sparkline([3.0, 3.0], 3, 3, ASCII) == "__"
    long = sparkline(list(range(1000)), 0, 999, ASCII)
    assert (len(long), long[0], long[-1]) == (CURVE_CHARACTERS, ASCII[0], ASCII[-1])
    assert list(long) == sorted(long, key=ASCII.index)


def test_runs_are_side_by_side_on_one_scale() -> None:
    """A fact that no run has takes no row. A fact of one run is a dash for the other."""
    one = run("a", loss=[[0, 4.0], [1, 2.0]], best_accuracy=0.915, best_epoch=7, accuracy=[[7, 0.915]])
    other = run("b", loss=[[0, 3.0], [1, 3.0]], run_usd=1.5, seconds=65)
    rows = {what: cells for what, *cells in run_rows([one, other], ASCII)}
    assert rows["loss"] == ["4.000 @_ 2.000", "3.000 ++ 3.000"]
    assert rows["best accuracy"] == ["91.5% (epoch 7)", "-"]
    assert rows["accuracy"] == ["91.5%", "-"]
    assert (rows["cost"], rows["time"], rows["started"][0]) == (["-", "$1.50"], ["-", "1:05"], "2026-11-28 10:11")
    assert not {"name", "trained on", "images a second"} & set(rows)


def test_settings_are_written_as_in_yaml() -> None:
    told = {"a.b": {"a": None, "b": True}, "c": {"a": 0.1}}
    assert setting_rows([run("a"), run("b")], told) == [("a.b", "null", "true"), ("c", "0.1", "?")]
