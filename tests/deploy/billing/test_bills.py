"""`invoke ps` lists what costs money: the real command with an emulated account that has pods and network volumes."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from deploy.billing.bills import Bill, limits_of, past_ceiling
from deploy.pod.base.folder import write_json
from deploy.pod.base.limits import Limits
from deploy.providers.runpod import prices
from deploy.runs.records import Record
from deploy.runs.situation import Situation
from deploy.specs.names import project_word, slug
from tests.deploy.conftest import Project
from tests.support.emulators.runpod import Emulator
from tests.support.emulators.runpod_state import Pod

FACES = {"name": "faces", "size": 200, "dataCenter": "EU-RO-1", "type": "STANDARD"}
BILL = Bill(machine="m", target="runpod", usd_per_hour=2.0, hours=5.0, usd=10.0, orphan=True)
FAST = {"name": "somebody's", "size": 100, "dataCenter": "US-KS-2", "type": "HIGH_PERFORMANCE"}


def target(project: Project, name: str = "runpod", **values: object) -> None:
    told = {
        "provider": "runpod", "image": "me/sniperface:1", "gpus": ["NVIDIA RTX A4500"], "root": "/workspace/x",
        **values,
    }  # fmt: skip
    (project.path / "conf" / "deploy" / f"{name}.yaml").write_text(json.dumps(told), encoding="utf-8")


def pod(emulator: Emulator, name: str, **about: Any) -> Pod:
    """Create a pod that is `hours` old (1 if left out). The other keywords set its attributes."""
    made = emulator.account.create(
        name=name, image="me/sniperface:1", gpu="NVIDIA RTX A4500", gpu_count=2, cloud="SECURE", data_centers=[],
        disk=40, ports=["22/tcp"], env={},
    )  # fmt: skip
    made.created = made.booted = emulator.clock.time() - about.pop("hours", 1) * 3600
    vars(made).update(about)
    return made


def bills(project: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = project.json("ps")
    return found


@pytest.mark.parametrize("api", ["v2", "sdk"])
def test_volumes_bill_beside_machines(project: Project, emulator: Emulator, api: str) -> None:
    """Each volume lists the targets that name it. A volume that no target names is an orphan; orphans come first."""
    target(project, api=api, volume="vol1")
    target(project, "evening", api=api, volume="vol1")
    emulator.account.volumes |= {"vol1": FACES, "vol2": FAST}
    of_older_version = f"sniperface-{slug(project.path.name)}-runpod-r0"
    for name in (f"sniperface-{project_word(project.path.name)}-runpod-r1", of_older_version, "somebody-elses"):
        pod(emulator, name)
    *orphans, mine = bills(project)
    assert sorted(each["machine"] or each["volume"] for each in orphans) == [
        "sniperface-it_s99c88-runpod-r1", of_older_version, "somebody's (vol2, US-KS-2)"
    ]  # fmt: skip
    assert (mine["volume"], mine["target"], mine["gb"]) == ("faces (vol1, EU-RO-1)", "evening, runpod", 200)
    assert (mine["usd_per_month"], mine["usd_per_hour"]) == (14.0, 0.0192)
    assert (mine["machine"], mine["orphan"], mine["hours"], mine["usd"]) == (None, False, None, None)
    strange = next(each for each in orphans if each["volume"])
    assert strange["orphan"]
    assert strange["note"].startswith("no target names it")
    assert strange["usd_per_month"] == (14.0 if api == "v2" else 7.0)
    assert ("twice as much for a fast volume" in strange["note"]) is (api == "sdk")
    machine = next(each for each in orphans if each["machine"])
    assert (machine["target"], machine["usd_per_hour"], machine["volume"]) == ("runpod", 0.5, None)
    if api == "v2":
        assert machine["usd"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("api", ["v2", "sdk"])
def test_a_stopped_pod_bills_for_its_disk(project: Project, emulator: Emulator, api: str) -> None:
    """The GPUs of a stopped pod cost nothing. Its cost so far is unknown: no API reports when it was stopped."""
    target(project, api=api)
    family = f"sniperface-{project_word(project.path.name)}-runpod"
    pod(emulator, f"{family}-r1", stopped=True, mounts={"persistent": {"size": 100, "path": "/workspace"}})
    pod(emulator, f"{family}-r2", stopped=True)
    with_disk, without = bills(project)
    assert (with_disk["usd_per_hour"], without["usd_per_hour"]) == (0.0274, 0.0)
    assert with_disk["usd"] is without["usd"] is None
    assert with_disk["note"] == "stopped, and its disk is kept; no run of this laptop is on it"
    said = project.invoke("logs", "--on", "runpod", code=2).stderr  # without a run, the command ends here
    assert "there is no run" in said


def test_a_machine_that_is_seconds_ahead_of_this_clock_costs_nothing_yet(project: Project, emulator: Emulator) -> None:
    """Two clocks agree to half a minute: the table must not show -0.00 dollars."""
    target(project)
    pod(emulator, f"sniperface-{project_word(project.path.name)}-runpod-r1", hours=-25 / 3600)
    [bill] = bills(project)
    assert (str(bill["hours"]), str(bill["usd"])) == ("0.0", "0.0")


def test_max_usd_is_of_all_machines_of_a_run(project: Project, emulator: Emulator) -> None:
    """Two machines that each cost two thirds of max_usd are past it together. The guard of each computes the same."""
    target(project)
    first = f"sniperface-{project_word(project.path.name)}-runpod-a"
    pods = [pod(emulator, name, hours=3) for name in (first, f"{first}-node1")]
    run = Record(
        "a", "runpod", "runpod", "running", 1, "2026", None, 1.0, "x", "/x/a", first, others={pods[1].name: ""}
    )
    folder = project.path / "runs" / "a"
    write_json(folder / "run.json", asdict(run))
    most = round(bills(project)[0]["usd"] * 1.5, 2)
    target(project, max_usd=most)
    for nodes, is_past in ((1, False), (2, True)):
        write_json(folder / "plan.json", {"nodes": nodes, "limits": {"max_usd": most}})
        assert [("past max_usd" in (bill["note"] or "")) for bill in bills(project)] == [is_past, is_past]


def test_an_account_that_two_targets_share_bills_once(project: Project, emulator: Emulator) -> None:
    """The account is queried once, with the API that reports more: v2 reports the creation time, sdk does not."""
    target(project, "a", api="sdk")
    target(project, "b", api="v2")
    (project.path / "conf" / "deploy" / "runpod.yaml").unlink()
    pod(emulator, f"sniperface-{project_word(project.path.name)}-b-r1", hours=2)
    (machine,) = bills(project)
    assert (machine["hours"], machine["target"]) == (pytest.approx(2, abs=0.01), "b")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_an_account_that_does_not_answer_is_named(project: Project, emulator: Emulator, flags: tuple[str, ...]) -> None:
    """An empty list does not mean that nothing bills: stderr says so, and a script sees exit code 1."""
    target(project)
    emulator.keys = {"another"}
    done = project.invoke("ps", *flags, code=1)
    assert "error: runpod could not list everything that it bills (RunPod does not accept the API key" in done.stderr
    assert "\nnext: " in done.stderr
    assert json.loads(done.stdout) == [] if flags else "none yet" in done.stdout


@pytest.mark.parametrize("flag", ["--all", "--orphans"])
def test_down_does_not_pass_over_an_account_that_does_not_answer(
    project: Project, emulator: Emulator, flag: str
) -> None:
    """A script, or a user before a holiday, would take "nothing to release" for an answer."""
    target(project)
    pod(emulator, f"sniperface-{project_word(project.path.name)}-runpod-r1")
    emulator.keys = {"another"}
    done = project.invoke("down", flag, code=1)
    assert "runpod could not be asked, so its machines may still bill (RunPod does not accept" in done.stderr
    assert "nothing to release" not in done.stdout


@pytest.mark.parametrize("words", [("ps",), ("down", "--all")])
def test_a_target_whose_file_is_damaged_is_named(project: Project, emulator: Emulator, words: tuple[str, ...]) -> None:
    """Nobody asks its account, so the list may lack what bills. The machines of other accounts are still released."""
    target(project)
    mine = pod(emulator, f"sniperface-{project_word(project.path.name)}-runpod-r1")
    (project.path / "conf" / "deploy" / "mine.yaml").write_text("provider: lambda\n  root: x\n", encoding="utf-8")
    done = project.invoke(*words, code=1)
    assert "target 'mine' is left out, so its machines may still bill" in done.stderr
    assert mine.name in done.stdout
    assert bool(emulator.account.pods) == (words == ("ps",))


def test_a_target_that_was_never_used_needs_no_account_and_no_engine(project: Project) -> None:
    target(project)
    project.env["RUNPOD_API_KEY"] = ""
    project.env["HOME"] = str(project.path)
    (project.path / "conf" / "deploy" / "engine.yaml").write_text(
        "provider: docker\nroot: /w\ndocker_host: unix:///there/is/none.sock\n", encoding="utf-8"
    )
    assert project.invoke("ps").stderr == ""


def test_what_people_see(project: Project, emulator: Emulator) -> None:
    target(project, volume="vol1")
    emulator.account.volumes["vol1"] = FACES
    shown = project.invoke("ps").stdout.splitlines()
    assert shown[0] == "Machines and volumes"
    assert re.split(r"\s{2,}", shown[1].strip()) == ["volume", "target", "gb", "usd per hour", "usd per month"]
    assert "faces (vol1, EU-RO-1)" in shown[2]


def test_prices_of_storage() -> None:
    """Prices match RunPod's documentation: the first terabyte, storage above it, fast volumes, and a stopped disk."""
    assert prices.network_volume(50, "STANDARD") == 3.5
    assert prices.network_volume(1000, "STANDARD") == 70.0
    assert prices.network_volume(4000, "STANDARD") == 220.0
    assert prices.network_volume(50, "HIGH_PERFORMANCE") == 7.0
    assert prices.stopped_disk(730) == pytest.approx(0.2)


