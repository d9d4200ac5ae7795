"""One run on several machines (containers of our image, or SSH hosts): they train together and survive a loss."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.sources.source import Source
from app.prepare import prepare
from deploy.pod.base import processes
from deploy.runs import records
from tests.app.conftest import faces
from tests.deploy.support.servers import SSHD, openssh
from tests.e2e.clones import BARE, SMALL, Clone, make_clone, wait_for
from tests.e2e.test_machines import image_of_ours
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.emulators.runpod_pods import gateway
from tests.support.files import events
from tests.support.images.engine import docker

pytestmark = pytest.mark.slow
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: its loopback has many addresses")
FEW = [word for setting in SMALL for word in ("--set", setting)]  # mines and reports: one test here does
FEWEST = [*FEW, *(word for setting in BARE for word in ("--set", setting))]
WORDS = [*FEWEST, "--set", "train.epochs=400"]
# Two hosts that are one computer would both start a thread per core, and these wait for each other in a loop.
OF_HOSTS = ["--env", "OMP_NUM_THREADS=1"]


@pytest.fixture
def clone(tmp_path: Path, our_image: str) -> Iterator[Clone]:
    """A clone whose target `pair` has two containers of our image, with one process each."""
    here = make_clone(tmp_path)
    write_target(here, our_image)
    yield here
    here.invoke("down", "--all", "--anyway")
    assert here.json("ps") == []


def write_target(clone: Clone, image: str, **values: object) -> None:
    told = {"provider": "docker", "image": image, "root": "/workspace/sniperface", "stage_to": "/dev/shm"}
    told |= {"processes": 1, "cpus": 1, "nodes": 2, "join_min": 0.5, **values}
    (clone.path / "conf" / "deploy" / "pair.yaml").write_text(json.dumps(told), encoding="utf-8")


@contextlib.contextmanager
def network(name: str) -> Iterator[str]:
    """A Docker network whose second member gets an address that sorts before the first one's, as text."""
    docker("network", "create", "--subnet=10.203.77.0/24", "--ip-range=10.203.77.8/29", "--gateway=10.203.77.8", name)
    try:
        yield name
    finally:
        docker("network", "rm", name)


