"""One malformed volume, offer, price or amount of an account hides no other, and is told. Against the emulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deploy.billing.bills import stored
from deploy.errors import BadAnswer, DeployError, NoMachine
from deploy.providers.runpod import answers
from deploy.runs.session import Reach
from deploy.specs.machine import Volume
from tests.support.emulators.rig import Rig

VOLUMES = {
    "vol1": {"name": "faces", "size": 200, "dataCenter": "EU-RO-1", "type": "STANDARD"},
    "vol2": {"name": "other", "size": 100, "dataCenter": "EU-RO-1", "type": "STANDARD"},
}
NOTHING: list[Any] = [None, 5, "x", [], {}, {"id": ["x"]}, {"id": "../x"}]
SOME: list[Any] = [{"size": "lots"}, {"size": -5}, {"size": 1e999}, {"size": None}, {"name": 7}]
OFFERS: list[dict[str, Any]] = [
    {"price": None}, {"price": {"secure": "cheap"}}, {"price": {"secure": float("nan")}}, {"price": {"secure": -1}},
    {"price": {"secure": 10**400}}, {"maxCount": 5}, {"maxCount": {"secure": "8"}}, {"dataCenters": [1]},
    {"dataCenters": {"id": "EU"}}, {"memory": "x"}, {"memory": [1]}, {"name": ["x"]},
]  # fmt: skip


def in_list(key: str, *more: Any, **changes: Any) -> Callable[[Any], Any]:
    """Change the first entry of a list somewhere in an answer, and put further ones before it."""

    def change(answer: Any) -> Any:
        holder = answer
        while key not in holder:
            inside = [each for each in holder.values() if isinstance(each, dict)]
            if not inside:
                return answer
            holder = inside[0]
        first, *others = holder[key]
        holder[key] = [*more, {**first, **changes}, *others]
        return answer

    return change


def a4500_first(rig: Rig) -> None:
    gpus = rig.emulator.account.gpus
    rig.emulator.account.gpus = {id: gpus[id] for id in sorted(gpus, key=lambda id: id != "NVIDIA RTX A4500")}


def volumes(rig: Rig) -> list[Volume]:
    rig.emulator.account.volumes |= VOLUMES
    return list(rig.provider().volumes())


def on_list(rig: Rig, v2: str) -> str:
    return v2 if rig.api == "v2" else "graphql"


@pytest.mark.parametrize("wrong", SOME, ids=str)
def test_a_volume_with_one_wrong_field_is_listed(both: Rig, wrong: dict[str, Any]) -> None:
    both.emulator.spoilt = [(on_list(both, "network-volumes$"), in_list("networkVolumes", **wrong))]
    found = volumes(both)
    assert (found[-1].id, found[-1].gb, found[-1].fault) == ("vol2", 100, None)
    assert any("RunPod: volume vol1, " in said and said.endswith(": it may bill") for said in both.said)
    if "name" in wrong:  # told, but nothing is left to list it by
        assert len(found) == 1
        return
    assert (found[0].id, found[0].name, found[0].usd_per_month) == ("vol1", "faces", 0.0)
    bill = stored(Reach(both.provider().settings))[0]
    assert (bill.volume, bill.gb, bill.usd_per_month) == ("faces (vol1)", None, None)
    assert "its price is not known: RunPod: volume vol1, size is " in str(bill.note)


@pytest.mark.parametrize("entry", NOTHING, ids=str)
def test_an_entry_that_is_no_volume_is_told(both: Rig, entry: Any) -> None:
    both.emulator.spoilt = [(on_list(both, "network-volumes$"), in_list("networkVolumes", entry))]
    assert [each.id for each in volumes(both)] == ["vol1", "vol2"]
    assert len([said for said in both.said if "it may bill" in said]) == 1
    assert all(said.isprintable() for said in both.said)


def test_the_volume_of_a_target_must_be_readable(both: Rig) -> None:
    both.emulator.account.volumes |= VOLUMES
    if both.api == "sdk":
        both.emulator.spoilt = [("graphql", in_list("networkVolumes", size="lots"))]
    else:
        both.emulator.spoilt = [("network-volumes/vol1$", lambda told: {**told, "dataCenter": 5})]
    with pytest.raises(BadAnswer, match="RunPod: volume vol1, "):
        both.acquire(volume="vol1")
    assert both.emulator.names == []


@pytest.mark.parametrize("wrong", OFFERS, ids=lambda each: str(each)[:40])
def test_a_gpu_with_one_wrong_field_is_passed_over(v2: Rig, wrong: dict[str, Any]) -> None:
    """The other GPU of the target is rented, and `offers` shows both."""
    a4500_first(v2)
    v2.emulator.spoilt = [("catalog/gpus", in_list("gpus", **wrong))]
    provider = v2.provider()
    bad, good = (next(each for each in provider.offers() if each.gpu == gpu) for gpu in provider.options.gpus)
    assert bad.why_not.startswith("its entry in the catalogue cannot be read: ")
    assert (bad.in_target, bad.counts, good.why_not) == (True, (), "")
    assert any(said.endswith(": it is not offered") for said in v2.said)
    machine = v2.acquire()
    assert machine.gpu == "NVIDIA A40"
    provider.release(machine)
    with pytest.raises(NoMachine) as caught:
        v2.acquire("r2", gpus=("NVIDIA RTX A4500",), max_usd_per_hour=0.01)
    assert any("cannot be read" in line for line in caught.value.evidence)


@pytest.mark.parametrize("entry", NOTHING, ids=str)
def test_an_entry_that_is_no_gpu_is_told(v2: Rig, entry: Any) -> None:
    v2.emulator.spoilt = [("catalog/gpus", in_list("gpus", entry))]
    assert v2.acquire().gpu == "NVIDIA RTX A4500"
    assert any("catalogue of GPUs, entry 1" in said or "RunPod: " in said for said in v2.said)


@pytest.mark.parametrize("id", ["../../conf/deploy/x", "a/b", 5, None, "x" * 100, ""])
def test_the_id_of_a_new_pod_is_checked(both: Rig, id: Any) -> None:
    """It becomes the name of a note on this computer. The pod may exist, so it is looked up by its name."""

    def change(answer: Any) -> Any:
        for key in ("podRentInterruptable", "podFindAndDeployOnDemand"):
            if answer["data"].get(key):
                answer["data"][key]["id"] = id
        return answer

    both.emulator.spoilt = [("graphql", change)]
    machine = both.acquire(spot=both.api == "v2")
    assert [machine.id] == [each.id for each in both.emulator.account.all()]
    assert any("contains no pod" in said for said in both.said)


@pytest.mark.parametrize("found", [None, 5, {}, "x"], ids=str)
def test_a_catalogue_that_is_no_list_is_one_sentence(v2: Rig, found: Any) -> None:
    v2.emulator.spoilt = [("catalog/gpus", lambda told: {**told, "gpus": found})]
    with pytest.raises(BadAnswer, match="RunPod's catalogue of GPUs is no list"):
        v2.provider().offers()


@pytest.mark.parametrize(
    "wrong", [{"securePrice": "x"}, {"maxGpuCount": "8"}, {"memoryInGb": [1]}, {"securePrice": -1}], ids=str
)
def test_a_gpu_of_the_older_api_with_one_wrong_field_is_passed_over(sdk: Rig, wrong: dict[str, Any]) -> None:
    seen: list[str] = []

    def change(answer: Any) -> Any:
        types = answer["data"].get("gpuTypes") or [{}]
        if types[0].get("id") == "NVIDIA RTX A4500":
            seen.append("changed")
            types[0].update(wrong)
        return answer

    sdk.emulator.spoilt = [("graphql", change)]
    assert sdk.acquire().gpu == "NVIDIA A40"
    assert seen


@pytest.mark.parametrize("wrong", [{"secureSpotPrice": "x"}, {"id": None}, {"secureSpotPrice": -1}], ids=str)
def test_a_malformed_spot_price_is_no_price(v2: Rig, wrong: dict[str, Any]) -> None:
    a4500_first(v2)
    v2.emulator.spoilt = [("graphql gpuTypes", in_list("gpuTypes", **{"lowestPrice": None, **wrong}))]
    offers = {each.gpu: each for each in v2.provider(spot=True).offers()}
    assert "no spot price" in offers["NVIDIA RTX A4500"].why_not
    assert offers["NVIDIA A40"].why_not == ""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"clientBalance": "lots"}, "clientBalance is 'lots'"),
        ({"clientBalance": float("nan")}, "clientBalance is nan"),
        ({"currentSpendPerHr": [1]}, "currentSpendPerHr is [1]"),
        ({"currentSpendPerHr": -1}, "currentSpendPerHr is -1"),
        ({"spendLimit": "x"}, "spendLimit is 'x'"),
    ],
    ids=str,
)
def test_a_malformed_balance_is_a_finding_of_doctor(v2: Rig, wrong: dict[str, Any], says: str) -> None:
    """It stops nothing: the balance is only a warning before a run."""

    def change(answer: Any) -> Any:
        answer["data"]["myself"].update(wrong)
        return answer

    v2.emulator.spoilt = [("graphql", change)]
    trial = v2.provider().trial()
    assert trial.funds() is None
    assert says in trial.account()[0].found
    assert v2.acquire().gpu


@pytest.mark.parametrize("after", ["\u00b2", "9" * 400, "-5", "1e9", "", "\u0663"])
def test_a_malformed_time_to_wait_is_no_traceback(v2: Rig, after: str) -> None:
    """`\u00b2` is a digit to str.isdigit, and no number to float."""
    v2.emulator.fail("429", "GET /v2/pods$", times=1, retry_after_s=after.encode("utf-8").decode("latin-1"))  # type: ignore[arg-type]
    assert v2.acquire().gpu
    assert any("trying again in 5 s" in said for said in v2.said)


@pytest.mark.parametrize(
    "detail", ["x" * 100_000, "\x1b]0;title\x07", ["x"], None, {"a": 1}], ids=lambda each: str(each)[:20]
)
def test_the_text_of_a_refusal_is_bounded_and_shown(v2: Rig, detail: Any) -> None:
    v2.emulator.refuse(403, "no")
    v2.emulator.spoilt = [("POST /v2/pods$", lambda told: {**told, "detail": detail, "errors": 5})]
    with pytest.raises(DeployError) as caught:
        v2.provider(gpus=("NVIDIA A40",)).acquire(v2.spec())
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 2000


@pytest.mark.parametrize(
    "change", [lambda told: [told], lambda _: "x", lambda _: deep(), lambda _: ["x" * 1000] * 10_000]
)
def test_an_answer_of_another_form_is_one_sentence(v2: Rig, change: Callable[[Any], Any]) -> None:
    v2.emulator.spoilt = [("GET /v2/pods$", change)]
    with pytest.raises(NoMachine, match=r"the answer 200 (is not a JSON object|has more than)"):
        v2.provider().list()


def deep() -> Any:
    made: Any = []
    for _ in range(500):
        made = [made]
    return made


@pytest.mark.parametrize("told", [{}, {"data": 5}, {"errors": 5}, {"errors": [5]}, {"data": {"myself": 5}}], ids=str)
def test_an_account_without_money_fields_is_one_sentence(told: dict[str, Any]) -> None:
    try:
        found = answers.funds(told)
    except BadAnswer as error:
        found = error.message
    assert isinstance(found, str)
    assert found.isprintable()
