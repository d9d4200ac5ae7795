"""What a command reads once: records with its own changes, and which listed machines need no second question."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.pod.base.folder import write_json
from deploy.runs import records
from deploy.runs.records import Record
from deploy.runs.situation import Situation
from deploy.specs.machine import Address, Machine

POD = Address("1.2.3.4", 22, "root", host_keys=("ssh-ed25519 AAAA",))


def record(run_id: str, target: str, created: str) -> Record:
    return Record(run_id, target, "runpod", "running", 1, created, None, 1.0, "x", f"/x/{run_id}", f"m-{run_id}")


@pytest.fixture
def situation(tmp_path: Path) -> Situation:
    for each in (record("a", "far", "2026-01-01"), record("b", "near", "2026-01-02"), record("c", "far", "2026-01-03")):
        write_json(tmp_path / "runs" / each.run_id / "run.json", asdict(each))
    return Situation(tmp_path)


def test_a_change_of_this_command_is_known_without_another_read(situation: Situation) -> None:
    assert [each.run_id for each in situation.records] == ["c", "b", "a"]
    changed = records.update(situation.project / "runs", situation.records[0], state="stopped")
    assert situation.note(changed) is changed
    assert [(each.run_id, each.state) for each in situation.of("far")] == [("c", "stopped"), ("a", "running")]
    records.update(situation.project / "runs", situation.records[2], state="failed")  # by another command
    assert [each.state for each in situation.of("far")] == ["stopped", "running"]
    assert [each.state for each in Situation(situation.project).of("far")] == ["stopped", "failed"]


def test_a_change_before_the_first_read_is_read(situation: Situation) -> None:
    records.update(situation.project / "runs", record("a", "far", "2026-01-01"), state="lost")
    situation.note(record("a", "far", "2026-01-01"))
    assert situation.records[-1].state == "lost"


def test_a_target_whose_file_cannot_be_loaded_hides_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "deploy"
    folder.mkdir(parents=True)
    for name, text in (
        ("a", "provider: local\nroot: r\n"),
        ("b", "provider: none\n"),
        ("c", "provider: local\nroot: r\n"),
    ):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    assert [each.target.name for each in Situation(tmp_path).targets] == ["a", "c"]


@pytest.mark.parametrize(
    ("address", "more", "expected"),
    [
        (POD, {}, True),
        (replace(POD, host_keys=(), first_use=True), {}, True),
        (replace(POD, host_keys=()), {}, False),  # its key must be asked for
        (replace(POD, host=""), {}, False),  # it is starting
        (replace(POD, port=None), {}, False),
        (POD, {"is_stopped": True}, False),
        (None, {}, False),
    ],
)
def test_a_listed_machine_that_lacks_something_is_looked_up(
    address: Address | None, more: dict[str, Any], expected: bool
) -> None:
    assert Machine("m", PurePosixPath("/x"), "python", address=address, **more).can_be_reached is expected
