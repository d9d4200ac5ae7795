"""A sweep is decided by pure functions: its combinations, its names, its limits, and when it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploy.errors import WrongUse
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES
from deploy.pod.base.limits import Limits
from deploy.specs.plan import make
from deploy.specs.request import NAME_CHARACTERS, Request, parse_name
from deploy.specs.sweep import (
    MOST_RUNS,
    Total,
    combinations,
    end_of_sweep,
    identity,
    limit_notes,
    next_place,
    refuse_same,
    short_keys,
    targets_of,
    total,
)
from tests.deploy.specs.test_plan import FACTS, SETTINGS

LR, EPOCHS = "train.optimizer.lr", "train.epochs"


@pytest.mark.parametrize(
    ("sweeps", "typed", "words"),
    [
        ([f"{LR}=0.03,0.1"], {}, [f"{LR}=0.03", f"{LR}=0.1"]),
        ([f" {LR} = 0.03 , 0.1 "], {}, [f"{LR}=0.03", f"{LR}=0.1"]),
        (
            [f"{LR}=0.03,0.1", f"{EPOCHS}=5,9"],
            {},
            [f"{LR}={lr} {EPOCHS}={epochs}" for lr in ("0.03", "0.1") for epochs in (5, 9)],
        ),
        ([f"{LR}=0.03,0.1", f"{EPOCHS}=5"], {}, [f"{LR}=0.03 {EPOCHS}=5", f"{LR}=0.1 {EPOCHS}=5"]),
        (["a.b=[1,2],[3]"], {}, ["a.b=[1,2]", "a.b=[3]"]),
        (["a.b={x:1,y:2},null"], {}, ["a.b={x:1,y:2}", "a.b=null"]),
        (["a.b='x,y',\"z,'\",w"], {}, ["a.b='x,y'", 'a.b="z,\'"', "a.b=w"]),
        ([r"a.b='x\',y','z'"], {}, [r"a.b='x\',y'", "a.b='z'"]),
        (["a.b=x=1,y"], {}, ["a.b=x=1", "a.b=y"]),
        (["a.b='',x"], {}, ["a.b=''", "a.b=x"]),
        ([f"{LR}=0.03,0.1"], {"overrides": ["train.epochs=3"], "resume": "none", "fraction": "0.5"}, None),
    ],
)
def test_all_combinations_in_order(sweeps: list[str], typed: dict[str, Any], words: list[str] | None) -> None:
    """Commas in quotes and brackets belong to a value. The last key varies first."""
    found = combinations(sweeps, typed)
    assert words is None or [each.words for each in found] == words
    for each in found:
        told = [f"{key}={value}" for key, value in each.settings]
        assert each.request.overrides == (*typed.get("overrides", ()), *told)
        assert each.request.name == each.name == parse_name(each.name)
        assert each.request.fraction == float(typed.get("fraction", 1))
    assert len({each.name for each in found}) == len(found)


def test_keys_with_a_flag_are_swept_as_their_flag() -> None:
    fractions = combinations(["data.data_fraction=0.1,0.5"], {})
    assert [(each.request.fraction, each.request.overrides) for each in fractions] == [(0.1, ()), (0.5, ())]
    assert [each.request.recipe for each in combinations(["recipe=supervised,distill"], {})] == [
        "supervised",
        "distill",
    ]
    with pytest.raises(WrongUse, match=r"--sweep data\.data_fraction=2: --fraction 2 is not a share"):
        combinations(["data.data_fraction=0.1,2"], {})


@pytest.mark.parametrize(
    ("sweeps", "name", "names"),
    [
        ([f"{LR}=0.03,1e-1"], None, ["lr_0_03", "lr_1e_1"]),
        ([f"{LR}=0.03,0.1"], "faces", ["faces_lr_0_03", "faces_lr_0_1"]),
        ([f"{LR}=0.03,0.1", f"{EPOCHS}=5"], None, ["lr_0_03_epochs_5", "lr_0_1_epochs_5"]),
        (["a.lr=1,2", "b.lr=3"], None, ["a_lr_1_b_lr_3", "a_lr_2_b_lr_3"]),
        (["seed=1,-1"], None, ["sweep_01", "sweep_02"]),
        (["a.b='',x"], None, ["sweep_01", "sweep_02"]),
        ([f"{LR}=0.03,0.1"], "a" * NAME_CHARACTERS, [f"{'a' * 29}_01", f"{'a' * 29}_02"]),
        ([f"{LR}=0.03,0.1"], f"{'a' * 28}_b", [f"{'a' * 28}_01", f"{'a' * 28}_02"]),
        (["data.sets=[lfw.bin,cfp_fp.bin,agedb_30.bin],[]"], None, ["sweep_01", "sweep_02"]),
    ],
)
def test_names_tell_the_values_or_are_numbered(sweeps: list[str], name: str | None, names: list[str]) -> None:
    """Numbers replace values where a name would be too long, or the same as another one."""
    assert [each.name for each in combinations(sweeps, {"name": name})] == names


def test_short_keys_differ() -> None:
    assert short_keys(["a.b.lr", "a.b.epochs"]) == ["lr", "epochs"]
    assert short_keys(["x.lr", "y.z.lr"]) == ["x.lr", "z.lr"]
    assert short_keys(["lr", "x.lr"]) == ["lr", "x.lr"]


@pytest.mark.parametrize(
    ("sweeps", "typed", "words"),
    [
        ([""], {}, "has no 'key='"),
        (["train.epochs"], {}, "--sweep train.epochs has no 'key=': write --sweep key=value,value"),
        (["=1,2"], {}, "has no 'key='"),
        (["train.epochs="], {}, "has an empty value"),
        (["train.epochs=1,,2"], {}, "has an empty value"),
        (["train.epochs=1,2,"], {}, "has an empty value"),
        (["train.epochs=5"], {}, "has one value: give several, such as train.optimizer.lr=0.03,0.1, or --set"),
        (["a.b=[1,2]"], {}, "--sweep a.b=[1,2] has one value"),
        (["train.epochs=1,2,1"], {}, "has the value 1 twice"),
        ([f"{LR}=0.1,1e-1"], {}, "has the value 1e-1 twice"),
        ([f"{EPOCHS}=1,2", f"{EPOCHS}=3,4"], {}, "--sweep train.epochs is given twice: give all its values in one"),
        (["a.b=[1,2"], {}, "has a bracket or a quote that does not end"),
        (["a.b=1],[2"], {}, "has a bracket or a quote that does not end"),
        (["a.b='x,y"], {}, "has a bracket or a quote that does not end"),
        (["train.seed=range(1,4)"], {}, "write the values, separated by commas"),
        (["~train.epochs=1,2"], {}, "is not possible"),
        (["run.dir=a,b"], {}, "--sweep run.dir is not possible"),
        (["train.resume=auto,none"], {}, "--sweep train.resume is not possible"),
        (["train.epochs=1,2"], {"overrides": ["train.epochs=3"]}, "--sweep train.epochs and --set train.epochs=3 set"),
        (["train.epochs=1,2"], {"overrides": ["++train.epochs=3"]}, "set the same key"),
        (["data.data_fraction=0.1,1"], {"fraction": "0.5"}, "--fraction 0.5 set the same key"),
        (["recipe=supervised,distill"], {"recipe": "supervised"}, "--recipe supervised set the same key"),
        (["train.epochs=1,2"], {"resume": "auto"}, "--resume auto continues one run"),
        (["train.epochs=1,2"], {"overrides": ["train.resume=auto"]}, "--resume auto continues one run"),
        (["train.epochs=1,2"], {"run": "x"}, "--run x continues an earlier run"),
        (["train.epochs=1,2"], {"name": "A B"}, "--name A B is not a name"),
        ([f"train.epochs={','.join(map(str, range(65)))}"], {}, f"makes 65 runs, and {MOST_RUNS} are the most"),
        ([f"{key}={','.join(map(str, range(60)))}" for key in "abcde"], {}, "makes more than 9999 runs"),
    ],
)
def test_what_is_no_sweep_is_one_sentence(sweeps: list[str], typed: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongUse) as refused:
        combinations(sweeps, typed)
    assert words in refused.value.message
    assert "\n" not in refused.value.message


def test_as_many_runs_as_are_allowed() -> None:
    found = combinations(["a=1,2,3,4,5,6,7,8", "b=1,2,3,4,5,6,7,8"], {})
    assert len({each.name for each in found}) == MOST_RUNS


def test_values_that_mean_the_same_are_found_in_the_configuration() -> None:
    two = combinations(["a.b=true,True"], {})
    refuse_same(two, [{"a": 1}, {"a": 2}])
    with pytest.raises(WrongUse, match=r"a\.b=true and a\.b=True are the same configuration"):
        refuse_same(two, [{"a": {"b": True}}, {"a": {"b": True}}])


def test_the_identity_of_a_combination_is_what_it_trains() -> None:
    one = Request(overrides=("a=1",))
    same = (replace(one, name="x"), replace(one, queue=True), replace(one, given=frozenset({"resume"})))
    other = (replace(one, fraction=0.5), replace(one, overrides=("a=2",)), replace(one, target="ssh"))
    assert {identity(each) for each in same} == {identity(one)}
    assert identity(one) not in {identity(each) for each in other}
    assert identity(replace(one, combination=identity(one))) == identity(one)


def test_the_sum_is_known_if_each_part_is() -> None:
    plan = make(SETTINGS, Request(), FACTS, tryout=True)
    paid = replace(plan, usd_per_hour=2.0, expected_minutes=30.0, expected_usd=1.0)
    assert total([paid, paid]) == Total(60.0, 2.0)
    assert total([paid, replace(paid, expected_minutes=None, expected_usd=None)]) == Total(None, None)


@pytest.mark.parametrize(
    ("limits", "usd_per_hour", "expected", "notes"),
    [
        (Limits(), 2.0, Total(60, 2), []),
        (Limits(max_usd=50, max_hours=72), 2.0, Total(60, 2), ["max_hours 72 and max_usd 50: for the machine since"]),
        (Limits(max_usd=1), 2.0, Total(60, 2), ["max_usd 1: for the", "warning: about 2.00 is more than max_usd 1,"]),
        (Limits(max_hours=0.5), None, Total(60, None), ["max_hours 0.5: for the", "warning: about 1.00 is more than"]),
        (Limits(max_usd=1), 2.0, Total(None, None), ["max_usd 1: for the machine since its creation, so all runs"]),
        (Limits(max_usd=1, max_hours=2), 0.0, Total(600, 0), ["max_hours 2 holds for each run"]),
        (Limits(max_usd=1), 0.0, Total(600, 0), []),
    ],
)
def test_the_plan_tells_how_limits_hold(
    limits: Limits, usd_per_hour: float | None, expected: Total, notes: list[str]
) -> None:
    """Limits of a billed machine are of all runs on it. Those of a host of one's own are of each run."""
    plan = replace(make(SETTINGS, Request(), FACTS, tryout=True), limits=limits, usd_per_hour=usd_per_hour)
    told = list(limit_notes(plan, expected))
    assert len(told) == len(notes)
    assert [note for note, begin in zip(told, notes, strict=True) if not note.startswith(begin)] == []


