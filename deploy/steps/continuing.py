"""What a run starts from: an earlier run, whose own request is used again, or a checkpoint, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.errors import WrongUse
from deploy.runs import checkpoints
from deploy.runs.session import Reach, Reached
from deploy.shell import LocalShell
from deploy.specs.facts import Continuation
from deploy.specs.request import Request, contradictions
from deploy.ui.paths import near


@dataclass(frozen=True)
class Start:
    """What a run starts from. `request`: the earlier run's if one is continued, else the user's."""

    request: Request
    continues: Continuation | None = None
    checkpoint: Mapping[str, Any] | None = None  # the JSON beside it; None without one
    is_own: bool = False  # the checkpoint is the continued run's
    note: str | None = None  # for the user


def start_of(reach: Reach, request: Request) -> Start:
    """Look up what --resume means. Raises WrongUse without an unfinished run, and for a flag that contradicts it."""
    if request.resume == "none":
        return Start(request)
    if request.resume != "auto":
        path = Path(request.resume).absolute()
        return Start(replace(request, resume=str(path)), checkpoint=checkpoints.check_usable(path))
    found = reach.unfinished(request.run)
    if found is None:
        raise WrongUse(
            f"--resume auto: target '{reach.settings.target.name}' has no run that was stopped, failed, lost or "
            "expired; leave --resume out to start a new run"
        )
    last = next(reversed(checkpoints.whole(found.shell, found.folder)), None)
    again, continues = carry_on(found, request, from_its_own=last is not None)
    note = f"continuing run {found.record.run_id} ({found.record.state}), attempt {continues.attempt}"
    return Start(again, continues, last, last is not None, note)


def carry_on(found: Reached, request: Request, *, from_its_own: bool) -> tuple[Request, Continuation]:
    """The earlier run's own request, for the next attempt. Raises WrongUse for a flag that contradicts it."""
    record, plan = found.record, found.read_plan()
    lists = {key: tuple(plan["request"].get(key, ())) for key in ("overrides", "env", "gpus")}
    told = {**plan["request"], **lists, "given": frozenset()}
    # It may continue on more machines, or fewer, and on other ones.
    more: dict[str, Any] = {name: getattr(request, name) for name in ("nodes", "gpus") if name in request.given}
    if request.spot or request.no_spot:
        more |= {"spot": request.spot, "no_spot": request.no_spot}
    earlier = Request(**{**told, "resume": "auto", **more})
    for flag in contradictions(request, earlier):
        here = next(reversed(checkpoints.whole(LocalShell(), found.home)), None)
        start = (
            f"from its checkpoint: --resume {near(found.home.checkpoints / here['file'])}"
            if here
            else "with --resume none"
        )
        raise WrongUse(
            f"{flag} contradicts run {record.run_id}, which --resume auto would continue: leave it out, or start a "
            f"new run {start}"
        )
    # A run that began from the user's checkpoint, and has none of its own yet, begins from that one again.
    resume = "auto" if from_its_own or plan["resume"] == "none" else str(plan["resume"])
    return earlier, Continuation(record.run_id, record.attempt + 1, resume)
