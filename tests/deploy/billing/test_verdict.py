"""What happens to a machine that costs money for nothing: each rule as a case, without a machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploy.billing.bills import Bill
from deploy.billing.verdict import Case, Verdict, verdict
from deploy.errors import command
from deploy.pod.base.limits import Limits

# 2 USD an hour: max_usd is spent after 20 hours, and the hard line is 15 minutes later.
BILL = Bill(machine="m", target="runpod", usd_per_hour=2.0, hours=1.0, usd=2.0, run="a", orphan=False)
LIMITS = Limits(max_hours=10, max_usd=40, idle_min=5, usd_per_hour=2, grace_s=0, sync_limit_s=0)
CASE = Case(BILL, LIMITS, has_record=True, unheard_s=0.0)
IDLE: dict[str, Any] = {"at_work": [], "guarded": False, "state": None, "decision": None, "only_copies": {}}
BUSY = {**IDLE, "at_work": ["a", "b"]}
KEEPER = {**IDLE, "only_copies": {"a": "epoch_002.pt"}}
LOST = f"what was not downloaded before is lost, see {command('runs')}"
LATE = "past max_hours: 10"


def judged(hours: float | None = 1.0, *, bill: dict[str, Any] | None = None, **case: Any) -> Verdict:
    return verdict(replace(CASE, bill=replace(BILL, hours=hours, **bill or {}), **case))


@pytest.mark.parametrize(
    ("hours", "case", "act"),
    [
        (1.0, {}, "leave"),
        (9.99, {}, "leave"),
        (10.0, {}, "ask"),
        (10.0, {"is_stopped": True}, "leave"),
        (10.0, {"is_launching": True}, "leave"),
        (None, {}, "leave"),
        (1.0, {"gave_up": True}, "ask"),
        (None, {"gave_up": True}, "ask"),
        (10.0, {"limits": Limits(usd_per_hour=2)}, "leave"),
    ],
)
def test_when_a_machine_is_asked(hours: float | None, case: dict[str, Any], act: str) -> None:
    assert judged(hours, **case) == Verdict(act)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("orphan", "has_record", "unheard_min", "idle_min", "act"),
    [
        (True, True, 20.1, 5.0, "ask"),
        (True, True, 20.0, 5.0, "leave"),  # idle_min, and the time that the guard has for its work
        (True, True, 1.0, 5.0, "leave"),
        (True, False, 20.1, 5.0, "leave"),
        (False, True, 20.1, 5.0, "leave"),
        (True, True, 1e9, None, "leave"),
    ],
)
def test_a_machine_of_which_nothing_was_heard_is_asked(
    orphan: bool, has_record: bool, unheard_min: float, idle_min: float | None, act: str
) -> None:
    limits = replace(LIMITS, idle_min=idle_min)
    told = judged(bill={"orphan": orphan}, has_record=has_record, unheard_s=unheard_min * 60, limits=limits)
    assert told.act == act


@pytest.mark.parametrize(
    ("hours", "limits", "words"),
    [
        (20.25, LIMITS, "past max_usd: 40, a hard limit"),
        (10.125, replace(LIMITS, usd_per_hour=4, max_hours=None), None),  # two machines: the slack is not over
        (10.25, replace(LIMITS, usd_per_hour=4, max_hours=None), "past max_usd: 40, a hard limit"),
        (30.25, replace(LIMITS, max_usd=None), "past 3 times max_hours: 10"),
        (30.25, replace(LIMITS, usd_per_hour=0), "past 3 times max_hours: 10"),
        (20.24, LIMITS, None),
        (30.24, replace(LIMITS, max_usd=None), None),
    ],
)
def test_no_report_delays_a_release_for_ever(hours: float, limits: Limits, words: str | None) -> None:
    """Whatever the machine says; but not while a run is being started on its target."""
    told = judged(hours, limits=limits, report=BUSY)
    assert told == Verdict("end", f"{words}; {LOST}") if words else told.act == "revive"
    assert judged(hours, limits=limits, report=BUSY, is_launching=True).act == "leave"


@pytest.mark.parametrize(
    ("report", "act"),
    [(None, "ask"), ({**BUSY, "guarded": True}, "leave"), (BUSY, "revive"), (IDLE, "end"), ({}, "end")],
)
def test_a_run_of_another_laptop_is_not_judged_by_the_limits_of_this_one(
    report: dict[str, Any] | None, act: str
) -> None:
    """Two people share an account: the one with the lower max_usd types `status`, and the other's run would be lost."""
    told = judged(50.0, has_record=False, bill={"orphan": True, "run": None}, report=report)
    assert told.act == act
    if act == "leave":
        assert told.words == "past max_usd: 40; run a is running on it, and its guard has to end the run"


@pytest.mark.parametrize(
    ("hours", "report", "act", "words"),
    [
        (10, {}, "leave", "a note"),
        (10, BUSY, "revive", f"{LATE}; its guard had died and was started again"),
        (1, IDLE, "revive", "a note; its guard had died and was started again"),
        (10, {**BUSY, "guarded": True}, "leave", f"{LATE}; run a is running on it, and its guard has to end the run"),
        (1, {**BUSY, "guarded": True}, "leave", None),
        (10, {**IDLE, "guarded": True, "decision": "armed"}, "leave", f"{LATE}; its guard reports: armed"),
        (1, {**IDLE, "guarded": True, "decision": "armed"}, "leave", "a note"),
        (10, IDLE, "download", None),
        (1, {**IDLE, "state": "stuck"}, "download", None),
        (1, {**IDLE, "guarded": True, "state": "stuck"}, "download", None),
        (1, {**BUSY, "guarded": True, "state": "stuck"}, "leave", None),
    ],
)
def test_what_a_report_leads_to(hours: float, report: dict[str, Any], act: str, words: str | None) -> None:
    told = judged(hours, bill={"note": "a note"}, gave_up=True, report=report)
    assert (told.act, told.words) == (act, words)


@pytest.mark.parametrize(
    ("report", "after", "act", "words"),
    [
        (IDLE, IDLE, "release", f"{LATE}, and its guard is dead; nothing was left on it"),
        (KEEPER, IDLE, "release", f"{LATE}, and its guard is dead; epoch_002.pt downloaded first"),
        (
            {**KEEPER, "state": "stuck"},
            IDLE,
            "release",
            "its guard could not release it; epoch_002.pt downloaded first",
        ),
        (KEEPER, BUSY, "leave", "a note"),  # a run began during the download
        (
            KEEPER,
            KEEPER,
            "leave",
            f"{LATE}; it has the only copy of epoch_002.pt of run a, which this laptop could not download",
        ),
    ],
)
def test_only_what_has_a_copy_is_released(report: dict[str, Any], after: dict[str, Any], act: str, words: str) -> None:
    told = judged(10, bill={"note": "a note"}, report=report, after=after)
    assert (told.act, told.words) == (act, words)


@pytest.mark.parametrize(
    ("hours", "case", "act", "words"),
    [
        (1, {"gave_up": True}, "leave", "its guard gave up, and it does not answer (no address)"),
        (10.24, {"is_home": True}, "leave", f"{LATE}, and it does not answer (no address)"),
        (
            10.25,
            {"is_home": True},
            "release",
            f"{LATE}, and it does not answer (no address); the results of its runs are on this laptop",
        ),
        (10.25, {}, "leave", f"{LATE}, and it does not answer (no address)"),
        (1e6, {"limits": replace(LIMITS, max_usd=None)}, "leave", f"{LATE}, and it does not answer (no address)"),
        (20.24, {}, "leave", "past max_usd: 40, and it does not answer (no address)"),
        (
            20.25,
            {},
            "release",
            "past max_usd: 40, and it does not answer (no address); max_usd is hard: DATA THAT ONLY IT HAD IS LOST, "
            f"see {command('runs')}",
        ),
        (20.25, {"has_record": False}, "leave", "past max_usd: 40, and it does not answer (no address)"),
        (None, {"gave_up": True, "is_home": True}, "leave", "its guard gave up, and it does not answer (no address)"),
    ],
)
def test_a_machine_that_does_not_answer(hours: float | None, case: dict[str, Any], act: str, words: str) -> None:
    told = judged(hours, no_answer="no address", **case)
    assert (told.act, told.words) == (act, words)
