"""The several machines of one run: their states, their ends, and whose checkpoint is the newest."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import StepFailed, WrongUse, command
from deploy.pod.base.folder import read_json, write_json
from deploy.pod.base.retry import OTHERS_PATIENCE_S
from deploy.runs.job import Status
from deploy.runs.records import Record
from deploy.runs.session import Reached
from deploy.shell import LinkLost, Shell
from deploy.specs.machine import Machine
from deploy.specs.plan import make
from deploy.specs.request import Request
from deploy.steps import nodes, restore
from deploy.steps.provision import Ready
from deploy.ui.screen import Screen
from tests.deploy.specs.test_plan import FACTS
from tests.deploy.support.rented import FINAL, Near, Noting, Rented

# A rented machine is a Linux system; here it is a folder of this computer, with its python3.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")


@pytest.fixture
def rented(tmp_path: Path) -> Rented:
    made = Rented(tmp_path)
    for name in ("m", "n", "o"):
        made.machine(name)
    made.plan()
    return made


def three(rented: Rented, state: str = "succeeded") -> Record:
    others = {name: str(rented.project / "machines" / name / "runs" / "a") for name in ("n", "o")}
    return rented.record(state=state, others=others)


def test_each_machine_has_its_rank_and_a_gone_one_is_lost(rented: Rented) -> None:
    record = three(rented, "running")
    for name in ("m", "o"):
        folder = rented.ran(machine=name, epochs=0)
        told = {"state": "running", "attempt": 1, "heartbeat": time.time(), "reason": f"of {name}"}
        write_json(folder / "status.json", told)
    rented.account.release(rented.account.machines["n"])
    with Near(rented.settings, rented.account) as at:
        reached = at.run(record)
        told = list(nodes.look(reached, Status("running", 1)))
    assert [(each["node"], each["machine"], each["state"]) for each in told] == [
        (0, "m", "running"),
        (1, "n", "lost"),
        (2, "o", "running"),
    ]
    assert [each["reason"] for each in told] == [None, None, "of o"]


def test_if_the_first_machine_is_gone_all_are_lost(rented: Rented) -> None:
    record = three(rented, "running")
    rented.account.release(rented.account.machines["m"])
    with Near(rented.settings, rented.account) as at:
        told = list(nodes.look(at.run(record), Status("running", 1)))
    assert [each["state"] for each in told] == ["lost"] * 3


@pytest.mark.parametrize(
    ("first", "second", "here", "brought"),
    [
        (0, 2, 0, ["epoch_001.pt"]),
        (1, 2, 0, ["epoch_001.pt"]),
        (2, 2, 0, []),  # as new is not newer
        (2, 1, 0, []),
        (0, 0, 0, []),
        (0, 2, 1, ["epoch_000.pt", "epoch_001.pt"]),
        (0, 2, 2, ["epoch_000.pt", "epoch_001.pt"]),
    ],
)
def test_the_newest_checkpoint_of_all_machines_is_brought(
    rented: Rented, first: int, second: int, here: int, brought: list[str]
) -> None:
    """After another machine has become rank 0. The log comes with it, so that rank 0 goes on with it."""
    record = three(rented)
    rented.ran(epochs=first)
    (rented.ran(machine="n", epochs=second) / "train.log").write_text("of n\n", encoding="utf-8")
    rented.checkpoints(rented.project / "runs" / "a", here)
    with Near(rented.settings, rented.account) as at:
        nodes.gather_checkpoints(at, record, Screen())
    assert rented.home() == brought
    assert (rented.project / "runs" / "a" / "train.log").exists() is (bool(brought) and here < 2)


def test_the_logs_of_the_others_come_below_their_rank(rented: Rented, capsys: pytest.CaptureFixture[str]) -> None:
    record = three(rented, "failed")
    rented.ran()
    for name in ("n", "o"):
        (rented.ran(machine=name, epochs=0) / "train.log").write_text(f"of {name}\n", encoding="utf-8")
    (rented.project / "machines" / "n" / "runs" / "a" / "status.json").write_text('{"state": 3}', encoding="utf-8")
    with Near(rented.settings, rented.account) as at:
        nodes.end_others(at.run(record), Screen())
    logs = rented.project / "runs" / "a" / "nodes"
    assert (logs / "2" / "train.log").read_text(encoding="utf-8") == "of o\n"
    assert (logs / "2" / "status.json").exists()
    assert "node 1, n, could not be asked how it ended: " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("here", "words"), [(2, "epoch_001.pt (epoch 1, step 1) on this laptop"), (0, "no checkpoint")]
)
def test_a_lost_run_is_not_forgotten(rented: Rented, here: int, words: str) -> None:
    rented.record("older")
    with Near(rented.settings, rented.account) as at:
        restore.refuse_to_forget(at)
    rented.record("z", state="running")
    rented.checkpoints(rented.project / "runs" / "z", here)
    with Near(rented.settings, rented.account) as at, pytest.raises(WrongUse) as error:
        restore.refuse_to_forget(at)
    assert f"run z was lost (its folder on the machine is gone); saved of it: {words}" in str(error.value)
    assert error.value.next_command == command("train --resume auto --on rented")


def test_without_a_run_nothing_is_forgotten(rented: Rented) -> None:
    with Near(rented.settings, rented.account) as at:
        restore.refuse_to_forget(at)


@pytest.mark.parametrize(
    ("sync_to", "words"),
    [
        (None, "no copies elsewhere"),
        ("/volume/", "copies in the volume /volume/a, read when the run continues"),
        ("s3://bucket/x", "copies in the bucket s3://bucket/x/a, read when the run continues"),
    ],
)
def test_what_is_saved_of_a_run(rented: Rented, sync_to: str | None, words: str) -> None:
    """On its machine, here, and with the copies: the newest of each."""
    rented.options = {"sync_to": sync_to}
    record = rented.record()
    rented.ran(epochs=3)
    rented.checkpoints(rented.project / "runs" / "a", 2)
    with Near(rented.settings, rented.account) as at:
        saved = restore.of(rented.settings, record, at.run(record))
    on_both = "epoch_002.pt (epoch 2, step 2) on its machine, epoch_001.pt (epoch 1, step 1) on this laptop"
    assert str(saved) == f"{on_both}, {words}"
    told = saved.to_json()
    assert (told["machine"], told["home"]["epoch"]) == ({"file": "epoch_002.pt", "epoch": 2, "step": 2}, 1)
    alone = restore.of(rented.settings, record)
    assert str(alone) == f"epoch_001.pt (epoch 1, step 1) on this laptop, {words}"
    assert alone.to_json()["machine"] is None


class Starting(Noting):
    """A machine without tmux whose supervisor answers at once."""

    def __init__(self, order: list[str], fails: str = "") -> None:
        super().__init__()
        self.order = order
        self.fails = fails

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        return False if verb == "environment_for" else super().call(verb, again=again, **arguments)

    def spawn(self, argv: Sequence[str], **_: Any) -> int:
        folder = Path(argv[-1])
        name = folder.parents[1].name
        self.order.append(name)
        if name == self.fails:
            raise StepFailed("no room")
        write_json(folder / "status.json", {"state": "running", "attempt": 1, "heartbeat": time.time()})
        return 1


def ready(rented: Rented) -> list[Ready]:
    machines = [rented.account.machines[name] for name in ("m", "n", "o")]
    plan = replace(make(rented.settings, Request(), FACTS, tryout=False), grace_s=0)
    return [
        Ready(machine, replace(plan, run_dir=str(Path(machine.root) / "runs" / "a")), FACTS) for machine in machines
    ]


def test_the_first_machine_starts_last(rented: Rented) -> None:
    """A job that still waits for an earlier first machine ends before. The first is not asked to end."""
    for name in ("m", "n"):
        told = {"state": "running", "attempt": 0, "heartbeat": time.time()}
        write_json(rented.ran(machine=name, epochs=0) / "status.json", told)
    order: list[str] = []

    class Noted(Starting):
        def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
            if verb == "write" and str(arguments["path"]).endswith("stop.request"):
                order.append(f"end {Path(arguments['path']).parents[2].name}")
            return super().call(verb, again=again, **arguments)

    with Near(rented.settings, rented.account) as at:
        at.near = Noted(order)
        assert nodes.start(at, ready(rented)) == "detached"
    assert order == ["end n", "o", "n", "m"]


@pytest.mark.parametrize(("fails", "asked"), [("m", ["n", "o"]), ("n", ["o"]), ("o", [])])
def test_if_one_machine_does_not_start_the_others_end(rented: Rented, fails: str, asked: list[str]) -> None:
    """Those that were started; nothing is left that bills and waits."""
    with Near(rented.settings, rented.account) as at:
        at.near = Starting([], fails)
        with pytest.raises(StepFailed, match="no room"):
            nodes.start(at, ready(rented))
    stops = [rented.project / "machines" / name / "runs" / "a" / "stop.request" for name in ("m", "n", "o")]
    assert [each.parents[2].name for each in stops if each.exists()] == asked


def test_a_machine_that_does_not_answer_for_its_status_is_lost(rented: Rented) -> None:
    """The others are asked all the same, each with little patience."""
    record = three(rented, "running")
    for name in ("n", "o"):
        told = {"state": "running", "attempt": 1, "heartbeat": time.time()}
        write_json(rented.ran(machine=name, epochs=0) / "status.json", told)
    rented.ran()

    class Silent(Noting):
        def attempts(self, requests: Any) -> Any:
            if "/n/" in str(requests):
                raise LinkLost("n is silent")
            return super().attempts(requests)

    with Near(rented.settings, rented.account) as at:
        reached = at.run(record)
        at.near = Silent()
        told = list(nodes.look(reached, None))
        assert at.near.patience_s == OTHERS_PATIENCE_S
    assert [(each["node"], each["state"]) for each in told] == [(0, "lost"), (1, "lost"), (2, "running")]


def test_the_lines_of_all_logs_have_their_machines_number(
    rented: Rented, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the first machine has ended. A lost machine is told once; an unfinished line comes at the end."""
    monkeypatch.setattr(nodes.job, "POLL_S", 0.001)
    record = three(rented, "running")
    for name in ("m", "n", "o"):
        folder = rented.ran(machine=name, epochs=0)
        write_json(folder / "status.json", {"state": "running", "attempt": 1, "heartbeat": time.time()})
        (folder / "train.log").write_text(f"of {name}\nhalf", encoding="utf-8")

    class Lossy(Noting):
        def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes:
            if "/n/" in str(path):
                raise LinkLost("n is silent")
            return super().read(path, offset, limit)

    with Near(rented.settings, rented.account) as at:
        reached = at.run(record)
        at.near = Lossy()
        lines = nodes.logs(replace(reached, shell=at.near), Screen(), follow=True)
        assert [next(lines), next(lines)] == ["0| of m\n", "2| of o\n"]
        rented.ran(epochs=0)
        assert list(lines) == ["0| half\n", "2| half\n"]
    assert " ".join(capsys.readouterr().err.split()) == "node 1: n is silent"


