"""A list of pairs over photographs: measured as it is, or prepared once as an evaluation set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import prepare
from app.config import load
from app.errors import WrongUse
from app.evaluation.sets import open_set
from app.evaluation.while_training import NamedSets
from app.models import build_backbone
from app.runtime.dist import World
from tests.app.evaluation.test_sets import FACES, PAIRS, all_of, seen_pairs, write_lfw


@pytest.fixture
def pairs_csv(tmp_path: Path) -> Path:
    """Pairs of photographs of 150 x 112 pixels, with the face in the middle, in a folder without people."""
    (tmp_path / "all").mkdir()
    for number, face in enumerate(FACES):
        wide = np.pad(face, ((0, 0), (19, 19), (0, 0)), mode="edge")
        Image.fromarray(wide).save(tmp_path / "all" / f"{number}.png")
    path = tmp_path / "pairs.csv"
    path.write_text("path_a,path_b,same\n" + "".join(f"all/{a}.png,all/{b}.png,{same}\n" for a, b, same in PAIRS))
    return path


def run(path: Path, *words: str, out: str = "set") -> tuple[int, Path]:
    folder = path.parent / out
    return prepare.main(["source=pairs", f"path={path}", f"out={folder / 'images.npy'}", *words]), folder


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_prepared_list_measures_the_pixels_of_the_list(pairs_csv: Path, fit: str) -> None:
    code, folder = run(pairs_csv, f"fit={fit}")
    assert code == 0
    prepared, direct = open_set(folder), open_set(pairs_csv, fit)
    assert seen_pairs(prepared) == seen_pairs(direct)
    assert prepared.count == direct.count == len({i for a, b, _ in PAIRS for i in (a, b)})
    is_middle = np.array_equal(all_of(direct)[0], FACES[PAIRS[0][0]])
    assert is_middle == (fit == "crop")
    assert not (folder / "people.csv").exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["pairs"] == {"count": 24, "of_one_person": 12, "left_out": 0}
    assert manifest["passport"]["found"]["not square"] == prepared.count
    assert "people" not in manifest["passport"]


def test_lfws_own_list_is_prepared_as_another(tmp_path: Path) -> None:
    path = write_lfw(tmp_path / "pairs.txt")
    code, folder = run(path)
    assert code == 0
    assert seen_pairs(open_set(folder)) == seen_pairs(open_set(path))


def test_pairs_go_with_their_photograph(pairs_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pairs_csv.parent / "all" / "5.png").write_bytes(b"no image")
    code, folder = run(pairs_csv, "unreadable=skip")
    assert code == 0
    lost = [pair for pair in PAIRS if 5 in pair[:2]]
    assert f"{len(PAIRS) - len(lost)} pairs, " in (said := capsys.readouterr().out)
    assert f"; {len(lost)} left out with their photographs" in said
    of_all = open_set(pairs_csv)  # opened, not decoded: the broken file is named only then
    wanted = [pair for pair in PAIRS if 5 not in pair[:2]]
    seen = seen_pairs(open_set(folder))
    assert seen == [(FACES[a].tobytes(), FACES[b].tobytes(), bool(same)) for a, b, same in wanted]
    assert of_all.protocol.pairs == len(PAIRS)
    assert (folder / "left_out.csv").read_text().splitlines() == ["file,reason", "all/5.png,unreadable"]
    assert run(pairs_csv, "unreadable=skip")[0] == 0
    assert "already exists" in capsys.readouterr().out
    pairs_csv.write_text(pairs_csv.read_text().replace(",0\n", ",1\n", 1))
    assert run(pairs_csv, "unreadable=skip")[0] == 2
    assert "other or older images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no pairs"),
        ("all/0.png,all/99.png,1\n", "there is no file"),
        ("all/98.png,all/99.png,same\n", "there is no file"),
        ("all/0.png,all/1.png,1\nall/1.png,all/2.png,1\n", "2 of the 2 pairs"),
        (None, "give a CSV file with lines such as a/1.jpg,a/2.jpg,1"),
    ],
)
def test_a_list_without_use_is_told_and_leaves_nothing(
    pairs_csv: Path, text: str | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is None:
        pairs_csv.unlink()
    else:
        pairs_csv.write_text(text)
    code, folder = run(pairs_csv)
    assert code == 2
    said = capsys.readouterr().err.splitlines()
    assert sentence in said[-1]
    assert not (folder / "images.npy").exists()


def test_photographs_outside_the_folder_of_the_list(pairs_csv: Path) -> None:
    moved = pairs_csv.parent / "lists" / "pairs.csv"
    moved.parent.mkdir()
    moved.write_text(pairs_csv.read_text().replace("all/", f"{pairs_csv.parent.as_posix()}/all/"))
    assert run(moved)[0] == 0
    assert seen_pairs(open_set(moved.parent / "set")) == seen_pairs(open_set(pairs_csv))


def test_a_run_is_measured_on_a_list_as_its_fit_says(pairs_csv: Path, alone: World) -> None:
    words = ["backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", f"train.eval.sets={pairs_csv}"]
    config = load([*words, "train.eval.fit=squash"])
    (images,) = NamedSets(config, build_backbone(config.backbone), alone).sets
    assert seen_pairs(images) == seen_pairs(open_set(pairs_csv, "squash"))
    with pytest.raises(WrongUse, match=r"train\.eval\.fit=stretch is not known"):
        load([*words, "train.eval.fit=stretch"])
