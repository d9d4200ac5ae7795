"""The whole check of a request, with the stub of the app: what it becomes, and the first thing that cannot work."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import NoMachine, WrongUse
from deploy.runs.session import Reach
from deploy.specs.estimate import NEWEST
from deploy.specs.names import family_name
from deploy.specs.plan import make
from deploy.specs.request import Request
from deploy.specs.settings import Settings, Ssh, Target
from deploy.steps import resolve
from deploy.steps.continuing import start_of
from deploy.steps.resolve import check, gather, prepare_orl
from deploy.workspace import dataset
from deploy.workspace.sources import HERE, MACHINE
from tests.deploy.conftest import PRETEND
from tests.deploy.specs.test_plan import FACTS
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.deploy.support.rented import Account, Near, Rented

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")


@dataclass
class Priced(Account):
    """An account with a price, or without an answer."""

    usd: Any = 2.0
    asked: int = 0

    def _told(self, value: Any) -> Any:
        self.asked += 1
        if isinstance(value, Exception):
            raise value
        return value

    def price(self) -> Any:
        return self._told(self.usd)

    def image(self) -> Any:
        return self._told(None)

    def card(self) -> Any:
        return self._told(None)


@pytest.fixture
def rented(tmp_path: Path) -> Rented:
    shutil.copytree(PRETEND / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    config = tmp_path / "app" / "config.py"
    told = config.read_text("utf-8").replace("DEFAULTS = {", 'DEFAULTS = {"data.shards": "whole",')
    of_tryout = 'values["train.steps"] = 7 if key == "experiment" else values["train.steps"]'  # the try-out's own value
    told = told.replace("            continue\n", f"            {of_tryout}\n            continue\n")
    config.write_text(told, "utf-8")
    prepare(tmp_path / "faces" / "images.npy")
    return Rented(tmp_path, Priced())


def near(rented: Rented) -> Near:
    return Near(rented.settings, rented.account)


def away(rented: Rented, **about: Any) -> Reach:
    """A target on a host of the user's."""
    told = {"options": Ssh(host="box", hosts=("a", "b", "c")), **about}
    at = Reach(Settings(rented.project, Target("far", "ssh", "/w", **told)))
    at.provider = rented.account  # type: ignore[assignment]
    return at


FACES = "faces/images.npy"


def test_images_of_the_request_are_found_from_here_and_those_of_the_target_from_the_project(
    rented: Rented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "faces")
    path = tmp_path / FACES
    told = check(near(rented), Request(data="images.npy"))
    assert (told.request.data, told.images.path, told.tryout) == (str(path), path, False)
    assert told.dataset is not None
    assert (told.dataset.rows, told.config["data"]["binary_cache_path"]) == (40, str(path))
    assert (told.note, told.continues, told.suspicious, told.request.pack) == (None, None, (), "none")
    rented.options = {"data": FACES}
    of_target = check(near(rented), Request(), ("a.pem",))
    assert (of_target.request.data, of_target.images.path, of_target.suspicious) == (None, path, ("a.pem",))
    there = check(away(rented), Request(data="machine:/x/images.npy"))
    assert (there.request.data, there.images.where, there.dataset) == ("machine:/x/images.npy", MACHINE, None)


def test_without_data_the_tryout_is_meant_unless_data_is_configured(rented: Rented, tmp_path: Path) -> None:
    told = check(near(rented), Request())
    assert (told.tryout, told.dataset, told.images.where) == (True, None, HERE)
    prepare(tmp_path / "data" / "orl" / "images.npy")
    again = check(near(rented), Request())
    assert (again.tryout, again.dataset is not None) == (True, True)
    assert check(away(rented), Request()).images.where == MACHINE
    configured = check(near(rented), Request(overrides=(f"data.binary_cache_path='{tmp_path / FACES}'",)))
    assert (configured.tryout, configured.images.path) == (False, tmp_path / FACES)
    assert (told.config["train"]["steps"], configured.config["train"]["steps"]) == (7, 3)


