"""The several machines of one run: their states, their ends, and whose checkpoint is the newest."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from deploy.errors import WrongUse, command
from deploy.pod.base.folder import write_json
from deploy.runs.job import Status
from deploy.runs.records import Record
from deploy.steps import nodes, restore
from deploy.ui.screen import Screen
from tests.deploy.support.rented import Near, Rented

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
