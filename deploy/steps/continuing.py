"""Continue an earlier run: its own request again, and a refusal of flags that contradict it."""

from __future__ import annotations

from typing import Any

from deploy.errors import WrongUse
from deploy.runs import records
from deploy.runs.session import Reached
from deploy.specs.facts import Continuation
from deploy.specs.request import Request, contradictions


def carry_on(found: Reached, request: Request, *, from_its_own: bool) -> tuple[Request, Continuation]:
    """The earlier run's own request, for the next attempt. Raises WrongUse for a flag that contradicts it."""
    record = found.record
    plan = records.plan_of(found.settings.runs, record)
    lists = {key: tuple(plan["request"].get(key, ())) for key in ("overrides", "env", "gpus")}
    told = {**plan["request"], **lists, "given": frozenset()}
    # It may continue on more machines, or fewer, and on other ones.
    more: dict[str, Any] = {name: getattr(request, name) for name in ("nodes", "gpus") if name in request.given}
    if request.spot or request.no_spot:
        more |= {"spot": request.spot, "no_spot": request.no_spot}
    earlier = Request(**{**told, "resume": "auto", **more})
    for flag in contradictions(request, earlier):
        raise WrongUse(
            f"{flag} contradicts run {record.run_id}, which --resume auto would continue: leave it out, or start a "
            "new run with --resume none"
        )
    # A run that began from the user's checkpoint, and has none of its own yet, begins from that one again.
    resume = "auto" if from_its_own or plan["resume"] == "none" else str(plan["resume"])
    return earlier, Continuation(record.run_id, record.attempt + 1, resume)
