"""Several machines for one run: how they find each other, what each one is told, and restarts."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from deploy.errors import StepFailed, WrongUse
from deploy.pod.agent import rendezvous
from deploy.providers.ssh import SshProvider
from deploy.shell import LocalShell, Shell, open_shell
from deploy.specs.machine import MachineSpec, Place, node_name, node_of
from deploy.specs.plan import make as make_plan
from deploy.specs.request import parse_request
from deploy.specs.settings import load
from deploy.steps.rendezvous import PORTS, meet
from tests.deploy.conftest import SOURCE, wait_until
from tests.deploy.specs.test_plan import FACTS, SETTINGS
from tests.deploy.support.servers import SSHD, Server, openssh
from tests.deploy.support.supervised import TELL, Supervised

Make = Callable[..., Supervised]
posix = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX: run on Linux or macOS")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: its loopback has many addresses")
FOLLOWER = Place(1, "10.0.0.7", "eth0", "10.0.0.6", 29400)
# Like torchrun: one process that waits for the other machines, then one process per rank.
RAN = TELL + 'rank = subprocess.Popen(["sleep", "600"]); time.sleep(1.5); print("ran", flush=True); rank.kill(); '


# Requested and acquired machines


def test_the_first_of_several_has_the_name_of_all() -> None:
    assert [node_name("a-b", node) for node in (0, 1, 12)] == ["a-b", "a-b-node1", "a-b-node12"]
    assert [node_of(name) for name in ("a-b", "a-b-node1", "a-b-node12", "a-node1-b")] == [0, 1, 12, 0]
    spec = MachineSpec("sniperface-p-t-r", "sniperface-p-t-", PurePosixPath("/w"), node=1, nodes=2)
    assert [spec.fits(f"sniperface-p-t-{rest}") for rest in ("x", "x-node1", "x-node11")] == [False, True, False]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_machines_is_one(text: str) -> None:
    with pytest.raises(WrongUse, match=r"--nodes .*such as 2"):
        parse_request(target="ssh", nodes=text)


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("gpu-1", ("gpu-1", 2222, "ann")),
        ("bob@gpu-1", ("gpu-1", 2222, "bob")),
        ("bob@gpu-1:22", ("gpu-1", 22, "bob")),
        ("fd00::7", ("fd00::7", 2222, "ann")),
    ],
)
def test_each_host_of_a_list_may_have_its_own_user_and_port(
    tmp_path: Path, entry: str, address: tuple[str, int, str]
) -> None:
    folder = tmp_path / "conf" / "deploy"
    folder.mkdir(parents=True)
    (folder / "pair.yaml").write_text(f"provider: ssh\nroot: /w\nport: 2222\nuser: ann\nhosts: [first, '{entry}']\n")
    provider = SshProvider(load(tmp_path, "pair", {}))
    first, second = (
        provider.acquire(MachineSpec("sniperface-p-pair-r", "sniperface-p-pair-", PurePosixPath("/w"), node, 2))
        for node in (0, 1)
    )
    assert first.address
    assert second.address
    assert first.address.host == "first"
    assert (second.address.host, second.address.port, second.address.user) == address
    assert [provider.find(each.name) for each in (first, second)] == [first, second]
    assert provider.find("sniperface-p-pair-node2") is None


def test_torchrun_is_told_where_all_meet() -> None:
    """Rank 0's machine holds the rendezvous. gloo and NCCL use the network interface that reaches the others."""
    plans = [
        make_plan(
            replace(SETTINGS, target=replace(SETTINGS.target, on_lost_node=on_lost_node)),
            parse_request(target="local", nodes="2"),
            replace(FACTS, place=place),
            tryout=True,
        )
        for place, on_lost_node in ((replace(FOLLOWER, rank=0, address="10.0.0.6"), "end"), (FOLLOWER, "go_on"))
    ]
    first, second = (list(plan.argv[3 : plan.argv.index("app.train") - 1]) for plan in plans)
    assert first == [
        "--nnodes=2:2", "--nproc-per-node=2", "--max-restarts=0", "--rdzv-backend=c10d",
        "--rdzv-endpoint=10.0.0.6:29400", f"--rdzv-id={plans[0].run_id}", "--rdzv-conf=is_host=1,join_timeout=180",
        "--local-addr=10.0.0.6",
    ]  # fmt: skip
    assert second[0] == "--nnodes=1:2"
    assert second[-2:] == [
        "--rdzv-conf=is_host=0,last_call_timeout=180,join_timeout=240", "--local-addr=10.0.0.7",
    ]  # fmt: skip
    assert plans[1].env["GLOO_SOCKET_IFNAME"] == "eth0"
    assert plans[1].env["NCCL_SOCKET_IFNAME"] == "=eth0"


# Rendezvous


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[tuple[Server, Shell]]]:
    """Two SSH servers on this computer."""
    if SSHD is None:
        pytest.skip("needs sshd: apt-get install openssh-server")
    with openssh(tmp_path / "one") as one, openssh(tmp_path / "other") as other:
        shells = [open_shell(server.machine(), tmp_path / "notes", lambda: None) for server in (one, other)]
        try:
            yield list(zip((one, other), shells, strict=True))
        finally:
            for shell in shells:
                shell.close()


