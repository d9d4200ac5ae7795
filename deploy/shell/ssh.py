"""Shell on a machine reached by SSH: one Fabric connection with an agent behind it, reopened when it breaks."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from deploy.errors import NoMachine, StepFailed, WrongUse
from deploy.pod.base import retry
from deploy.shell import native
from deploy.shell.awake import awake_s
from deploy.shell.base import Request, Shell, attempt
from deploy.shell.connect import ChannelStream, broken, connect, disconnect
from deploy.shell.entry import entry_of
from deploy.shell.host_keys import HostKeys
from deploy.shell.link import Link, LinkLost, MachineGone, Misbehaves, NoAnswer, Pending
from deploy.shell.ssh_config import way_to
from deploy.specs.machine import Machine

if TYPE_CHECKING:
    from deploy.shell.connect import Connection

FIRST_CONNECT_S = 15.0
FIND_EVERY_S = 10.0  # a request to the provider uses one of its few calls per minute
COMMON_TERMINALS = ("xterm-256color", "xterm", "screen-256color", "screen", "linux", "vt100")  # known everywhere
MOST_TRIES = 20  # ends the retries of a request that breaks the connection each time


class SshShell(Shell):
    """Shell on a remote machine. The first verb starts an agent, which runs all verbs.

    A lost connection is reopened, and verbs that may run twice are retried, for up to `patience_s`. The job on the
    machine is not affected. `find` returns the machine as it is now, perhaps with another port, or None if it is gone.
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
        self.ask = ask  # confirms an unknown host key; None: ask at the terminal
        self.patience_s = retry.CONNECT_PATIENCE_S
        self._was_there = False
        self.on_loss: Callable[[str], None] = lambda _: None  # called when the connection breaks and when it is back
        self.reconnects = 0
        self._connection: Connection | None = None
        self._link: Link | None = None
        self._lock = threading.RLock()  # guards this shell's fields; never held while waiting for the machine
        self._connecting = threading.RLock()  # one thread connects, the others wait for it

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        once = None if again else verb
        return self._persist(lambda link: [link.submit(verb, **arguments)], once)[0]

    def attempts(self, requests: Sequence[Request]) -> list[Any]:
        def ask(link: Link) -> list[Pending]:
            return [link.submit(verb, **arguments) for verb, arguments in requests]

        return self._persist(ask, None, attempt)

    def lines(self, argv: Sequence[str], cwd: PurePath | None) -> Generator[bytes, None, int]:
        """As in Shell. Raises StepFailed if there is no such program."""
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
                self._drop_link(link)  # the command still runs: closing ends it
        return code  # type: ignore[no-any-return]  # the caller checks it

    def is_loss(self, failed: StepFailed) -> bool:
        return isinstance(failed, LinkLost) and not isinstance(failed, Misbehaves | NoAnswer)

    def terminal(self, argv: Sequence[str], *, interactive: bool = True) -> list[str]:
        """As in Shell. Raises WrongUse if this computer has no ssh."""
        if shutil.which("ssh") is None:
            raise WrongUse(f"this needs the program ssh, which is not installed here: {native.GET_SSH}")
        if interactive and not self._knows_terminal(os.environ.get("TERM") or COMMON_TERMINALS[0]):
            argv = ["env", f"TERM={COMMON_TERMINALS[0]}", *argv]
        return native.command(self.config(), self.machine, argv, terminal=interactive)

    def _knows_terminal(self, name: str) -> bool:
        """Whether the machine's terminfo has this kind of terminal: Ghostty's or kitty's is newer than most hosts."""
        ask = "import curses, sys; curses.setupterm(sys.argv[1])"
        return name in COMMON_TERMINALS or bool(self.run(["python3", "-c", ask, name], check=False, again=True))

    def config(self) -> Path:
        """Write an ssh_config for the system's ssh. It trusts the host key that this connection has checked."""
        with self._connecting:
            user = str(self.connection().user)
            return native.write_config(self.machine, self._host_keys(), user)

    def entry(self, alias: str) -> str:
        """Return lines for ~/.ssh/config with which the system's ssh reaches this machine as `alias`."""
        self.config()  # checks the host key and stores it
        address, keys = self.machine.address, self._host_keys()
        assert address is not None
        way = way_to(address.host, address.user, address.port)
        return entry_of(alias, way, address, keys.alias, keys.seen)

    def connection(self) -> Connection:
        """Return the open Fabric connection. Opens one if needed."""
        with self._connecting:
            connection = self._connection
            if connection is None or not connection.is_connected:
                connection = self._connect(FIRST_CONNECT_S)
                with self._lock:
                    self._connection = connection
            return connection

    def link(self) -> Link:
        """Return the link to this shell's agent. Starts an agent if needed."""
        with self._connecting:
            link = self._link
            if link is None or link.broken:
                link = self.another_link()
                with self._lock:
                    self._link, self._was_there = link, True
            link.give_up_at = self.give_up_at
            return link

    def another_link(self) -> Link:
        """Start another agent over the same connection."""
        return _link_over(self.connection(), owned=False)

    def separate_link(self) -> Link:
        """Start another agent over its own Fabric connection."""
        return _link_over(self._connect(FIRST_CONNECT_S), owned=True)

    def native_link(self) -> Link:
        """Start another agent over its own connection, by the system's ssh. Raises OSError without ssh."""
        return Link(native.ProcessStream(native.agent_command(self.config(), self.machine)))

    def close(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            connection, self._connection = self._connection, None
        if link is not None:
            link.close()
        if connection is not None:
            disconnect(connection)

    def _persist(
        self,
        ask: Callable[[Link], list[Pending]],
        once: str | None,
        take: Callable[[Callable[[], Any]], Any] = lambda result: result(),
    ) -> list[Any]:
        """Return the answers to the requests of `ask`, with retries on new connections. `once`: a verb not to retry."""
        began = awake_s()
        for tries in range(1, MOST_TRIES + 1):
            link = self._link_or_wait()
            try:
                return [take(pending.result) for pending in ask(link)]
            except LinkLost as lost:
                if once:
                    words = f"{lost.message}; it is not known whether '{once}' was carried out"
                    self._drop_link(link)
                    raise StepFailed(words, evidence=lost.evidence) from lost
                is_late = isinstance(lost, NoAnswer) and awake_s() - began > self.patience_s
                if tries == MOST_TRIES or is_late or isinstance(lost, Misbehaves):
                    raise
                self._come_back(lost, link)
        raise AssertionError

    def _link_or_wait(self) -> Link:
        """Return a working link. Reconnects for up to `patience_s`."""
        link = self._link
        if link is not None and link.broken:  # broke while idle
            self._come_back(LinkLost(f"the connection broke: {link.broken}"), link)
        try:
            return self.link()
        except LinkLost as lost:
            self._come_back(lost, None)
            return self.link()

    def _connect(self, timeout_s: float) -> Connection:
        assert self.machine.address is not None
        try:
            return connect(self.machine.address, self._host_keys(), timeout_s)
        except LinkLost as lost:
            if self._was_there or self.silent_fix is None or lost.next_command:
                raise
            raise LinkLost(lost.message, evidence=lost.evidence, next_command=self.silent_fix) from lost

    def _host_keys(self) -> HostKeys:
        return HostKeys(self.machine, self.notes, self.ask)

    def _come_back(self, lost: LinkLost, link: Link | None) -> None:
        """Reconnect with retries, to the machine's current address. `link` is the broken one."""
        with self._connecting:
            if self._link is not None and self._link is not link and not self._link.broken:
                return  # another thread has reconnected
            if isinstance(lost, Misbehaves) or awake_s() > self.give_up_at:
                raise lost
            self.close()
            self.on_loss(f"connection lost ({lost.message}); trying again")
            patience_s = self.patience_s if self._was_there else min(self.patience_s, retry.FIRST_PATIENCE_S)
            limit_s = min(awake_s() + patience_s, self.give_up_at)
            look_again = awake_s() + 1  # at first, its address is most likely unchanged
            limits_s, pauses_s = retry.endless(retry.CONNECT_LIMITS_S), retry.endless(retry.CONNECT_PAUSES_S)
            while True:
                if self.find is not None and awake_s() > look_again:
                    look_again = awake_s() + FIND_EVERY_S
                    self._look_up(lost)
                self.reconnects += 1
                try:
                    self._connection = self._connect(next(limits_s))
                    self.link()
                    self.on_loss("connected again")
                    return
                except LinkLost as error:
                    lost = error
                    self.close()
                if awake_s() > limit_s:
                    raise lost
                time.sleep(next(pauses_s))

    def _look_up(self, lost: LinkLost) -> None:
        assert self.find is not None
        try:
            found = self.find()
        except NoMachine as error:  # the provider does not answer either: keep the address
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
