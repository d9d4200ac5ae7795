"""Continue an earlier run: its own request again, and a refusal of flags that contradict it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deploy.errors import WrongUse
from deploy.runs import records as runs
from deploy.runs.session import Reached
from deploy.specs.plan import Continuation
from deploy.specs.request import Request


def carry_on(found: Reached, request: Request, *, from_its_own: bool) -> tuple[Request, Continuation]:
    """The earlier run's own request, for the next attempt. Raises WrongUse for a flag that contradicts it."""
    record = found.record
    plan = runs.plan_of(found.settings.runs, record)
    lists = {key: tuple(plan["request"].get(key, ())) for key in ("overrides", "env")}
    told = {**plan["request"], **lists, "given": frozenset()}
    more = {"nodes": request.nodes} if "nodes" in request.given else {}  # it may continue on more machines, or fewer
    earlier = Request(**{**told, "resume": "auto", **more})
    for flag in _contradictions(request, earlier):
        raise WrongUse(
            f"{flag} contradicts run {record.run_id}, which --resume auto would continue: leave it out, or start a "
            "new run with --resume none"
        )
    # A run that began from the user's checkpoint, and has none of its own yet, begins from that one again.
    resume = "auto" if from_its_own or plan["resume"] == "none" else str(plan["resume"])
    return earlier, Continuation(record.run_id, record.attempt + 1, resume)


def _contradictions(request: Request, earlier: Request) -> Iterator[str]:
    if "fraction" in request.given and request.fraction != earlier.fraction:
        yield f"--fraction {request.fraction:g}"
    if "labels" in request.given and request.labels != earlier.labels:
        yield f"--labels {request.labels}"
    if "pack" in request.given and request.pack != earlier.pack:
        yield f"--pack {request.pack}"
    if "name" in request.given and request.name != earlier.name:
        yield f"--name {request.name}"
    if "recipe" in request.given and request.recipe != earlier.recipe:
        yield f"--recipe {request.recipe}"
    if "data" in request.given and request.data != earlier.data and not _is_same_file(request.data, earlier.data):
        yield f"--data {request.data}"
    yield from (f"--env {item}" for item in request.env if item not in earlier.env)
    yield from (f"--set {item}" for item in request.overrides if item not in earlier.overrides)


def _is_same_file(one: str | None, other: str | None) -> bool:
    return str(Path(one or "").absolute()) == other
