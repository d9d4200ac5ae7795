"""The Lambda Cloud provider against the emulator: choice, creation, faults, hostile answers, release. No test waits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.billing.teardown import release_idle
from deploy.errors import BadAnswer, CannotTrain, DeployError, NoAccount, NoMachine, StepFailed, WrongUse
from deploy.pod.base import retry
from deploy.pod.base.folder import write_json
from deploy.providers.lambda_cloud import LambdaCloud, LambdaProvider
from deploy.providers.lambda_cloud.api import ApiError
from deploy.runs import records, watchdog
from deploy.runs.records import Record
from deploy.specs.gpus import Choice, choose, is_among
from deploy.specs.machine import Machine, MachineSpec
from deploy.specs.names import slug
from deploy.specs.settings import Settings, Target
from deploy.ui.screen import Screen
from tests.support.emulators.clock import MovedClock, OffClock
from tests.support.emulators.lambda_cloud import KEY, REGIONS, Emulator, Refusal
from tests.support.interrupts import at_each_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs the address 127.0.0.2: run it on Linux")


@dataclass
class Rig:
    emulator: Emulator
    clock: MovedClock
    project: Path
    said: list[str] = field(default_factory=list)

    def provider(self, **options: Any) -> LambdaProvider:
        told = LambdaCloud(**{"max_usd_per_hour": 2.0, "port": self.emulator.ssh_port, **options})
        made = LambdaProvider(Settings(self.project, Target("lambda", "lambda", "~/s", options=told)), clock=self.clock)
        made.say = self.said.append
        return made

    def spec(self, run: str = "r1") -> MachineSpec:
        family = f"sniperface-{slug(self.project.name)}-lambda-"
        return MachineSpec(f"{family}{run}", family, PurePosixPath("~/s"))

    def acquire(self, run: str = "r1", **options: Any) -> Machine:
        return self.provider(**options).acquire(self.spec(run))

    @property
    def launches(self) -> list[tuple[str, str]]:
        bodies = [each.body for each in self.emulator.exchanges if each.what == "POST instance-operations/launch"]
        return [(body["instance_type_name"], body["region_name"]) for body in bodies]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    clock = MovedClock()
    emulator = Emulator(clock)
    monkeypatch.setenv("LAMBDA_API_BASE_URL", emulator.url)
    monkeypatch.setenv("LAMBDA_API_KEY", KEY)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield Rig(emulator, clock, tmp_path)
    emulator.close()
    assert emulator.breaches == []


def failure(rig: Rig, kind: type[DeployError], **options: Any) -> DeployError:
    with pytest.raises(kind) as caught:
        rig.acquire(**options)
    assert KEY not in str(caught.value)
    return caught.value


def test_the_cheapest_type_that_fits_is_rented_found_and_released(rig: Rig) -> None:
    """The Arm machine is cheaper, and the next one has no capacity. A second command finds the machine."""
    rig.emulator.boot_s = 200.0
    provider = rig.provider()
    assert (provider.price(), provider.card() and provider.card().memory_bytes >> 30) == (0.75, 24)
    machine = provider.acquire(rig.spec())
    assert rig.launches == [("gpu_1x_a10", "us-east-1")]
    assert (machine.name, machine.usd_per_hour, machine.gpus, machine.gpu) == (
        rig.spec().name, 0.75, 1, "A10 (24 GB PCIe)",
    )  # fmt: skip
    assert machine.address
    assert (machine.address.user, machine.address.first_use) == ("ubuntu", True)
    assert machine.created == pytest.approx(rig.clock.time(), abs=300)
    assert [each.id for each in rig.provider().list()] == [machine.id]
    assert rig.acquire("r2").id == machine.id
    assert rig.provider().find(machine.name) == machine
    assert rig.provider().find(f"{machine.name}x") is None
    rig.provider().release(machine)
    assert rig.emulator.names == []
    rig.provider().release(machine)  # gone already
    assert rig.provider().list() == []


def test_the_projects_key_is_added_once_and_only_its_public_half(rig: Rig) -> None:
    machine = rig.acquire()
    rig.provider().release(machine)
    rig.acquire("r2")
    [added] = [each.body for each in rig.emulator.exchanges if each.what == "POST ssh-keys"]
    assert added["public_key"].startswith("ssh-ed25519 ")
    assert len(rig.emulator.keys) == 2
    sent = repr([each.body for each in rig.emulator.exchanges])
    assert "PRIVATE" not in sent
    assert KEY not in sent  # a machine gets no key of the account


def test_the_accounts_key_is_known_as_a_secret_that_stays_here(rig: Rig) -> None:
    """Code and command lines are searched for it, and neither the job nor the guard gets it."""
    settings = rig.provider().settings
    assert watchdog.named_secrets(settings)["LAMBDA_API_KEY"] == KEY
    assert KEY not in watchdog.own_secrets(settings).values()
    assert KEY not in watchdog.job_secrets(settings, track="wandb", data="s3://b/x").values()
    assert settings.is_rented


def test_a_long_name_is_kept_whole_in_a_tag(rig: Rig) -> None:
    machine = rig.acquire("r" * 70)
    assert machine.name.endswith("r" * 70)
    assert rig.provider().find(machine.name) is not None
    assert "more than 128 characters" in _failed(rig, "r" * 130)


def _failed(rig: Rig, run: str) -> str:
    with pytest.raises(WrongUse) as caught:
        rig.acquire(run)
    return caught.value.message


def test_without_capacity_the_next_region_then_the_next_type_is_tried(rig: Rig) -> None:
    rig.emulator.no_room(2)
    machine = rig.acquire()
    assert rig.launches == [("gpu_1x_a10", "us-east-1"), ("gpu_1x_a10", "us-west-1"), ("gpu_1x_a100", "us-west-1")]
    assert machine.usd_per_hour == 1.29


def test_without_any_capacity_the_error_names_each_refusal(rig: Rig) -> None:
    rig.emulator.no_room(9)
    error = failure(rig, NoMachine, instance_types=("gpu_1x_a10", "gpu_8x_a100"))
    assert list(error.evidence) == [
        "gpu_8x_a100: 8 GPUs, not gpu_count: 1", "gpu_1x_a10 in us-east-1: no capacity",
        "gpu_1x_a10 in us-west-1: no capacity",
    ]  # fmt: skip
    assert "offers --on lambda" in str(error.next_command)


@pytest.mark.parametrize(
    ("options", "launch"),
    [
        ({"instance_types": ("gpu_1x_a100", "gpu_1x_a10")}, ("gpu_1x_a100", "us-west-1")),
        ({"regions": ("us-west-1", "us-east-1")}, ("gpu_1x_a10", "us-west-1")),
        ({"min_gpu_memory_gib": 40.0}, ("gpu_1x_a100", "us-west-1")),
        ({"gpu_count": 8, "max_usd_per_hour": None}, ("gpu_8x_a100", "us-east-1")),
        ({"instance_types": ("gpu_1x_gh200",)}, ("gpu_1x_gh200", "us-east-1")),
    ],
)
def test_the_target_decides_what_is_rented(rig: Rig, options: dict[str, Any], launch: tuple[str, str]) -> None:
    rig.acquire(**options)
    assert rig.launches == [launch]


def test_offers_say_why_the_target_would_not_rent_them(rig: Rig) -> None:
    told = {each.gpu: each.why_not for each in rig.provider(max_usd_per_hour=1.0).offers()}
    assert told == {
        "gpu_1x_gh200": "its CPU is Arm; name it in instance_types to try it",
        "gpu_1x_rtx6000": "no capacity",
        "gpu_1x_a100": "1.29 USD an hour, more than max_usd_per_hour: 1",
        "gpu_1x_a10": "",
        "gpu_8x_a100": "8 GPUs, not gpu_count: 1",
    }


@pytest.mark.parametrize(
    ("oddity", "says"),
    [
        ({"status": "unhealthy"}, "it is unhealthy"),
        ({"status": "preempted", "boots_until": 0.0}, "it vanished while it started"),
        ({"cents": 900}, "it costs 9.00 USD an hour, more than max_usd_per_hour: 2"),
    ],
    ids=["unhealthy", "vanished", "dearer than told"],
)
def test_an_unusable_machine_is_released_and_the_next_one_tried(rig: Rig, oddity: dict[str, Any], says: str) -> None:
    rig.emulator.next = oddity
    machine = rig.acquire()
    assert rig.emulator.names == [machine.name]
    assert len(rig.launches) == 2
    assert any(says in line for line in rig.said)


def test_a_new_machine_that_the_api_does_not_know_yet_is_released(rig: Rig) -> None:
    """The 404 of its release would pass for done."""
    rig.emulator.next = {"status": "unhealthy"}
    rig.emulator.faults += [("404", "terminate")] * 2
    machine = rig.acquire()
    assert rig.emulator.names == [machine.name]
    assert len(rig.launches) == 2


def test_what_a_machine_cost_that_was_given_back_is_told(rig: Rig) -> None:
    rig.emulator.boot_s = 600.0
    rig.emulator.next = {"status": "unhealthy"}
    provider, wasted = rig.provider(), list[float]()
    provider.waste = wasted.append
    provider.acquire(rig.spec())
    assert wasted == [pytest.approx(0.75 * 600 / 3600, rel=0.05)]


def test_a_machine_that_the_api_does_not_know_at_first_is_waited_for(rig: Rig) -> None:
    """It bills from the start, so another one would be a second. Also its release would pass for done."""
    rig.emulator.boot_s = 20.0
    rig.emulator.faults += [("404", "GET instances/"), ("404", "terminate")]
    machine = rig.acquire()
    assert rig.emulator.names == [machine.name]
    assert len(rig.launches) == 1


def test_a_release_whose_answer_was_lost_is_no_failure(rig: Rig) -> None:
    """The second request is refused, because the machine ends already."""
    machine = rig.acquire()
    rig.emulator.ends_slowly = True
    rig.emulator.faults.append(("done-cut", "terminate"))
    rig.provider().release(machine)
    assert rig.emulator.count("POST instance-operations/terminate") == 2
    assert rig.provider().list() == []


@pytest.mark.parametrize("what", ["instances$", "instances/", "terminate"])
def test_a_page_in_place_of_an_answer_is_asked_again(rig: Rig, what: str) -> None:
    """As of a proxy or a network's login. A release must not end there, and a start must not be given up."""
    rig.emulator.boot_s = 20.0
    rig.emulator.faults += [("page", what)] * 2
    rig.provider().release(rig.acquire())
    assert rig.emulator.names == []
    assert len(rig.launches) == 1


