"""Find machines of this project that cost money for nothing. Report them, and release those that nothing else will end.

Commands run this at their start. The first check costs one call of the provider's list. A machine itself is asked only
in two cases: that list, its limits and the laptop's records imply that it should be gone, or a command that is
connected anyway has read that its guard gave up. A machine is released when all of this holds:

1. the machine reports that no run, of this laptop or another, works or waits on it;
2. its guard tried to release it and failed, or it is past max_hours or max_usd and its guard is dead;
3. nothing is left that only this machine has: files of this laptop's runs are downloaded first.

A machine's own report cannot delay its release for ever. Past max_usd, which is a hard limit, or past three times
max_hours it is released whatever it reports. Both are computed from the provider's price and the laptop's clock.

A machine that does not answer is released if it is past a limit and the end of all its runs is on the laptop already.
It is also released if it is past max_usd for so long that a living guard would have ended it. The command then prints
that data is lost.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy import border
from deploy.billing import bills as money
from deploy.billing.bills import Bill, an_hour, past_ceiling
from deploy.billing.teardown import bring_all_home, is_home
from deploy.errors import BadAnswer, DeployError, command
from deploy.pod.base.folder import Root
from deploy.pod.base.limits import Limits
from deploy.runs import records as runs
from deploy.runs import session as reach
from deploy.runs import watchdog as guard
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.shell import LinkLost, Shell
from deploy.specs.machine import Machine
from deploy.ui.screen import Screen

# A machine's own report can delay its release up to these limits.
WORD_TIMES = 3  # of max_hours
SLACK_MIN = 15.0  # for a guard's own shutdown: checkpoint, copies, attempts to release


class NoAnswer(Exception):
    """The machine cannot be asked. The message is the reason."""


def reap(at: Reach, given_up: str | None = None, *, screen: Screen) -> None:
    """Report machines that cost money for nothing, and release those that nothing else will end.

    Prints to stderr, as stdout may be a log or a document. `given_up`: check only the machine of this name, whose guard
    has given up. An error here never ends the command.
    """
    try:
        found = money.priced(at.settings.project, at)
    except DeployError:  # `ps` reports an account that does not answer
        return
    for machine, bill in found:
        if not bill.usd_per_hour or given_up not in (None, machine.name):
            continue
        try:
            note = _Overdue(at, machine, bill, screen).look_after(surely=given_up is not None)
        except Exception as error:  # of any kind: the machine is not trusted
            note = f"{bill.note or 'it has to be checked'}, and {error}"
        if note:
            words = f"{machine.name} costs {an_hour(bill.usd_per_hour)}: {note}"
            screen.complain(f"{words}; see {command('ps')}, release it with {command('down --orphans')}")


@dataclass(frozen=True)
class _Overdue:
    """One machine that costs money, as one command sees it."""

    at: Reach
    machine: Machine
    bill: Bill
    screen: Screen

    @property
    def on_it(self) -> list[Record]:
        return [each for each in runs.every(self.at.settings.runs) if self.machine.name in each.machines]

    @property
    def allowed(self) -> Limits:
        return money.limits_of(self.at.settings.project, self.bill, self.on_it)

    def look_after(self, *, surely: bool) -> str | None:
        """Release or revive the machine if due. Returns a note to print; None for no note, or after a release."""
        late = past_ceiling(self.bill, self.allowed)
        if self.machine.is_stopped or not (late or surely or self._is_quiet()):
            return self.bill.note
        with ExitStack() as stack:
            own = self.at
            if self.bill.target != own.settings.target.name:
                own = stack.enter_context(reach.target(own.settings.project, str(self.bill.target)))
            if reach.is_launching(own.settings):
                return self.bill.note
            try:
                if why := must_go(self.bill, self.allowed):
                    self._end(own, why)
                    return None
                return self._decide(own, late)
            except (LinkLost, BadAnswer, NoAnswer) as error:
                return self._without_an_answer(own, late, str(error))

    def _is_quiet(self) -> bool:
        """Whether this laptop has read nothing new of its runs for longer than its guard waits."""
        idle_min = self.allowed.idle_min
        if not self.bill.orphan or not self.on_it or idle_min is None:
            return False
        files = [Path(runs.home(self.at.settings.runs, each.run_id).run) for each in self.on_it]
        heard = max([self.machine.created or 0.0, *(file.stat().st_mtime for file in files if file.exists())])
        return time.time() - heard > (idle_min + SLACK_MIN) * 60

    def _there(self, own: Reach) -> Machine:
        """The machine as its provider lists it now, with an address. Raises NoAnswer."""
        if not self.machine.address or not self.machine.address.host:
            raise NoAnswer("it has no address")
        there = own.machine(self.machine.name)
        if there is None:
            raise NoAnswer("it is not running")
        return there

    def _decide(self, own: Reach, late: str | None) -> str | None:
        """Decide by the machine's own report. Returns as `look_after` does."""
        there = self._there(own)
        shell = own.shell(there)
        root = Root(there.path(shell.expand(str(there.root))))
        stands = _ask(shell, there, root)
        if stands is None:  # never guarded, or by an older version: leave it alone
            return self.bill.note
        note, gave_up = late or self.bill.note or "its guard has died", stands["state"] == "stuck"
        if not stands["guarded"] and (stands["at_work"] or not (late or gave_up)):
            guard.revive(own.settings, there, shell, root.path)
            return f"{note}; its guard had died and was started again"
        if stands["at_work"]:
            return late and f"{late}; run {stands['at_work'][0]} is running on it, and its guard has to end the run"
        if stands["guarded"] and not gave_up:
            return f"{note}; its guard reports: {stands['decision']}" if late else self.bill.note
        bring_all_home(own, self.machine, self.screen, anyway=False)
        brought = ", ".join(stands["only_copies"].values())
        stands = _ask(shell, there, root) or stands  # ask again: the download may have taken a while
        if stands["at_work"]:
            return self.bill.note
        if stands["only_copies"]:
            run, file = next(iter(stands["only_copies"].items()))
            return f"{note}; it has the only copy of {file} of run {run}, which this laptop could not download"
        what = "its guard could not release it" if gave_up else f"{late}, and its guard is dead"
        self._release(own, f"{what}; {f'{brought} downloaded first' if brought else 'nothing was left on it'}")
        return None

    def _end(self, own: Reach, why: str) -> None:
        """Release the machine whatever it reports. Before that, download what a short time allows."""
        self._there(own)
        bring_all_home(own, self.machine, self.screen, anyway=True)
        self._release(own, f"{why}; what was not downloaded before is lost, see {command('runs')}")

    def _without_an_answer(self, own: Reach, late: str | None, words: str) -> str | None:
        """Decide about a machine that does not answer: the machine may be down, or only the connection."""
        note = f"{late or self.bill.note or 'its guard gave up'}, and it does not answer ({words})"
        known = self.on_it
        if not known or not late:
            return note
        at_home = self.bill.orphan and all(is_home(own, record) for record in known)
        if at_home and past_ceiling(self.bill, self.allowed, slack_min=SLACK_MIN):
            self._release(own, f"{note}; the results of its runs are on this laptop")
            return None
        if past_ceiling(self.bill, replace(self.allowed, max_hours=None), slack_min=SLACK_MIN):
            self._release(own, f"{note}; max_usd is hard: DATA THAT ONLY IT HAD IS LOST, see {command('runs')}")
            return None
        return note

    def _release(self, own: Reach, why: str) -> None:
        own.provider.release(self.machine)
        self.at.forget(self.machine.name)
        cost = "" if self.bill.usd is None else f" after ${self.bill.usd:.2f}"
        self.screen.complain(f"released {self.machine.name}{cost}: {why}")


def must_go(bill: Bill, limits: Limits) -> str | None:
    """Why to release a machine whatever it reports, from the provider's price and the laptop's clock alone."""
    if past := past_ceiling(bill, replace(limits, max_hours=None), slack_min=SLACK_MIN):
        return f"{past}, a hard limit"
    if limits.max_hours and past_ceiling(
        bill, replace(limits, max_usd=None, max_hours=limits.max_hours * WORD_TIMES), slack_min=SLACK_MIN
    ):
        return f"past {WORD_TIMES} times max_hours: {limits.max_hours:g}"
    return None


def _ask(shell: Shell, machine: Machine, root: Root) -> dict[str, Any] | None:
    """The machine's report (deploy/pod/watchdog/report.py); None if its guard.json names no code to make it."""
    told, _ = guard.heard(shell, root.guard)
    if not told.get("code"):
        return None
    code = machine.path(border.path_text(told["code"], f"{shell.name}: {root.guard.name}, code"))
    argv = ["python3", "-m", "deploy.pod.standing", str(root.path)]
    return border.standing(shell.run(argv, cwd=code, again=True).stdout, f"{shell.name}: how it stands")