@linux
def test_two_servers_of_one_computer_meet_on_its_loopback(pair: list[tuple[Server, Shell]]) -> None:
    places = meet([(server.machine(), shell) for server, shell in pair])
    assert places == [
        Place(0, "127.0.0.1", "lo", "127.0.0.1", places[0].port),
        Place(1, "127.0.0.2", "lo", "127.0.0.1", places[0].port),
    ]
    assert places[0].port in PORTS
    with socket.socket() as port_is_free:
        port_is_free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port_is_free.bind(("", places[0].port))


@linux
def test_a_port_that_is_taken_is_passed_over(pair: list[tuple[Server, Shell]]) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also just after another process had it

        def is_ours() -> bool:  # another process on this computer may have it, and free it during the test
            with contextlib.suppress(OSError):
                other.bind(("", PORTS[0]))
                return True
            return False

        wait_until(is_ours)
        other.listen()
        assert meet([(server.machine(), shell) for server, shell in pair])[0].port > PORTS[0]


@linux
def test_one_machine_under_two_names_is_told() -> None:
    """Both have the same network address, so they are one machine. A computer with only a loopback serves both."""
    provider = SshProvider(load(SOURCE, "ssh", {}))
    one, other = provider.find("a"), provider.find("b")
    assert one
    assert other
    named = [(one, LocalShell()), (other, LocalShell())]
    addresses = rendezvous.open_rendezvous(0, "word")
    rendezvous.close_rendezvous()
    if addresses[0].startswith("127."):
        assert [place.address for place in meet(named)] == ["127.0.0.1", "127.0.0.2"]
    else:
        with pytest.raises(WrongUse, match="two hosts are the same machine"):
            meet(named)


class Lonely(LocalShell):
    """This computer, seen from a network namespace without any connection."""

    def call(self, verb: str, *, again: bool = True, **arguments: object) -> object:  # noqa: ARG002
        asked = f"print(json.dumps(VERBS[{verb!r}](**{arguments!r})))"
        code = f"import json; from deploy.pod.agent.agent import VERBS; {asked}"
        argv = ["unshare", "--net", sys.executable, "-c", code]
        return json.loads(subprocess.run(argv, cwd=SOURCE, check=True, capture_output=True, text=True).stdout)


@linux
def test_machines_that_cannot_hear_each_other_are_named(pair: list[tuple[Server, Shell]]) -> None:
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a network namespace: run as root")
    (server, shell), (other, _) = pair
    lonely = replace(other.machine(), name="lonely")
    with pytest.raises(StepFailed, match=r"lonely cannot reach box at port 294\d\d of 127.0.0.1 .*all ports"):
        meet([(server.machine(), shell), (lonely, Lonely())])


# Restarts


@posix
def test_another_machine_than_the_first_comes_back_without_a_checkpoint(make: Make) -> None:
    """Such a machine has no checkpoints, and rank 0's machine decides whether the run goes on."""
    again = RAN + 'open("ran", "a").write("x"); sys.exit(0 if os.path.getsize("ran") > 2 else 1)'
    run = make().start(again, place=vars(FOLLOWER), max_restarts=1)
    code, status = run.end()
    assert (code, status["state"], status["restarts"]) == (0, "succeeded", 2)
    assert "joining 10.0.0.6 again" in status["last_crash"]["reason"]


@posix
def test_one_that_is_not_taken_back_gives_up(make: Make) -> None:
    """A machine whose ranks have not run retries for a limited time only."""
    launcher = ["-c", HURRIED]
    run = make().start("import sys; sys.exit(1)", place=vars(FOLLOWER), join_s=60, grace_s=60, launcher=launcher)
    code, status = run.end()
    assert (code, status["state"]) == (1, "failed")
    assert "the 2 machines of this run did not all join" in status["reason"]
    assert "10.0.0.6 has not accepted this machine again for 180 s" in status["reason"]


HURRIED = """
import sys, time
from deploy.pod.base.clock import Clock
from deploy.pod.job.supervisor import main
sys.exit(main(["supervisor", sys.argv[1]], Clock(monotonic=lambda: 200 * time.monotonic())))
"""


@posix
def test_one_that_waits_to_come_back_can_be_stopped(make: Make) -> None:
    run = make().start("import sys; sys.exit(1)", place=vars(FOLLOWER), restart_pause_s=60).until("restarting")
    run.stop()
    code, status = run.end()
    assert (code, status["state"]) == (0, "stopped")


@posix
def test_the_first_machine_says_that_the_others_did_not_come(make: Make) -> None:
    place = vars(replace(FOLLOWER, rank=0, address="10.0.0.6"))
    code, status = make().start("import sys; sys.exit(1)", place=place, max_restarts=3).end()
    assert (code, status["state"]) == (1, "failed")
    assert status["reason"].startswith("the 2 machines of this run did not all join; not started again")
