"""Errors in the words of the command line that the user typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from app import prepare
from app.errors import FLAGS, framed, quoted


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("source=folder needs path=…, such as path=a/b", "--source folder needs --path …, such as --path a/b"),
        ("held_out=x must be a number", "--held-out x must be a number"),
        ("give train.path=3 or mypath=4", "give train.path=3 or mypath=4"),
        ("the disk is full", "the disk is full"),
        (
            "path= is not an option; it takes source=, held_out=",
            "--path is not an option; it takes --source, --held-out",
        ),
        ("leave out path=", "leave out --path"),
        ("path=../x, held_out=-1, source='a b'", "--path ../x, --held-out -1, --source 'a b'"),
    ],
)
def test_options_are_named_as_the_flags_that_were_typed(told: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FLAGS, raising=False)
    assert framed(told) == told
    monkeypatch.setenv(FLAGS, "source path held_out")
    assert framed(told) == f"error: {shown}"


def test_a_key_of_the_configuration_follows_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLAGS, "sets out set")
    told = "there is no file x; or give data.binary_cache_path=PATH, or give sets=a.bin"
    assert framed(told) == "error: there is no file x; or give --set data.binary_cache_path=PATH, or give --sets a.bin"


def test_a_path_in_a_printed_command_stays_one_word_in_the_shell_of_the_computer() -> None:
    assert quoted("/faces/a b.rec", windows=False) == "'/faces/a b.rec'"
    assert quoted("/faces/a.rec", windows=False) == "/faces/a.rec"
    assert quoted(r"C:\my faces\a.rec", windows=True) == r'"C:\my faces\a.rec"'


def test_a_wrong_source_gets_the_nearest_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FLAGS, "source path held_out")
    assert prepare.main(["source=fodler", "out=x"]) == 2
    assert "error: --source fodler is not known; did you mean folder?" in capsys.readouterr().err


def test_a_hint_after_the_work_names_flags_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FLAGS, "source path align fit")
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (20 + number, 30)).save(tmp_path / "photos" / "a" / f"{number}.png")
    words = ["source=folder", f"path={tmp_path / 'photos'}", f"out={tmp_path / 'out' / 'images.npy'}"]
    assert prepare.main(words) == 0
    assert "; --align auto takes the face instead, --fit pad all of the image" in capsys.readouterr().out
