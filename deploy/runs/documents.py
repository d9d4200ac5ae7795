"""Build the documents that commands print and scripts rely on, from a run's record, its events and its status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deploy.border import loss_curve
from deploy.errors import command
from deploy.pod.base.folder import FINAL_STATES
from deploy.runs.job import Status
from deploy.runs.records import UNFINISHED, Record
from deploy.specs.estimate import Compared
from deploy.specs.plan import Plan

Document = dict[str, Any]
Events = Sequence[Mapping[str, Any]]
ROW = (
    *("run_id", "target", "state", "attempt", "created", "fraction", "backbone", "seconds", "commit", "reason"),
    *("spend_usd", "name"),
)
NEVER = float("-inf")  # a time before all others
NODE = ("node", "machine", "state", "heartbeat_age_s", "reason")


def of_run(
    record: Record,
    events: Events,
    checkpoint: Mapping[str, Any] | None,
    report: str | None = None,
    verdict: str | None = None,
) -> dict[str, Any]:
    """The answer of `train` and `stop`. `report`: its path on this computer; `verdict`: its sentence."""
    measured = {event.get("what"): event for event in events if event.get("event") == "eval"}
    return {
        "run_id": record.run_id,
        "state": record.state,
        "seconds": record.seconds,
        "fraction": record.fraction,
        "checkpoint": _some(checkpoint, "path", "sha256", "epoch", "step"),
        "eval": {what: _some(measured.get(what), "accuracy", "rank1") for what in ("pixels", "untrained", "trained")},
        "pseudo_ids": _pseudo_ids([event for event in events if event.get("event") == "mining"]),
        "report": report,
        "verdict": verdict,
        "reason": record.reason,
    }


def _pseudo_ids(mined: Events) -> dict[str, Any] | None:
    """The labelling that training used last. A refused labelling leaves the one before it, or none at all."""
    taken = [event for event in mined if event.get("accepted", True)]
    if mined and not taken:
        return {"count": 0, "coverage": 0.0, "purity": None}
    return _some(taken[-1] if taken else None, "count", "coverage", "purity")


def of_status(
    record: Record,
    seen: Status | None,
    events: Events,
    phases: Sequence[Compared] = (),
    report: str | None = None,
    note: str | None = None,
    limit_usd: float | None = None,
    run_usd: float | None = None,
) -> dict[str, Any]:
    """The answer of `status`: the machine's report, the app's estimate of the time left, and the run's phases.

    `phases`: expected and actual time and cost of a run that is over. `spend_usd` is what its machines have cost,
    `run_usd` what of it was not already paid when the run began.
    """
    began = (seen and seen.started) or NEVER  # estimates of an earlier attempt do not count
    reckoned = [
        event for event in events if event.get("seconds_left") is not None and event.get("time", NEVER) >= began
    ]
    return {
        "run_id": record.run_id,
        "target": record.target,
        "state": record.state,
        "attempt": record.attempt,
        "epoch": seen.epoch if seen else None,
        "step": seen.step if seen else None,
        "images_per_s": seen.images_per_s if seen else None,
        "seconds_left": reckoned[-1]["seconds_left"] if reckoned and record.state not in FINAL_STATES else None,
        "heartbeat_age_s": seen.heartbeat_age_s if seen else None,
        "spend_usd": record.spend_usd,
        "reason": record.reason,
        "report": report,
        "note": note,
        "phases": [asdict(phase) for phase in phases],
        "epochs": newest(events, "start", "epochs"),
        "loss": newest(events, "step", "loss"),
        "accuracy": newest(events, "trained", "accuracy"),
        "loss_curve": loss_curve(events, "epoch"),
        "gpus": [asdict(gpu) for gpu in seen.gpus] if seen else [],
        "limit_usd": limit_usd,
        "run_usd": run_usd,
    }


def of_node(number: int, machine: str, seen: Status | None) -> dict[str, Any]:
    """One of several machines that train a run. Without `seen` it is gone or does not answer, and counts as lost."""
    state, age, reason = (seen.state, seen.heartbeat_age_s, seen.reason) if seen else ("lost", None, None)
    return {"node": number, "machine": machine, "state": state, "heartbeat_age_s": age, "reason": reason}


def of_checkpoint(about: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of `fetch-checkpoint`. `chosen_by`: the measure of `--which best`, in one phrase."""
    return {key: about.get(key) for key in ("path", "sha256", "epoch", "step", "fraction", "chosen_by")}


def how_it_is(record: Record) -> str:
    """A run and its state in words."""
    return f"run {record.run_id} {record.state}" + (f": {record.reason}" if record.reason else "")


def row(record: Record, events: Events = (), note: str | None = None) -> dict[str, Any]:
    """A run in the list of `runs`. Its held-out accuracy is from the events that were downloaded."""
    own = {key: getattr(record, key) for key in ROW}
    return {**own, "accuracy": newest(events, "trained", "accuracy"), "note": note}


def newest(events: Events, kind: str, key: str) -> float | None:
    """The newest number of this kind of event. A machine writes events: what is no number is left out."""
    found = [event.get(key) for event in events if kind in (event.get("event"), event.get("what"))]
    numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers[-1] if numbers else None


def next_commands(record: Record) -> list[tuple[str, str]]:
    """Commands that apply to a run now, each with its purpose. A live run is its target's newest: no --run needed."""
    if record.state in FINAL_STATES:
        return [("continue it", resume(record))] if record.state in UNFINISHED else list(_after_success(record))
    live = [("see it live", command("attach" + on(record)))] if record.session == "tmux" else []
    return [
        *live,
        ("read its log", command("logs --follow" + on(record))),
        ("see its status", command("status" + on(record))),
        ("end it", command("stop" + on(record))),
    ]


def _after_success(record: Record) -> Iterator[tuple[str, str]]:
    run = f"{on(record)} --run {record.run_id}"
    if record.target != "local":
        yield "download its checkpoint", command("fetch-checkpoint" + run)
    yield "measure it", command("evaluate" + run)
    yield "export it as ONNX", command("export" + run)


def resume(record: Record) -> str:
    """The command that continues an unfinished run. It names the run, which need not be its target's newest."""
    return command(f"train --resume auto{on(record)} --run {record.run_id}")


def on(run: Record | Plan) -> str:
    return "" if run.target == "local" else f" --on {run.target}"


def _some(values: Mapping[str, Any] | None, *keys: str) -> dict[str, Any] | None:
    return {key: values.get(key) for key in keys} if values else None
