"""Where the machines of one run meet, and what each is told: the machines' answers are set, the decisions are real."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import BadAnswer, StepFailed, WrongUse
from deploy.runs.session import Prepared
from deploy.shell import Shell
from deploy.specs.estimate import Stopwatch
from deploy.specs.machine import Machine, Place
from deploy.specs.request import Request
from deploy.steps import provision
from deploy.steps.rendezvous import PORTS, meet
from deploy.steps.resolve import Checked
from deploy.ui.screen import Screen
from deploy.workspace import dataset as data
from deploy.workspace.devices import Devices
from deploy.workspace.sources import HERE, Origin
from tests.deploy.specs.test_plan import CONFIG, FACTS
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.deploy.support.rented import Near, Noting, Rented


@dataclass
class Net:
    """A network: which addresses each machine has, and which machines cannot hear each other."""

    addresses: dict[str, list[str]]
    deaf: set[tuple[str, str]] = field(default_factory=set)
    taken: range = range(0)
    open: dict[str, int] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)


class Node(Noting):
    """A machine of such a network."""

    def __init__(self, name: str, net: Net) -> None:
        super().__init__()
        self.host, self.net = name, net
        self.name = f"the connection to {name}"

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        net = self.net
        if verb == "open_rendezvous":
            if arguments["port"] in net.taken:
                raise OSError(errno.EADDRINUSE, "taken")
            net.open[self.host] = arguments["port"]
            return net.addresses[self.host]
        if verb == "reach_rendezvous":
            host = next(name for name in net.open if arguments["addresses"][0] in [*net.addresses[name], "127.0.0.1"])
            heard = [each for each in arguments["addresses"] if (self.host, each) not in net.deaf]
            assert arguments["port"] == net.open[host]
            own = net.addresses[self.host]
            return [[each, own[min(place, len(own) - 1)], f"eth-{self.host}"] for place, each in enumerate(heard)]
        if verb == "interface_of":
            return f"at-{arguments['address'].rpartition('.')[2]}"
        if verb == "close_rendezvous":
            net.closed.append(self.host)
            return None
        return super().call(verb, again=again, **arguments)


def machine(name: str) -> Machine:
    return Machine(name, Path("/w"), "python")


def met(net: Net) -> list[Place]:
    return meet([(machine(name), Node(name, net)) for name in net.addresses])


def test_the_address_that_sorts_first_is_rank_0() -> None:
    """As text, as torchrun compares them. Each has its own interface; all meet at rank 0."""
    port = PORTS[0]
    net = Net({"a": ["10.0.0.1"], "b": ["10.0.0.2"], "c": ["10.0.0.3"]})
    assert met(net) == [
        Place(0, "10.0.0.1", "at-1", "10.0.0.1", port),
        Place(1, "10.0.0.2", "eth-b", "10.0.0.1", port),
        Place(2, "10.0.0.3", "eth-c", "10.0.0.1", port),
    ]
    assert net.closed == ["a"]  # one that is first already is asked once
    net = Net({"a": ["10.0.0.9"], "b": ["10.0.0.10"]})
    assert met(net) == [
        Place(1, "10.0.0.9", "eth-a", "10.0.0.10", port),
        Place(0, "10.0.0.10", "at-10", "10.0.0.10", port),
    ]
    assert net.closed == ["a", "b"]


def test_the_first_address_that_all_reach_is_taken() -> None:
    net = Net({"a": ["10.0.0.1", "172.16.0.1"], "b": ["10.0.0.2", "172.16.0.2"], "c": ["172.16.0.3"]})
    net.deaf = {("c", "10.0.0.1")}
    assert met(net)[0].address == "172.16.0.1"
    net.deaf |= {("b", "172.16.0.1")}
    with pytest.raises(StepFailed, match=r"^some of the others cannot reach a at port 29400 of 10\.0\.0\.1 or 172\.16"):
        met(net)
    net.deaf |= {("b", "10.0.0.1")}
    with pytest.raises(StepFailed, match=r"^b cannot reach a"):
        met(net)
    net.deaf |= {("c", "172.16.0.1")}
    with pytest.raises(StepFailed, match=r"^b, c cannot reach a"):
        met(net)


def test_a_nonsensical_interface_is_of_the_machine() -> None:
    class Strange(Node):
        def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
            return 3 if verb == "interface_of" else super().call(verb, again=again, **arguments)

    net = Net({"a": ["10.0.0.1"], "b": ["10.0.0.2"]})
    with pytest.raises(BadAnswer, match=r"^a: its interface"):
        meet([(machine(name), Strange(name, net)) for name in net.addresses])


def test_machines_of_one_computer_get_addresses_of_their_own() -> None:
    told = met(Net({"a": ["127.0.0.1"], "b": ["127.0.0.1"]}))
    assert [(each.rank, each.address) for each in told] == [(0, "127.0.0.1"), (1, "127.0.0.2")]
    with pytest.raises(
        WrongUse, match=r"two hosts are the same machine: a \(10\.0\.0\.1\), b \(10\.0\.0\.1\); name each"
    ):
        met(Net({"a": ["10.0.0.1"], "b": ["10.0.0.1"]}))


def test_a_free_port_is_looked_for() -> None:
    net = Net({"a": ["10.0.0.1"], "b": ["10.0.0.2"]}, taken=PORTS[:3])
    assert met(net)[0].port == PORTS[3]
    with pytest.raises(StepFailed, match="a has no free port for the rendezvous: 29400 to 29409 are in use"):
        met(replace(net, taken=PORTS))

    class Broken(Node):
        def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
            if verb == "open_rendezvous":
                raise OSError(errno.EACCES, "forbidden")
            return super().call(verb, again=again, **arguments)

    with pytest.raises(PermissionError):
        meet([(machine(name), Broken(name, net)) for name in net.addresses])


class Pair(Near):
    """Two machines, each a folder of this computer in the same network."""

    def __init__(self, rented: Rented, net: Net) -> None:
        super().__init__(rented.settings, rented.account)
        self.nodes = {name: Node(name, net) for name in net.addresses}

    def shell(self, machine: Machine) -> Shell:
        return self.nodes[machine.name]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")
@pytest.mark.parametrize("shards", ["whole", "by_node"])
def test_each_machine_is_made_ready_and_gets_its_place(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of their ranks, each with all images or with its own share of them."""
    rented = Rented(tmp_path, options={"stage_to": "ram"})
    net = Net({"m": ["10.0.0.9"], "n": ["10.0.0.10"]})
    machines = [rented.machine(name) for name in net.addresses]
    path = tmp_path / "faces" / "images.npy"
    prepare(path)
    dataset = data.find(Origin(HERE, path, Noting()), 8192)
    config = {**CONFIG, "data": {"shards": shards}}
    request = Request(nodes=2)
    checked = Checked(request, config, False, Origin(HERE, path, Noting()), dataset, None, None, ())
    with Pair(rented, net) as at:
        for each in machines:
            prepared: Prepared = (each, Path(each.root) / "code" / "c0ffee")
            at.prepared[each.name] = prepared
            at.devices[each.name] = Devices(listed=0)
        facts = replace(FACTS, hardware=None, config=config)
        made = provision.ready_all(at, machines, checked, facts, Screen(), Stopwatch())
        alone = provision.ready_all(at, machines[:1], replace(checked, request=Request()), facts, Screen(), Stopwatch())
    assert [each.machine.name for each in made] == ["n", "m"]
    assert [each.plan.place and each.plan.place.rank for each in made] == [0, 1]
    assert [each.facts.place for each in made] == [each.plan.place for each in made]
    of = 2 if shards == "by_node" else 1
    assert [(each.plan.data.shard.number, each.plan.data.shard.of) for each in made] == [(of - 1, of), (0, of)]
    assert [each.plan.place for each in alone] == [None]
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("machine 1 of 2", "machine 2 of 2", "node 0: n at 10.0.0.10 through at-10", "node 1: m at 10.0.0.9"):
        assert words in printed
    assert printed.count("machine 1 of") == 1
