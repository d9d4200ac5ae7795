"""A placement holds what a machine added to a plan, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from deploy.specs.machine import Hardware, Place
from deploy.specs.placement import placement_of, with_placement
from deploy.specs.plan import going_on, make
from deploy.specs.request import Request
from tests.deploy.specs.test_plan import FACTS, SETTINGS

PLAN = make(SETTINGS, Request(), FACTS, tryout=True)
SEEN = replace(FACTS, hardware=Hardware(gpus=0, cores=2), place=Place(1, "10.0.0.2", "eth0", "10.0.0.1", 29400))


@pytest.mark.parametrize(
    ("placed", "keys"),
    [
        (PLAN, {"attempt"}),
        (going_on(PLAN), {"attempt", "resume", "argv"}),
        (make(SETTINGS, Request(), replace(FACTS, snapshot="5eed"), tryout=True), {"attempt", "snapshot", "cwd"}),
        (
            make(SETTINGS, Request(), replace(FACTS, data_path=PurePosixPath("/ram/images.npy")), tryout=True),
            {"attempt", "data_path", "stage", "argv"},
        ),
    ],
)
def test_only_what_differs_is_kept(placed: object, keys: set[str]) -> None:
    assert placement_of(PLAN, placed).keys() == keys  # type: ignore[arg-type]


def test_plan_and_placement_give_the_plan_of_the_machine() -> None:
    placed = going_on(make(SETTINGS, Request(), SEEN, tryout=True))
    assert placed.place is not None
    assert with_placement(PLAN.to_json(), placement_of(PLAN, placed)) == placed.to_json()


@pytest.mark.parametrize("placement", [{}, {"attempt": 2, "cwd": "/other"}, {"cwd": "/other"}])
def test_a_placement_of_another_attempt_adds_nothing(placement: dict[str, object]) -> None:
    """plan.json of the next attempt is written before its placement; an earlier version wrote none."""
    assert with_placement(PLAN.to_json(), placement) == PLAN.to_json()