@pytest.mark.parametrize(
    ("state", "ran", "exit_code", "repeated", "ends"),
    [
        ("succeeded", True, 0, False, None),
        ("failed", True, 1, False, None),
        ("failed", True, 1, True, None),
        ("failed", False, 2, False, None),
        ("failed", False, 2, True, "would fail in the same way"),
        ("failed", False, 1, False, "would fail in the same way"),
        ("failed", False, 3, False, "would fail in the same way"),
        (None, False, 2, False, "could not start"),
        ("stopped", True, 1, False, "was stopped"),
        ("expired", True, 1, False, "a limit"),
        ("lost", True, 1, False, "was lost"),
        ("running", True, 1, False, "continues without this command"),
        ("planned", True, 0, False, "continues without this command"),
        ("preparing", False, 1, False, "would fail in the same way"),
    ],
)
def test_when_a_sweep_ends(state: str | None, ran: bool, exit_code: int, repeated: bool, ends: str | None) -> None:
    """A job that fails does not end it. What would hit the next combination too, costs money or is unclear, does."""
    told = end_of_sweep(state, ran=ran, exit_code=exit_code, repeated=repeated)
    assert (told is None) == (ends is None)
    assert (ends or "") in (told or "")


def test_no_state_lets_a_sweep_go_on_by_accident() -> None:
    going = {
        each for each in (*FINAL_STATES, *LIVE_STATES) if not end_of_sweep(each, ran=True, exit_code=1, repeated=False)
    }
    assert going == {"succeeded", "failed"}


@pytest.mark.parametrize(
    ("typed", "names"), [(None, [""]), ("local", ["local"]), ("gpu1,gpu2", ["gpu1", "gpu2"]), ("a , b", ["a", "b"])]
)
def test_targets_are_divided_by_commas(typed: str | None, names: list[str]) -> None:
    assert targets_of(typed) == names


@pytest.mark.parametrize(("typed", "words"), [("a,a", "target 'a' twice"), ("a,,b", "without a name")])
def test_a_target_twice_or_without_a_name_is_refused(typed: str, words: str) -> None:
    with pytest.raises(WrongUse, match=words):
        targets_of(typed)


@pytest.mark.parametrize(
    ("target", "left", "refused", "place"),
    [
        ("a", [], set(), None),
        ("a", [2, 0], set(), 2),
        ("a", [2, 0], {("a", 2)}, 0),
        ("a", [2, 0], {("b", 2)}, 2),
        ("a", [2], {("a", 2)}, None),
    ],
)
def test_a_target_takes_the_first_run_that_did_not_fail_to_start_on_it(
    target: str, left: list[int], refused: set[tuple[str, int]], place: int | None
) -> None:
    assert next_place(target, left, refused) == place
