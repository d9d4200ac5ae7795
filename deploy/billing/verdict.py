"""PURE: decide what happens to a machine that costs money for nothing.

A machine itself is asked only in two cases: the provider's list, its limits and the laptop's records imply that it
should be gone, or a command that is connected anyway has read that its guard gave up. A machine is released when all
of this holds:

1. the machine reports that no run, of this laptop or another, works or waits on it;
2. its guard tried to release it and failed, or it is past max_hours or max_usd and its guard is dead;
3. nothing is left that only this machine has: files of this laptop's runs are downloaded first.

A machine's own report cannot delay its release for ever. Past max_usd, which is a hard limit, or past three times
max_hours it is released whatever it reports. Both are computed from the provider's price and the laptop's clock. Only
for a machine without a run of this laptop, a run that works on it counts: its limits are those of another laptop.

A machine that does not answer is released if it is past a limit and the end of all its runs is on the laptop already.
It is also released if it is past max_usd for so long that a living guard would have ended it. The command then prints
that data is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from deploy.billing.bills import Bill, past_ceiling
from deploy.errors import command
from deploy.pod.base.limits import Limits

# A machine's own report can delay its release up to these limits.
WORD_TIMES = 3  # of max_hours
SLACK_MIN = 15.0  # for a guard's own shutdown: checkpoint, copies, attempts to release


@dataclass(frozen=True)
class Case:
    """What is known of a machine. `report`, `after` and `no_answer` are None until the machine was asked."""

    bill: Bill
    limits: Limits
    has_record: bool  # of a run on it, on this laptop
    unheard_s: float  # since this laptop read anything new of its runs
    is_stopped: bool = False
    gave_up: bool = False  # a command has read that its guard gave up
    is_launching: bool = False  # a command of this laptop is starting a run on its target
    report: Mapping[str, Any] | None = None  # deploy/pod/watchdog/report.py; {} if it cannot report
    after: Mapping[str, Any] | None = None  # the same, after the download
    no_answer: str | None = None  # why the machine cannot be asked
    is_home: bool = False  # the end of all its runs is on the laptop

    @property
    def late(self) -> str | None:
        return past_ceiling(self.bill, self.limits)

    @property
    def note(self) -> str:
        return self.late or self.bill.note or "its guard has died"


@dataclass(frozen=True)
class Verdict:
    """The next act, and what the user reads: the note for `leave` and `revive`, the reason for `end` and `release`.

    `ask` and `download` need a second verdict, with the machine's report. `end` downloads what a short time allows.
    """

    act: Literal["leave", "ask", "revive", "download", "end", "release"]
    words: str | None = None


def verdict(case: Case) -> Verdict:
    if case.no_answer is not None:
        return _without_an_answer(case, case.no_answer)
    if case.is_stopped or case.is_launching or not (case.late or case.gave_up or _is_quiet(case)):
        return Verdict("leave", case.bill.note)
    if (why := _must_go(case)) and not _may_be_anothers(case):
        return Verdict("end", f"{why}; what was not downloaded before is lost, see {command('runs')}")
    if case.report is None:
        return Verdict("ask")
    if not case.report:
        return Verdict("leave", case.bill.note)
    return _before_download(case, case.report) if case.after is None else _after_download(case, case.report, case.after)


def _is_quiet(case: Case) -> bool:
    """Whether this laptop has read nothing new of its runs for longer than its guard waits."""
    idle_min = case.limits.idle_min
    known = case.bill.orphan and case.has_record
    return known and idle_min is not None and case.unheard_s > (idle_min + SLACK_MIN) * 60


def _may_be_anothers(case: Case) -> bool:
    """Whether it may have a run of another computer, whose limits this computer does not know."""
    return not case.has_record and (case.report is None or bool(case.report.get("at_work")))


def _must_go(case: Case) -> str | None:
    """Why to release a machine whatever it reports, from the provider's price and the laptop's clock alone."""
    limits = case.limits
    if past := _past_max_usd(case):
        return f"{past}, a hard limit"
    patient = replace(limits, max_usd=None, max_hours=limits.max_hours and limits.max_hours * WORD_TIMES)
    if past_ceiling(case.bill, patient, slack_min=SLACK_MIN):
        return f"past {WORD_TIMES} times max_hours: {limits.max_hours:g}"
    return None


def _past_max_usd(case: Case) -> str | None:
    return past_ceiling(case.bill, replace(case.limits, max_hours=None), slack_min=SLACK_MIN)


def _before_download(case: Case, report: Mapping[str, Any]) -> Verdict:
    late, gave_up = case.late, report["state"] == "stuck"
    if not report["guarded"] and (report["at_work"] or not (late or gave_up)):
        return Verdict("revive", f"{case.note}; its guard had died and was started again")
    if report["at_work"]:
        running = f"run {report['at_work'][0]} is running on it, and its guard has to end the run"
        return Verdict("leave", late and f"{late}; {running}")
    if report["guarded"] and not gave_up:
        return Verdict("leave", f"{case.note}; its guard reports: {report['decision']}" if late else case.bill.note)
    return Verdict("download")


def _after_download(case: Case, report: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    if after["at_work"]:
        return Verdict("leave", case.bill.note)
    if after["only_copies"]:
        run, file = next(iter(after["only_copies"].items()))
        only = f"it has the only copy of {file} of run {run}, which this laptop could not download"
        return Verdict("leave", f"{case.note}; {only}")
    brought = ", ".join(report["only_copies"].values())
    what = "its guard could not release it" if report["state"] == "stuck" else f"{case.late}, and its guard is dead"
    return Verdict("release", f"{what}; {f'{brought} downloaded first' if brought else 'nothing was left on it'}")


def _without_an_answer(case: Case, why: str) -> Verdict:
    """The machine may be down, or only the connection."""
    note = f"{case.late or case.bill.note or 'its guard gave up'}, and it does not answer ({why})"
    if case.has_record and case.is_home and past_ceiling(case.bill, case.limits, slack_min=SLACK_MIN):
        return Verdict("release", f"{note}; the results of its runs are on this laptop")
    if case.has_record and _past_max_usd(case):
        return Verdict("release", f"{note}; max_usd is hard: DATA THAT ONLY IT HAD IS LOST, see {command('runs')}")
    return Verdict("leave", note)