def nodes(clone: Clone, run_id: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = clone.json("status", "--on", "pair", "--run", run_id)["nodes"]
    return told


def states(clone: Clone, run_id: str) -> list[str]:
    return [node["state"] for node in nodes(clone, run_id)]


def trains(clone: Clone, run_id: str, world_size: int) -> Any:
    """Return the newest checkpoint's JSON if this many processes made it, else False."""
    told = clone.json("fetch-checkpoint", "--on", "pair", "--run", run_id)
    about = json.loads(Path(told["path"]).with_suffix(".json").read_text(encoding="utf-8"))
    return about["world_size"] == world_size and about


def test_two_machines_train_one_run(clone: Clone) -> None:
    """The run resumes from its checkpoint after a stop, and after the loss of a machine: each time on two machines."""
    run_id = clone.json("train", "--on", "pair", "--detach", *WORDS)["run_id"]
    assert [machine["run"] for machine in clone.json("ps")] == [run_id, run_id]
    wait_for(lambda: clone.json("status", "--on", "pair")["epoch"])
    assert states(clone, run_id) == ["running", "running"]
    log = clone.invoke("logs", "--on", "pair")
    assert {line[:2] for line in log.splitlines()} == {"0|", "1|"}
    clone.invoke("stop", "--on", "pair")
    wait_for(lambda: states(clone, run_id) == ["stopped", "stopped"])

    clone.invoke("train", "--on", "pair", "--resume", "auto", "--detach")
    wait_for(lambda: got_on(clone, run_id, 2))
    second = nodes(clone, run_id)[1]["machine"]
    docker("rm", "--force", second)
    told = wait_for(lambda: failed(clone))
    assert "2 machines of this run did not all join" in told["reason"]
    assert states(clone, run_id) == ["failed", "lost"]

    clone.invoke("train", "--on", "pair", "--resume", "auto", "--detach")
    wait_for(lambda: states(clone, run_id) == ["running", "running"])
    wait_for(lambda: got_on(clone, run_id, 3))
    started = starts(clone, run_id)
    clone.invoke("stop", "--on", "pair")
    assert [event["world_size"] for event in started] == [2, 2, 2]
    assert None not in [event["resumed_from"] for event in started[1:]]
    clone.invoke("down", "--on", "pair")
    assert docker("network", "ls", "--quiet", "--filter", f"name=sniperface-{clone.path.name}") == ""


def told(clone: Clone, run_id: str) -> list[dict[str, Any]]:
    """Return the run's events, from the machine that writes them."""
    writer = nodes(clone, run_id)[0]["machine"]
    lines = docker("exec", writer, "cat", f"/workspace/sniperface/runs/{run_id}/metrics.jsonl").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be half written


def starts(clone: Clone, run_id: str) -> list[dict[str, Any]]:
    return [event for event in told(clone, run_id) if event["event"] == "start"]


def got_on(clone: Clone, run_id: str, attempt: int) -> bool:
    """Whether an attempt has made a checkpoint of its own. Without one, the next attempt has nothing to resume from."""
    kinds = [event["event"] for event in told(clone, run_id)]
    begun = [place for place, kind in enumerate(kinds) if kind == "start"]
    return len(begun) == attempt and "checkpoint" in kinds[begun[-1] :]


def failed(clone: Clone) -> dict[str, Any] | None:
    told: dict[str, Any] = clone.json("status", "--on", "pair")
    return told if told["state"] == "failed" else None


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[Clone]:
    """A clone whose target `pair` has two SSH servers. Each has its own home folder, and `root` is inside it."""
    if SSHD is None or shutil.which("tmux") is None:
        pytest.skip("needs an SSH server and tmux: apt-get install openssh-server tmux")
    here, user = make_clone(tmp_path), tmp_path / "user"
    homes = [tmp_path / name for name in ("one", "other")]
    with contextlib.ExitStack() as stack:
        servers, sockets = [], []
        for home in homes:
            home.mkdir()
            for name in ("id", "id.pub"):  # one key opens both
                if home != homes[0]:
                    shutil.copy(homes[0] / name, home / name)
            # A socket's path has to be short.
            sockets.append(stack.enter_context(tempfile.TemporaryDirectory(prefix="sniperface-")))
            environment = f"SetEnv HOME={home} TMUX_TMPDIR={sockets[-1]}\n"
            servers.append(stack.enter_context(openssh(home, more=environment)))
        known = user / ".ssh" / "known_hosts"
        known.parent.mkdir(parents=True)
        known.write_text("".join(f"[127.0.0.1]:{each.port} {each.host_key}\n" for each in servers))
        here.env = {"HOME": str(user), "USER": "root"}
        told = {
            "provider": "ssh", "hosts": [f"127.0.0.1:{each.port}" for each in servers], "key": str(servers[0].key),
            "root": "~/faces", "python": sys.executable, "processes": 1, "nodes": 2,
        }  # fmt: skip
        (here.path / "conf" / "deploy" / "pair.yaml").write_text(json.dumps(told), encoding="utf-8")
        yield here
        for home, socket in zip(homes, sockets, strict=True):
            for status in (home / "faces" / "runs").glob("*/status.json"):
                processes.kill_tree(json.loads(status.read_text())["pid"])
            server = {**os.environ, "TMUX_TMPDIR": socket}
            subprocess.run(["tmux", "-L", here.socket, "kill-server"], env=server, check=False, capture_output=True)


@needs_linux
def test_two_hosts_of_a_list_train_one_run(two_hosts: Clone, tmp_path: Path) -> None:
    """The run is followed to its end. Each host has its own run folder, and the log of the other is downloaded, too."""
    done = two_hosts.json("train", "--on", "pair", *OF_HOSTS, *FEW, "--set", "train.epochs=3")
    home = two_hosts.path / "runs" / done["run_id"]
    assert (done["state"], done["checkpoint"]["epoch"]) == ("succeeded", 2)
    assert [event["world_size"] for event in events(home) if event["event"] == "start"] == [2]
    assert states(two_hosts, done["run_id"]) == ["succeeded", "succeeded"]
    there = [tmp_path / name / "faces" / "runs" / done["run_id"] for name in ("one", "other")]
    assert [(folder / "metrics.jsonl").exists() for folder in there] == [True, False]
    assert (home / "nodes" / "1" / "train.log").read_bytes() == (there[1] / "train.log").read_bytes()
    assert "rank 1 of 2; rank 0 on" in (home / "nodes" / "1" / "train.log").read_text()
    assert "names 2 host" in two_hosts.invoke("train", "--on", "pair", "--nodes", "3", code=2)


@needs_linux
def test_two_hosts_get_each_their_shard_of_the_images(two_hosts: Clone, tmp_path: Path) -> None:
    """Each host stages its part only. A second call stages nothing, also with the hosts in another order."""
    images = tmp_path / "data" / "images.npy"
    content, labels = faces(people=12, each=4), np.repeat(np.arange(12, dtype=np.int32), 4)
    source = Source("faces", 48, lambda a, b: content[a:b], labels, held_out=16, block_rows=4)
    prepare(source, images)
    words = ["--data", str(images), *OF_HOSTS, *FEWEST, "--set", "data.shards=by_node", "--set"]
    done = two_hosts.json("train", "--on", "pair", *words, "train.epochs=2")
    assert (done["state"], done["checkpoint"]["epoch"]) == ("succeeded", 1)
    home = two_hosts.path / "runs" / done["run_id"]
    assert [event["shards"] for event in events(home) if event["event"] == "start"] == [2]
    row = 112 * 112 * 3
    assert records.carried_out(home.parent, home.name)["data"]["bytes"] == 128 + 32 * row

    def staged() -> dict[str, tuple[int, int, int]]:
        found = {}
        for name in ("one", "other"):
            (file,) = (tmp_path / name / "faces" / "data").rglob("images.npy")
            manifest = json.loads(file.with_name("manifest.json").read_text(encoding="utf-8"))
            found[name] = (manifest["shard"]["number"], file.stat().st_size, file.stat().st_mtime_ns)
        return found

    before = staged()
    assert [(number, size) for number, size, _ in before.values()] == [(0, 128 + 32 * row), (1, 128 + 32 * row)]
    target = two_hosts.path / "conf" / "deploy" / "pair.yaml"
    about = json.loads(target.read_text(encoding="utf-8"))
    target.write_text(json.dumps({**about, "hosts": about["hosts"][::-1]}), encoding="utf-8")
    words.append("train.epochs=1")
    again = two_hosts.json("train", "--on", "pair", *words)
    assert again["state"] == "succeeded"
    assert staged() == before
    packed = two_hosts.json("train", "--on", "pair", *words, "--fraction", "0.5", "--pack", "jpeg95")
    assert packed["state"] == "succeeded"
    for name in ("one", "other"):
        (file,) = (tmp_path / name / "faces" / "data").rglob("*-f0.5-shard*of2/manifest.json")
        manifest = json.loads(file.read_text(encoding="utf-8"))
        assert (manifest["rows"], manifest["packed"], manifest["selection"]["fraction"]) == (24, "jpeg95", 0.5)
    target.write_text(json.dumps({**about, "on_lost_node": "go_on"}), encoding="utf-8")
    assert "on_lost_node: go_on" in two_hosts.invoke("train", "--on", "pair", *words, code=2)


def test_a_run_goes_on_with_the_machines_that_are_left(clone: Clone, our_image: str) -> None:
    """The target sets on_lost_node=go_on. Rank 0, which writes, is here the machine that was created second."""
    with network(f"order-{clone.socket}") as name:
        write_target(clone, our_image, on_lost_node="go_on", join_min=0.3, network=name)
        run_id = clone.json("train", "--on", "pair", "--detach", *WORDS)["run_id"]
        first, second = (node["machine"] for node in nodes(clone, run_id))
        assert first.endswith("-node1")
        wait_for(lambda: clone.json("status", "--on", "pair")["epoch"])
        assert trains(clone, run_id, 2)
        docker("rm", "--force", second)
        wait_for(lambda: states(clone, run_id) == ["running", "lost"])
        wait_for(lambda: trains(clone, run_id, 1))
        clone.invoke("stop", "--on", "pair")
        assert clone.json("status", "--on", "pair")["state"] == "stopped"
        clone.invoke("down", "--on", "pair")


def test_two_pods_of_a_cluster_train_one_run(tmp_path: Path) -> None:
    """They use the cluster's own network. The plan has the price of both pods, and `down` ends both."""
    reference, clone = image_of_ours(), make_clone(tmp_path)
    with contextlib.closing(Emulator(pods="docker", image=reference, host=gateway())) as emulator:
        clone.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY}
        target = {"provider": "runpod", "image": "me/sniperface:1", "root": "/workspace/sniperface"}
        target |= {"gpus": ["NVIDIA H100 80GB HBM3"], "stage_to": "/dev/shm", "processes": 2, "max_usd": 50, "nodes": 2}
        target |= {"device": "cpu"}  # an emulated pod has no GPU
        (clone.path / "conf" / "deploy" / "pair.yaml").write_text(json.dumps(target), encoding="utf-8")
        done = clone.json("train", "--on", "pair", "--yes", *FEWEST, "--set", "train.epochs=3")
        assert (done["state"], done["checkpoint"]["epoch"]) == ("succeeded", 2)
        home = clone.path / "runs" / done["run_id"]
        assert [event["world_size"] for event in events(home) if event["event"] == "start"] == [4]
        plan = records.carried_out(home.parent, home.name)
        assert plan["place"]["address"].startswith("10.65.")
        first, second = clone.json("ps")
        assert first["usd_per_hour"] > 0
        assert plan["usd_per_hour"] == pytest.approx(first["usd_per_hour"] + second["usd_per_hour"])
        clone.invoke("down", "--on", "pair")
        assert clone.json("ps") == []
        assert breaches(emulator) == []
