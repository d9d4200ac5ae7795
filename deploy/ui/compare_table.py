"""Make table rows of a comparison of runs, a column for each run, with curves drawn in text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.specs.estimate import duration
from deploy.ui.gauges import cost_words, sparkline

Rows = list[tuple[str, ...]]
Point = Sequence[float]  # epoch, value


def run_rows(runs: Sequence[Mapping[str, Any]], marks: str) -> Rows:
    """A row for each fact. A row in which nothing is known of any run is left out. `marks`: to draw curves with."""
    told: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
        "name": lambda run: run["name"],
        "note": lambda run: run["note"],
        "target": lambda run: run["target"],
        "state": lambda run: run["state"],
        "started": lambda run: run["created"][:16].replace("T", " "),
        "fraction": lambda run: f"{run['fraction']:g}",
        "trained on": lambda run: run["trained_on"],
        "best accuracy": lambda run: _best(run["best_accuracy"], run["best_epoch"]),
        "best by": lambda run: run.get("best_by"),
        "accuracy": lambda run: _curve(run["accuracy"], _range(runs, "accuracy"), marks, "{:.1%}"),
        "loss": lambda run: _curve(run["loss"], _range(runs, "loss"), marks, "{:.3f}"),
        "images a second": lambda run: None if run["images_per_s"] is None else f"{run['images_per_s']:.0f}",
        "time": lambda run: None if run["seconds"] is None else duration(run["seconds"]),
        "cost": lambda run: cost_words(run["run_usd"], None),
    }
    cells = {what: [tell(run) for run in runs] for what, tell in told.items()}
    return [(what, *(cell or "-" for cell in row)) for what, row in cells.items() if any(row)]


def setting_rows(runs: Sequence[Mapping[str, Any]], settings: Mapping[str, Mapping[str, Any]]) -> Rows:
    """A row for each setting that differs. `?`: the run's configuration is not on this laptop."""
    return [
        (key, *(_value(values[run["run_id"]]) if run["run_id"] in values else "?" for run in runs))
        for key, values in settings.items()
    ]


def _curve(points: Sequence[Point], bounds: tuple[float, float], marks: str, form: str) -> str | None:
    """A sparkline between the first and the last value. One value needs no line."""
    values = [value for _, value in points]
    if len(values) < 2:
        return form.format(values[0]) if values else None
    return f"{form.format(values[0])} {sparkline(values, *bounds, marks)} {form.format(values[-1])}"


def _range(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    """The one scale of all runs, so that heights can be compared."""
    values = [value for run in runs for _, value in run[key]]
    return (min(values), max(values)) if values else (0.0, 1.0)


def _best(accuracy: float | None, epoch: int | None) -> str | None:
    return None if accuracy is None else f"{accuracy:.1%} (epoch {epoch})"


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
