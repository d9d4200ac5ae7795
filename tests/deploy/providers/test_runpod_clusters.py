"""Several machines are the pods of one Instant Cluster. The emulator injects faults of pods and of clusters."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.errors import NoMachine, StepFailed, WrongUse
from deploy.pod.base import processes
from deploy.pod.base.folder import Root, read_json
from deploy.pod.base.limits import parse
from deploy.runs import watchdog
from deploy.shell import LocalShell
from deploy.specs.machine import Machine, node_name
from deploy.specs.settings import RunPod, Settings, Target
from tests.deploy.conftest import SOURCE, wait_until
from tests.support.emulators.clock import START
from tests.support.emulators.rig import (
    GPUS,
    ROOT,
    Rig,
    breaches,
    ctrl_c_while_it_is_made,
    ctrl_c_while_it_starts,
    killed,
)
from tests.support.emulators.runpod import KEY
from tests.support.emulators.runpod_state import Cluster

CREATE = "^POST /v2/clusters$"


@pytest.fixture
def boot_s() -> float:
    return 30


def cluster_of(rig: Rig, name: str = "") -> Cluster:
    """The emulator's record of a cluster."""
    wanted = name or rig.spec().name
    return next(each for each in rig.emulator.account.all_clusters() if each.name == wanted)


def created(rig: Rig) -> int:
    """The number of requests for a cluster, successful or not."""
    return rig.emulator.counts()["POST /v2/clusters"]


def hosts_keys(machine: Machine) -> tuple[str, ...]:
    assert machine.address
    return machine.address.host_keys


# Created, found, listed, released


def test_the_pods_of_a_cluster_are_the_machines(v2: Rig) -> None:
    machines = v2.acquire_all(3, gpu_count=2, disk_gib=60, data_centers=("US-KS-2",))
    cluster = cluster_of(v2)
    assert [machine.name for machine in machines] == [node_name(v2.spec().name, node) for node in range(3)]
    assert [machine.id for machine in machines] == [pod.id for pod in cluster.pods]
    assert {machine.group for machine in machines} == {cluster.id}
    assert [machine.usd_per_hour for machine in machines] == [0.5] * 3
    assert [hosts_keys(machine) for machine in machines] == [(pod.machine.host_key(),) for pod in cluster.pods]  # type: ignore[union-attr]
    assert len({machine.address for machine in machines}) == 3
    about = (cluster.nodes, cluster.gpu, cluster.gpus_each, cluster.data_center, cluster.type)
    assert about == (3, "NVIDIA RTX A4500", 2, "US-KS-2", "TRAINING")
    assert {(pod.image, tuple(pod.ports), pod.disk) for pod in cluster.pods} == {("me/sniperface:1", ("22/tcp",), 60)}
    assert all(pod.env["PUBLIC_KEY"].startswith("ssh-ed25519 AAAA") for pod in cluster.pods)
    assert created(v2) == 1


def test_a_warm_cluster_is_found_again(v2: Rig) -> None:
    first = v2.acquire_all()
    again = v2.acquire_all(run="r2")
    assert again == first
    assert created(v2) == 1
    (alone,) = [v2.provider().acquire(v2.spec("r3", 1, 2))]  # by a process that did not request node 0
    assert alone == first[1]


def test_a_cluster_of_another_size_is_left_as_it_is(v2: Rig) -> None:
    v2.acquire_all(3)
    machines = v2.acquire_all(2, run="r2")
    assert v2.emulator.names == [v2.spec("r1").name, v2.spec("r2").name]
    assert {machine.group for machine in machines} == {cluster_of(v2, v2.spec("r2").name).id}
    assert any("unchanged: the run needs 2 machines" in said for said in v2.said)


def test_ranks_that_come_late_are_waited_for(v2: Rig) -> None:
    v2.emulator.next_cluster(ranks_after_s=100)
    machines = v2.acquire_all()
    assert v2.clock.now() >= 100
    assert [machine.id for machine in machines] == [pod.id for pod in cluster_of(v2).pods]
    v2.provider().release(machines[0])
    v2.emulator.next_cluster(ranks_after_s=9999)
    with pytest.raises(NoMachine, match=r"did not have its 2 pods within wait_min: 2 \(ranks: none, none\)"):
        v2.acquire_all(wait_min=2)
    assert v2.emulator.names == []


