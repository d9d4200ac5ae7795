"""Which checkpoint a run continues from, of those on its machine, on this laptop and among the copies."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import StepFailed
from deploy.pod.base.folder import RunFolder
from deploy.shell import LinkLost, MachineGone, Shell
from deploy.specs.plan import Plan, make
from deploy.specs.request import Request
from deploy.steps.restore import HOME, KEPT, MACHINE, Kept, NothingReadable, Restored, Unusable, _newest_first, restore
from deploy.ui.screen import Screen
from tests.deploy.specs.test_plan import FACTS
from tests.deploy.support.rented import SOURCE, Near, Noting, Rented

# A rented machine is a Linux system; here it is a folder of this computer.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")


def note(epoch: int, step: int, *, whole: bool = True) -> dict[str, object]:
    return {"file": f"epoch_{epoch:03d}.pt", "epoch": epoch, "step": step, "epoch_complete": whole}


def test_the_newest_comes_first_and_of_equals_the_nearest() -> None:
    found = {
        MACHINE: [note(0, 10), note(2, 30)],
        KEPT: [note(2, 25, whole=False), note(2, 30)],
        HOME: [note(1, 20), note(2, 30)],
    }
    told = [(where, each["epoch"], each["step"]) for where, each in _newest_first(found)]
    assert told == [
        (MACHINE, 2, 30), (KEPT, 2, 30), (HOME, 2, 30), (KEPT, 2, 25), (HOME, 1, 20), (MACHINE, 0, 10),
    ]  # fmt: skip


def restored(rented: Rented, capsys: pytest.CaptureFixture[str], shell: Shell | None = None) -> tuple[Restored, str]:
    machine = rented.account.machines["m"]
    plan: Plan = make(rented.settings, Request(), FACTS, tryout=False)
    plan = replace(plan, run_id="a", run_dir=str(Path(machine.root) / "runs" / "a"), cwd=str(SOURCE))
    with Near(rented.settings, rented.account) as at:
        told = restore(rented.settings, machine, shell or at.shell(machine), plan, Screen())
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


@pytest.mark.parametrize(
    ("there", "here", "is_sent"),
    [("", "x", True), ("ab", "abc", True), ("abc", "abd", False), ("abcd", "abc", False)],
)
def test_the_longest_log_stays(
    tmp_path: Path, there: str, here: str, is_sent: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rented = Rented(tmp_path)
    rented.machine()
    folder, home = rented.ran(epochs=0), rented.project / "runs" / "a"
    rented.checkpoints(home, 1)
    if there:
        (folder / "train.log").write_text(there, encoding="utf-8")
    (home / "train.log").write_text(here, encoding="utf-8")
    restored(rented, capsys)
    assert (folder / "train.log").read_text(encoding="utf-8") == (here if is_sent else there)


STEPS = [json.dumps({"event": "step", "step": step}) + "\n" for step in range(4)]


@pytest.mark.parametrize(
    ("here", "there", "told"),
    [
        ([*STEPS[:3], "{made}", *STEPS[3:]], None, 4),  # up to the checkpoint
        (STEPS[:1], None, 1),  # with a gap: better than none
        (STEPS[:1], "theirs\n", None),
        ([*STEPS[:3], "{made}"], "theirs\n", 4),
        (None, None, None),
    ],
)
def test_events_up_to_the_checkpoint_are_restored(
    tmp_path: Path, here: list[str] | None, there: str | None, told: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first place that has all of them."""
    rented = Rented(tmp_path)
    rented.machine()
    folder, home = rented.ran(epochs=0), rented.project / "runs" / "a"
    rented.checkpoints(home, 3)
    newest = json.loads((home / "checkpoints" / "epoch_002.json").read_text(encoding="utf-8"))
    made = json.dumps({"event": "checkpoint", "step": 2, "sha256": newest["sha256"]}) + "\n"
    lines = [made if line == "{made}" else line for line in here or ()]
    if here is not None:
        (home / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    if there is not None:
        (folder / "metrics.jsonl").write_text(there, encoding="utf-8")
    restored(rented, capsys)
    file = folder / "metrics.jsonl"
    found = file.read_text(encoding="utf-8") if file.exists() else None
    assert found == (there if told is None else "".join(lines[:told]))


def kept(rented: Rented, folder: Path, epochs: int) -> Path:
    """Copies of a run in a folder that stands for a bucket."""
    rented.checkpoints(folder / "a", epochs)
    rented.options = {"sync_to": f"file://{folder.as_posix()}"}
    return folder / "a"


def test_copies_are_read_by_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the log; a damaged copy is told, and the next one is taken."""
    rented = Rented(tmp_path)
    rented.machine()
    folder = rented.ran(epochs=1)
    copies = kept(rented, tmp_path / "bucket", 3)
    (copies / "checkpoints" / "epoch_002.pt").write_bytes(b"weights 9")
    (copies / "train.log").write_text("of the copies\n", encoding="utf-8")
    told, said = restored(rented, capsys)
    assert told.note is not None
    assert (told.note["epoch"], told.spend) == (1, {})
    assert "skipped epoch_002.pt (epoch 2, step 2) from the bucket file:" in said
    assert said.rpartition("restored ")[2].startswith("epoch_001.pt (epoch 1, step 1) from the bucket file:")
    assert (folder / "checkpoints" / "epoch_001.pt").read_bytes() == b"weights 1"
    assert (folder / "train.log").read_text(encoding="utf-8") == "of the copies\n"


@pytest.mark.parametrize(("log", "here", "raises"), [(False, 0, True), (True, 0, False), (False, 1, False)])
def test_copies_that_cannot_be_read_may_be_all_that_is_left(
    tmp_path: Path, log: bool, here: int, raises: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the run does not start over. With its log on the machine it had begun there, and goes on."""
    rented = Rented(tmp_path, options={"sync_to": "nothing://bucket"})
    rented.machine()
    folder = rented.ran(epochs=0)
    if log:
        (folder / "train.log").write_text("x", encoding="utf-8")
    rented.checkpoints(rented.project / "runs" / "a", here)
    if raises:
        with pytest.raises(NothingReadable, match="nothing of run a could be restored: the bucket nothing://bucket"):
            restored(rented, capsys)
        return
    told, said = restored(rented, capsys)
    assert "the bucket nothing://bucket cannot be read and is skipped: " in said
    assert (told.note is None) is (here == 0)


class Failing(Noting):
    """A machine whose process for the copies fails when it is asked for `word`."""

    def __init__(self, word: str, error: Exception | bytes) -> None:
        super().__init__()
        self.word, self.error = word, error
        self.limits: list[float] = []

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        if verb == "run":
            self.limits.append(arguments["limit_s"])
            if self.word in arguments["argv"]:
                if isinstance(self.error, Exception):
                    raise self.error
                return 0, self.error, b""
        return super().call(verb, again=again, **arguments)


def test_how_long_the_copies_may_take(tmp_path: Path) -> None:
    rented = Rented(tmp_path, options={"sync_to": "/copies"})
    shell = Failing("--take", b"{}")
    place = Kept(rented.settings, rented.machine(), shell, tmp_path, RunFolder(tmp_path / "run"))
    place.take({"file": "epoch_000.pt", "bytes": 600 << 20})
    shell.word = "--record"
    assert not place.record({"file": "epoch_000.pt"})
    shell.word = "deploy.pod.backup.restore"
    place.look(Screen())
    assert shell.limits == [660.0, 120.0, 60.0]


def test_a_nonsensical_list_of_copies_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rented = Rented(tmp_path)
    rented.machine()
    (rented.ran(epochs=0) / "train.log").write_text("x", encoding="utf-8")
    kept(rented, tmp_path / "bucket", 1)
    told, said = restored(rented, capsys, Failing("deploy.pod.backup.restore", b"[]"))
    assert told == Restored(None)
    assert "cannot be read and is skipped: " in said


@pytest.mark.parametrize(
    ("word", "error", "words"),
    [
        ("--record", StepFailed("too slow"), "log and metrics in the bucket"),
        ("--record", b"{}", "restored epoch_000.pt"),
        ("--record", b"[]", "log and metrics in the bucket"),
        ("--take", StepFailed("too slow"), "skipped epoch_000.pt (epoch 0, step 0) from the bucket"),
        ("--record", LinkLost("m is gone"), None),  # no fault of the copies
        ("--take", MachineGone("m is gone"), None),
    ],
)
def test_what_fails_of_the_copies_is_told_and_skipped(
    tmp_path: Path, word: str, error: Exception | bytes, words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lost connection ends the command instead. Events that the copies lack come from this laptop."""
    rented = Rented(tmp_path)
    rented.machine()
    folder = rented.ran(epochs=0)
    kept(rented, tmp_path / "bucket", 1)
    home = rented.project / "runs" / "a"
    home.mkdir(parents=True)
    (home / "metrics.jsonl").write_text(STEPS[0], encoding="utf-8")
    shell = Failing(word, error)
    if words is None:
        assert isinstance(error, StepFailed)
        with pytest.raises(type(error)):
            restored(rented, capsys, shell)
        return
    told, said = restored(rented, capsys, shell)
    assert words in said
    assert ("it hangs or is too slow (too slow)" in said) is isinstance(error, StepFailed)
    assert (told.note is None) is (word == "--take")
    assert shell.limits[:2] == [60.0, 120.0]
    assert 60 < shell.limits[2] < 61  # a second for each MiB
    if word == "--record":
        assert (folder / "metrics.jsonl").read_text(encoding="utf-8") == STEPS[0]


def test_copies_get_the_machines_own_secrets_unless_it_is_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN", "long-value")
    rented = Rented(tmp_path, options={"secrets": ("OWN",), "sync_to": "/copies"})
    folder = RunFolder(tmp_path / "run")
    for machine, secrets in ((rented.machine(), {"OWN": "long-value"}), (rented.machine(address=None), {})):
        place = Kept(rented.settings, machine, Noting(), tmp_path, folder)
        assert place.secrets == secrets
        assert place.argv[-2:] == [str(folder.path), "/copies"]
        assert "long-value" not in place.redact("a long-value b")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((0, b"a\n{}\n", b"warning"), "{}"),
        ((0, b" \n", b""), "it printed nothing"),
        ((1, b"", b"one\ntwo\n"), Unusable("two")),
        ((1, b"", b""), Unusable("it printed nothing")),
        ((1, b"the reason\n", b"more"), Unusable("the reason")),
    ],
)
def test_the_last_line_is_the_answer_or_the_reason(tmp_path: Path, answer: Any, told: str | Unusable) -> None:
    class Answering(Noting):
        def call(self, verb: str, *, again: bool = True, **_: Any) -> Any:
            assert (verb, again) == ("run", True)  # a lost connection is no reason to give up
            return answer

    rented = Rented(tmp_path, options={"sync_to": "/copies"})
    place = Kept(rented.settings, rented.machine(), Answering(), tmp_path, RunFolder(tmp_path / "run"))
    if isinstance(told, str):
        assert place._ask(limit_s=1) == told
        return
    with pytest.raises(Unusable) as error:
        place._ask(limit_s=1)
    assert str(error.value) == str(told)
