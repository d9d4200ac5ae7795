"""Find the address at which the machines of one run reach each other, by letting them connect."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy import border
from deploy.errors import StepFailed, WrongUse
from deploy.shell import Shell
from deploy.specs.machine import Machine, Place

PORTS = range(29400, 29410)  # the first is torchrun's default


Machines = Sequence[tuple[Machine, Shell]]


@dataclass(frozen=True)
class _Heard:
    """How a machine reaches another: the other's address, its own address and network interface."""

    address: str
    own: str
    interface: str


def meet(machines: Machines) -> list[Place]:
    """The place of each machine in the run, in the order given.

    torchrun ranks its agents by address, compared as text. The machine whose address sorts first therefore has rank 0,
    which writes checkpoints and metrics. It also hosts the rendezvous, so that the machine that is left after a loss is
    still the one that writes. Raises StepFailed if one cannot reach another, WrongUse if two are the same machine.
    """
    port, heard = _at(machines, 0, None)
    addresses = [next(iter(heard.values())).address, *(each.own for each in heard.values())]
    if all(each.startswith("127.") for each in addresses):  # one computer: each gets a loopback address of its own
        addresses = [f"127.0.0.{number}" for number in range(1, len(machines) + 1)]
    if len(set(addresses)) < len(addresses):
        names = ", ".join(f"{machine.name} ({its})" for (machine, _), its in zip(machines, addresses, strict=True))
        raise WrongUse(f"two hosts are the same machine: {names}; name each machine once")
    order = sorted(range(len(machines)), key=lambda number: addresses[number])
    first = order[0]
    if first != 0:
        port, heard = _at(machines, first, [addresses[first]])
    interfaces = {number: each.interface for number, each in heard.items()}
    host, shell = machines[first]
    told = shell.call("interface_of", address=addresses[first])
    interfaces[first] = border.interface(told, f"{host.name}: its interface")
    return [
        Place(order.index(number), address, interfaces[number], addresses[first], port)
        for number, address in enumerate(addresses)
    ]


def _at(machines: Machines, first: int, wanted: list[str] | None) -> tuple[int, dict[int, _Heard]]:
    """A free port of machine `first`, and how each other one, by number, reaches it. All use the same address."""
    host, shell = machines[first]
    word = secrets.token_hex(8)
    port, told = _open(host, shell, word)
    addresses = wanted or told
    others = [number for number in range(len(machines)) if number != first]
    asked: dict[str, Any] = {"addresses": addresses, "port": port, "word": word}
    try:
        answers = {number: _reached(*machines[number], asked) for number in others}
    finally:
        shell.call("close_rendezvous")
    heard = {number: {each[0]: _Heard(*each) for each in answer} for number, answer in answers.items()}
    for address in addresses:
        if all(address in each for each in heard.values()):
            return port, {number: each[address] for number, each in heard.items()}
    deaf = [machines[number][0].name for number, each in heard.items() if not each] or ["some of the others"]
    raise StepFailed(
        f"{', '.join(deaf)} cannot reach {host.name} at port {port} of {' or '.join(addresses) or 'any address'}: "
        "training on several machines needs a network between them with all ports open"
    )


def _reached(machine: Machine, shell: Shell, asked: dict[str, Any]) -> list[tuple[str, str, str]]:
    return border.heard(shell.call("reach_rendezvous", **asked), f"{machine.name}: how it reaches the others")


def _open(host: Machine, shell: Shell, word: str) -> tuple[int, list[str]]:
    for port in PORTS:
        try:
            told = border.names(shell.call("open_rendezvous", port=port, word=word), f"{host.name}: its addresses")
            return port, [border.address(each, f"{host.name}: its address") for each in told]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise StepFailed(f"{host.name} has no free port for the rendezvous: {PORTS[0]} to {PORTS[-1]} are in use")