def test_the_list_of_volumes_is_in_the_contract(emulator: Emulator, project: Project) -> None:
    """The requests succeed. The fixture compares requests and answers with RunPod's specification."""
    target(project)
    emulator.account.volumes |= {"vol1": FACES}
    bills(project)
    asked = {(each.what, each.status) for each in emulator.exchanges}
    assert {("GET /v2/pods", 200), ("GET /v2/network-volumes", 200)} <= asked
    assert {status for _, status in asked} == {200}


def test_which_ceiling_a_machine_is_past() -> None:
    """Laptop and guard ask the same function. Here nothing is reserved, and a machine of unknown age is within all."""
    hard = Limits(max_usd=10, usd_per_hour=2, grace_s=0, sync_limit_s=0)
    for limits, hours, slack_min, past in (
        (hard, 5.0, 0, "past max_usd: 10"),
        (hard, 4.999, 0, None),
        (hard, 5.0, 15, None),
        (hard, 5.25, 15, "past max_usd: 10"),
        (hard, None, 0, None),
        (replace(hard, usd_per_hour=4), 2.5, 0, "past max_usd: 10"),  # two machines
        (replace(hard, usd_per_hour=0), 1e6, 0, None),  # stopped: its cost is unknown
        (replace(hard, max_usd=None, max_hours=3), 3.0, 0, "past max_hours: 3"),
        (replace(hard, max_hours=3), 5.0, 0, "past max_usd: 10"),
        (replace(hard, max_hours=3), 4.0, 0, "past max_hours: 3"),
        (Limits(idle_min=1, stall_min=1), 1e6, 0, None),
    ):
        assert past_ceiling(replace(BILL, hours=hours), limits, slack_min=slack_min) == past, (limits, hours)


def test_the_laxest_limit_counts(project: Project) -> None:
    """Plans of the machine's runs and the target's file. No limit in one of them is no limit."""
    target(project, max_usd=3, max_hours=2, idle_min=5)
    run = Record("a", "runpod", "runpod", "running", 1, "2026", None, 1.0, "x", "/x/a", "m")
    told = {"max_usd": 4, "max_hours": 1, "idle_min": None}
    write_json(project.path / "runs" / "a" / "plan.json", {"nodes": 2, "limits": told})
    unreserved = Limits(usd_per_hour=4, grace_s=0, sync_limit_s=0)
    assert limits_of(Situation(project.path), BILL, [run]) == replace(unreserved, max_usd=4, max_hours=2)
    stopped = replace(BILL, usd=None)
    assert limits_of(Situation(project.path), stopped, []) == replace(
        unreserved, usd_per_hour=0, max_usd=3, max_hours=2, idle_min=5
    )
