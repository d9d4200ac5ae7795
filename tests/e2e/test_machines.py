"""End to end on machines: real photographs and training, real SSH, real containers; only RunPod's API is emulated.

For each kind of machine: deploy, train on a part of the data with two processes, and follow the log. The network fails
and comes back; then the checkpoint is downloaded and evaluated.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.pod.base import processes
from tests.deploy.support.proxy import proxy
from tests.deploy.support.servers import SSHD, openssh
from tests.e2e.clones import BARE, SELDOM, SMALL, Clone, copy_of, ending, make_clone, wait_for
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.emulators.runpod_pods import Container
from tests.support.faults import Fault
from tests.support.images.engine import docker
from tests.support.load import under_load

pytestmark = pytest.mark.slow


@dataclass
class Site:
    """A clone with the target of the test, and a way to cut the network to it."""

    clone: Clone
    target: str
    cut: Callable[[], AbstractContextManager[None]]
    log: Callable[[str], bytes]  # train.log of a run, as it is on the machine
    run: Callable[[str], Path]  # the folder of a run, or a copy of it
    there: Callable[[], list[str]]  # names of the machines that bill


def write_target(clone: Clone, name: str, **values: object) -> None:
    (clone.path / "conf" / "deploy" / f"{name}.yaml").write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def ssh_site(tmp_path: Path) -> Iterator[Site]:
    """An SSH host behind a connection that can be cut."""
    if SSHD is None or shutil.which("tmux") is None:
        pytest.skip("needs an SSH server and tmux: apt-get install openssh-server tmux")
    clone = make_clone(tmp_path)
    root = tmp_path / "far away" / "root"
    with openssh(tmp_path / "server") as server, proxy(server.port, delay_s=0.02) as line:
        known = tmp_path / "home" / ".ssh" / "known_hosts"
        known.parent.mkdir(parents=True)
        known.write_text(f"[127.0.0.1]:{line.port} {server.host_key}\n")
        clone.env = {"HOME": str(tmp_path / "home"), "USER": "root"}
        write_target(
            clone, "box", provider="ssh", host="127.0.0.1", port=line.port, key=str(server.key), root=str(root),
            stage_to=str(tmp_path / "ram"), python=sys.executable,
        )  # fmt: skip

        @contextlib.contextmanager
        def cut() -> Iterator[None]:
            line.cut()
            yield
            line.drop()
            line.restore()

        runs = root / "runs"
        yield Site(clone, "box", cut, lambda id: (runs / id / "train.log").read_bytes(), lambda id: runs / id, list)
        for status in (root / "runs").glob("*/status.json"):
            told = json.loads(status.read_text())
            if told.get("ended") is None:
                processes.kill_tree(told["pid"])
        subprocess.run(["tmux", "-L", clone.socket, "kill-server"], check=False, capture_output=True)


def image_of_ours() -> str:
    """Return our image; skip the test if it cannot be built, or if this user cannot cut a port."""
    from tests.support.images import NoDocker, our_image

    if os.geteuid() != 0 or shutil.which("iptables") is None:
        pytest.skip("needs the right to cut a port: run this as root, with iptables installed")
    try:
        return our_image()
    except NoDocker as reason:
        pytest.skip(str(reason))


@contextlib.contextmanager
def cut_port(container: str) -> Iterator[None]:
    """Silently drop all packets to and from a container's SSH port."""
    port = docker("port", container, "22").split(":")[-1]
    rules = [["OUTPUT", "-p", "tcp", way, port, "-j", "DROP"] for way in ("--dport", "--sport")]
    for rule in rules:
        subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        yield
    finally:
        for rule in rules:
            subprocess.run(["iptables", "-D", *rule], check=True)


def log_of(container: str, run_id: str) -> bytes:
    words = ["docker", "exec", container, "cat", f"/workspace/sniperface/runs/{run_id}/train.log"]
    return subprocess.run(words, check=True, capture_output=True).stdout


@pytest.fixture
def docker_site(tmp_path: Path) -> Iterator[Site]:
    """A container of our image on the local engine."""
    reference = image_of_ours()
    clone = make_clone(tmp_path)
    write_target(clone, "docker", provider="docker", image=reference, root="/workspace/sniperface", stage_to="/dev/shm")

    def container() -> str:
        (machine,) = clone.json("ps")
        return str(machine["machine"])

    def run(run_id: str) -> Path:
        return copy_of(container(), f"/workspace/sniperface/runs/{run_id}", tmp_path / "copy")

    yield Site(
        clone, "docker", lambda: cut_port(container()), lambda run_id: log_of(container(), run_id), run,
        lambda: [container()],
    )  # fmt: skip
    clone.invoke("down", "--all", "--anyway")
    assert clone.json("ps") == []


