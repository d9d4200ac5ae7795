"""Make table rows of a run's status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.border import Gpu
from deploy.pod.base.folder import FINAL_STATES
from deploy.specs.estimate import duration, plural
from deploy.ui.gauges import ASCII, cost_words, gpu_words, loss_line

IN_A_LINE = ("state", "progress", "loss", "accuracy", "GPU", "cost", "speed", "time left", "heartbeat")
CENT = 0.01


def epoch_of(epoch: int, epochs: int) -> str:
    """An epoch by its number, counted from 0 as in checkpoints and `--which`, and how many it is of how many."""
    return f"epoch {epoch} ({epoch + 1}/{epochs})" if epochs else f"epoch {epoch}"


def status_rows(answer: Mapping[str, Any], marks: str = ASCII) -> list[tuple[str, str]]:
    """The answer of `status` in words. `marks`: to draw the loss with."""
    is_over = answer["state"] in FINAL_STATES
    state = answer["state"] + (f": {answer['reason']}" if answer["reason"] else "")
    rows = [("target", answer["target"]), ("state", state)]
    if answer["attempt"] > 1:
        rows.append(("attempt", str(answer["attempt"])))
    if answer["epoch"] is not None:
        rows.append(("progress", _progress(int(answer["epoch"]), answer["epochs"] or 0, answer["step"])))
    if answer["loss"] is not None:
        curve = loss_line(answer.get("loss_curve") or (), marks)
        rows.append(("loss", f"{answer['loss']:.3f}" + (f"  by epoch {curve}" if curve else "")))
    if answer["accuracy"] is not None:
        rows.append(("accuracy", f"{answer['accuracy']:.1%} on held-out people"))
    if answer["images_per_s"] is not None and not is_over:
        rows.append(("speed", f"{answer['images_per_s']:.0f} images a second"))
    if answer["seconds_left"] is not None:
        rows.append(("time left", duration(answer["seconds_left"])))
    if answer["heartbeat_age_s"] is not None and not is_over:
        rows.append(("heartbeat", f"{duration(answer['heartbeat_age_s'])} ago"))
    if (busy := gpu_words([Gpu(**each) for each in answer.get("gpus") or ()])) and not is_over:
        rows.append(("GPU", busy))
    if cost := _cost(answer):
        rows.append(("cost", cost))
    if answer["note"]:
        rows.append(("note", answer["note"]))
    return rows


def _progress(epoch: int, epochs: int, step: Any) -> str:
    done = f"all {plural(epochs, 'epoch')} done" if epochs and epoch >= epochs else epoch_of(epoch, epochs)
    return done + (f", step {step}" if step is not None else "")


def _cost(answer: Mapping[str, Any]) -> str | None:
    """The cost of the run and, where its machine also cost what was before the run, that of the machine, which counts.

    The limit is one of the machine: it ends the run.
    """
    machines, own = answer["spend_usd"], answer.get("run_usd")
    limit = None if answer["state"] in FINAL_STATES else answer.get("limit_usd")
    if own is None or machines - own < CENT:
        return cost_words(machines, limit)
    return f"${own:.2f}; the machine since it was rented: {cost_words(machines, limit)}"
