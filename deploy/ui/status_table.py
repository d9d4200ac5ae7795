"""Make table rows of a run's status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.pod.base.folder import FINAL_STATES
from deploy.specs.estimate import duration, plural

IN_A_LINE = ("state", "progress", "loss", "accuracy", "speed", "time left", "heartbeat")


def epoch_of(epoch: int, epochs: int) -> str:
    """An epoch by its number, counted from 0 as in checkpoints and `--which`, and how many it is of how many."""
    return f"epoch {epoch} ({epoch + 1}/{epochs})" if epochs else f"epoch {epoch}"


def status_rows(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The answer of `status` in words."""
    is_over = answer["state"] in FINAL_STATES
    state = answer["state"] + (f": {answer['reason']}" if answer["reason"] else "")
    rows = [("target", answer["target"]), ("state", state)]
    if answer["attempt"] > 1:
        rows.append(("attempt", str(answer["attempt"])))
    if answer["epoch"] is not None:
        rows.append(("progress", _progress(int(answer["epoch"]), answer["epochs"] or 0, answer["step"])))
    if answer["loss"] is not None:
        rows.append(("loss", f"{answer['loss']:.3f}"))
    if answer["accuracy"] is not None:
        rows.append(("accuracy", f"{answer['accuracy']:.1%} on held-out people"))
    if answer["images_per_s"] is not None and not is_over:
        rows.append(("speed", f"{answer['images_per_s']:.0f} images a second"))
    if answer["seconds_left"] is not None:
        rows.append(("time left", duration(answer["seconds_left"])))
    if answer["heartbeat_age_s"] is not None and not is_over:
        rows.append(("heartbeat", f"{duration(answer['heartbeat_age_s'])} ago"))
    if answer["spend_usd"]:
        rows.append(("cost", f"${answer['spend_usd']:.2f}"))
    if answer["note"]:
        rows.append(("note", answer["note"]))
    return rows


def _progress(epoch: int, epochs: int, step: Any) -> str:
    done = f"all {plural(epochs, 'epoch')} done" if epochs and epoch >= epochs else epoch_of(epoch, epochs)
    return done + (f", step {step}" if step is not None else "")
