"""What `app.data` tells of a data set, and what it finds wrong with its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app import prepare
from app.data import __main__
from app.data.about import about
from app.data.sources.source import Source
from tests.app.conftest import faces

LABELS = np.array([*np.repeat(np.arange(5, dtype=np.int32), 4), 5, -1, 0, 6], np.int32)  # 24: one of -1, two of one


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    images = faces(people=6, each=4)
    out = tmp_path / "data" / "set" / "images.npy"
    prepare.prepare(Source("faces", 24, lambda a, b: images[a:b], LABELS, held_out=3, block_rows=3), out)
    return out


def test_people_split_and_identity(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([f"data={prepared.parent}", "json=true"]) == 0
    told = json.loads(capsys.readouterr().out)
    manifest = json.loads(prepared.with_name("manifest.json").read_text())
    assert (told["path"], told["data"]) == (str(prepared), manifest["dataset_id"])
    assert (told["images"], told["people"], told["people_of_one_image"]) == (24, 7, 2)
    assert told["images_a_person"] == {"least": 1, "median": 4, "most": 5}
    assert told["images_without_label"] == 1
    assert told["training"] == {"images": 21, "people": 6}
    assert told["held_out"] == {"images": 3, "people": 2}
    assert told["people_in_both"] == 1
    assert __main__.main([f"data={prepared}", "verify=true"]) == 0
    said = capsys.readouterr().out
    assert "3 images of 2 people; 1 of these people is trained on too" in said
    assert "all images are what prepare wrote" in said


def test_a_changed_image_and_changed_labels_are_found(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = about(prepared)["labels"]
    images = np.lib.format.open_memmap(prepared, "r+")
    images[10, 0, 0, 0] ^= 1
    images.flush()
    assert __main__.main([f"data={prepared}"]) == 0  # not hashed
    assert __main__.main([f"data={prepared}", "verify=true"]) == 1
    assert "rows 9 to 11 differ" in capsys.readouterr().err
    np.save(prepared.with_name("labels.npy"), LABELS[::-1])
    assert __main__.main([f"data={prepared}"]) == 1
    assert "labels.npy is not what prepare wrote" in capsys.readouterr().err
    assert about(prepared)["labels"] != identity
    prepared.with_name("labels.npy").unlink()
    (fault,) = about(prepared)["faults"]
    assert "labels.npy is missing" in fault


def test_images_without_manifest_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", faces(people=2, each=2))
    assert __main__.main([f"data={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "no labels" in said
    assert "without manifest" in said
    assert __main__.main([f"data={tmp_path}", "verify=true"]) == 2
    assert "leave verify=true out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "data= is missing; give an images.npy or its folder"),
        (["data=nowhere"], "there is no file nowhere; `invoke prepare` makes one"),
        (["data=."], "give data= with a data set below it: "),
        (["data=.."], "`invoke prepare` makes one"),
        (["data=set", "verify=yes"], "verify=yes is neither true nor false"),
        (["dat=set"], "did you mean data=…?"),
    ],
)
def test_a_wrong_path_is_one_sentence(
    prepared: Path,
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(prepared.parents[1])
    assert __main__.main([*words, "json=true"]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.count("\n") == 1
    assert json.loads(out)["exit_code"] == 2