@pytest.mark.parametrize("off_s", [3600.0, -3600.0])
def test_a_wrong_clock_of_a_laptop_changes_no_age(rig: Rig, off_s: float) -> None:
    """The tag with the time is by the API's clock, so a second laptop computes the same age."""
    wrong = replace(rig, clock=OffClock(rig.clock, off_s))
    machine = wrong.acquire()
    rig.clock.sleep(600)
    for laptop in (wrong, rig):
        [listed] = laptop.provider().list()
        assert listed.name == machine.name
        assert listed.created
        assert laptop.clock.time() - listed.created == pytest.approx(600, abs=60)


def test_a_machine_whose_gpus_do_not_work_is_released_and_the_next_one_tried(rig: Rig) -> None:
    provider, seen = rig.provider(), []

    def check(machine: Machine) -> None:
        seen.append(machine.id)
        if len(seen) == 1:
            raise CannotTrain("CUDA error 802")

    provider.check = check
    machine = provider.acquire(rig.spec())
    assert seen[1:] == [machine.id]
    assert [each.id for each in rig.emulator.instances.values()] == [machine.id]


def test_a_machine_that_never_answers_is_released_within_wait_min(rig: Rig) -> None:
    rig.emulator.boot_s = 1e6
    error = failure(rig, NoMachine, wait_min=5.0)
    assert "did not answer within wait_min: 5" in error.message
    assert (rig.emulator.names, len(rig.launches)) == ([], 1)


