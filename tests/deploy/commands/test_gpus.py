"""`--gpus` and `--spot` against an emulated account: the plan, what is recorded, and what ends in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.pod.base.folder import read_json
from tests.deploy.commands.test_runpod_story import target
from tests.deploy.conftest import Project, wait_until
from tests.deploy.support.pods import account_of
from tests.support.emulators.runpod import Emulator

needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs /proc, to end the processes of a pod: run on Linux"
)


@pytest.mark.parametrize(
    ("line", "rents", "dollars"),
    [
        ("--gpus A40", "1 x NVIDIA A40 (--gpus A40)", "at $0.40 an hour"),
        ("--gpus A4500:2", "2 x NVIDIA RTX A4500 (--gpus A4500:2)", "at $0.50 an hour"),
        ("--gpus A40:2 --spot", "2 x NVIDIA A40 (--gpus A40:2)", "at $0.40 an hour (spot)"),
        ("--gpus A5000 --gpus A40", "1 x NVIDIA RTX A5000, else NVIDIA A40 (--gpus A5000,A40)", "at $0.27 an hour"),
    ],
)
def test_the_plan_shows_what_is_rented(
    project: Project, emulator: Emulator, line: str, rents: str, dollars: str
) -> None:
    said = " ".join(project.invoke("train", "--on", "runpod", *line.split(), "--dry-run").stdout.split())
    assert rents in said
    assert dollars in said
    assert emulator.account.pods == {}


WRONG = {
    "train --on runpod --gpus A41": "--gpus A41: the provider has no GPU of this name, did you mean --gpus",
    "train --on runpod --gpus A40:9": "--gpus A40:9: NVIDIA A40: the largest machine has 8: give --gpus A40:8",
    "train --on runpod --gpus A40:4": "--gpus A40:4 costs 1.60 USD an hour or more, above max_usd_per_hour: 1 in conf",
    "deploy --on runpod --gpus H100:x": "--gpus H100:x has no number of GPUs after the colon",
    "offers --gpus 2": "--gpus 2: the provider has no GPU of this name: give a name, and the number after a colon",
    "offers --gpus A40:0": "give a whole number from 1, such as --gpus A40:2",
    "offers --on local --gpus A40": "--gpus A40: target 'local' rents no GPUs: leave it out, or give --on",
    "deploy --on docker --gpus 2": "--gpus 2: target 'docker' rents no GPUs",
    "train --spot": "--spot: target 'local' rents no spot machines: leave it out, or give --on",
    "train --on runpod --spot --no-spot": "--spot and --no-spot contradict each other: give one of them",
    "train --on lambda --spot": "--spot: target 'lambda' rents no spot machines",
}


WRONG_BY_SDK = {
    "train --on runpod --spot --dry-run": "api: sdk rents no spot pods: set api: v2, or leave spot: true and",
    "deploy --on runpod --gpus A40:2 --spot": "api: sdk rents no spot pods",
    "train --on runpod --spot --sweep train.epochs=1,2 --yes": "api: sdk rents no spot pods",
    "train --on runpod --gpus H100": "--gpus H100: api: sdk knows only the GPUs of gpus: in conf/deploy/runpod.yaml",
    "offers --gpus 2": "(NVIDIA RTX A4500, NVIDIA RTX A5000, NVIDIA A40): add it, or set api: v2",
    "train --on runpod --gpus A40:9": "the largest machine has 8: give --gpus A40:8",
    "train --on runpod --gpus A40:4": "--gpus A40:4 costs 1.60 USD an hour or more, above max_usd_per_hour: 1",
}


@pytest.mark.parametrize("line", WRONG_BY_SDK)
def test_the_package_of_runpod_refuses_what_it_cannot(project: Project, emulator: Emulator, line: str) -> None:
    """Before a run is recorded or the plan is shown."""
    project.env["SNIPERFACE_API"] = "sdk"
    done = project.invoke(*line.split(), code=2)
    assert WRONG_BY_SDK[line] in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert emulator.account.pods == {}
    assert not list((project.path / "runs").glob("*"))


def test_the_package_of_runpod_rents_the_gpus_of_the_file(project: Project, emulator: Emulator) -> None:
    project.env["SNIPERFACE_API"] = "sdk"
    plan = project.json("train", "--on", "runpod", "--gpus", "A4500:2", "--dry-run")
    assert (plan["rents"], plan["usd_per_hour"]) == ([["NVIDIA RTX A4500"], 2], 0.5)
    rows = project.json("offers", "--gpus", "A40:2")
    assert [(row["gpu"], row["gpus"], row["usd_per_hour"]) for row in rows] == [("NVIDIA A40", 2, 0.8)]
    assert emulator.account.pods == {}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_ends_in_one_sentence(project: Project, emulator: Emulator, line: str) -> None:
    done = project.invoke(*line.split(), code=2)
    assert WRONG[line] in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert emulator.account.pods == {}
    assert not list((project.path / "runs").glob("*"))


@pytest.mark.usefixtures("emulator")
def test_offers_lists_only_these_gpus(project: Project) -> None:
    rows = project.json("offers", "--gpus", "A4500:2,A40:2,H100:2")
    assert [(row["gpu"], row["gpus"], row["usd_per_hour"], row["note"]) for row in rows] == [
        ("NVIDIA RTX A4500", 2, 0.5, None),
        ("NVIDIA A40", 2, 0.8, None),
        ("NVIDIA H100 80GB HBM3", 2, 5.38, "5.38 USD an hour is above max_usd_per_hour: 1"),
    ]


@pytest.fixture
def account(project: Project, tmp_path: Path) -> Iterator[Emulator]:
    """The account that target `far` rents from. Its pods are processes behind real SSH servers."""
    target(project, root=str(tmp_path / "there"))
    with account_of(project.env, tmp_path / "pods") as emulator:
        yield emulator


@needs_linux
def test_a_run_that_is_continued_rents_the_same_again(project: Project, account: Emulator) -> None:
    """No second machine is rented beside one with other GPUs. A lost run's flags are part of its request."""
    words = ("train", "--on", "far", "--gpus", "A4500:2", "--set", "train.step_s=0.5", "--set", "train.epochs=500")
    project.invoke(*words, "--yes", "--detach")
    [pod] = account.account.all()
    assert (pod.gpu, pod.gpu_count) == ("NVIDIA RTX A4500", 2)
    other = project.invoke("deploy", "--on", "far", "--gpus", "A40:2", code=2)
    assert "the machine of target 'far' has 2 x NVIDIA RTX A4500: leave --gpus out" in " ".join(other.stderr.split())
    assert account.account.all() == [pod]
    account.account.terminate(pod.id)
    wait_until(lambda: project.json("status", "--on", "far")["state"] == "lost")
    plan = project.json("train", "--on", "far", "--resume", "auto", "--dry-run")
    assert (plan["attempt"], plan["rents"], plan["usd_per_hour"]) == (2, [["NVIDIA RTX A4500"], 2], 0.5)
    root = read_json(project.path / "conf" / "deploy" / "far.yaml")["root"]
    target(project, root=root, spot=True)
    plan = project.json("train", "--on", "far", "--resume", "auto", "--gpus", "A40", "--no-spot", "--dry-run")
    assert (plan["spot"], plan["usd_per_hour"]) == (False, 0.4)
    target(project, root=root)
    plan = project.json("train", "--on", "far", "--resume", "auto", "--gpus", "A40", "--spot", "--dry-run")
    assert (plan["request"]["gpus"], plan["rents"], plan["spot"]) == (["A40"], [["NVIDIA A40"], 1], True)


@needs_linux
def test_all_runs_of_a_sweep_are_on_these_gpus(project: Project, account: Emulator) -> None:
    words = ("train", "--on", "far", "--gpus", "A4500", "--spot", "--sweep", "train.epochs=1,2", "--yes")
    told = project.json(*words)
    assert [run["state"] for run in told["runs"]] == ["succeeded", "succeeded"]
    [pod] = account.account.all()
    assert (pod.gpu, pod.spot) == ("NVIDIA RTX A4500", True)
    plans = [project.path / "runs" / run["run_id"] / "plan.json" for run in told["runs"]]
    assert [read_json(plan)["rents"] for plan in plans] == [[["NVIDIA RTX A4500"], 1]] * 2