def test_each_machine_is_found_by_its_name(v2: Rig) -> None:
    machines = v2.acquire_all()
    provider = v2.provider()
    assert [provider.find(machine.name) for machine in machines] == machines
    assert provider.find(node_name(v2.spec().name, 2)) is None
    assert provider.find(v2.spec("r2").name) is None
    pods = cluster_of(v2).pods
    v2.emulator.account.restart(pods[1])
    v2.clock.sleep(60)
    moved = provider.find(machines[1].name)
    assert moved
    assert moved.address != machines[1].address
    assert hosts_keys(moved) == (pods[1].machine.host_key(),)  # type: ignore[union-attr]
    pods[1].stopped = True
    assert provider.find(machines[1].name) is None
    assert provider.find(machines[0].name) == machines[0]


def test_list_has_each_machine_once_with_its_price(v2: Rig) -> None:
    machines = v2.acquire_all()
    alone = v2.acquire("r2")
    listed = v2.provider().list()
    assert sorted(listed, key=lambda each: each.name) == sorted([*machines, alone], key=lambda each: each.name)
    assert [each.usd_per_hour for each in listed] == [0.25] * 3
    assert all(each.created and each.created >= START for each in listed)


def test_list_shows_a_cluster_that_has_no_pods_or_ranks_yet(v2: Rig) -> None:
    machines = v2.acquire_all()
    cluster = cluster_of(v2)
    cluster.ranks = float("inf")
    assert [each.name for each in v2.provider().list()] == [machine.name for machine in machines]
    for pod in [*cluster.pods]:
        v2.emulator.account._end(pod)
    (empty,) = v2.provider().list()
    assert (empty.name, empty.id, empty.group) == (v2.spec().name, "", cluster.id)
    assert list(v2.provider().log(empty)) == []
    v2.provider().release(empty)
    assert v2.emulator.names == []


def test_pods_whose_cluster_is_not_in_the_other_list_yet_have_their_names(v2: Rig) -> None:
    """A machine with another name would count as an orphan, and its release would end the cluster."""
    machines = v2.acquire_all()
    cluster = cluster_of(v2)
    cluster.appears = float("inf")
    assert v2.provider().list() == machines
    assert v2.provider().find(machines[1].name) == machines[1]
    del v2.emulator.account.clusters[cluster.id]  # its pods exist and bill
    assert [each.name for each in v2.provider().list()] == [pod.name for pod in cluster.pods]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_releasing_one_machine_releases_all_of_them(v2: Rig, order: tuple[int, int]) -> None:
    machines = v2.acquire_all()
    v2.provider().release(machines[order[0]])
    assert v2.emulator.names == []
    assert v2.emulator.account.pods == {}
    assert len(v2.emulator.account.ended) == 2
    assert v2.intents() == []
    assert list((v2.project / ".sniperface" / "pods").glob("*.json")) == []
    v2.provider().release(machines[order[1]])
    assert "DELETE /v2/pods" not in " ".join(v2.emulator.counts())


def test_release_by_name_ends_the_cluster(v2: Rig) -> None:
    machines = v2.acquire_all()
    v2.provider().release(dataclasses.replace(machines[1], id="", group=None))
    assert v2.emulator.names == []


def test_a_cluster_that_cannot_be_given_back_is_named(v2: Rig) -> None:
    machines = v2.acquire_all()
    v2.emulator.fail("502", "^DELETE", times=99)
    with pytest.raises(StepFailed, match=f"cluster {machines[0].group}.*still bills") as caught:
        v2.provider().release(machines[1])
    assert caught.value.next_command == "terminate it at https://console.runpod.io/cluster"
    assert v2.intents() == [v2.spec().name]


# One machine or several