class Breaking(Noting):
    """A machine whose status and log cannot be read if there is an `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def attempts(self, requests: Any) -> Any:
        if self.error:
            raise self.error
        return super().attempts(requests)

    def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes:
        if self.error:
            raise self.error
        return super().read(path, offset, limit)


class Apart(Near):
    """A target with a shell for each machine."""

    def __init__(self, rented: Rented, **errors: Exception) -> None:
        super().__init__(rented.settings, rented.account)
        self.shells = {name: Breaking(errors.get(name)) for name in rented.account.machines}

    def shell(self, machine: Machine) -> Shell:
        return self.shells[machine.name]


def apart(rented: Rented, **errors: Exception) -> tuple[Apart, Reached]:
    """A finished run on three machines, of which some cannot be read."""
    record = three(rented)
    for name in ("m", "n", "o"):
        (rented.ran(machine=name, epochs=0) / "train.log").write_text(f"of {name}\n", encoding="utf-8")
    at = Apart(rented, **errors)
    return at, at.run(record)


@pytest.mark.parametrize("error", [LinkLost("it is silent"), OSError("it is silent")])
@pytest.mark.parametrize(
    ("lost", "lines", "words"),
    [
        ("n", ["0| of m\n", "2| of o\n"], "node 1: it is silent"),
        ("o", ["0| of m\n", "1| of n\n"], "node 2: it is silent"),
    ],
)
def test_a_lost_machine_hides_no_other_log(
    rented: Rented, error: Exception, lost: str, lines: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is waited for as usual, the others for a short time."""
    at, reached = apart(rented, **{lost: error})
    assert list(nodes.logs(reached, Screen(), follow=False)) == lines
    assert " ".join(capsys.readouterr().err.split()) == words
    patience = [at.shells[name].patience_s for name in ("m", "n", "o")]
    assert patience == [Noting().patience_s, OTHERS_PATIENCE_S, OTHERS_PATIENCE_S]


