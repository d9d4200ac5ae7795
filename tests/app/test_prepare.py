"""Preparing data: real photographs, folders, arrays; refusals; nothing half-written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import prepare

IMAGE_BYTES = 112 * 112 * 3


def test_orl_is_400_photographs_of_40_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a folder" / "images.npy"
    assert prepare.main(["source=orl", f"out={out}"]) == 0
    images, labels = np.load(out), np.load(out.with_name("labels.npy"))
    assert (images.shape, images.dtype) == ((400, 112, 112, 3), np.uint8)
    assert images.std() > 20
    assert np.array_equal(labels, np.repeat(np.arange(40), 10))
    manifest = json.loads(out.with_name("manifest.json").read_text())
    assert (manifest["rows"], manifest["block_rows"], manifest["held_out_rows"]) == (400, 10, 100)
    raw = out.read_bytes()[-400 * IMAGE_BYTES :]
    blocks = [raw[i : i + 10 * IMAGE_BYTES] for i in range(0, len(raw), 10 * IMAGE_BYTES)]
    assert manifest["blocks"] == [hashlib.sha256(block).hexdigest() for block in blocks]
    before = out.stat().st_mtime_ns
    assert prepare.main(["source=orl", f"out={out}"]) == 0
    assert "there already" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before


def test_a_folder_has_one_person_a_sub_folder(tmp_path: Path) -> None:
    for person, colour in (("Ana", 10), ("Zoë's “twin”", 200)):
        (tmp_path / "photos" / person).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (90 + i, 130), (colour, 0, 0)).save(tmp_path / "photos" / person / f"{i}.png")
    (tmp_path / "photos" / "Ana" / "notes.txt").write_text("no image")
    out = tmp_path / "images.npy"
    assert prepare.main(["source=folder", f"path={tmp_path / 'photos'}", f"out={out}"]) == 0
    assert np.load(out)[:, 50, 50, 0].tolist() == [10] * 3 + [200] * 3
    assert np.load(out.with_name("labels.npy")).tolist() == [0] * 3 + [1] * 3


def test_an_array_goes_through_unchanged(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (7, 112, 112, 3), dtype=np.uint8)
    np.save(tmp_path / "in.npy", images)
    np.save(tmp_path / "in_labels.npy", np.arange(7))
    out = tmp_path / "out" / "images.npy"
    words = ["source=array", f"path={tmp_path / 'in.npy'}", f"labels={tmp_path / 'in_labels.npy'}", f"out={out}"]
    assert prepare.main(words) == 0
    assert np.array_equal(np.load(out), images)
    assert np.load(out.with_name("labels.npy")).tolist() == list(range(7))


def test_held_out_images_fill_whole_blocks(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((250, 112, 112, 3), np.uint8))
    out = tmp_path / "images.npy"
    assert prepare.main(["source=array", f"path={tmp_path / 'in.npy'}", f"out={out}", "held_out=31"]) == 0
    manifest = json.loads(out.with_name("manifest.json").read_text())
    assert (manifest["block_rows"], manifest["held_out_rows"]) == (2, 32)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["sorce=orl"], "source=…"),
        (["source=olr", "out=a.npy"], "orl, folder, array"),
        (["source=orl", "out=a.txt"], ".npy"),
        (["source=orl"], ".npy"),
        (["source=folder", "out=a.npy"], "path="),
        (["source=folder", "path=/nowhere", "out=a.npy"], "no folder /nowhere"),
        (["source=array", "path=/nowhere.npy", "out=a.npy"], "no file /nowhere.npy"),
        (["source=orl", "held_out=400", "out=a.npy"], "from 0 to 398"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    words: list[str], answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare.main(words) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_is_named_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.jpg").write_bytes(b"no jpeg")
    out = tmp_path / "out" / "images.npy"
    assert prepare.main(["source=folder", f"path={tmp_path / 'photos'}", f"out={out}"]) == 2
    assert "1.jpg" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []
