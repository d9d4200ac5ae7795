"""A machine reached by SSH: one Fabric connection, an agent behind it, and a way back when it breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from deploy.errors import StepFailed
from deploy.machine import Machine
from deploy.shell import native
from deploy.shell.base import Shell
from deploy.shell.connect import ChannelStream, connect
from deploy.shell.host_keys import HostKeys
from deploy.shell.link import Link, LinkLost, Pending

if TYPE_CHECKING:
    from deploy.shell.connect import Connection

FIRST_CONNECT_S = 15.0
# Short, so that the way back is found within three seconds of the network's return.
CONNECT_AGAIN_S = 2.0
PAUSES_S = (0.1, 0.2, 0.5, 1.0)
FIND_EVERY_S = 10.0  # asking the provider costs one of its few calls a minute


class SshShell(Shell):
    """Verbs are answered by an agent that the first of them starts. A lost connection is made anew, and what may be
    asked for twice is asked for again, for up to `patience_s`; the job on the machine knows nothing of it.

    `find` gives the machine as it is now, with another port perhaps, or None when it is gone.
    """

    def __init__(self, machine: Machine, notes: Path, find: Callable[[], Machine | None] | None = None) -> None:
        self.machine = machine
        self.notes = notes
        self.find = find
        self.reconnects = 0
        self._connection: Connection | None = None
        self._link: Link | None = None
        self._lock = threading.RLock()

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        once = None if again else verb
        return self._persist(lambda link: [link.submit(verb, **arguments)], once)[0]

    def calls(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        return self._persist(lambda link: [link.submit(verb, **arguments) for verb, arguments in requests], None)

    def lines(self, argv: Sequence[str], cwd: PurePath | None) -> Iterator[bytes]:
        try:
            yield from self.link().lines("lines", argv=list(argv), cwd=None if cwd is None else str(cwd))
        except FileNotFoundError as error:
            raise StepFailed(f"{argv[0]} was not found") from error
        except BaseException:
            self._drop_link()  # the agent is still at it: closing ends the command
            raise

    def terminal(self, argv: Sequence[str]) -> list[str]:
        return native.command(self.config(), self.machine, argv, terminal=True)

    def config(self) -> Path:
        """An ssh_config for the system's ssh, which trusts the host key that this connection has checked."""
        user = str(self.connection().user)
        return native.write_config(self.machine, self._host_keys(), user)

    def connection(self) -> Connection:
        """The open Fabric connection; made when there is none."""
        with self._lock:
            if self._connection is None or not self._connection.is_connected:
                self._connection = self._connect(FIRST_CONNECT_S)
            return self._connection

    def link(self) -> Link:
        """The agent of this shell; started when there is none."""
        with self._lock:
            if self._link is None or self._link.broken:
                self._link = self.another_link()
            return self._link

    def another_link(self) -> Link:
        """One more agent over the same connection."""
        import paramiko

        try:
            return Link(ChannelStream(self.connection()))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise LinkLost(f"the connection broke: {error or type(error).__name__}") from error

    def separate_link(self) -> Link:
        """One more agent over a Fabric connection of its own."""
        import paramiko

        connection = self._connect(FIRST_CONNECT_S)
        try:
            return Link(ChannelStream(connection, owned=True))
        except (paramiko.SSHException, OSError, EOFError) as error:
            connection.close()
            raise LinkLost(f"the connection broke: {error or type(error).__name__}") from error

    def native_link(self) -> Link:
        """One more agent over a connection of its own, by the system's ssh; OSError where there is none."""
        return Link(native.ProcessStream(self.config(), self.machine))

    def close(self) -> None:
        self._drop()

    def _persist(self, ask: Callable[[Link], list[Pending]], once: str | None) -> list[Any]:
        """The answers to what `ask` asks for, over one connection after another; `once`: a verb not to be repeated."""
        limit_s = time.monotonic() + self.patience_s
        while True:
            try:
                return [pending.result() for pending in ask(self.link())]
            except LinkLost as lost:
                self._drop()
                self._give_up_on(lost)
                if once:
                    words = f"{lost.message}; it is not known whether '{once}' was carried out"
                    raise StepFailed(words, evidence=lost.evidence) from lost
                self._come_back(lost, limit_s)

    def _connect(self, timeout_s: float) -> Connection:
        assert self.machine.address is not None
        return connect(self.machine.address, self._host_keys(), timeout_s)

    def _host_keys(self) -> HostKeys:
        return HostKeys(self.machine, self.notes)

    def _come_back(self, lost: LinkLost, limit_s: float) -> None:
        """Connect again, and again, where the machine is now."""
        self.on_loss(f"connection lost ({lost.message}); trying again")
        look_again = time.monotonic() + 1  # at first it is most likely where it was
        for pause_s in _pauses():
            if time.monotonic() > limit_s:
                raise lost
            if self.find is not None and time.monotonic() > look_again:
                look_again = time.monotonic() + FIND_EVERY_S
                found = self.find()
                if found is None:
                    raise StepFailed(f"the machine {self.machine.name} is gone", evidence=lost.evidence) from lost
                self.machine = found
            self.reconnects += 1
            try:
                with self._lock:
                    self._connection = self._connect(CONNECT_AGAIN_S)
                self.on_loss("connected again")
                return
            except LinkLost as error:
                lost = error
            time.sleep(pause_s)

    @staticmethod
    def _give_up_on(lost: LinkLost) -> None:
        """A machine without a usable Python will not have one a second later; nor is a fault of ours worth a repeat."""
        if "python3" in lost.message or any("Error" in line for line in lost.evidence):
            raise lost

    def _drop_link(self) -> None:
        with self._lock:
            if self._link is not None:
                self._link.close("closed")
            self._link = None

    def _drop(self) -> None:
        with self._lock:
            self._drop_link()
            if self._connection is not None:
                self._connection.close()
            self._connection = None


def _pauses() -> Iterator[float]:
    yield from PAUSES_S
    while True:
        yield PAUSES_S[-1]
