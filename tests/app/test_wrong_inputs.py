"""Wrong values of the app's commands end in one sentence and exit code 2, and nothing is written.

They are started as the launcher starts them for a user, so their sentences name flags.
"""

from __future__ import annotations

import importlib
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

import tasks
from app.config import load, save_resolved
from app.errors import FLAGS
from app.models import build_backbone
from tests.app.conftest import faces

NETWORK = ["backbone=iresnet18", "backbone.layers=[1,1]", "backbone.width=8", "backbone.embedding_dim=16"]
CHECKPOINT = "checkpoint=runs/r/checkpoints/epoch_000.pt"  # a text file

# The text after a line: the thing that is wrong, and a value that works.
WRONG = {
    "prepare source=fodler out=o/images.npy": "--source fodler is not known; did you mean folder?",
    "prepare source=folder out=o/images.npy": "--source folder needs --path …, such as --path data/photos",
    "prepare source=folder path=nosuch out=o/images.npy": "there is no folder nosuch; give --path DIR with one sub-",
    "prepare source=folder path=text.txt out=o/images.npy": "there is no folder text.txt; give --path DIR",
    "prepare source=folder path=empty out=o/images.npy": "empty has no images in sub-folders; it needs one sub-folder",
    "prepare source=folder path=empty align=maybe out=o/images.npy": "--align maybe is not known; give --align none|",
    "prepare source=folder path=empty fit=round out=o/images.npy": "--fit round is not known; give --fit crop|squash",
    "prepare source=pairs out=o/images.npy": "--source pairs needs --path …, such as --path pairs.csv",
    "prepare source=parquet path=empty out=o/images.npy": "no .parquet file at empty; give --path FILE.parquet",
    "prepare source=rec path=text.txt out=o/images.npy": "not a .rec file, copy it again",
    "prepare source=synthetic identities=0 out=o/images.npy": "--identities 0 must be a whole number from 4",
    "prepare source=synthetic identities=x out=o/images.npy": "--identities x must be a whole number from 4",
    "prepare source=orl out=o/images.txt": "must end in .npy or .jpegs, such as",
    "prepare source=orl sorce=x out=o/images.npy": "did you mean --source …?",
    "data data=nosuch": "there is no file nosuch; `invoke prepare` makes one",
    "data data=text.txt": "text.txt is not a complete .npy file",
    "data data=empty": "empty has no images.npy; `invoke prepare` makes one",
    "data verify=now data=empty": "--verify now is neither true nor false; give --verify true",
    "data": "--data is missing; give an images.npy or its folder",
    "evaluate": "--weights … is missing; give files such as",
    "evaluate weights=nosuch.pt": "--weights nosuch.pt matches no file here",
    "evaluate weights=text.txt": "text.txt is not in a run's folder, so its backbone is unknown; add one such as",
    "evaluate weights=net.pt fit=round": "--fit round is not known; give --fit crop|squash|pad",
    "evaluate weights=net.pt flip=maybe": "flip=maybe is neither true nor false; give flip=false",
    "evaluate weights=net.pt sets=nosuch.bin": "--sets nosuch.bin matches no file here",
    "evaluate weights=net.pt sets=text.txt": "text.txt is not a list of pairs as LFW has it: it must begin with",
    "evaluate weights=net.pt sets=text.md": "text.md is not a verification set; give a .bin, a .csv, LFW's pairs.txt,",
    "evaluate weights=net.pt probes=good": "--probes good needs a gallery to be searched in; add --gallery DIR",
    "evaluate weights=net.pt gallery=nosuch": "there is no nosuch; give a folder with one sub-folder of images",
    "evaluate weights=net.pt gallery=empty probes=good": "empty has no images in sub-folders; it needs one sub-folder",
    "evaluate weights=net.pt gallery=good/text.txt": "give a folder with one sub-folder of images for each person",
    "evaluate weights=net.pt epochs=3": "there is no option epochs; did you mean train.epochs?",
    "mine": "checkpoint=… is missing; give one such as checkpoint=runs/RUN/checkpoints/epoch_014.pt",
    "mine checkpoint=none.pt out=o": "none.pt; give ",
    "mine embeddings=nosuch.npy out=o": "nosuch.npy cannot be read (No such file or directory); embeddings= must be a",
    "mine embeddings=text.txt out=o": "text.txt cannot be read (it is not a complete .npy file); embeddings= must be",
    "mine embeddings=good/images.npy out=o": "holds uint8 of shape [20, 112, 112, 3]; embeddings= must be a .npy file",
    "mine embeddings=good/embeddings.npy out=o mining.neighbours=0": "mining.neighbours=0 is too small; give at least",
    "mine embeddings=good/embeddings.npy out=o mining.method=x": "mining.method=x is not known; choose from overlap",
    f"export {CHECKPOINT} out=model.txt": "--out model.txt is not a valid file name; give one such as --out model.onnx",
    "export checkpoint=none.pt out=model.onnx": "none.pt; give ",
    f"export {CHECKPOINT} out=model.onnx precision=int4": "precision=int4 is not known; give fp16 or int8",
    f"export {CHECKPOINT} out=model.onnx opset=3": "opset=3 cannot be written; give one from 11 to 20",
    "export check=nosuch.onnx": "there is no file nosuch.onnx; give check=FILE.onnx",
    "export check=nosuch.onnx out=x": "check=… takes no other options; leave the other words out",
    "embed": "weights=… is missing; give one such as weights=model.onnx",
    "embed weights=net.pt images=good/images.npy out=e.txt": "give one that ends in .npy, such as out=embeddings.npy",
    "embed weights=net.pt images=none*.jpg out=e.npy": "images=none*.jpg matches no file; give images.npy, or phot",
    "embed weights=net.pt images=good/images.npy out=e.npy flip=1": "flip=1 is neither true nor false; give flip=f",
    "embed weights=net.pt images=good/images.npy out=e.npy fit=x": "fit=x is not known; give fit=crop|squash|pad",
    "embed weights=none.pt images=good/images.npy out=e.npy": "none.pt is not in a run's folder, so its backbone is u",
    "embed wights=net.pt": "there is no option wights; did you mean weights?",
    "size backbone=r5000": "backbone=r5000 is not known; `python -m app.train --help` lists all of them, such as",
    "size backbone=rsnet50": "backbone=rsnet50 is not known; did you mean",
    "report nosuch": "there is no folder nosuch; give the folder of a run, such as runs/RUN",
    "report": "give one folder of a run, such as runs/RUN",
}  # fmt: skip
MODULES = {"data": "app.data.__main__", "report": "app.report.__main__"}
TYPED = tasks.COMMAND_LINE.commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text file, an empty folder, images, embeddings and weights."""
    import torch

    folder = tmp_path_factory.mktemp("place")
    for name in ("text.txt", "text.md"):
        (folder / name).write_text("Good morning.\n", encoding="utf-8")
    (folder / "runs" / "r" / "checkpoints").mkdir(parents=True)
    (folder / "runs" / "r" / "checkpoints" / "epoch_000.pt").write_text("Good night.\n", encoding="utf-8")
    save_resolved(load(NETWORK), folder / "runs" / "r" / "config.yaml")
    (folder / "empty").mkdir()
    (folder / "good").mkdir()
    np.save(folder / "good" / "images.npy", faces(people=5, each=4))
    np.save(folder / "good" / "embeddings.npy", np.eye(20, 16, dtype=np.float32))
    torch.save(build_backbone(load(NETWORK).backbone).state_dict(), folder / "net.pt")
    return folder


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_one_sentence_and_writes_nothing(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name, *words = shlex.split(line)
    monkeypatch.chdir(place)
    if name in TYPED:
        flags = {"prepare": "prepare", "data": "data"}.get(name, "evaluate")  # as deploy/commands/app.py does
        monkeypatch.setenv(FLAGS, " ".join(each.name.replace("-", "_") for each in TYPED[flags].flags))
    before = files(place)
    network = NETWORK if "net.pt" in line and name in ("evaluate", "embed") else []
    code = importlib.import_module(MODULES.get(name, f"app.{name}")).main([*words, *network])
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    [sentence] = err.splitlines()
    assert WRONG[line] in sentence
    assert sentence.startswith("error: ") == (name in TYPED)
    assert files(place) == before


def files(folder: Path) -> dict[str, int]:
    """Each file and folder below a folder, with the time of its last change."""
    paths = (Path(above, name) for above, folders, names in os.walk(folder) for name in [*folders, *names])
    return {str(path): path.stat().st_mtime_ns for path in paths}