def test_an_interrupted_wait_releases_the_machine(rig: Rig) -> None:
    provider = rig.provider()

    def interrupt(_: Machine) -> None:
        raise KeyboardInterrupt

    provider.check = interrupt
    with pytest.raises(KeyboardInterrupt):
        provider.acquire(rig.spec())
    assert rig.emulator.names == []


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("oddity", [{}, {"status": "unhealthy"}], ids=["good", "unhealthy"])
def test_what_ends_a_launch_at_any_line_releases_the_machine(
    rig: Rig, oddity: dict[str, Any], raised: type[BaseException]
) -> None:
    """Ctrl-C, and an error that nobody expects; also while an unusable machine is released already."""

    def acquire() -> None:
        rig.emulator.next = dict(oddity)
        rig.acquire()

    made = LambdaProvider
    path = (made._new, made._requested, made._launch, made._ready_or_released, made._ready, made._end_after)
    for line in at_each_line(path, lambda: bool(rig.emulator.names), acquire, raised):
        assert rig.emulator.names == [], line
        lines = line + 1
    assert lines > 10
    assert len(rig.emulator.names) == 1


@pytest.mark.parametrize("shows_after_s", [20, 26])
def test_a_launch_without_an_answer_makes_no_second_machine(rig: Rig, shows_after_s: float) -> None:
    """The request is carried out, and shows in the list later."""
    rig.emulator.faults = [("done-cut", "launch$")]
    rig.emulator.next = {"shows_at": rig.clock.time() + shows_after_s}
    machine = rig.acquire()
    assert rig.emulator.names == [machine.name]
    assert len(rig.launches) == 1


