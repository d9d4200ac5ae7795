"""The whole way of a CatFace user by documented commands: a tree of photographs, training, a table, ONNX, and back.

The photographs are portraits of real people in scenes, so that the detector has faces to find.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from app import prepare
from app.config import CONF
from app.data.sources.source import orl
from benchmarks._peer import Peer
from tests.app.data.test_align import in_a_scene
from tests.app.data.test_photographs import STORED, oriented_jpeg

PEOPLE, EACH = 8, 5
LAYERS, WIDTH, DIM = (1, 1, 1, 1), 8, 32
SHORT = [
    f"backbone.layers=[{','.join(map(str, LAYERS))}]", f"backbone.width={WIDTH}", f"backbone.embedding_dim={DIM}",
    "train.batch.size=8", "train.epochs=2", "train.lr_schedule.warmup.epochs=0", "run.report=false",
]  # fmt: skip


def photographs(root: Path, plain: Path) -> None:
    """A folder per person: mixed sizes and formats, rotated phones, a Mac's archive, other files, a hidden folder.

    The same portraits, upright and of one size, go to `plain`, in the same order.
    """
    portraits = [Image.open(file).convert("RGB") for file in orl().read(0, PEOPLE * 10)]
    for person in range(PEOPLE):
        folder = root / f"person {person:02}"
        folder.mkdir(parents=True)
        (plain / folder.name).mkdir(parents=True)
        one, two, three, four, five = portraits[person * 10 : person * 10 + EACH]
        in_a_scene(one, turn_deg=10, scale=1.5, centre=(150, 300)).save(folder / "corner.png")
        scene = np.asarray(in_a_scene(two, turn_deg=0, scale=2, centre=(420, 220)))
        stored = STORED[6](scene)  # a phone held upright
        (folder / "IMG_0001.JPG").write_bytes(oriented_jpeg(np.ascontiguousarray(stored), 6))
        three.resize((184, 224)).save(folder / "portrait.webp", lossless=True)
        four.save(folder / "small.bmp")
        cut_out = five.resize((276, 336)).convert("RGBA")
        cut_out.putalpha(Image.new("L", cut_out.size, 255))
        cut_out.save(folder / "cut out.PNG")
        for number, portrait in enumerate((two, one, five, three, four)):  # as their names are sorted
            in_a_scene(portrait, turn_deg=0, scale=1.8, centre=(320, 240)).save(plain / folder.name / f"{number}.png")
        (folder / "._corner.png").write_bytes(b"\0\5\x16\7Mac OS X")
        (folder / "Thumbs.db").write_bytes(b"not an image")
    (root / ".ipynb_checkpoints").mkdir()
    portraits[0].save(root / ".ipynb_checkpoints" / "a.png")
    Image.linear_gradient("L").resize((300, 200)).save(root / "person 00" / "sky.png")


def write_pairs(root: Path, path: Path) -> None:
    """Pairs of the same photographs, as testarcface.py reads them: paths and 1 or 0, without a header."""
    names = ["corner.png", "IMG_0001.JPG", "portrait.webp"]
    lines = []
    for person in range(PEOPLE):
        one, other = (f"{root.name}/person {number:02}" for number in (person, (person + 1) % PEOPLE))
        for left, right in ((0, 1), (0, 2), (1, 2)):
            lines += [f"{one}/{names[left]},{one}/{names[right]},1", f"{one}/{names[left]},{other}/{names[right]},0"]
    path.write_text("\n".join(lines) + "\n")


def documented() -> list[list[str]]:
    """The words of the commands of the page, each beginning with the name of its module."""
    page = (CONF.parent / "docs" / "from-arcface-torch.md").read_text(encoding="utf-8")
    block = page.split("## The whole way")[1].split("```")[1]
    lines = [shlex.split(line) for line in block.strip().splitlines()]
    assert all(line[:2] == ["python", "-m"] for line in lines)
    return [line[2:] for line in lines]


# What is smaller here than on the page.
LESS = {"held_out=100": "held_out=10", "epoch_019": "epoch_001"}


def call(module: str, *words: str) -> int:
    for whole, less in LESS.items():
        words = tuple(word.replace(whole, less) for word in words)
    exit_code: int = importlib.import_module(module).main([*words, *(SHORT if module == "app.train" else [])])
    return exit_code


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mtcnn") is None, reason="needs mtcnn: pip install mtcnn==1.0.0")
def test_from_a_tree_of_photographs_to_a_table_an_onnx_file_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command reads what the one before it wrote, so this is one test, of 6 s."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "cats", tmp_path / "plain")
    write_pairs(tmp_path / "cats", tmp_path / "pairs.csv")
    prepare_cats, prepare_pairs, *rest = documented()

    assert call(*prepare_cats) == 0
    told = capsys.readouterr()
    assert "8 files left out: 8 .db" in told.err
    data = tmp_path / "data" / "cats"
    manifest = json.loads((data / "manifest.json").read_text())
    assert manifest["rows"] == PEOPLE * EACH
    assert manifest["passport"]["left_out"] == {"no face found": 1}
    assert np.load(data / "labels.npy").tolist() == np.repeat(np.arange(PEOPLE), EACH).tolist()
    # However the photographs came, the aligned faces are those of the plain portraits.
    words = ["source=folder", "align=auto", "path=plain", "out=upright/images.npy"]
    assert prepare.main(words) == 0
    faces = [np.load(each / "images.npy")[:, 20:100, 20:92].mean(3).reshape(40, -1) for each in (data, Path("upright"))]
    alike = [np.corrcoef(one, other)[0, 1] for one, other in zip(*faces, strict=True)]
    assert min(alike) > 0.8
    assert call(*prepare_pairs) == 0

    train, measure, to_onnx, back = rest
    assert call(*train) == 0
    capsys.readouterr()
    assert call(*measure) == 0
    table = capsys.readouterr().out
    assert "pairs: 10-fold accuracy" in table
    assert "cats-1N: rank-1 identification" in table
    assert "pairs: thresholds of epoch_001: cosine " in table
    both = json.loads(Path("evaluation/eval.json").read_text())["weights"]
    (measured,) = (each["sets"] for each in both if each["file"].endswith("epoch_001.pt"))
    threshold = measured["pairs"]["thresholds"]["ten_folds"]
    assert threshold["squared_distance"] == pytest.approx(2 - 2 * threshold["cosine"])
    events = [json.loads(line) for line in Path("runs/cats/metrics.jsonl").read_text().splitlines()]
    while_training = [each for each in events if each["event"] == "eval" and each["what"] == "sets/pairs"]
    assert while_training[-1]["accuracy"] == pytest.approx(measured["pairs"]["accuracy"], abs=1e-6)

    assert call(*to_onnx) == 0
    onnx = Path("model.onnx")
    assert (
        json.loads(onnx.with_suffix(".json").read_text())["evaluation"]["pairs"]["thresholds"]
        == (measured["pairs"]["thresholds"])
    )
    assert call("app.export", f"check={onnx}") == 0
    sets = [word for word in measure if word.startswith(("sets=", "gallery="))]
    assert call("app.evaluate", f"weights={onnx}", *sets, "out=of onnx") == 0
    of_onnx = json.loads(Path("of onnx/eval.json").read_text())["weights"][0]["sets"]
    assert of_onnx["pairs"]["accuracy"] == pytest.approx(measured["pairs"]["accuracy"], abs=0.021)  # one pair of 48

    assert call(*back) == 0
    peer = Peer(LAYERS, WIDTH, DIM).eval()
    peer.load_state_dict(torch.load("backbone.pt", weights_only=True))  # strict: every name and shape
    pixels = torch.from_numpy(np.load(data / "images.npy")[:8]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        theirs = peer(pixels / 127.5 - 1).numpy()
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    (ours,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})  # the file normalises
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
