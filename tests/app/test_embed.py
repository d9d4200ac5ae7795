"""app.embed: the rows are the network's embeddings of the images, in their order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.config import load
from app.data.augment import to_float
from app.embed import main
from app.files import write_json
from app.models import build_backbone
from app.runtime.checkpoint import sha256
from tests.app.conftest import faces

NETWORK = [
    "backbone=iresnet18", "backbone.layers=[1,1]", "backbone.width=8", "backbone.embedding_dim=16",
    "backbone.image_size=48",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, images.npy and the same five images as PNG files."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(2)
    torch.save(build_backbone(load(NETWORK).backbone).state_dict(), folder / "weights.pt")
    images = faces(people=5, each=1)
    np.save(folder / "images.npy", images)
    (folder / "faces").mkdir()
    (folder / "people" / "a").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "faces" / f"{number}.png")
    return folder


def given(place: Path, out: Path, images: str, *words: str) -> list[str]:
    return [f"weights={place / 'weights.pt'}", f"images={images}", f"out={out}", *NETWORK, *words]


def test_rows_are_the_embeddings_of_the_images(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = build_backbone(load(NETWORK).backbone).eval()
    network.load_state_dict(torch.load(place / "weights.pt", weights_only=True))
    x = to_float(torch.from_numpy(np.load(place / "images.npy")), 48)
    with torch.no_grad():
        alone, mirrored = network(x).numpy(), network(x.flip(3)).numpy()
    for words, expected, images in (
        ([], alone + mirrored, place / "images.npy"),
        (["flip=false"], alone, place / "images.npy"),
        ([], alone + mirrored, place),  # the folder of a data set means its images
    ):
        out = tmp_path / "new" / "embeddings.npy"
        assert main(given(place, out, str(images), *words)) == 0
        found = np.load(out)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        about = json.loads(out.with_suffix(".json").read_text())
        assert (about["count"], about["dim"], about["flip"]) == (5, 16, not words)
        assert about["sha256"] == sha256(place / "weights.pt")
    assert "5 embeddings of 16 numbers" in capsys.readouterr().out


def test_photographs_come_in_the_order_given(place: Path, tmp_path: Path) -> None:
    whole, some = tmp_path / "whole.npy", tmp_path / "some.npy"
    assert main(given(place, whole, str(place / "images.npy"))) == 0
    assert main(given(place, some, f"{place / 'faces' / '3.png'},{place / 'faces' / '[0-1].png'}")) == 0
    np.testing.assert_allclose(np.load(some), np.load(whole)[[3, 0, 1]], rtol=1e-4, atol=1e-4)
    names = [Path(each).name for each in json.loads(some.with_suffix(".json").read_text())["images"]]
    assert names == ["3.png", "0.png", "1.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images=nothing/*.png"], "matches no file"),
        (["images=PLACE/faces"], "faces/*.png'"),
        (["images=PLACE/people"], "people/*/*.jpg'"),
        (["images=PLACE/images.npy,PLACE/faces/0.png"], "one .npy alone"),
        (["images=PLACE/weights.pt"], "weights.pt"),
        (["out=x.txt"], "ends in .npy"),
        (["flip=no"], "flip=false"),
        (["fit=stretch"], "crop|squash|pad"),
        (["weights=nowhere.pt"], "there is no file nowhere.pt"),
        (["image=x"], "images"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: list[str], said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("PLACE", str(place)) for word in words]
    changed = {word.partition("=")[0] for word in words}
    base = given(place, tmp_path / "out.npy", str(place / "images.npy"))
    assert main([*(word for word in base if word.partition("=")[0] not in changed), *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_array_of_embeddings_is_never_replaced(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(place / "images.npy", data)
    np.save(data / "labels.npy", np.arange(5, dtype=np.int32))
    write_json(data / "manifest.json", {"rows": 5})
    write_json(data / "epoch_000.json", {"file": "epoch_000.pt"})  # beside a checkpoint
    before = {file: file.read_bytes() for file in data.iterdir()}
    for name, said in (
        ("images.npy", "is a file that this command reads"),
        ("labels.npy", "would replace an array that app.embed did not write"),
        ("manifest.npy", "manifest.json would be overwritten"),
        ("epoch_000.npy", "epoch_000.json would be overwritten"),
    ):
        assert main(given(place, data / name, str(data / "images.npy"))) == 2
        assert said in capsys.readouterr().err
        assert {file: file.read_bytes() for file in data.iterdir()} == before
    for _ in range(2):  # its own embeddings are replaced
        assert main(given(place, data / "embeddings.npy", str(data / "images.npy"))) == 0


def test_a_network_that_is_unknown_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"weights={place / 'weights.pt'}", f"images={place / 'images.npy'}", "out=x.npy"]) == 2
    assert "backbone=iresnet50" in capsys.readouterr().err


def test_nan_is_no_result(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = torch.load(place / "weights.pt", weights_only=True)
    broken["conv1.weight"][0] = float("nan")
    torch.save(broken, tmp_path / "nan.pt")
    words = given(place, tmp_path / "out.npy", str(place / "images.npy"))
    assert main([f"weights={tmp_path / 'nan.pt'}", *words[1:]]) == 1
    assert "conv1.weight" in capsys.readouterr().err
    assert not (tmp_path / "out.npy").exists()