def test_a_single_machine_is_never_one_of_a_cluster(v2: Rig) -> None:
    """The pods of a cluster answer, and their names belong to the same family."""
    machines = v2.acquire_all()
    assert all(pod.name.startswith(v2.spec().family) for pod in cluster_of(v2).pods)
    alone = v2.acquire("r2")
    assert alone.group is None
    assert alone.id not in {machine.id for machine in machines}
    assert v2.emulator.names == [v2.spec("r2").name, v2.spec("r1").name]
    v2.provider().release(alone)
    assert v2.emulator.names == [v2.spec("r1").name]


def test_several_machines_are_never_a_pod_that_is_alone(v2: Rig) -> None:
    alone = v2.acquire()
    machines = v2.acquire_all(run="r2")
    assert alone.id not in {machine.id for machine in machines}
    assert len(v2.emulator.names) == 2


def test_the_pod_of_a_cluster_cannot_be_ended_alone(v2: Rig) -> None:
    """The specification says so, and our decisions about releases depend on it."""
    machines = v2.acquire_all()
    url = f"{v2.emulator.url}/v2/pods/{machines[1].id}"
    assert requests.delete(url, headers={"Authorization": f"Bearer {KEY}"}, timeout=5).status_code == 409
    assert breaches(v2.emulator) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api": "sdk"}, "which api: sdk does not support: set api: v2 in conf/deploy/runpod.yaml"),
        ({"registry": "reg1"}, "which gets no registry credentials: make the image public, and remove registry"),
        ({"cloud": "COMMUNITY"}, "COMMUNITY cloud: set cloud: SECURE"),
        ({"min_cuda": "12.4"}, "remove min_cuda"),
    ],
)
def test_what_a_cluster_cannot_be_is_refused_first(v2: Rig, options: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongUse, match=words):
        v2.acquire_all(**options)
    with pytest.raises(WrongUse, match=words):
        v2.provider(**options).acquire(v2.spec("r1", 1, 2))
    assert v2.emulator.exchanges == []


def test_too_many_and_a_cluster_that_stops_are_refused(v2: Rig) -> None:
    with pytest.raises(WrongUse, match="at most 250 machines"):
        v2.provider().acquire(v2.spec("r1", 0, 251))
    provider = v2.provider()
    provider.settings = dataclasses.replace(
        provider.settings, target=dataclasses.replace(provider.settings.target, on_end="stop")
    )
    with pytest.raises(WrongUse, match=r"set on_end: keep, or terminate in conf/deploy/runpod\.yaml"):
        provider.acquire(v2.spec("r1", 0, 2))
    assert v2.emulator.exchanges == []


# Candidates


def test_the_next_candidate_is_tried_and_all_refusals_are_told(v2: Rig) -> None:
    v2.emulator.no_room(1)
    assert {machine.gpu for machine in v2.acquire_all()} == {"NVIDIA A40"}
    v2.provider().release(v2.provider().list()[0])
    v2.emulator.no_room(9)
    with pytest.raises(NoMachine, match="RunPod has no cluster for target 'runpod' now") as caught:
        v2.acquire_all(gpus=(*GPUS, "NVIDIA H100 80GB HBM3"))
    told = "\n".join(caught.value.evidence)
    assert "NVIDIA H100 80GB HBM3: 2.69 USD an hour is above max_usd_per_hour: 1" in told
    assert "NVIDIA RTX A4500: There are no longer any instances" in told
    assert v2.intents() == []


def test_the_ceiling_is_for_each_machine_of_it(v2: Rig) -> None:
    """Two machines at 0.25 USD cost 0.50 USD an hour, but each is below max_usd_per_hour: 0.3."""
    v2.acquire_all(max_usd_per_hour=0.3)
    assert "requesting 2 x NVIDIA RTX A4500, 0.50 USD an hour" in v2.said


def test_stock_is_that_of_clusters(v2: Rig) -> None:
    v2.acquire_all()
    asked = next(each.query for each in v2.emulator.exchanges if each.path == "/v2/catalog/gpus")
    assert asked["product"] == "CLUSTER"


