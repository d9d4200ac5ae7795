"""Compare runs by what is on this laptop: no machine is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import border
from deploy.border import History, Setting
from deploy.runs import notes, records
from deploy.runs.checkpoints import HELD_OUT, VALIDATION
from deploy.runs.documents import Document
from deploy.runs.records import Record

# Differ between any two runs, and say nothing about them.
NO_SETTINGS = ("run.dir",)
UNSET = "(not set)"


@dataclass(frozen=True)
class Side:
    """A run, with what was downloaded of it. `settings` is None if its config.yaml was not."""

    record: Record
    history: History
    settings: Mapping[str, Setting] | None
    plan: Mapping[str, Any]
    note: str | None


def read(book: Path, record: Record) -> Side:
    """Read a run's files in the folder of runs."""
    folder = records.home(book, record.run_id)
    return Side(
        record,
        border.read_history(Path(folder.metrics)),
        border.read_settings(Path(folder.config)),
        records.carried_out(book, record.run_id),
        notes.read(book, record.run_id),
    )


def document(sides: Sequence[Side], usd: Mapping[str, float] | None = None) -> Document:
    """The answer of `compare`: a row for each run, and the settings in which they differ.

    `usd`: dollars of each run, without what its machine had cost before.
    """
    rows = [{**_row(side), "run_usd": (usd or {}).get(side.record.run_id)} for side in sides]
    return {"runs": rows, "settings": differing(sides)}


def differing(sides: Sequence[Side]) -> dict[str, dict[str, Setting]]:
    """Settings with more than one value: key -> run id -> value, for the runs whose configuration is known."""
    known = {side.record.run_id: side.settings for side in sides if side.settings is not None}
    keys = dict.fromkeys(key for settings in known.values() for key in sorted(settings))
    values = {
        key: {run: settings.get(key, UNSET) for run, settings in known.items()}
        for key in keys
        if key not in NO_SETTINGS
    }
    return {key: told for key, told in sorted(values.items()) if len({repr(value) for value in told.values()}) > 1}


def measure_of(sides: Sequence[Side]) -> str | None:
    """What ranks these runs, as `--which best` ranks checkpoints; None: nothing.

    Validation people, held-out people or else the first set: one measure for all. A run without it cannot be the best.
    """
    if any(side.history.validation for side in sides):
        return VALIDATION
    if any(side.history.accuracy for side in sides):
        return HELD_OUT
    return next((name for side in sides for name in side.history.sets), None)


@dataclass(frozen=True)
class Best:
    """The best epoch of a run. `rating` chose it; `accuracy` is the result there, of others if people were divided."""

    epoch: int
    rating: float
    accuracy: float | None


def best_point(side: Side, measure: str | None) -> Best | None:
    """The best epoch of a run by a measure; None if it was not measured so."""
    history = side.history
    curves = {VALIDATION: history.validation, HELD_OUT: history.accuracy}
    curve = curves[measure] if measure in curves else history.sets.get(measure or "", ())
    if not curve:
        return None
    epoch, rating = max(curve, key=lambda point: point[1])
    return Best(epoch, rating, dict(history.accuracy).get(epoch) if measure == VALIDATION else rating)


def _row(side: Side) -> Document:
    record, history = side.record, side.history
    measure = VALIDATION if history.validation else HELD_OUT
    best = best_point(side, measure)
    return {
        "run_id": record.run_id,
        "name": record.name,
        "note": side.note,
        "target": record.target,
        "state": record.state,
        "created": record.created,
        "fraction": record.fraction,
        "trained_on": _machine(side.plan),
        "best_accuracy": best.accuracy if best else None,
        "best_epoch": best.epoch if best else None,
        "best_by": measure if best else None,
        "last_loss": history.loss[-1][1] if history.loss else None,
        "images_per_s": history.images_per_s,
        "seconds": record.seconds,
        "spend_usd": record.spend_usd,
        "accuracy": [list(point) for point in history.accuracy],
        "loss": [list(point) for point in history.loss],
        "config": side.settings is not None,
    }


def _machine(plan: Mapping[str, Any]) -> str | None:
    """The hardware in words, such as 2 x NVIDIA A40; None if the plan does not know it."""
    gpus, gpu, cores, nodes = (plan.get(key) for key in ("gpus", "gpu", "cores", "nodes"))
    each = f"{gpus} x {gpu}" if gpus and gpu else f"{cores} cores" if cores else None
    return f"{nodes} machines of {each}" if each and isinstance(nodes, int) and nodes > 1 else each
