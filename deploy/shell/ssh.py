"""A machine reached by SSH: one Fabric connection, an agent behind it, and a way back when it breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from deploy.errors import NoMachine, StepFailed
from deploy.shell import native
from deploy.shell.base import Shell
from deploy.shell.connect import ChannelStream, broken, connect, disconnect
from deploy.shell.entry import entry_of
from deploy.shell.host_keys import HostKeys
from deploy.shell.link import Link, LinkLost, MachineGone, Misbehaves, NoAnswer, Pending
from deploy.shell.ssh_config import way_to
from deploy.specs.machine import Machine

if TYPE_CHECKING:
    from deploy.shell.connect import Connection

FIRST_CONNECT_S = 15.0
FIRST_PATIENCE_S = 10.0
# Short, so that the way back is found within three seconds of the network's return; longer and longer, for a machine
# that is busy may need the time.
CONNECT_AGAIN_S = (2.0, 2.0, 3.0, 5.0, 10.0)
PAUSES_S = (0.1, 0.2, 0.5, 1.0)
PATIENCE_S = 60.0
FIND_EVERY_S = 10.0  # asking the provider costs one of its few calls a minute
MOST_TRIES = 20  # a request that breaks the connection each time is not repeated for ever


class SshShell(Shell):
    """Verbs are answered by an agent that the first of them starts. A lost connection is made anew, and what may be
    asked for twice is asked for again, for up to `patience_s`; the job on the machine knows nothing of it.

    `find` gives the machine as it is now, with another port perhaps, or None when it is gone.
    """

    def __init__(
        self,
        machine: Machine,
        notes: Path,
        find: Callable[[], Machine | None] | None = None,
        ask: Callable[[str], bool] | None = None,
    ) -> None:
        self.machine = machine
        self.name = machine.name
        self.notes = notes
        self.find = find
        self.ask = ask  # whether an unknown host key is right; None: ask at the terminal
        self.patience_s = PATIENCE_S
        self._was_there = False
        self.on_loss: Callable[[str], None] = lambda _: None  # told when the connection breaks, and when it is back
        self.reconnects = 0
        self._connection: Connection | None = None
        self._link: Link | None = None
        self._lock = threading.RLock()  # over what this shell holds; never while the machine is waited for
        self._connecting = threading.RLock()  # one thread makes the connection, the others wait for it

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        once = None if again else verb
        return self._persist(lambda link: [link.submit(verb, **arguments)], once)[0]

    def calls(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        return self._persist(lambda link: [link.submit(verb, **arguments) for verb, arguments in requests], None)

    def lines(self, argv: Sequence[str], cwd: PurePath | None) -> Generator[bytes, None, int]:
        link = self._link_or_wait()
        is_over = False
        try:
            code = yield from link.lines("lines", argv=list(argv), cwd=None if cwd is None else str(cwd))
            is_over = True
        except FileNotFoundError as error:
            is_over = True
            raise StepFailed(f"{argv[0]} was not found") from error
        finally:
            if not is_over:
                self._drop_link(link)  # the agent is still at it: closing ends the command
        return code  # type: ignore[no-any-return]  # who asks checks it

    def is_loss(self, failed: StepFailed) -> bool:
        return isinstance(failed, LinkLost) and not isinstance(failed, Misbehaves | NoAnswer)

    def terminal(self, argv: Sequence[str]) -> list[str]:
        return native.command(self.config(), self.machine, argv, terminal=True)

    def config(self) -> Path:
        """An ssh_config for the system's ssh, which trusts the host key that this connection has checked."""
        with self._connecting:
            user = str(self.connection().user)
            return native.write_config(self.machine, self._host_keys(), user)

    def entry(self, alias: str) -> str:
        """Lines for ~/.ssh/config, by which the system's ssh reaches this machine as `alias`."""
        self.config()  # so that its host key is checked, and written down
        address, keys = self.machine.address, self._host_keys()
        assert address is not None
        way = way_to(address.host, address.user, address.port)
        return entry_of(alias, way, address, keys.alias, keys.seen)

    def connection(self) -> Connection:
        """The open Fabric connection; made when there is none."""
        with self._connecting:
            connection = self._connection
            if connection is None or not connection.is_connected:
                connection = self._connect(FIRST_CONNECT_S)
                with self._lock:
                    self._connection = connection
            return connection

    def link(self) -> Link:
        """The agent of this shell; started when there is none."""
        with self._connecting:
            link = self._link
            if link is None or link.broken:
                link = self.another_link()
                with self._lock:
                    self._link, self._was_there = link, True
            link.give_up_at = self.give_up_at
            return link

    def another_link(self) -> Link:
        """One more agent over the same connection."""
        return _link_over(self.connection(), owned=False)

    def separate_link(self) -> Link:
        """One more agent over a Fabric connection of its own."""
        return _link_over(self._connect(FIRST_CONNECT_S), owned=True)

    def native_link(self) -> Link:
        """One more agent over a connection of its own, by the system's ssh; OSError where there is none."""
        return Link(native.ProcessStream(native.agent_command(self.config(), self.machine)))

    def close(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            connection, self._connection = self._connection, None
        if link is not None:
            link.close()
        if connection is not None:
            disconnect(connection)

    def _persist(self, ask: Callable[[Link], list[Pending]], once: str | None) -> list[Any]:
        """The answers to what `ask` asks for, over one connection after another; `once`: a verb not to be repeated."""
        began = time.monotonic()
        for tries in range(1, MOST_TRIES + 1):
            link = self._link_or_wait()
            try:
                return [pending.result() for pending in ask(link)]
            except LinkLost as lost:
                if once:
                    words = f"{lost.message}; it is not known whether '{once}' was carried out"
                    self._drop_link(link)
                    raise StepFailed(words, evidence=lost.evidence) from lost
                is_late = isinstance(lost, NoAnswer) and time.monotonic() - began > self.patience_s
                if tries == MOST_TRIES or is_late or isinstance(lost, Misbehaves):
                    raise
                self._come_back(lost, link)
        raise AssertionError

    def _link_or_wait(self) -> Link:
        """A link that works; waited for, as long as the patience lasts."""
        link = self._link
        if link is not None and link.broken:  # while nothing was asked for
            self._come_back(LinkLost(f"the connection broke: {link.broken}"), link)
        try:
            return self.link()
        except LinkLost as lost:
            self._come_back(lost, None)
            return self.link()

    def _connect(self, timeout_s: float) -> Connection:
        assert self.machine.address is not None
        return connect(self.machine.address, self._host_keys(), timeout_s)

    def _host_keys(self) -> HostKeys:
        return HostKeys(self.machine, self.notes, self.ask)

    def _come_back(self, lost: LinkLost, link: Link | None) -> None:
        """Connect again, and again, where the machine is now; `link` is the one that broke."""
        with self._connecting:
            if self._link is not None and self._link is not link and not self._link.broken:
                return  # another thread has found the way back
            if isinstance(lost, Misbehaves) or time.monotonic() > self.give_up_at:
                raise lost
            self.close()
            self.on_loss(f"connection lost ({lost.message}); trying again")
            # A machine that was never reached is more likely the wrong one than one that will be back in a minute.
            patience_s = self.patience_s if self._was_there else min(self.patience_s, FIRST_PATIENCE_S)
            limit_s = min(time.monotonic() + patience_s, self.give_up_at)
            look_again = time.monotonic() + 1  # at first it is most likely where it was
            tries = 0
            while True:
                if self.find is not None and time.monotonic() > look_again:
                    look_again = time.monotonic() + FIND_EVERY_S
                    self._look_up(lost)
                self.reconnects += 1
                try:
                    self._connection = self._connect(CONNECT_AGAIN_S[min(tries, len(CONNECT_AGAIN_S) - 1)])
                    self.link()
                    self.on_loss("connected again")
                    return
                except LinkLost as error:
                    lost = error
                    self.close()
                if time.monotonic() > limit_s:
                    raise lost
                time.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
                tries += 1

    def _look_up(self, lost: LinkLost) -> None:
        assert self.find is not None
        try:
            found = self.find()
        except NoMachine as error:  # its provider does not answer either: perhaps it is where it was
            self.on_loss(error.message)
            return
        if found is None:
            raise MachineGone(f"the machine {self.machine.name} is gone", evidence=lost.evidence) from lost
        self.machine = found

    def _drop_link(self, link: Link) -> None:
        with self._lock:
            if self._link is link:
                self._link = None
        link.close()


def _link_over(connection: Connection, *, owned: bool) -> Link:
    try:
        return Link(ChannelStream(connection, owned=owned))
    except broken() as error:
        if owned:
            disconnect(connection)
        raise LinkLost(f"the connection broke: {error or type(error).__name__}") from error
