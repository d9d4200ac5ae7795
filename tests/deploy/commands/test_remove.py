"""`rm` and `note`, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.runs import notes
from deploy.specs.names import slug
from tests.deploy.billing.test_bills import pod, target
from tests.deploy.conftest import Project, wait_until
from tests.support.emulators.runpod import KEY, Emulator


def _copy(project: Project, run_id: str, copy: str) -> Path:
    """Another run that is over, without the time to train it. Its machine's folder is gone."""
    folder = project.path / "runs" / copy
    shutil.copytree(project.path / "runs" / run_id, folder)
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**told, "run_id": copy, "run_dir": f"runs/{copy}"}), encoding="utf-8")
    return folder


def test_a_run_is_deleted_with_consent_and_nothing_behind_a_link_is(project: Project, tmp_path: Path) -> None:
    run_id = project.json("train")["run_id"]
    home, machine = project.path / "runs" / run_id, project.path / ".sniperface" / "local" / "runs" / run_id
    other = _copy(project, run_id, "other")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept", encoding="utf-8")
    os.symlink(outside, home / "mining", target_is_directory=True)

    refused = project.invoke("rm", run_id, code=2)
    assert "give --yes to agree" in refused.stderr
    assert "checkpoints that exist nowhere else: epoch_000.pt, epoch_001.pt, epoch_002.pt" in refused.stdout
    assert home.is_dir()
    assert "unknown run 'nobody': " in project.invoke("rm", run_id, "nobody", "--yes", code=2).stderr
    assert "rm needs a run" in project.invoke("rm", "--yes", code=2).stderr
    assert home.is_dir()

    [told] = project.json("rm", run_id, run_id, "--yes")
    assert (told["run_id"], len(told["only_checkpoints"]) > 0, told["bytes"] > 0) == (run_id, True, True)
    assert not home.exists()
    assert not machine.exists()
    assert (outside / "kept").read_text(encoding="utf-8") == "kept"
    assert [run["run_id"] for run in project.json("runs")] == ["other"]

    shutil.move(other, outside / "other")
    os.symlink(outside / "other", other, target_is_directory=True)
    assert "is a symbolic link" in project.invoke("rm", "other", "--yes", code=2).stderr
    assert (outside / "other" / "run.json").exists()


def test_a_run_that_is_alive_is_kept(project: Project) -> None:
    run_id = project.json("train", "--detach", "--set", "train.step_s=0.2", "--set", "train.epochs=500")["run_id"]
    wait_until(lambda: project.status_file(run_id).get("state") == "running")
    refused = project.invoke("rm", run_id, "--yes", code=2)
    assert "stop it before you delete it" in refused.stderr
    assert f"stop --run {run_id}" in refused.stderr
    project.invoke("stop")


def _record(project: Project, run_id: str, folder: str, **facts: object) -> Path:
    """A run that is over, as another command recorded it."""
    path = project.path / "runs" / folder / "run.json"
    path.parent.mkdir(parents=True)
    record = {
        "run_id": run_id, "target": "local", "provider": "local", "state": "succeeded", "attempt": 1,
        "created": "2026-11-28T10:11:12", "commit": None, "fraction": 1.0, "backbone": "tiny",
        "run_dir": f"runs/{folder}", "machine": "localhost", **facts,
    }  # fmt: skip
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_a_run_whose_machine_costs_money_is_kept(project: Project, emulator: Emulator) -> None:
    """If the account does not answer, a run that has cost money is kept too. It is deleted once the machine is gone."""
    target(project)
    machine = f"sniperface-{slug(project.path.name)}-runpod-r1"
    made = pod(emulator, machine)
    kept = _record(project, "r1", "r1", target="runpod", provider="runpod", machine=machine, spend={machine: 1.5})
    refused = project.invoke("rm", "r1", "--yes", code=2).stderr
    assert f"the machine of run r1, {machine}, still costs $" in refused
    assert "down --run r1" in refused
    project.env["RUNPOD_API_KEY"] = ""
    assert "may still cost money" in project.invoke("rm", "r1", "--yes", code=2).stderr
    assert kept.exists()
    project.env["RUNPOD_API_KEY"] = KEY
    emulator.account.pods.pop(made.id)
    project.invoke("rm", "r1", "--yes")
    assert not kept.parent.exists()


def test_a_run_of_a_target_that_is_gone_is_deleted_unless_it_cost_money(project: Project) -> None:
    free, paid = _record(project, "free", "free", target="gone"), _record(project, "paid", "paid", target="gone")
    told = json.loads(paid.read_text(encoding="utf-8"))
    paid.write_text(json.dumps({**told, "spend": {"localhost": 0.5}}), encoding="utf-8")
    assert "target 'gone' no longer exists" in project.invoke("rm", "free", "--yes").stdout
    assert "unknown target 'gone'" in project.invoke("rm", "paid", "--yes", code=2).stderr
    assert (free.exists(), paid.exists()) == (False, True)


def test_an_id_that_leads_out_of_the_runs_deletes_nothing(project: Project) -> None:
    _record(project, "../deploy", "sent")
    assert "the file name '../deploy' has a separator" in project.invoke("rm", "../deploy", "--yes", code=1).stderr
    assert (project.path / "deploy" / "errors.py").exists()


def test_a_note_is_shown_wherever_the_run_is(project: Project) -> None:
    run_id = project.json("train")["run_id"]
    _copy(project, run_id, "other")
    assert project.json("note", run_id, "lower", "rate")["note"] == "lower rate"
    assert project.json("note", run_id)["note"] == "lower rate"
    assert {run["run_id"]: run["note"] for run in project.json("runs")} == {run_id: "lower rate", "other": None}
    assert project.json("status", "--run", run_id)["note"] == "lower rate"
    assert "lower rate" in project.invoke("status", "--run", run_id).stdout
    assert "lower rate" in project.invoke("compare", run_id, "other").stdout
    assert "the note has 201 characters: give at most 200" in project.invoke("note", run_id, "x" * 201, code=2).stderr
    assert "note needs a run and a text" in project.invoke("note", code=2).stderr
    assert project.json("note", run_id, "")["note"] is None
    assert "note" not in project.invoke("status", "--run", run_id).stdout


def test_a_note_of_any_bytes_is_one_line_that_is_safe_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    assert notes.write(tmp_path, "r", "two\nlines \x1b[31mred") == "two lines \\x1b[31mred"
    assert notes.read(tmp_path, "r") == "two lines \\x1b[31mred"
    with pytest.raises(WrongUse, match="201 characters"):
        notes.write(tmp_path, "r", "x" * 201)
    assert notes.read(tmp_path, "r") == "two lines \\x1b[31mred"
    (tmp_path / "r" / "note.txt").write_bytes(b"\xff\x1b]0;x\x07" + b"y" * 100_000)
    told = notes.read(tmp_path, "r")
    assert told is not None
    assert len(told) <= notes.NOTE_CHARACTERS
    assert told.isprintable()