def test_a_launch_that_was_lost_is_named_and_not_repeated(rig: Rig) -> None:
    rig.emulator.faults = [("cut", "launch$")]
    error = failure(rig, NoMachine)
    assert f"did not confirm that it started {rig.spec().name}, which may exist and bill" in error.message
    assert len(rig.launches) == 1


def test_a_launch_that_is_too_early_is_repeated(rig: Rig) -> None:
    rig.emulator.faults = [("429", "launch$")] * 2
    rig.acquire()
    assert len(rig.emulator.instances) == 1


def test_a_wrong_or_missing_key_is_wrong_use(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDA_API_KEY", "secret_other")
    error = failure(rig, WrongUse)
    assert "does not accept the API key in LAMBDA_API_KEY" in error.message
    assert "secret_other" not in error.message
    monkeypatch.setenv("LAMBDA_API_KEY", "")
    assert "LAMBDA_API_KEY is not set" in failure(rig, NoAccount).message


def test_an_inactive_account_and_an_api_that_is_away_are_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.emulator.is_active = False
    assert "the account is inactive" in failure(rig, NoMachine).message
    rig.emulator.is_down = True
    assert "cannot be reached" in failure(rig, NoMachine).message
    rig.emulator.is_down = False
    monkeypatch.setenv("LAMBDA_API_BASE_URL", "http://127.0.0.1:9")
    assert "the connection is refused" in failure(rig, NoMachine).message


def test_a_release_that_fails_is_repeated_then_told(rig: Rig) -> None:
    machine = rig.acquire()
    rig.emulator.faults = [("502", "terminate$")] * 3
    rig.provider().release(machine)
    assert rig.emulator.names == []
    rig.emulator.is_down = True
    with pytest.raises(StepFailed) as caught:
        rig.provider().release(machine)
    assert "could not be released and still bills" in caught.value.message
    assert "https://cloud.lambda.ai/instances" in str(caught.value.next_command)


def test_calls_keep_the_pace_of_the_api(rig: Rig) -> None:
    """One call a second, one launch in twelve."""
    rig.emulator.no_room(2)
    began = rig.clock.now()
    rig.acquire()
    assert rig.clock.now() - began >= 2 * 12 + 4


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("instances", {"a": 1}, "no list"),
        ("instance-types", [{"t": {}}], "instead of an object"),
        ("instance-operations/launch", {"instance_ids": []}, "0 machines instead of one"),
        ("instance-operations/launch", {"instance_ids": ["a/b"]}, "the id of a machine"),
        ("ssh-keys", {"a": 1}, "no list"),
    ],
)
def test_a_hostile_answer_is_one_sentence_and_leaves_no_machine(rig: Rig, path: str, answer: Any, says: str) -> None:
    rig.emulator.answers = {path: answer}
    error = failure(rig, BadAnswer)
    assert says in error.message
    assert error.message.isprintable()
    assert rig.emulator.names == []


