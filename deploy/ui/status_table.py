"""Make table rows of a run's status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.pod.base.folder import FINAL_STATES
from deploy.specs.estimate import duration, plural

IN_A_LINE = ("state", "progress", "loss", "accuracy", "speed", "time left", "heartbeat")


def epoch_of(epoch: int, epochs: int) -> str:
    """An epoch by its number, counted from 0 as in checkpoints and `--which`, and how many it is of how many."""
    return f"epoch {epoch} ({epoch + 1}/{epochs})" if epochs else f"epoch {epoch}"


def status_rows(answer: Mapping[str, Any], epochs: int, events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The answer of `status` in words. `epochs`: how many the run trains; 0: not known."""
    is_over = answer["state"] in FINAL_STATES
    state = answer["state"] + (f": {answer['reason']}" if answer["reason"] else "")
    rows = [("target", answer["target"]), ("state", state)]
    if answer["attempt"] > 1:
        rows.append(("attempt", str(answer["attempt"])))
    if answer["epoch"] is not None:
        rows.append(("progress", _progress(int(answer["epoch"]), epochs, answer["step"])))
    for what, found in (
        ("loss", _newest(events, "step", "loss")),
        ("accuracy", _newest(events, "trained", "accuracy")),
    ):
        if found is not None:
            rows.append((what, f"{found:.1%} on held-out people" if what == "accuracy" else f"{found:.3f}"))
    if answer["images_per_s"] is not None and not is_over:
        rows.append(("speed", f"{answer['images_per_s']:.0f} images a second"))
    if answer["seconds_left"] is not None:
        rows.append(("time left", duration(answer["seconds_left"])))
    if answer["heartbeat_age_s"] is not None and not is_over:
        rows.append(("heartbeat", f"{duration(answer['heartbeat_age_s'])} ago"))
    if answer["spend_usd"]:
        rows.append(("cost", f"${answer['spend_usd']:.2f}"))
    return rows


def _progress(epoch: int, epochs: int, step: Any) -> str:
    done = f"all {plural(epochs, 'epoch')} done" if epochs and epoch >= epochs else epoch_of(epoch, epochs)
    return done + (f", step {step}" if step is not None else "")


def _newest(events: Sequence[Mapping[str, Any]], kind: str, key: str) -> float | None:
    """The newest number of this kind of event. A machine writes events: what is no number is left out."""
    found = [event.get(key) for event in events if kind in (event.get("event"), event.get("what"))]
    numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
    return float(numbers[-1]) if numbers else None