@pytest.fixture
def runpod_site(tmp_path: Path) -> Iterator[Site]:
    """A pod of an emulated RunPod: a container of our image, which is found and reached like a real pod."""
    reference = image_of_ours()
    clone = make_clone(tmp_path)
    with contextlib.closing(Emulator(pods="docker", image=reference, boot_s=2)) as emulator:
        clone.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY}
        clone.env["SNIPERFACE_DEVICE"] = "cpu"  # an emulated pod has no GPU

        def container() -> str:
            machine = emulator.account.all()[0].machine  # of this emulator; another one may run at the same time
            assert isinstance(machine, Container)
            return machine.id

        def run(run_id: str) -> Path:
            return copy_of(container(), f"/workspace/sniperface/runs/{run_id}", tmp_path / "copy")

        yield Site(
            clone, "runpod", lambda: cut_port(container()), lambda run_id: log_of(container(), run_id), run,
            lambda: emulator.names,
        )  # fmt: skip
        clone.invoke("down", "--all", "--anyway")
        assert clone.json("ps") == []
        assert breaches(emulator) == []


@pytest.fixture(params=["ssh", "docker", "runpod"])
def site(request: pytest.FixtureRequest) -> Site:
    """A site for each kind of machine."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


def test_the_whole_path(site: Site, tmp_path: Path, fault: Fault) -> None:
    """No byte of the log is lost or doubled, and the downloaded checkpoint is intact and can be evaluated."""
    clone, on = site.clone, ("--on", site.target)
    clone.invoke("deploy", *on)
    assert "already there" in clone.invoke("deploy", *on)
    mines = (SELDOM,) if site.target == "docker" else BARE  # once: in our image
    small = [word for setting in (*SMALL, *mines, "train.epochs=30") for word in ("--set", setting)]
    started = clone.json("train", *on, "--fraction", "0.5", "--detach", "--yes", *small)
    run_id = started["run_id"]
    printed = tmp_path / "printed"
    with printed.open("wb") as out:
        following = subprocess.Popen(
            [sys.executable, "-m", "invoke", "logs", "--follow", *on],
            cwd=clone.path, env={**os.environ, **clone.env, "PYTHONUTF8": "1"}, stdout=out, stderr=subprocess.PIPE,
        )  # fmt: skip
    with ending(following):
        wait_for(lambda: b"epoch 2 (3/" in printed.read_bytes())
        with site.cut():
            wait_for(lambda: lost(following), 60)
            seen = printed.stat().st_size
        fault.strikes()
        fault.told(lambda: clone.json("status", *on)["state"] in ("running", "succeeded"))
        wait_for(lambda: printed.stat().st_size > seen, 60)
        _, complaint = following.communicate(timeout=under_load(240))
    assert following.returncode == 0, complaint
    assert b"connected again" in complaint
    fault.log(printed.read_bytes(), site.log(run_id))
    status = clone.json("status", *on)
    assert (status["state"], status["attempt"]) == ("succeeded", 1)
    fetched = clone.json("fetch-checkpoint", *on)
    assert fetched["epoch"] == 29
    fault.checkpoints(site.run(run_id), clone.path / "runs" / run_id)
    fault.machines(clone.json("ps"), site.there())
    if site.target == "box":  # once: this computer evaluates the same file, wherever it was made
        clone.invoke("prepare", "--source", "orl")
        weights = f"runs/{run_id}/checkpoints/epoch_029.pt"
        clone.invoke("evaluate", "--weights", weights, "--sets", "data/orl/images.npy", "--out", str(tmp_path / "eval"))
        assert json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert "epoch_029" in clone.invoke("evaluate", *on, "--which", "latest")


def lost(following: subprocess.Popen[bytes]) -> bool:
    """Whether the follower has reported a lost connection."""
    assert following.stderr
    os.set_blocking(following.stderr.fileno(), False)
    said = following.stderr.read() or b""
    os.set_blocking(following.stderr.fileno(), True)
    return b"connection lost" in said
