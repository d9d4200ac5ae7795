"""Files of the wrong kind: the error names what they are."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from app.data.dataset import open_images
from app.errors import WrongUse
from app.runtime import checkpoint, weights
from app.runtime.foreign import what_it_is


def array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"):
            archive.writestr(name, b"x")


def exported(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", b"{}")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer.pt": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 0"), "git lfs pull"),
    "page.pt": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "a web page"),
    "train.rec": (lambda path: path.write_bytes(bytes.fromhex("0a23d7ce") + bytes(60)), "source=rec"),
    "images.pt": (array, "an array of NumPy"),
    "w.safetensors": (lambda path: path.write_bytes((20).to_bytes(8, "little") + b"{}"), "a damaged safetensors"),
    "e.safetensors": (lambda path: path.write_bytes((2).to_bytes(8, "little") + b"{}"), "holds no backbone"),
    "program.pt": (exported, "torch.export"),
    "module.pt": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "Python objects .*Linear.*state_dict"),
    "model.onnx": (lambda path: path.write_bytes(b"\x08\x06"), "an ONNX file"),
    "net.pt": (script, "a TorchScript program"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_named(name: str, tmp_path: Path) -> None:
    make, words = FILES[name]
    make(tmp_path / name)
    with pytest.raises(WrongUse, match=words):
        weights.read_backbone(tmp_path / name)


def test_what_is_damaged_is_not_taken_for_another_kind(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:40])
    (tmp_path / "empty.pt").touch()
    for name in ("w.pt", "cut.pt", "empty.pt", "missing.pt"):
        assert what_it_is(tmp_path / name) is None


def test_a_full_checkpoint_of_arcface_torch_is_told_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_gpu_0.pt"
    torch.save({"epoch": 1, "state_dict_backbone": {"conv1.weight": torch.zeros(1)}}, path)
    with pytest.raises(WrongUse, match=f"full checkpoint of arcface_torch.*train.warm_start={path} takes its backbone"):
        checkpoint.read(path)


def test_a_folder_or_a_rec_in_place_of_images_says_how_to_make_them(tmp_path: Path) -> None:
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "train.rec").write_bytes(bytes.fromhex("0a23d7ce") + bytes(60))
    (tmp_path / "made").mkdir()
    np.save(tmp_path / "made" / "images.npy", np.zeros(3))
    (tmp_path / "people").mkdir()
    for name, words in (
        ("rec", "app.prepare source=rec path="),
        ("rec/train.rec", "damaged or not a .rec file, copy it again"),
        ("people", "app.prepare source=folder path="),
        ("made", "give the file in it: .*images.npy"),
    ):
        with pytest.raises(WrongUse, match=words):
            open_images(tmp_path / name)
