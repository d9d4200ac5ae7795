"""`compare` and the names of runs, as a user types them."""

from __future__ import annotations

import re
import shutil

from deploy.pod.base.folder import read_json, write_json
from tests.deploy.conftest import Project


def test_named_runs_are_compared_without_any_machine(project: Project) -> None:
    """Runs begin with their names. `compare` needs only the downloaded copies, and names settings that differ."""
    one = project.json("train", "--name", "one")["run_id"]
    two = project.json("train", "--name", "two", "--set", "train.steps=2", "--set", "backbone.width=2")["run_id"]
    assert (one.split("-")[0], two.split("-")[0]) == ("one", "two")
    shutil.rmtree(project.path / ".sniperface" / "local")
    told = project.json("compare", "two", "one")
    assert [run["run_id"] for run in told["runs"]] == [two, one]
    assert told["settings"]["train.steps"] == {two: 2, one: 3}
    assert "run.dir" not in told["settings"]
    first = told["runs"][0]
    assert (first["best_accuracy"], first["best_epoch"], first["images_per_s"]) == (0.9, 2, 100.0)
    assert [epoch for epoch, _ in first["loss"]] == [0, 1, 2]
    shown = project.invoke("compare", "one", "two").stdout
    assert f"what             {one}" in shown
    assert "90.0% (epoch 2)" in shown
    assert "train.steps" in shown[shown.index("Settings that differ") :]
    assert {run["name"] for run in project.json("runs", "--sort", "fraction")} == {"one", "two"}

    for run, usd in ((one, 1.0), (two, 1.5)):  # one after the other, on one warm machine
        record = project.path / "runs" / run / "run.json"
        write_json(record, {**read_json(record), "spend": {"box": usd}})
    assert [run["run_usd"] for run in project.json("compare", "one", "two")["runs"]] == [1.0, 0.5]
    assert re.search(r"cost +\$1\.00 +\$0\.50\n", project.invoke("compare", "one", "two").stdout)
    listed = project.json("runs", "--sort", "cost")
    assert [(run["run_id"], run["run_usd"], run["spend_usd"]) for run in listed] == [(one, 1.0, 1.0), (two, 0.5, 1.5)]

    (project.path / "runs" / one / "config.yaml").unlink()
    half = project.invoke("compare", "one", "two")
    assert f"the settings of {one} are not on this laptop" in half.stderr
    assert "Settings that differ" not in half.stdout
    assert "compare names run" in project.invoke("compare", one, "one", code=2).stderr
    assert "unknown run 'three': " in project.invoke("compare", "one", "three", code=2).stderr
    project.invoke("train", "--name", "one", "--detach")
    assert "compare one matches 2 runs" in project.invoke("compare", "one", "two", code=2).stderr
