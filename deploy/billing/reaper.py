"""Find machines of this project that cost money for nothing. Report them, and release those that nothing else will end.

Commands run this at their start. The first check costs one call of the provider's list. The rules are in
deploy/billing/verdict.py.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy import border
from deploy.billing import bills
from deploy.billing.bills import Bill, Priced, an_hour
from deploy.billing.teardown import bring_all_home, is_home
from deploy.billing.verdict import Case, verdict
from deploy.errors import BadAnswer, DeployError, command
from deploy.pod.base.folder import Root
from deploy.runs import records, session, watchdog
from deploy.runs.session import Reach
from deploy.shell import LinkLost, Shell
from deploy.specs.machine import Machine
from deploy.ui.screen import Screen


class NoAnswer(Exception):
    """The machine cannot be asked. The message is the reason."""


def reap(at: Reach, given_up: str | None = None, *, screen: Screen) -> None:
    """Report machines that cost money for nothing, and release those that nothing else will end.

    Prints to stderr, as stdout may be a log or a document. `given_up`: check only the machine of this name, whose guard
    has given up. An error here never ends the command.
    """
    try:
        found = bills.priced(at)
    except DeployError:  # `ps` reports an account that does not answer
        return
    for each in found:
        machine, bill = each.machine, each.bill
        if not bill.usd_per_hour or given_up not in (None, machine.name):
            continue
        try:
            note = _Overdue(at, each, screen).look_after(surely=given_up is not None)
        except Exception as error:  # of any kind: the machine is not trusted
            note = f"{bill.note or 'it has to be checked'}, and {error}"
        if note:
            words = f"{machine.name} costs {an_hour(bill.usd_per_hour)}: {note}"
            screen.complain(f"{words}; see {command('ps')}, release it with {command('down --orphans')}")


@dataclass(frozen=True)
class _Overdue:
    """One machine that costs money, as one command sees it."""

    at: Reach
    seen: Priced
    screen: Screen

    @property
    def machine(self) -> Machine:
        return self.seen.machine

    @property
    def bill(self) -> Bill:
        return self.seen.bill

    def look_after(self, *, surely: bool) -> str | None:
        """Release or revive the machine if due. Returns a note to print; None for no note, or after a release."""
        on_it = self.seen.runs
        files = [Path(records.home(self.at.settings.runs, each.run_id).run) for each in on_it]
        heard = max([self.machine.created or 0.0, *(file.stat().st_mtime for file in files if file.exists())])
        case = Case(
            bill=self.bill,
            limits=self.seen.limits,
            has_record=bool(on_it),
            unheard_s=time.time() - heard,
            is_stopped=self.machine.is_stopped,
            gave_up=surely,
        )
        if verdict(case).act == "leave":
            return self.bill.note
        with ExitStack() as stack:
            own = self.at
            if self.bill.target != own.settings.target.name:
                own = stack.enter_context(session.target(own.settings.project, str(self.bill.target), own.situation))
            case = replace(case, is_launching=session.is_launching(own.settings))
            try:
                return self._carry_out(own, case)
            except (LinkLost, BadAnswer, NoAnswer) as error:
                at_home = case.late and self.bill.orphan and all(is_home(own, record) for record in on_it)
                return self._carry_out(own, replace(case, no_answer=str(error), is_home=bool(at_home)))

    def _carry_out(self, own: Reach, case: Case) -> str | None:
        """Act until the verdict is final. Returns as `look_after` does. Raises LinkLost, BadAnswer or NoAnswer."""
        while True:
            told = verdict(case)
            if told.act == "ask":
                case = replace(case, report=_ask(*self._there(own)) or {})
            elif told.act == "download":
                bring_all_home(own, self.machine, self.screen, anyway=False)
                # Ask again: the download may have taken a while.
                case = replace(case, after=_ask(*self._there(own)) or case.report)
            elif told.act in ("leave", "revive"):
                if told.act == "revive":
                    there, shell, root = self._there(own)
                    watchdog.revive(own.settings, there, shell, root.path)
                return told.words
            else:
                if told.act == "end":
                    self._there(own)
                    bring_all_home(own, self.machine, self.screen, anyway=True)
                own.provider.release(self.machine)
                self.at.forget(self.machine.name)
                cost = "" if self.bill.usd is None else f" after ${self.bill.usd:.2f}"
                self.screen.complain(f"released {self.machine.name}{cost}: {told.words}")
                return None

    def _there(self, own: Reach) -> tuple[Machine, Shell, Root]:
        """The machine as its provider lists it now, with an address. Raises NoAnswer."""
        if not self.machine.address or not self.machine.address.host:
            raise NoAnswer("it has no address")
        there = own.machine(self.machine.name)
        if there is None:
            raise NoAnswer("it is not running")
        shell = own.shell(there)
        return there, shell, Root(there.path(shell.expand(str(there.root))))


def _ask(machine: Machine, shell: Shell, root: Root) -> dict[str, Any] | None:
    """The machine's report (deploy/pod/watchdog/report.py); None if its guard.json names no code to make it."""
    told, _ = watchdog.heard(shell, root.guard)
    if not told.get("code"):
        return None
    code = machine.path(border.path_text(told["code"], f"{shell.name}: {root.guard.name}, code"))
    argv = ["python3", "-m", "deploy.pod.standing", str(root.path)]
    return border.standing(shell.run(argv, cwd=code, again=True).stdout, f"{shell.name}: how it stands")
