"""PURE: what became known of a plan after it was made. It lies beside the plan, which never changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.specs.plan import Plan

ATTEMPT = "attempt"


def placement_of(plan: Plan, placed: Plan) -> dict[str, Any]:
    """Return what the machine added to a plan: the keys with another value in the `placed` plan, and the attempt."""
    before, after = plan.to_json(), placed.to_json()
    return {key: value for key, value in after.items() if key == ATTEMPT or value != before[key]}


def with_placement(plan: Mapping[str, Any], placement: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan as it was carried out. The placement of another attempt, or of none, adds nothing."""
    return {**plan, **(placement if placement.get(ATTEMPT) == plan.get(ATTEMPT) else {})}
