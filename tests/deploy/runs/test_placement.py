"""A placement holds what a machine added to a plan, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from deploy.pod.base.folder import read_json, write_json
from deploy.runs import records
from deploy.specs.machine import Hardware, Place
from deploy.specs.plan import Plan, going_on, make
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
def test_only_what_differs_is_kept(tmp_path: Path, placed: Plan, keys: set[str]) -> None:
    records.save_placement(tmp_path, PLAN, placed)
    assert read_json(Path(records.home(tmp_path, PLAN.run_id).placement)).keys() == keys


def test_plan_and_placement_give_the_plan_of_the_machine(tmp_path: Path) -> None:
    placed = going_on(make(SETTINGS, Request(), SEEN, tryout=True))
    assert placed.place is not None
    write_json(Path(records.home(tmp_path, PLAN.run_id).plan), PLAN.to_json())
    records.save_placement(tmp_path, PLAN, placed)
    assert records.carried_out(tmp_path, PLAN.run_id) == placed.to_json()


@pytest.mark.parametrize("placement", [{}, {"attempt": 2, "cwd": "/other"}, {"cwd": "/other"}])
def test_a_placement_of_another_attempt_adds_nothing(tmp_path: Path, placement: dict[str, object]) -> None:
    """plan.json of the next attempt is written before its placement; an earlier version wrote none."""
    folder = records.home(tmp_path, PLAN.run_id)
    write_json(Path(folder.plan), PLAN.to_json())
    write_json(Path(folder.placement), placement)
    assert records.carried_out(tmp_path, PLAN.run_id) == PLAN.to_json()
