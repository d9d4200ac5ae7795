"""What comes home of a run, from a machine that is a folder of this computer."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deploy import border
from deploy.border.pages import REPORT_BEGINS
from deploy.errors import BadAnswer
from deploy.pod.base.folder import RunFolder, private_folder
from deploy.pod.base.lock import Lock
from deploy.runs.session import Reached
from deploy.shell import LocalShell
from deploy.steps import download
from deploy.ui.screen import Screen
from tests.deploy.support.rented import Near, Rented

# A rented machine is a Linux system; here it is a folder of this computer.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")
REPORT = REPORT_BEGINS.decode()
GOOD = '<meta name="description" content="it is good">\n'


class Home:
    """A finished run, its folder on the machine and its folder here."""

    def __init__(self, folder: Path, *, epochs: int = 2, **about: Any) -> None:
        self.rented = Rented(folder)
        self.rented.machine(**about)
        self.record = self.rented.record()
        self.there = self.rented.ran(epochs=epochs)
        self.here = folder / "runs" / "a"

    def reached(self) -> Reached:
        return Near(self.rented.settings, self.rented.account).run(self.record)

    def put(self, **files: str) -> None:
        for name, text in files.items():
            file = self.there / name.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")

    def files(self) -> dict[str, str]:
        own = {"run.json", "checkpoints"}
        found = {each.relative_to(self.here): each for each in self.here.rglob("*") if each.is_file()}
        named = {name.as_posix(): file for name, file in found.items() if not own & set(name.parts)}
        return {name: file.read_text(encoding="utf-8") for name, file in named.items()}


def test_everything_of_a_run_comes_home(tmp_path: Path) -> None:
    """Pictures and curves, not what else is beside them; of the checkpoints only the newest."""
    home = Home(tmp_path)
    home.put(
        config_dot_yaml="a: 1", metrics_dot_jsonl="", train_dot_log="log", verification_dot_json="{}",
        report_dot_html=REPORT + "x", mining__a_dot_png="1", mining__b_dot_png="2", mining__c_dot_txt="3",
        tensorboard__events_dot_out_dot_tfevents_dot_1="4", tensorboard__other="5", other_dot_txt="6",
    )  # fmt: skip
    about = download.bring(home.reached(), Screen())
    assert about is not None
    assert (about["epoch"], about["path"]) == (1, str(home.here / "checkpoints" / "epoch_001.pt"))
    assert set(home.files()) == {
        "config.yaml", "metrics.jsonl", "train.log", "verification.json", "report.html", "status.json", "mining/a.png",
        "mining/b.png", "tensorboard/events.out.tfevents.1",
    }  # fmt: skip
    assert home.rented.home() == ["epoch_001.pt"]
    assert (home.there / "checkpoints" / "epoch_001.pt.fetched").exists()  # so that the machine may go
    assert download.newest_checkpoint(home.reached()) == about


def test_a_run_without_checkpoints_brings_what_it_has(tmp_path: Path) -> None:
    home = Home(tmp_path, epochs=0)
    home.put(config_dot_yaml="a: 1")
    assert download.bring(home.reached(), Screen()) is None
    assert set(home.files()) == {"config.yaml", "status.json"}
    assert download.newest_checkpoint(home.reached()) is None


def test_a_file_that_is_no_report_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path, epochs=0)
    home.put(report_dot_html="<script>")
    download.bring(home.reached(), Screen())
    assert "report.html" not in home.files()
    assert "report.html of run a is no report: removed" in " ".join(capsys.readouterr().err.split())
    home.put(report_dot_html=REPORT)
    download.bring(home.reached(), Screen())
    assert "report.html" in home.files()
    assert capsys.readouterr().err == ""


def test_a_picture_of_a_strange_name_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.put(**{"mining__" + "x" * 101 + ".png": "1"})
    with pytest.raises(BadAnswer, match="mining of run a"):
        download.bring(home.reached(), Screen())


def test_not_more_files_than_one_command_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(border, "RESULTS_MOST", 2)
    home = Home(tmp_path)
    home.put(mining__1_dot_txt="", **{f"mining__{number}_dot_png": "" for number in range(1, 4)})
    reached = home.reached()
    download.bring_folder(reached, reached.folder.mining, lambda name: ".png" in name, border.PICTURE, "picture")
    assert len(home.files()) == 2


@pytest.mark.parametrize(
    ("to", "told"), [("mine.pt", "mine.pt"), ("folder", "folder/epoch_000.pt"), ("new/", "new/epoch_000.pt")]
)
def test_a_checkpoint_comes_where_the_user_says(
    tmp_path: Path, to: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that ends in a slash is a folder, also one that does not exist. The configuration stays there then."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    home = Home(tmp_path / "project")
    home.put(config_dot_yaml="a: 1")
    note = json.loads((home.there / "checkpoints" / "epoch_000.json").read_text(encoding="utf-8"))
    about = download.bring_checkpoint(home.reached(), note, to, Screen())
    assert Path(about["path"]) == tmp_path / told
    assert (tmp_path / told).read_text(encoding="utf-8") == "weights 0"
    assert home.files() == {}
    download.bring_checkpoint(home.reached(), note, None, Screen())
    assert home.files() == {"config.yaml": "a: 1"}


@pytest.mark.parametrize(("about", "is_noted"), [({}, True), ({"address": None}, False)])
def test_a_machine_that_may_go_notes_what_was_fetched(tmp_path: Path, about: dict[str, Any], is_noted: bool) -> None:
    home = Home(tmp_path, **about)
    download.bring(home.reached(), Screen())
    assert (home.there / "checkpoints" / "epoch_001.pt.fetched").exists() is is_noted


def test_a_copy_of_a_run_notes_nothing(tmp_path: Path) -> None:
    """Its machine is gone."""
    home = Home(tmp_path)
    folder = RunFolder(home.there)
    at = Near(home.rented.settings, home.rented.account)
    about = download.bring(Reached(at, home.record, LocalShell(), folder, None), Screen())
    assert about is not None
    assert not (home.there / "checkpoints" / "epoch_001.pt.fetched").exists()


@pytest.mark.parametrize(
    ("here", "there", "about", "expected"),
    [
        (True, True, {}, "here"),
        (False, True, {"address": None}, "there"),
        (False, True, {}, None),  # a path of another computer
        (False, False, {"address": None}, None),
    ],
)
def test_where_the_report_is(
    tmp_path: Path, here: bool, there: bool, about: dict[str, Any], expected: str | None
) -> None:
    home = Home(tmp_path, **about)
    for is_there, folder in ((here, home.here), (there, home.there)):
        if is_there:
            (folder / "report.html").write_text(f"{REPORT}{GOOD}", encoding="utf-8")
    folders = {"here": home.here, "there": home.there}
    assert download.report(home.reached()) == (str(folders[expected] / "report.html") if expected else None)
    assert download.verdict(home.reached()) == (None if expected is None else "it is good")


def test_two_commands_do_not_download_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits until the first has ended."""
    home = Home(tmp_path)
    private_folder(home.rented.settings.notes)
    reached = home.reached()
    lock = Lock(tmp_path / ".sniperface" / "home-rented.lock", {"busy": True})
    done, waits, pause = threading.Event(), threading.Event(), time.sleep

    def wait(seconds: float) -> None:
        waits.set()
        pause(seconds)

    monkeypatch.setattr(time, "sleep", wait)

    def bring() -> None:
        download.bring(reached, Screen())
        done.set()

    second = threading.Thread(target=bring)
    with lock.acquire():
        second.start()
        assert waits.wait(10)
        assert not done.is_set()
        assert home.rented.home() == []
    assert done.wait(30)
    second.join()
    assert home.rented.home() == ["epoch_001.pt"]