@pytest.mark.parametrize("error", [LinkLost("it is silent"), OSError("it is silent")])
def test_without_the_first_machine_there_is_no_log_to_follow(rented: Rented, error: Exception) -> None:
    _, reached = apart(rented, m=error)
    with pytest.raises(type(error), match="it is silent"):
        list(nodes.logs(reached, Screen(), follow=False))


@pytest.mark.parametrize("error", [LinkLost("it is silent"), OSError("it is silent")])
def test_a_machine_that_cannot_be_asked_for_its_end_hides_no_other(
    rented: Rented, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    _, reached = apart(rented, n=error)
    nodes.end_others(reached, Screen())
    assert "node 1, n, could not be asked how it ended: it is silent" in " ".join(capsys.readouterr().out.split())
    assert (rented.project / "runs" / "a" / "nodes" / "2" / "train.log").exists()


@pytest.mark.parametrize(("state", "waits"), [("failed", True), ("succeeded", False), ("stopped", False)])
def test_the_others_of_a_failed_run_are_told_to_end(
    rented: Rented, state: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise they end by themselves, a moment later, and their own end is awaited."""
    monkeypatch.setattr(nodes.job, "POLL_S", 0.001)
    record = three(rented, state)
    rented.ran(state=state)
    others = [rented.ran(machine=name, epochs=0) for name in ("n", "o")]
    for folder in others:
        write_json(folder / "status.json", {"state": "running", "attempt": 1, "heartbeat": time.time()})

    class Ending(Noting):
        """A job that ends when it is asked to, or when it is looked at for the second time."""

        looks = 0

        def attempts(self, requests: Any) -> Any:
            self.looks += 1
            folder = next((each for each in others if str(each) in str(requests)), None)
            is_asked = folder and ((folder / "stop.request").exists() or (not waits and self.looks > 1))
            if folder and is_asked and read_json(folder / "status.json")["state"] == "running":
                write_json(folder / "status.json", {**FINAL, "state": "stopped", "heartbeat": time.time()})
            return super().attempts(requests)

    with Near(rented.settings, rented.account) as at:
        reached = at.run(record)
        at.near = Ending()
        nodes.end_others(reached, Screen())
    assert (others[0] / "stop.request").exists() is waits
    for rank in (1, 2):
        told = read_json(rented.project / "runs" / "a" / "nodes" / str(rank) / "status.json")
        assert told["state"] == "stopped"


def test_the_newest_run_is_the_one_that_is_not_forgotten(rented: Rented) -> None:
    rented.record("z", state="running")
    write_json(rented.project / "runs" / "z" / "run.json", {
        **read_json(rented.project / "runs" / "z" / "run.json"), "created": "2026-11-29T10:00:00",
    })  # fmt: skip
    rented.record("older")
    with Near(rented.settings, rented.account) as at, pytest.raises(WrongUse, match="run z was lost"):
        restore.refuse_to_forget(at)
