"""List the GPUs that a target's provider offers now, with price, memory, and whether this training fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.errors import NoMachine, WrongUse, command
from deploy.runs import session
from deploy.specs import memory
from deploy.specs.facts import DataFacts
from deploy.specs.machine import Card, Rental
from deploy.specs.request import Request
from deploy.specs.settings import Target
from deploy.steps import resolve

COLUMNS = ("gpu", "gpus", "memory_gib", "needed_gib", "usd_per_hour", "fits", "in_target", "data_centers", "note")


def offers(project: Path, request: Request) -> list[dict[str, Any]]:
    """GPUs that can be rented now, those that fit first, then by price. Also those that the target names, with why not.

    `fits` is None where the memory of this training is not known. Raises WrongUse for a target that rents nothing.
    Raises NoMachine if nothing is offered.
    """
    with session.target(project, request.target) as at:
        at.rent(request.renting, at_any_price=True)
        rentals = at.provider.offers()
        if rentals is None:
            name = at.settings.target.name
            raise WrongUse(
                f"target '{name}' rents no machines, so it has no offers: give --on with one that does, such as runpod"
            )
        found = [each for each in rentals if each.in_target or not (each.why_not or request.gpus)]
        if not found:
            raise NoMachine("the provider offers nothing now", next_command=command(f"offers --on {request.target}"))
        looked_up = resolve.gather(at, resolve.check(at, request))
        rows = [judged(at.settings.target, each, looked_up.config, looked_up.memory, looked_up.data) for each in found]
    return sorted(rows, key=lambda row: (row["note"] is not None, row["fits"] is False, row["usd_per_hour"]))


def judged(
    target: Target, rental: Rental, config: Mapping[str, Any], table: Mapping[str, Any], data: DataFacts
) -> dict[str, Any]:
    """One offer as a row, with the memory that a step of this configuration needs. `table`: conf/memory.json."""
    need: memory.Need | None = None
    notes = [rental.why_not]
    if rental.memory_gib:
        card = Card(rental.gpu, rental.count, int(rental.memory_gib * memory.GIB))
        gpus = memory.Gpus(None, card, target.device, target.nodes, target.processes)
        need = gpus.need(config, table, data.rows, data.classes)
    if need and need.is_too_much:
        batch = "train.batch.size={} train.batch.grad_accum_steps={}"
        notes.append("too little memory" + (f": fits with {batch.format(*need.fits)}" if need.fits else ""))
    return {
        "gpu": rental.gpu,
        "gpus": rental.count,
        "memory_gib": rental.memory_gib,
        "needed_gib": round(need.needed_bytes / memory.GIB, 1) if need and need.needed_bytes else None,
        "usd_per_hour": round(rental.usd_per_hour, 4),
        "fits": not need.is_too_much if need and need.needed_bytes else None,
        "in_target": rental.in_target,
        "data_centers": _some(rental.data_centers),
        "note": "; ".join(filter(None, notes)) or None,
    }


def _some(places: Sequence[str]) -> str | None:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "") or None