def test_a_machine_with_a_wrong_address_can_still_be_released(rig: Rig) -> None:
    machine = rig.acquire()
    told = rig.emulator._told(rig.emulator.instances[machine.id])
    rig.emulator.answers = {"instances": [{**told, "ip": "-oProxyCommand=x"}]}
    [found] = rig.provider().list()
    assert found.address
    assert found.address.host == ""
    rig.provider().release(found)
    assert rig.emulator.names == []


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"tags": 5}, "tags is no list"),
        ({"tags": "text"}, "tags is no list"),
        ({"tags": {"key": "value"}}, "tags is no list"),
        ({"status": None}, "status is None"),
        ({"region": "x"}, "region is 'x'"),
        ({"instance_type": {}}, "specs is None"),
    ],
    ids=str,
)
def test_a_machine_with_one_wrong_field_is_listed_and_released(rig: Rig, wrong: dict[str, Any], field: str) -> None:
    """It hides no other, no second one is rented in its place, and it is not used."""
    machine = rig.acquire()
    told = rig.emulator._told(rig.emulator.instances[machine.id])
    other = {**told, "id": "other1", "tags": [], "name": f"{rig.spec('r2').name}"}
    rig.emulator.answers = {"instances": [{**told, "name": machine.name, **wrong}, other]}
    bad, good = rig.provider().list()
    assert (bad.name, bad.id, good.fault) == (machine.name, machine.id, None)
    assert f"Lambda: instance {machine.id}, " in str(bad.fault)
    assert field in str(bad.fault)
    with pytest.raises(NoMachine, match="cannot be used"):
        rig.provider().find(machine.name)
    assert "no second machine is requested" in failure(rig, NoMachine).message
    rig.emulator.answers = {}
    rig.provider().release(bad)
    assert rig.emulator.names == []


