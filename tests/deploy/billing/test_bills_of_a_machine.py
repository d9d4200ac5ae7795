"""The bill of one machine and one volume, from what the provider reports and the records of this laptop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.billing import bills
from deploy.billing.bills import an_hour, limits_of, lives, past_ceiling, priced, stored
from deploy.pod.base.limits import Limits
from deploy.runs.session import launching
from deploy.runs.situation import Situation
from deploy.specs.machine import Volume
from deploy.specs.names import target_word
from tests.deploy.support.rented import Near, Rented

NOW = 1_000_000.0


@pytest.fixture
def rented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rented:
    monkeypatch.setattr(bills.time, "time", lambda: NOW)
    return Rented(tmp_path)


def bill(rented: Rented) -> dict[str, Any]:
    with Near(rented.settings, rented.account) as at:
        (found,) = priced(at)
    return found.bill.to_json()


@pytest.mark.parametrize(
    ("about", "hours", "usd", "usd_per_hour", "note"),
    [
        ({}, 1.235, 2.47, 2.0, None),  # 4444.5 s
        ({"usd_per_hour": 0.123456}, 1.235, 0.15, 0.1235, None),
        ({"created": None}, None, None, 2.0, None),
        ({"is_stopped": True}, 1.235, None, 2.0, "stopped, and its disk is kept"),
        ({"fault": "no price"}, 1.235, None, 2.0, "its price is not known: no price"),
    ],
)
def test_time_and_cost(
    rented: Rented, about: dict[str, Any], hours: float | None, usd: float | None, usd_per_hour: float, note: str | None
) -> None:
    rented.machine(**{"created": NOW - 4444.5, **about})
    rented.record(state="running")
    told = bill(rented)
    assert (told["hours"], told["usd"], told["usd_per_hour"], told["note"]) == (hours, usd, usd_per_hour, note)
    assert (told["run"], told["state"], told["orphan"], told["target"]) == ("a", "running", False, "rented")


def test_a_live_run_names_the_machine_before_an_ended_one(rented: Rented) -> None:
    rented.machine()
    rented.record("z", state="succeeded")
    assert (bill(rented)["run"], bill(rented)["orphan"], bill(rented)["note"]) == ("z", True, "its run is over")
    rented.record("b", state="running")
    assert (bill(rented)["run"], bill(rented)["orphan"], bill(rented)["note"]) == ("b", False, None)


def test_orphans_come_first_then_names(rented: Rented) -> None:
    for name in ("a", "z", "y"):
        rented.machine(name)
    rented.record("run", machine="a", state="running")
    with Near(rented.settings, rented.account) as at:
        assert [each.machine.name for each in priced(at)] == ["y", "z", "a"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("m", "rented"), ("a-b-far", "rented"), ("sniperface-p-far-r1", "far"), ("sniperface-p-rented-r1", "rented")],
)
def test_the_target_is_in_the_name_of_a_machine(rented: Rented, name: str, expected: str) -> None:
    rented.machine(name)
    assert (bill(rented)["target"], bill(rented)["note"]) == (expected, "no run of this laptop is on it")


def test_a_target_whose_name_is_shortened_in_a_machines_name_is_found(rented: Rented) -> None:
    folder = rented.project / "conf" / "deploy"
    folder.mkdir(parents=True)
    for name in ("a", "My Box"):
        (folder / f"{name}.yaml").write_text("provider: local\nroot: root\n", encoding="utf-8")
    rented.machine(f"sniperface-p-{target_word('My Box')}-r1")
    assert target_word("My Box") != "My Box"
    assert bill(rented)["target"] == "My Box"


@pytest.mark.parametrize(
    ("state", "expected"),
    [("running", True), ("restarting", True), ("preparing", False), ("acquiring", False), ("lost", False)],
)
def test_which_run_lives(rented: Rented, state: str, expected: bool) -> None:
    record = rented.record(state=state)
    with Near(rented.settings, rented.account) as at:
        assert lives(at, record) is expected


def test_a_run_that_a_command_starts_lives(rented: Rented) -> None:
    record = rented.record(state="preparing")
    with Near(rented.settings, rented.account) as at, launching(rented.settings) as note:
        assert not lives(at, record)
        note("a")
        assert lives(at, record)


def test_of_several_plans_the_laxest_limit_and_the_fewest_machines_count(rented: Rented) -> None:
    rented.machine(created=NOW - 3600)
    for run_id, nodes, hours in (("a", 2, 3), ("b", 4, 5)):
        rented.record(run_id)
        rented.plan(run_id, nodes=nodes, limits={"max_hours": hours})
    with Near(rented.settings, rented.account) as at:
        (found,) = priced(at)
        assert (found.limits.max_hours, found.limits.usd_per_hour) == (5, 4.0)
        assert limits_of(at.situation, found.bill, []).usd_per_hour == 2.0
        assert limits_of(at.situation, found.bill, []).max_hours is None


def test_a_run_without_a_plan_counts_for_one_machine(rented: Rented) -> None:
    """A machine whose cost is not known has no price for its limits; time and copies at its end are not reserved."""
    rented.machine(created=NOW - 3600)
    rented.record()
    with Near(rented.settings, rented.account) as at:
        assert priced(at)[0].limits == Limits(usd_per_hour=2.0, grace_s=0, sync_limit_s=0)
    rented.machine(created=NOW - 3600, is_stopped=True)
    with Near(rented.settings, rented.account) as at:
        assert priced(at)[0].limits == Limits(usd_per_hour=0.0, grace_s=0, sync_limit_s=0)


def test_one_target_of_each_account_is_asked(rented: Rented) -> None:
    """The first by name, unless another one reports more."""
    folder = rented.project / "conf" / "deploy"
    folder.mkdir(parents=True)
    docker, runpod = "provider: docker\nroot: /w\n", "provider: runpod\nroot: /w\nimage: x\ngpus: [NVIDIA A40]\n"
    told = {
        "a": docker, "b": docker, "c": docker + "docker_host: tcp://elsewhere:2375\n", "d": "provider: unknown\n",
        "e": runpod + "api: sdk\n", "f": runpod,
    }  # fmt: skip
    for name, text in told.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    found = [at.settings.target.name for at in bills.targets(Situation(rented.project))]
    assert sorted(found) == ["a", "c", "f"]


def test_a_volume_that_no_target_names(rented: Rented) -> None:
    rented.account.stored = (Volume("v1", "faces", 100, 73.0, "EU", "about"), Volume("v2", "all", 1, 0.07, "US"))
    with Near(rented.settings, rented.account) as at:
        first, second = (each.to_json() for each in stored(at))
    told = (first["volume"], first["gb"], first["usd_per_month"], first["usd_per_hour"], first["orphan"], first["note"])
    assert told == ("faces (v1, EU)", 100, 73.0, 0.1, True, "no target names it; about")
    assert (second["usd_per_hour"], second["note"], second["target"]) == (0.0001, "no target names it", None)


def test_a_volume_has_all_targets_that_mount_it(rented: Rented) -> None:
    folder = rented.project / "conf" / "deploy"
    folder.mkdir(parents=True)
    runpod = "provider: runpod\nroot: /workspace/x\nimage: x\ngpus: [NVIDIA A40]\n"
    for name, text in (("a", "volume: v1\n"), ("b", ""), ("c", "volume: v1\n"), ("d", "volume: v2\n")):
        (folder / f"{name}.yaml").write_text(runpod + text, encoding="utf-8")
    rented.account.stored = (
        Volume("v1", "faces", 100, 7.3, "EU"),
        Volume("v3", "other", 1, 0.07, "", fault="no price"),
    )
    with Near(rented.settings, rented.account) as at:
        first, second = (each.to_json() for each in stored(at))
    assert (first["target"], first["orphan"], first["note"]) == ("a, c", False, None)
    told = (second["volume"], second["target"], second["orphan"], second["gb"], second["usd_per_month"], second["note"])
    assert told == ("other (v3)", None, True, None, None, "no target names it; its price is not known: no price")


@pytest.mark.parametrize(
    ("usd", "words"),
    [(0.01, "$0.01 an hour"), (0.0099, "$0.0099 an hour"), (2, "$2.00 an hour"), (0, "$0.0000 an hour")],
)
def test_a_price_in_words(usd: float, words: str) -> None:
    assert an_hour(usd) == words


@pytest.mark.parametrize(
    ("hours", "slack_min", "told"),
    [(1.0, 0.0, "past max_hours: 1"), (0.9999, 0.0, None), (1.25, 15.0, "past max_hours: 1"), (1.2499, 15.0, None)],
)
def test_a_limit_is_passed_after_the_slack(rented: Rented, hours: float, slack_min: float, told: str | None) -> None:
    rented.machine()
    with Near(rented.settings, rented.account) as at:
        (found,) = priced(at)
    limits = Limits(max_hours=1.0)
    assert past_ceiling(replace(found.bill, hours=hours), limits, slack_min=slack_min) == told
    assert past_ceiling(replace(found.bill, hours=None), limits) is None
