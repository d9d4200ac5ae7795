"""A machine from its acquisition until a job can start on it: what is released, uploaded and said."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import CannotTrain, NoMachine, WrongUse, command
from deploy.pod.base.folder import RunFolder
from deploy.pod.base.notify import WEBHOOK
from deploy.shell import LinkLost
from deploy.specs.estimate import Stopwatch
from deploy.specs.facts import Facts
from deploy.specs.machine import Card, Hardware, Machine, MachineSpec
from deploy.specs.memory import Need
from deploy.specs.plan import Plan, make
from deploy.specs.request import Request
from deploy.specs.settings import Settings, Ssh, Target
from deploy.steps import provision
from deploy.steps.resolve import Checked
from deploy.ui.screen import Screen
from deploy.workspace import dataset as data
from deploy.workspace.devices import Devices, Gpu
from deploy.workspace.shards import Dealing
from deploy.workspace.sources import HERE, MACHINE, Origin
from tests.deploy.conftest import git
from tests.deploy.specs.test_memory import CONFIG as OF_MEMORY
from tests.deploy.specs.test_memory import TABLE
from tests.deploy.specs.test_plan import CONFIG, FACTS
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.deploy.support.rented import SOURCE, Account, Near, Noting, Rented

# A rented machine is a Linux system; here it is a folder of this computer.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")
IMAGES = Origin(MACHINE, Path("/x/images.npy"), None)
CHECKED = Checked(Request(), {**CONFIG, "data": {}}, False, IMAGES, None, None, None, ())
ONE_GPU = Devices((Gpu("A40", (8, 6), 48 << 30),), 1, None, "2.13", "13.0", "580")


@dataclass
class Renting(Account):
    """An account that rents out a new machine, or one that it has already."""

    project: Path = Path()
    asked: list[MachineSpec] = field(default_factory=list)
    found: Machine | None = None

    def acquire(self, spec: MachineSpec) -> Machine:
        self.asked.append(spec)
        return self.found or Rented(self.project, self).machine(spec.name, usd_per_hour=2.5)


@pytest.fixture
def renting(tmp_path: Path) -> Rented:
    return Rented(tmp_path, Renting(project=tmp_path))


def planned(rented: Rented, **facts: Any) -> Plan:
    return make(rented.settings, Request(), replace(FACTS, **facts), tryout=False)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


# Acquired machines


@pytest.mark.parametrize(
    ("keep", "fails", "released", "words"),
    [
        (False, True, ["m"], "released m, which was created for this command; --keep keeps it"),
        (True, True, [], "m still costs $2.50 an hour: " + command("down --on rented")),
        (False, False, [], ""),
    ],
)
def test_a_machine_made_for_work_that_fails_is_released(
    renting: Rented, keep: bool, fails: bool, released: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Near(renting.settings, renting.account) as at, ExitStack() as stack:
        if fails:
            stack.enter_context(pytest.raises(KeyError))
        with provision.acquired(at, "m", Screen(), Stopwatch(), keep=keep) as machine:
            assert machine.name == "m"
            if fails:
                raise KeyError
    assert (renting.account.released, said(capsys)) == (released, words)
    assert (at.wasted_usd > 0) is bool(released)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({}, "warm still costs $2.00 an hour: " + command("down --on rented")),
        ({"usd_per_hour": 0.0}, ""),
        ({"address": None}, ""),
    ],
)
def test_a_machine_that_was_there_before_stays(
    renting: Rented, about: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    renting.account.found = renting.machine("warm", **about)  # type: ignore[attr-defined]
    with (
        Near(renting.settings, renting.account) as at,
        pytest.raises(KeyError),
        provision.acquired(at, "m", Screen(), Stopwatch()),
    ):
        raise KeyError
    assert (renting.account.released, said(capsys)) == ([], words)


def test_this_computer_is_no_machine_to_speak_of(renting: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    renting.account.found = renting.machine("m", address=None)  # type: ignore[attr-defined]
    with (
        Near(renting.settings, renting.account) as at,
        pytest.raises(KeyError),
        provision.acquired(at, "m", Screen(), Stopwatch()),
    ):
        raise KeyError
    assert (renting.account.released, said(capsys)) == (["m"], "")


def test_all_machines_of_a_plan_are_acquired(renting: Rented) -> None:
    """Each by its own name. Disk is needed for images that RAM may have no room for, not for those there already."""
    plan = replace(planned(renting), machine="m", nodes=3)
    account: Any = renting.account
    with Near(renting.settings, account) as at, provision.acquired_all(at, plan, Screen(), Stopwatch()) as machines:
        assert [machine.name for machine in machines] == ["m", "m-node1", "m-node2"]
        assert at.prepare is not None
    assert [(spec.node, spec.nodes, spec.data_bytes) for spec in account.asked] == [
        (node, 3, plan.data.bytes) for node in range(3)
    ]
    assert plan.data.bytes > 0
    there = replace(plan, data=replace(plan.data, where="machine"))
    with (
        Near(renting.settings, account) as at,
        provision.acquired(at, "m", Screen(), Stopwatch(), keep=True, node=1, plan=there),
    ):
        assert at.prepare is None  # with --keep no other machine is tried
    with Near(renting.settings, account) as at, provision.acquired(at, "m", Screen(), Stopwatch()):
        assert at.prepare is None
    told = [(spec.name, spec.node, spec.nodes, spec.data_bytes) for spec in account.asked[3:]]
    assert told == [("m-node1", 1, 3, 0), ("m", 0, 1, 0)]


def test_code_is_checked_before_a_machine_costs_anything(renting: Rented) -> None:
    """Once: not again if this command has a snapshot of it."""
    git(renting.project, "init", "--quiet")
    (renting.project / "test.pem").write_text("x\n", encoding="utf-8")
    git(renting.project, "add", "test.pem")
    renting.options = {"trust": "rented"}
    account: Any = renting.account
    with (
        Near(renting.settings, account) as at,
        pytest.raises(WrongUse, match=r"test\.pem looks like a credential"),
        provision.acquired(at, "m", Screen(), Stopwatch()),
    ):
        pass
    assert account.asked == []
    with Near(renting.settings, account) as at:
        at.snapshot = "c0ffee"
        with provision.acquired(at, "m", Screen(), Stopwatch()):
            assert len(account.asked) == 1


# A machine answers


def test_a_root_that_cannot_be_written_is_no_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rented = Rented(tmp_path)
    machine = rented.machine()
    provision.greet(rented.settings, machine, Noting(), Screen())
    assert said(capsys) == "machine: m"
    assert list(Path(machine.root).iterdir()) == []
    provision.greet(rented.settings, rented.machine(address=None), Noting(), Screen())
    assert said(capsys) == ""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(NoMachine, match=r"the folder .*file of target 'rented' cannot be written: ") as error:
        provision.greet(rented.settings, replace(machine, root=tmp_path / "file"), Noting(), Screen())
    assert error.value.next_command == "set another root in conf/deploy/rented.yaml"


class Lost(Noting):
    """A machine whose connection is lost."""

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:  # noqa: ARG002
        raise LinkLost("m cannot be reached", evidence=["timed out"])


def test_a_machine_that_does_not_answer_is_no_machine(tmp_path: Path) -> None:
    rented = Rented(tmp_path)
    with pytest.raises(NoMachine, match="m cannot be reached") as error:
        provision.greet(rented.settings, rented.machine(), Lost(), Screen())
    assert error.value.evidence == ("timed out",)


# Files of a run


@pytest.mark.parametrize(
    ("stage", "where", "is_sent"), [(False, "machine", True), (True, "machine", False), (False, "here", False)]
)
def test_the_users_own_files_come_to_the_run(
    tmp_path: Path, stage: bool, where: str, is_sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels travel with staged images, and this computer has them already."""
    monkeypatch.setenv("OWN", "value")
    rented = Rented(tmp_path)
    machine, root = rented.machine(), tmp_path / "machines" / "m"
    about: dict[str, Any] = {"secrets": ("OWN",), "notify": "https://host/x"}
    away = Settings(tmp_path, Target("far", "ssh", str(root), options=Ssh(host="box"), **about))
    for name in ("mine.pt", "mine.json", "labels.npy"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    request = Request(resume=str(tmp_path / "mine.pt"), labels=str(tmp_path / "labels.npy"))
    plan = planned(rented)
    folder = RunFolder(root / "runs" / "a")
    start = root / "start.pt"
    told = replace(plan, resume=str(start), stage=stage, data=replace(plan.data, where=where), run_dir=str(folder.path))
    for each, secrets in (  # this computer's own job inherits them
        (rented.machine(address=None), {WEBHOOK: "https://host/x"}),
        (machine, {WEBHOOK: "https://host/x", "OWN": "value"}),
    ):
        provision.bring_own_files(away, Noting(), each, replace(CHECKED, request=request), told)
        assert json.loads(Path(folder.secrets).read_text(encoding="utf-8")) == secrets
    assert [each.read_text(encoding="utf-8") for each in (start, start.with_suffix(".json"))] == [
        "mine.pt",
        "mine.json",
    ]
    assert Path(folder.path, provision.TRAIN_LABELS).exists() is is_sent


@pytest.mark.parametrize("resume", ["none", "auto"])
def test_a_run_without_own_files_gets_none(tmp_path: Path, resume: str) -> None:
    rented = Rented(tmp_path)
    machine = rented.machine()
    request = Request(resume=resume)
    provision.bring_own_files(rented.settings, Noting(), machine, replace(CHECKED, request=request), planned(rented))
    assert list(Path(machine.root).rglob("*")) == []


# Ready


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    """A request for 40 rows of images of this computer."""
    path = tmp_path / "faces" / "images.npy"
    prepare(path)
    dataset = data.find(Origin(HERE, path, Noting()), 8192)
    config = {**CONFIG, "data": {}}
    return replace(CHECKED, config=config, images=Origin(HERE, path, Noting()), dataset=dataset)


def made_ready(
    settings: Settings,
    machine: Machine,
    checked: Checked,
    *,
    known: Devices | None = ONE_GPU,
    made: bool = True,
    **about: Any,
) -> provision.Ready:
    """`known`, `made`: GPUs, code and environment were seen when the machine was acquired."""
    about = {
        "facts": replace(FACTS, hardware=None), "screen": Screen(), "watch": Stopwatch(), "trains": True, "node": 0,
        "dealing": Dealing(1), **about,
    }  # fmt: skip
    with Near(settings, Account()) as at:
        if known:
            at.devices[machine.name] = known
        if made:
            at.prepared[machine.name] = machine, Path(machine.root) / "code" / "c0ffee"
        return provision.ready(at, machine, checked, **about)


def test_images_are_staged_and_what_the_machine_has_is_said(
    tmp_path: Path, checked: Checked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rented = Rented(tmp_path, options={"stage_to": "ram"})
    machine = rented.machine(gpus=1)
    watch = Stopwatch()
    told = made_ready(rented.settings, machine, checked, watch=watch)
    assert (told.machine, told.facts.machine, told.facts.snapshot) == (machine, machine, "c0ffee")
    assert told.facts.hardware is not None
    assert (told.facts.hardware.gpus, told.plan.gpu, told.plan.data.rows) == (1, "A40", 40)
    assert (told.plan.place, told.facts.data.shard.of, told.facts.python) == (None, 1, machine.python)
    assert {"code", "data"} <= set(watch.taken)
    printed = said(capsys)
    assert re.search(r"hardware: 1 GPU \(A40\), \d+ cores, so 1 process ", printed)
    assert f"data: staged 0.00 GiB into {tmp_path / 'ram'}" in printed


def test_too_few_gpus_end_the_run_before_data_is_uploaded(tmp_path: Path, checked: Checked) -> None:
    rented = Rented(tmp_path)
    with pytest.raises(CannotTrain, match="2 GPUs are paid for and torch can use 1"):
        made_ready(rented.settings, rented.machine(gpus=2), checked)


@pytest.mark.parametrize(("trains", "is_refused"), [(True, True), (False, False)])
def test_a_step_that_the_gpu_has_no_memory_for_is_refused_before_data_is_uploaded(
    tmp_path: Path, checked: Checked, trains: bool, is_refused: bool
) -> None:
    """Unless the machine is not prepared for this training."""
    rented = Rented(tmp_path, options={"stage_to": "ram"})
    config = {**CONFIG, **OF_MEMORY, "data": {}}
    config["train"] = {**CONFIG["train"], **OF_MEMORY["train"]}
    small = replace(ONE_GPU, gpus=(Gpu("A40", (8, 6), 2 << 30),))
    about = {"known": small, "trains": trains}
    facts = replace(FACTS, hardware=None, config=config, memory=TABLE)
    with ExitStack() as stack:
        if is_refused:
            stack.enter_context(pytest.raises(WrongUse, match=r"batch\.size=384 needs about .*, and A40 has 2\.0 GiB"))
        made_ready(rented.settings, rented.machine(gpus=1), replace(checked, config=config), facts=facts, **about)
    assert (tmp_path / "ram").exists() is not is_refused
    with Near(rented.settings, rented.account) as at:
        machine = rented.account.machines["m"]
        at.prepared["m"], at.devices["m"] = (machine, Path(machine.root) / "code" / "x"), small
        asked = (at, [machine], replace(checked, config=config), facts, Screen(), Stopwatch())
        if trains:
            with pytest.raises(WrongUse, match="of GPU memory"):
                provision.ready_all(*asked)
        else:
            assert len(provision.ready_all(*asked, trains=False)) == 1


def test_what_a_card_is_called_that_has_too_little_memory() -> None:
    need = Need(3 << 30, 2 << 30)
    facts = replace(FACTS, config={"train": {"batch": {"size": 8}}})
    plan = make(Settings(Path("/p"), Target("local", "local", "r")), Request(), FACTS, tryout=False)
    provision.refuse_too_much(plan, facts)
    for gpu, card, name in (("A40", None, "A40"), (None, "L4", "L4"), (None, None, "its GPU"), ("A40", "L4", "A40")):
        of_card = replace(facts, card=Card(card, 1, 1 << 30) if card else None)
        with pytest.raises(WrongUse, match=f"and {name} has 2.0 GiB"):
            provision.refuse_too_much(replace(plan, memory=need, gpu=gpu), of_card)


@pytest.mark.parametrize("nodes", [None, 3])
def test_code_is_uploaded_and_guarded(
    tmp_path: Path, nodes: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard's limits are of all machines of the run: of the request, or else of the target's file."""
    monkeypatch.chdir(tmp_path)
    rented = Rented(tmp_path / "here", options={"max_usd": 5.0, "nodes": 2})
    python = tmp_path / "python"  # an environment with torch
    python.write_text("#!/bin/sh\n", encoding="utf-8")
    python.chmod(0o755)
    machine = replace(rented.machine(gpus=1), python=str(python))
    (rented.project / "app").mkdir()
    (rented.project / "app" / "code.py").write_text("x = 1\n", encoding="utf-8")
    path = tmp_path / "faces" / "images.npy"
    prepare(path)
    dataset = data.find(Origin(HERE, path, Noting()), 8192)
    asked = replace(CHECKED, request=Request(nodes=nodes), dataset=dataset)
    told = made_ready(rented.settings, machine, asked, made=False)
    root = Path(machine.root)
    assert [each.name for each in (root / "code").iterdir() if (each / "app" / "code.py").exists()] == [
        told.facts.snapshot
    ]
    assert json.loads((root / "guard.json").read_text(encoding="utf-8"))["usd_per_hour"] == 2.0 * (nodes or 2)
    printed = said(capsys)
    assert f"code: {root / 'code' / told.facts.snapshot}" in printed
    assert "guarded: max_usd 5" in printed


@pytest.mark.parametrize(("pack", "words"), [("jpeg95", "packed "), ("none", "")])
def test_images_are_packed_once(
    tmp_path: Path, checked: Checked, pack: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("simplejpeg", reason="needs what --pack needs: numpy, pillow and simplejpeg")
    rented = Rented(tmp_path)
    asked = replace(checked, request=Request(pack=pack))
    shutil.copytree(SOURCE / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    for each in (words, ""):
        provision.pack_images(rented.settings, asked, Screen())
        printed = said(capsys)
        assert (each in printed) if each else (printed == "")
    provision.pack_images(rented.settings, replace(asked, dataset=None), Screen())
    assert said(capsys) == ""


def test_this_computers_hardware_is_known_already(
    tmp_path: Path, checked: Checked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rented = Rented(tmp_path)
    machine = rented.machine(address=None)
    facts = replace(FACTS, hardware=Hardware(gpus=0, cores=8))
    told = made_ready(rented.settings, machine, checked, facts=facts, known=None)
    assert (told.plan.cores, told.plan.gpus) == (8, 0)
    assert said(capsys) == f"data: read in place from {Path('faces', 'images.npy')}"


def test_images_that_are_there_are_found_or_named(tmp_path: Path, checked: Checked) -> None:
    """With the configuration's labels, and the size of a block that it names."""
    rented = Rented(tmp_path)
    machine = rented.machine()
    path = Path(machine.root) / "there" / "images.npy"
    prepare(path)
    facts: Facts = replace(FACTS, data=replace(FACTS.data, path=str(path), where="machine"))

    def found(**config: Any) -> data.Dataset:
        asked = replace(checked, dataset=None, config={**CONFIG, "data": config})
        return provision._found_there(machine, Noting(), asked, facts, Path(machine.root), Screen())

    assert (found().rows, found().where) == (40, "machine")
    with pytest.raises(WrongUse, match="on the machine "):
        found(labels_path="nothing.npy")
    path.unlink()
    with pytest.raises(WrongUse, match="on the machine "):
        found()


def test_the_photographs_are_prepared_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the code that was uploaded, into the machine's own folder."""
    rented = Rented(tmp_path)
    machine = rented.machine()
    code = Path(__file__).parents[1] / "support" / "pretend"
    asked = replace(CHECKED, tryout=True)
    for words in ("preparing the ORL photographs there (only once): ", ""):
        told = provision._found_there(machine, Noting(), asked, FACTS, code, Screen())
        assert told.rows == 40
        assert said(capsys).startswith(words)
    assert (Path(machine.root) / "data" / "orl" / "images.npy").exists()