@pytest.mark.parametrize(
    ("oddity", "why"),
    [
        ({"zero_gpus": True}, "it has no GPUs"),
        ({"memory_gib": 15.0}, "15 GiB of memory, less than min_memory_gib: 40"),
        ({"usd_per_hour": 3.5}, "3.50 USD an hour, more than max_usd_per_hour: 1"),
        ({"ends": "ERROR"}, "ended"),
        ({"vanishes_after_s": 20.0}, "vanished while it started"),
    ],
    ids=["zero-gpus", "small-memory", "dear", "ended", "vanished"],
)
def test_one_bad_machine_gives_the_cluster_back(v2: Rig, oddity: dict[str, Any], why: str) -> None:
    v2.emulator.next_pod()
    v2.emulator.next_pod(**oddity)  # the second machine of the first cluster
    machines = v2.acquire_all(min_memory_gib=40)
    assert {machine.gpu for machine in machines} == {"NVIDIA A40"}
    assert created(v2) == 2
    assert v2.emulator.names == [v2.spec().name]
    assert len(v2.emulator.account.pods) == 2
    assert any(why in said for said in v2.said)


def test_another_data_center_than_asked_for_gives_it_back(v2: Rig) -> None:
    """RunPod treats the requested data centres as a preference."""
    v2.emulator.next_cluster(data_center="EU-XX-9")
    assert cluster_of(v2, v2.acquire_all(data_centers=("US-KS-2",))[0].name).data_center == "US-KS-2"
    assert any("it is in EU-XX-9, which is not in data_centers" in said for said in v2.said)
    assert created(v2) == 2


# Faults


@pytest.mark.parametrize("kind", ["done-cut", "done-late"])
def test_a_creation_without_an_answer_is_looked_up_by_name(v2: Rig, kind: str) -> None:
    v2.emulator.fail(kind, CREATE)
    machines = v2.with_limits(request_s=0.5).acquire_all()
    assert len(machines) == 2
    assert v2.emulator.names == [v2.spec().name]
    assert created(v2) == 1


def test_a_creation_that_shows_late_does_not_stay_a_second_cluster(v2: Rig) -> None:
    v2.emulator.next_cluster(appears_after_s=1.5)
    v2.emulator.fail("done-cut", CREATE)
    machines = v2.acquire_all()
    assert created(v2) == 2
    assert [each.id for each in v2.emulator.account.all_clusters()] == [machines[0].group]
    assert len(v2.emulator.account.ended) == 2


def test_a_creation_that_stays_unclear_is_named_and_found_later(v2: Rig) -> None:
    v2.emulator.next_cluster(appears_after_s=600)
    v2.emulator.fail("done-cut", CREATE)
    v2.emulator.fail("502", CREATE, times=99)
    with pytest.raises(NoMachine, match=f"did not confirm that it created the cluster {v2.spec().name}"):
        v2.acquire_all()
    assert v2.intents() == [v2.spec().name]
    v2.emulator.faults.clear()
    v2.clock.sleep(600)
    machines = v2.acquire_all(run="r2")
    assert [machine.name for machine in machines] == [v2.spec().name, node_name(v2.spec().name, 1)]
    assert v2.emulator.names == [v2.spec().name]


@pytest.mark.parametrize("on", [CREATE, "^GET /v2/clusters$", "/pods$", "^DELETE"])
@pytest.mark.parametrize("kind", ["502", "cut", "429"])
def test_a_bad_answer_is_asked_again(v2: Rig, on: str, kind: str) -> None:
    v2.emulator.fail(kind, on, times=2, retry_after_s=3)
    v2.provider().release(v2.acquire_all()[0])
    assert v2.emulator.names == []
    assert len(v2.emulator.account.ended) == 2


def test_ctrl_c_gives_the_cluster_back(v2: Rig) -> None:
    ctrl_c_while_it_starts(v2)
    with pytest.raises(KeyboardInterrupt):
        v2.acquire_all()
    assert v2.emulator.names == []
    assert v2.intents() == []


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals: run it on Linux or macOS")
def test_ctrl_c_while_it_is_made_gives_back(v2: Rig) -> None:
    ctrl_c_while_it_is_made(v2, CREATE)
    with pytest.raises(KeyboardInterrupt):
        v2.acquire_all()
    assert v2.emulator.names == []