def test_pixels_may_be_packed(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the target's file says, unless the request or the run that goes on decides it."""
    monkeypatch.setattr("deploy.workspace.compression.NEEDED", {})
    by_file, request = away(rented, pack="lossless"), Request(data=str(rented.project / FACES))
    assert check(by_file, request).request.pack == "lossless"
    assert check(by_file, replace(request, pack="none", given=frozenset({"pack"}))).request.pack == "none"
    rented.record(state="stopped", target="far")
    plan = make(by_file.settings, request, FACTS, tryout=False).to_json()
    rented.plan(request=plan["request"], resume="none")
    rented.account.machines.clear()
    told = check(away(rented, pack="lossless"), Request(resume="auto"))
    assert (told.request.pack, told.continues is not None) == ("none", True)


def test_labels_are_a_file(rented: Rented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = check(near(rented), Request(data=FACES, labels="faces/labels.npy"))
    assert told.request.labels == str(tmp_path / "faces" / "labels.npy")
    assert told.config["data"]["train_labels_path"] == told.request.labels
    assert told.dataset is not None
    with pytest.raises(WrongUse, match=r"--labels .*faces is not a file: give an int32 \.npy"):
        check(near(rented), Request(data=FACES, labels="faces"))


def test_files_of_the_configuration_are_found_before_a_machine_is_made(
    rented: Rented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job runs in a copy of the code. Here a relative path means this folder, elsewhere a file of the code."""
    config = tmp_path / "app" / "config.py"
    defaults = 'DEFAULTS = {"train.eval.sets": "", "train.warm_start": "",'
    config.write_text(config.read_text("utf-8").replace("DEFAULTS = {", defaults), "utf-8")
    monkeypatch.chdir(tmp_path / "faces")
    here = Reach(Settings(tmp_path, Target("local", "local", ".sniperface/local")))
    (tmp_path / "data" / "orl").mkdir(parents=True)
    told = check(here, Request(overrides=("train.eval.sets=.,images.npy",)))
    assert told.request.overrides == (f"train.eval.sets=['{tmp_path / 'faces'}','{tmp_path / FACES}']",)
    for at, given, sentence in (
        (here, "train.warm_start=x.pt", f"there is no {tmp_path / 'faces' / 'x.pt'}; give one such as runs/RUN/"),
        (away(rented), "train.eval.sets=x.bin", "x.bin is no file of the code, .* such as /workspace/x.bin"),
        (away(rented), "train.eval.sets=images.npy", "images.npy is no file of the code"),
        (away(rented), "train.eval.sets=faces/../data/orl", "faces/../data/orl is no file of the code"),
        (away(rented), f"train.eval.sets=../{tmp_path.name}/faces", "faces is no file of the code"),
        (away(rented), "train.eval.sets=faces/images.npy", "faces/images.npy is no file of the code"),
    ):
        with pytest.raises(WrongUse, match=f"^--set {given.partition('=')[0]}: .*{sentence}"):
            check(at, Request(overrides=(given,)))
    for right in ("train.eval.sets=app/config.py,app", "train.warm_start=/there/x.pt"):
        assert check(away(rented), Request(overrides=(right,))).request.overrides == (right,)


def test_a_shard_for_each_machine_and_a_run_that_goes_on_do_not_go_together(
    rented: Rented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_node = Request(data=FACES, overrides=("data.shards=by_node",))
    assert check(away(rented, on_lost_node="go_on"), by_node).config["data"]["shards"] == "by_node"
    assert check(away(rented, on_lost_node="end"), replace(by_node, nodes=2)).dataset is not None
    for at, request in (
        (away(rented, on_lost_node="go_on"), replace(by_node, nodes=2)),
        (away(rented, on_lost_node="go_on", nodes=2), by_node),
    ):
        with pytest.raises(WrongUse, match=r"go_on of conf/deploy/far\.yaml does not work with data\.shards=by_node"):
            check(at, request)


def test_a_wrong_recipe_is_told_as_it_was_typed(rented: Rented) -> None:
    with pytest.raises(WrongUse, match=r"^--recipe mystery is not known; choose from"):
        check(near(rented), Request(recipe="mystery"))
    with pytest.raises(WrongUse, match=r"^--recipe a=b is not known"):
        check(near(rented), Request(recipe="a=b"))
    with pytest.raises(WrongUse, match=r"^recipe=mystery is not known; choose from"):
        check(near(rented), Request(overrides=("recipe=mystery",)))
    with pytest.raises(WrongUse, match=r"^there is no option a\.b"):
        check(near(rented), Request(recipe="supervised", overrides=("a.b=1",)))


def test_without_an_unfinished_run_nothing_is_continued(rented: Rented) -> None:
    with pytest.raises(WrongUse, match="--resume auto: target 'rented' has no run that was stopped"):
        check(near(rented), Request(resume="auto"))


def test_a_stopped_run_continues_from_its_newest_checkpoint(rented: Rented) -> None:
    """The app says what differs, of the newest one."""
    rented.machine()
    rented.record(state="stopped")
    plan = make(rented.settings, Request(data=str(rented.project / FACES)), FACTS, tryout=False).to_json()
    rented.plan(request=plan["request"], resume="none")
    home = rented.project / "runs" / "a"
    rented.checkpoints(home, 2)
    for epoch, epochs in ((0, 9), (1, 2)):
        file = home / "checkpoints" / f"epoch_00{epoch}.json"
        told = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**told, "model": {"width": 1}, "facts": {"epochs": epochs}}), encoding="utf-8")
    stub, asked = rented.project / "app" / "resumable.py", rented.project / "asked.json"
    noted = f"json.loads(open({str(asked)!r}, 'w').write(text := sys.stdin.read()) and text)"
    stub.write_text(stub.read_text("utf-8").replace("json.load(sys.stdin)", noted), "utf-8")
    told = check(near(rented), Request(resume="auto"))
    assert told.dataset is not None
    question = json.loads(asked.read_text(encoding="utf-8"))
    known_id = dataset.known_id(rented.settings.notes, told.dataset, 1.0, "none")
    assert known_id is not None
    assert (question["data"], question["own"], question["machines"]) == (known_id, True, 1)
    assert told.note == "continuing run a (stopped), attempt 2; train.epochs 3, was 2"
    assert told.continues is not None
    assert (told.continues.resume, told.request.resume) == ("auto", "auto")
    rented.plan(request=plan["request"], resume="mine.pt")
    for is_own, resume in ((True, "auto"), (False, "mine.pt")):  # until it has one of its own
        start = start_of(near(rented), Request(resume="auto"))
        assert (start.is_own, start.continues and start.continues.resume) == (is_own, resume)
        shutil.rmtree(home / "checkpoints", ignore_errors=True)


def test_a_run_begins_from_the_users_checkpoint(
    rented: Rented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path is absolute then. Without a note beside it the app is not asked."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("mine.pt", "w") as archive:
        archive.writestr("data", b"weights")
    told = check(near(rented), Request(resume="mine.pt", data=FACES))
    assert (told.request.resume, told.note) == (str(tmp_path / "mine.pt"), None)
    assert not start_of(near(rented), Request(resume="mine.pt")).is_own
    with pytest.raises(WrongUse, match="no such file"):
        check(near(rented), Request(resume="other.pt", data=FACES))


def test_the_photographs_are_prepared_once(rented: Rented, tmp_path: Path) -> None:
    said: list[str] = []
    at = near(rented)
    checked = check(at, Request())
    for _ in range(2):
        told = prepare_orl(at, checked, said.append)
        assert told.dataset is not None
        assert told.dataset.rows == 40
        assert prepare_orl(at, told, said.append) is told
    assert said == [f"preparing the ORL photographs (only once): {tmp_path / 'data' / 'orl' / 'images.npy'}"]
    there = check(away(rented), Request())
    assert prepare_orl(at, there, said.append) is there


def test_what_is_known_before_a_machine_is_there(rented: Rented) -> None:
    """The hardware of this computer alone; of a provider that does not answer nothing, and it is not asked again."""
    for number in range(NEWEST + 2):
        rented.record(f"r{number}", phases={"code": float(number)}, target="far")
    rented.record("x", state="failed", target="far", phases={"code": 9.0})
    lines = [{"event": "start", "step": 10, "steps_per_epoch": 5, "train_rows": 100}]
    lines.append({"event": "end", "step": 20, "seconds": 50.0})
    (rented.settings.runs / "r0" / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    rented.plan("r0", recipe="self_supervised", backbone={"name": "tiny", "width": 1})
    account: Any = rented.account
    with away(rented) as at:
        checked = check(at, Request())
        facts = gather(at, checked)
        assert (facts.hardware, facts.python, facts.usd_per_hour, facts.windows) == (None, "python", 2.0, False)
        assert (len(facts.phases), account.asked, len(facts.token)) == (NEWEST, 3, 4)
        assert [each.images_per_s for each in facts.measured] == [4.0]
        account.usd, account.asked = NoMachine("no key"), 0
        assert gather(at, checked).usd_per_hour is None
        assert account.asked == 2
    assert resolve.gather_again(rented.settings, checked, facts).usd_per_hour == 2.0
    account.usd = 2.0
    here = near(rented)
    facts = gather(here, check(here, Request()))
    assert (facts.hardware is not None, facts.python, facts.windows) == (True, sys.executable, False)


@pytest.mark.parametrize(
    ("usd", "about", "nodes", "told"),
    [
        (3.0, {}, None, (3.0, True)),  # the machine's own price
        (0.0, {}, None, (2.0, True)),  # it is not known
        (3.0, {}, 2, (2.0, False)),  # several machines are rented together
        (3.0, {"trust": "own"}, None, (2.0, False)),  # nobody rented it
    ],
)
def test_a_rented_machine_that_is_there_is_used_again(
    rented: Rented, usd: float, about: dict[str, Any], nodes: int | None, told: tuple[float, bool]
) -> None:
    at = away(rented, **{"trust": "rented", **about})
    name = family_name(at.settings) + "r"
    rented.machine(name, usd_per_hour=usd)
    at.machines()
    facts = gather(at, check(at, Request(nodes=nodes)))
    assert (facts.usd_per_hour, facts.warm) == (told[0], name if told[1] else None)


def test_rows_of_a_block_are_the_configurations(rented: Rented, tmp_path: Path) -> None:
    """Where no manifest tells them."""
    (tmp_path / "faces" / "manifest.json").unlink()
    told = resolve._find_data(tmp_path, None, check(near(rented), Request(data=str(tmp_path / FACES))).images, {})
    assert told.block_rows == 8192
    origin = check(near(rented), Request(data=str(tmp_path / FACES)))
    assert origin.dataset is not None
    assert origin.dataset.block_rows == 10
    with pytest.raises(WrongUse, match=r"nothing\.npy"):
        resolve._find_data(tmp_path, None, origin.images, {"labels_path": "nothing.npy"})
    with pytest.raises(WrongUse, match=r"own\.npy"):
        resolve._find_data(tmp_path, None, origin.images, {"train_labels_path": "own.npy"})
    with pytest.raises(WrongUse, match=r"typed\.npy"):
        resolve._find_data(tmp_path, "typed.npy", origin.images, {"train_labels_path": "own.npy"})
