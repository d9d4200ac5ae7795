"""plan.json is written before a machine is touched, and never again. What became known later is in placement.json."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from deploy.runs import records
from tests.deploy.commands.test_remote import SLOW_STEPS, Box, any_box, box
from tests.deploy.conftest import Project, wait_until
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.support.files import below

__all__ = ["any_box", "box"]


def planned(home: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((home / "plan.json").read_text(encoding="utf-8"))
    return told


def nameless(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan without its time and the random name of its run."""
    moment = "-".join(plan["run_id"].rsplit("-", 3)[1:])
    told: dict[str, Any] = json.loads(json.dumps({**plan, "created": ""}).replace(moment, "NOW"))
    return told


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    assert one.keys() == other.keys()
    return {key for key in one if one[key] != other[key]}


def written_at(file: Path) -> int:
    return os.stat(file).st_ctime_ns


def test_a_dry_run_prints_the_file(project: Project) -> None:
    project.invoke("deploy")  # prepares the images of the try-out
    dry = project.json("train", "--dry-run", "--fraction", "0.5")
    done = project.json("train", "--fraction", "0.5")
    assert nameless(planned(project.path / "runs" / done["run_id"])) == nameless(dry)


def test_the_plan_is_older_than_everything_on_the_machine(any_box: Box) -> None:
    """A dry run looks at a host that is free to ask: it prints the plan and what `train` will find."""
    box = any_box
    dry = box.json("train", "--dry-run", "--fraction", "0.5")
    run_id = box.json("train", "--fraction", "0.5")["run_id"]
    home = box.project.path / "runs" / run_id
    assert written_at(home / "plan.json") < min(written_at(path) for path in below(box.root) if path.is_file())
    placement = json.loads((home / "placement.json").read_text(encoding="utf-8"))
    assert {"cores", "processes"} <= differing(nameless(planned(home)), nameless(dry)) <= placement.keys()
    assert not {key for key, value in placement.items() if key != "attempt" and value == planned(home)[key]}
    on_machine = planned(box.root / "runs" / run_id)
    assert records.carried_out(home.parent, run_id) == on_machine  # its supervisor reads one file
    assert not (box.root / "runs" / run_id / "placement.json").exists()


def test_a_run_that_is_restored_on_an_empty_machine_keeps_the_plan_of_its_attempt(box: Box, tmp_path: Path) -> None:
    images = tmp_path / "faces" / "images.npy"
    prepare(images, rows=64)
    run_id = box.json("train", "--data", str(images), "--detach", *SLOW_STEPS)["run_id"]
    far, home = box.root / "runs" / run_id, box.project.path / "runs" / run_id
    wait_until(lambda: (far / "checkpoints" / "epoch_000.json").exists())
    first = (home / "plan.json").read_bytes()
    box.json("stop")
    assert (home / "plan.json").read_bytes() == first
    shutil.rmtree(far)
    dry = box.json("train", "--resume", "auto", "--dry-run")
    again = box.project.invoke("train", "--on", "box", "--resume", "auto", "--detach").stdout
    assert "restored epoch_" in again
    plan = planned(home)
    assert plan["attempt"] == 2
    placement = json.loads((home / "placement.json").read_text(encoding="utf-8"))
    assert differing(nameless(plan), nameless(dry)) <= placement.keys()
    assert written_at(home / "plan.json") < min(written_at(path) for path in below(far) if path.is_file())
    assert records.carried_out(home.parent, run_id) == planned(far)
    assert records.carried_out(home.parent, run_id)["resume"] == "auto"
    box.json("stop")


def test_a_folder_of_an_earlier_version_has_all_of_it_in_the_plan(project: Project) -> None:
    """Its run can be looked at, evaluated, and continued."""
    run_id = project.json("train", "--detach", *SLOW_STEPS)["run_id"]
    far, home = project.path / ".sniperface" / "local" / "runs" / run_id, project.path / "runs" / run_id
    wait_until(lambda: (far / "checkpoints" / "epoch_000.json").exists())
    project.json("stop")
    (home / "placement.json").unlink()
    shutil.copy(far / "plan.json", home / "plan.json")  # as earlier versions left it
    assert project.invoke("exec", "--run", run_id, "--", "pwd").stdout.strip() == planned(home)["cwd"]
    assert project.json("train", "--resume", "auto", "--detach")["run_id"] == run_id
    project.json("stop")