@pytest.mark.parametrize(
    "wrong",
    [
        None, 5, [], {}, {"instance_type": None}, {"regions_with_capacity_available": 5},
        {"regions_with_capacity_available": [5]}, {"regions_with_capacity_available": [{"name": ["x"]}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_type_with_one_wrong_field_is_passed_over(rig: Rig, wrong: Any) -> None:
    """The next type that fits is rented, and `offers` and a refusal say why the first one is not."""
    told = {name: rig.emulator._offered(name) for name in rig.emulator.types}
    told["gpu_1x_a10"] = {**told["gpu_1x_a10"], **wrong} if isinstance(wrong, dict) and wrong else wrong
    rig.emulator.answers = {"instance-types": told}
    provider = rig.provider()
    bad, good = (next(each for each in provider.offers() if each.gpu == f"gpu_1x_{name}") for name in ("a10", "a100"))
    assert bad.why_not.startswith("its entry in the catalogue cannot be read: Lambda: instance type gpu_1x_a10")
    assert (bad.counts, good.why_not) == ((), "")
    assert provider.acquire(rig.spec()).gpu == "A100 (40 GB PCIe)"
    assert len([said for said in rig.said if said.endswith(": it is not offered")]) == 1
    error = failure(rig, NoMachine, instance_types=("gpu_1x_a10",), max_usd_per_hour=0.1) if wrong == 5 else None
    assert error is None or any("cannot be read" in line for line in error.evidence)


@pytest.mark.parametrize("price", [None, "75", -1, 1.5, 10**400])
def test_a_price_that_does_not_fit_is_no_bargain(rig: Rig, price: Any) -> None:
    told = {name: rig.emulator._offered(name) for name in rig.emulator.types}
    told["gpu_1x_a10"]["instance_type"]["price_cents_per_hour"] = price
    rig.emulator.answers = {"instance-types": told}
    assert rig.acquire().usd_per_hour == 1.29


@pytest.mark.parametrize("entry", [None, 5, [], {}, {"name": 5, "public_key": "x"}, {"name": "n", "public_key": [1]}])
def test_a_malformed_key_of_the_account_is_skipped(rig: Rig, entry: Any) -> None:
    rig.emulator.answers = {"ssh-keys": [entry, *rig.emulator.keys]}
    rig.acquire()
    assert rig.emulator.count("POST ssh-keys") == 1


def test_machines_of_others_are_left_alone(rig: Rig) -> None:
    kind = rig.emulator.types["gpu_1x_a10"].told("gpu_1x_a10")
    foreign = {"id": "f1", "status": "active", "instance_type": kind, "region": {"name": next(iter(REGIONS))}}
    rig.emulator.answers = {"instances": [{**foreign, "name": "somebody-else"}, foreign]}
    assert rig.provider().list() == []


def test_the_quota_of_the_account_is_a_refusal(rig: Rig) -> None:
    rig.emulator.refusals = [Refusal(400, "global/quota-exceeded", "Quota exceeded.")]
    rig.acquire()
    assert rig.launches[0] != rig.launches[1]


def record_of(rig: Rig, run_id: str, state: str, machine: str) -> Record:
    """A run on a machine, as this laptop has noted it."""
    made = Record(run_id, "lambda", "lambda", state, 1, "2026-01-01T00:00:00", None, 1.0, "iresnet18", "/r", machine)
    write_json(Path(records.home(rig.project / "runs", run_id).run), asdict(made))
    return made


@pytest.mark.parametrize(("state", "says"), [("running", "run other is on it"), ("succeeded", "still bills")])
def test_watch_keeps_a_machine_that_is_needed(
    rig: Rig, state: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run lives on it, or it does not answer, so that its results are not here: its greeting is all it says."""
    target = f"provider: lambda\nroot: ~/s\nport: {rig.emulator.ssh_port}\n"
    (rig.project / "conf" / "deploy").mkdir(parents=True)
    (rig.project / "conf" / "deploy" / "lambda.yaml").write_text(target, encoding="utf-8")
    monkeypatch.setattr(retry, "FIRST_PATIENCE_S", 0.1)
    monkeypatch.setattr(retry, "CONNECT_LIMITS_S", (0.5,))
    machine = rig.acquire()
    record = record_of(rig, "one", "succeeded", machine.name)
    record_of(rig, "other", state, machine.name)
    release_idle(rig.project, record, Screen())
    printed = capsys.readouterr()
    assert says in printed.out + printed.err
    assert rig.emulator.names == [machine.name]


def test_the_target_cannot_have_several_machines_nor_a_trial(rig: Rig) -> None:
    with pytest.raises(WrongUse, match="has one machine: give --nodes 1"):
        LambdaCloud().refuse_nodes(2, "lambda", "conf/deploy/lambda.yaml")
    LambdaCloud().refuse_nodes(1, "lambda", "conf/deploy/lambda.yaml")
    with pytest.raises(WrongUse, match="no key to end itself"):
        rig.provider().trial()


def test_words_of_a_gpu_name_its_types_of_machines(rig: Rig) -> None:
    """As `--gpus` does: the catalogue's names are chosen, and a machine reports a GPU that is one of them."""
    chosen = choose(("A10",), rig.provider().offers(), 1, None, "lambda", "lambda.yaml")
    assert chosen == Choice(("gpu_1x_a10",), 1, ("A10 (24 GB PCIe)",))
    machine = rig.acquire(instance_types=chosen.names, gpu_count=chosen.count)
    assert machine.gpu is not None
    assert (is_among(machine.gpu, chosen), machine.gpus) == (True, chosen.count)


def test_the_clock_of_a_proxy_is_not_that_of_the_api(rig: Rig) -> None:
    """Its page has a Date too. By a wrong one, a machine would look older than it is, and be released."""
    machine, provider = rig.acquire(), rig.provider()
    provider.list()
    rig.emulator.clock = OffClock(rig.clock, 7200.0)
    rig.emulator.faults += [("404", "instances/"), ("page", "instances/")]
    for _ in range(2):
        with pytest.raises(ApiError):
            provider._api.instance(machine.id)
    assert provider._api.ahead_s == 0.0
    provider.list()
    assert provider._api.ahead_s == 7200.0