def test_a_cluster_that_vanishes_while_it_starts_costs_the_next_candidate(v2: Rig) -> None:
    v2.emulator.next_cluster(vanishes_after_s=10)
    assert {machine.gpu for machine in v2.acquire_all()} == {"NVIDIA A40"}
    assert len(v2.emulator.names) == 1


def test_a_cluster_that_was_renamed_by_hand_is_found_and_billed(v2: Rig) -> None:
    machines = v2.acquire_all()
    [cluster] = v2.emulator.account.all_clusters()
    cluster.name = "my best cluster"
    assert [each.name for each in v2.provider().list()] == [each.name for each in machines]
    found = v2.provider().find(machines[1].name)
    assert found
    assert found.id == machines[1].id


def test_a_cluster_that_the_api_does_not_know_at_first_is_waited_for(v2: Rig) -> None:
    v2.emulator.fail("404", "^GET /v2/clusters/[^/]+/pods$", times=3)
    v2.emulator.fail("404", "^DELETE")
    machines = v2.acquire_all()
    assert created(v2) == 1
    assert [each.id for each in v2.emulator.account.all_clusters()] == [machines[0].group]


def test_a_cluster_that_vanished_is_made_anew(v2: Rig) -> None:
    machines = v2.acquire_all()
    provider = v2.provider()
    v2.emulator.account.end_cluster(str(machines[0].group))
    assert [provider.find(machine.name) for machine in machines] == [None, None]
    assert provider.list() == []
    with pytest.raises(NoMachine, match="found no cluster for"):
        provider.acquire(v2.spec("r1", 1, 2))
    assert {machine.group for machine in v2.acquire_all(run="r2")} != {machines[0].group}
    assert v2.emulator.names == [v2.spec("r2").name]


def test_beside_one_that_lost_a_machine_no_second_one_is_made(v2: Rig) -> None:
    """The cluster bills and may hold the only copy of a checkpoint. Only its user or its guard may end it."""
    machines = v2.acquire_all()
    cluster_of(v2).pods[1].stopped = True
    with pytest.raises(NoMachine, match=r"still bills: its machine 1, pod\d+, has ended \(EXITED\)") as caught:
        v2.acquire_all(run="r2")
    assert "invoke down --on runpod" in (caught.value.next_command or "")
    assert v2.provider().find(machines[1].name) is None
    assert created(v2) == 1
    v2.provider().release(machines[0])
    assert v2.acquire_all(run="r2")


def test_after_a_killed_launch_its_cluster_is_the_one(v2: Rig) -> None:
    killed(v2, 2)
    assert v2.acquire_all(run="r2")[0].name == v2.spec().name
    assert created(v2) == 1


def test_after_a_killed_launch_its_bad_cluster_goes_back(v2: Rig) -> None:
    v2.emulator.next_pod(memory_gib=15.0)
    killed(v2, 2, min_memory_gib=40)
    machines = v2.acquire_all(run="r2", min_memory_gib=40)
    assert v2.emulator.names == [v2.spec("r2").name]
    assert machines[0].name == v2.spec("r2").name


# Guards


@pytest.mark.skipif(sys.platform == "win32", reason="a machine has a python3: run it on Linux or macOS")
def test_a_machines_guard_is_told_its_cluster(v2: Rig, tmp_path: Path) -> None:
    """guard.json contains the cluster's id and the node's number, and a real guard starts with it."""
    options = RunPod(gpus=GPUS, image="me/sniperface:1")
    settings = Settings(v2.project, Target("runpod", "runpod", ROOT, max_usd=5, options=options))
    machines = [*v2.acquire_all(), v2.acquire("r2")]
    told = []
    for machine in machines:
        root = Root(tmp_path / machine.name)
        watchdog.arm(settings, dataclasses.replace(machine, root=root.path), LocalShell(), SOURCE, 1)
        status = wait_until(lambda root=root: read_json(Path(root.guard_status)))  # type: ignore[misc]
        processes.kill_tree(status["pid"])
        limits = parse(read_json(Path(root.guard)))
        told.append((status["machine"], limits.group, limits.node))
    group = machines[0].group
    assert told == [(machines[0].name, group, 0), (machines[1].name, group, 1), (machines[2].name, None, 0)]
