"""Which checkpoint a run continues from, of those on its machine, on this laptop and among the copies."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.specs.plan import Plan, make
from deploy.specs.request import Request
from deploy.steps.restore import HOME, KEPT, MACHINE, Restored, _newest_first, restore
from deploy.ui.screen import Screen
from tests.deploy.specs.test_plan import FACTS
from tests.deploy.support.rented import Near, Rented

# A rented machine is a Linux system; here it is a folder of this computer.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")


def note(epoch: int, step: int, *, whole: bool = True) -> dict[str, object]:
    return {"file": f"epoch_{epoch:03d}.pt", "epoch": epoch, "step": step, "epoch_complete": whole}


def test_the_newest_comes_first_and_of_equals_the_nearest() -> None:
    found = {
        HOME: [note(1, 20), note(2, 30)],
        MACHINE: [note(0, 10), note(2, 30)],
        KEPT: [note(2, 25, whole=False), note(2, 30)],
    }
    told = [(where, each["epoch"], each["step"]) for where, each in _newest_first(found)]
    assert told == [
        (MACHINE, 2, 30), (KEPT, 2, 30), (HOME, 2, 30), (KEPT, 2, 25), (HOME, 1, 20), (MACHINE, 0, 10),
    ]  # fmt: skip


def restored(rented: Rented, capsys: pytest.CaptureFixture[str]) -> tuple[Restored, str]:
    machine = rented.account.machines["m"]
    plan: Plan = make(rented.settings, Request(), FACTS, tryout=False)
    plan = replace(plan, run_id="a", run_dir=str(Path(machine.root) / "runs" / "a"))
    with Near(rented.settings, rented.account) as at:
        told = restore(rented.settings, machine, at.shell(machine), plan, Screen())
    return told, " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        (2, 1, "continuing from epoch_001.pt (epoch 1, step 1), which is on the machine"),
        (2, 2, "continuing from epoch_001.pt (epoch 1, step 1), which is on the machine"),
        (1, 2, "restored epoch_001.pt (epoch 1, step 1) from this laptop"),
        (0, 1, "restored epoch_000.pt (epoch 0, step 0) from this laptop"),
        (0, 0, "no complete checkpoint of run a was found: it starts from the beginning"),
    ],
)
def test_a_run_continues_from_the_newest(
    tmp_path: Path, there: int, here: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rented = Rented(tmp_path)
    rented.machine()
    folder = rented.ran(epochs=there)
    rented.checkpoints(rented.project / "runs" / "a", here)
    (rented.project / "runs" / "a" / "train.log").parent.mkdir(parents=True, exist_ok=True)
    (rented.project / "runs" / "a" / "train.log").write_text("a longer log\n", encoding="utf-8")
    told, said = restored(rented, capsys)
    assert said.endswith(words)
    newest = max(there, here) - 1
    assert (told.note["epoch"] if told.note else -1) == newest
    if here > there:
        assert (folder / "checkpoints" / f"epoch_{newest:03d}.pt").read_text(encoding="utf-8") == f"weights {newest}"
        about = json.loads((folder / "checkpoints" / f"epoch_{newest:03d}.json").read_text(encoding="utf-8"))
        assert about["epoch"] == newest
        assert (folder / "checkpoints" / "latest").read_text(encoding="utf-8") == f"epoch_{newest:03d}.pt"
        assert (folder / "train.log").read_text(encoding="utf-8") == "a longer log\n"


def test_a_damaged_checkpoint_is_skipped_for_an_older_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rented = Rented(tmp_path)
    rented.machine()
    folder = rented.ran(epochs=2)
    (folder / "checkpoints" / "epoch_001.pt").write_bytes(b"damaged")
    told, said = restored(rented, capsys)
    assert told.note is not None
    assert told.note["epoch"] == 0
    assert "skipped epoch_001.pt (epoch 1, step 1) from the machine: its SHA-256 differs" in said
    assert said.endswith("continuing from epoch_000.pt (epoch 0, step 0), which is on the machine")
