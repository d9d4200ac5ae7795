"""Faces in photographs: detection, alignment, photographs that are left out, and the passport."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import prepare
from app.data.faces import examine
from app.data.faces.align import TEMPLATE, cut, similarity
from app.data.faces.landmarks import COLUMNS, read_landmarks
from app.data.faces.passport import Row, passport
from app.data.sources.photograph import decode_face
from app.data.sources.source import orl
from app.errors import WrongUse

needs_mtcnn = pytest.mark.skipif(
    importlib.util.find_spec("mtcnn") is None, reason="needs mtcnn: pip install mtcnn==1.0.0"
)


@pytest.fixture(scope="module")
def portraits() -> list[Image.Image]:
    """Ten photographs of real people, 92 x 112 pixels."""
    return [Image.open(file).convert("RGB") for file in orl().read(0, 400)[::40]]


def in_a_scene(portrait: Image.Image, *, turn_deg: float, scale: float, centre: tuple[int, int]) -> Image.Image:
    """Paste a portrait into a picture of 640 x 480 pixels that contains no face."""
    scene = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
    size = (round(portrait.width * scale), round(portrait.height * scale))
    turned = portrait.resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    turned = turned.rotate(turn_deg, Image.Resampling.BICUBIC, expand=True)
    scene.paste(turned, (centre[0] - turned.width // 2, centre[1] - turned.height // 2), turned)
    return scene


@pytest.fixture
def folder(tmp_path: Path, portraits: list[Image.Image]) -> Path:
    """Two people with a face in a corner each; Ana also has a tiny face, a picture without a face, an aligned image."""
    root = tmp_path / "photos"
    for person, portrait in (("Ana", portraits[0]), ("Zoë, “B”", portraits[1])):
        (root / person).mkdir(parents=True)
        in_a_scene(portrait, turn_deg=10, scale=1.5, centre=(120, 330)).save(root / person / "corner.png")
    portraits[2].resize((30, 36)).save(root / "Ana" / "tiny.png")
    Image.linear_gradient("L").resize((300, 200)).save(root / "Ana" / "sky.png")
    Image.new("RGB", (112, 112), (1, 2, 3)).save(root / "Ana" / "done.png")
    return root


def run(folder: Path, *words: str, out: str = "out") -> tuple[int, Path]:
    file = folder.parent / out / "images.npy"
    return prepare.main(["source=folder", f"path={folder}", f"out={file}", *words]), file


@needs_mtcnn
@pytest.mark.parametrize("turn_deg", [0.0, 20.0])
def test_points_follow_the_face_to_a_pixel_or_two(turn_deg: float, portraits: list[Image.Image]) -> None:
    """The scene's landmarks are where the known placement of the portrait puts its own landmarks."""
    from app.data.faces.detect import find

    for portrait in portraits[:4]:
        own = find(portrait)
        assert len(own.scores) == 1
        assert own.scores[0] > 0.9
        there = find(in_a_scene(portrait, turn_deg=turn_deg, scale=2, centre=(400, 220)))
        angle = np.deg2rad(-turn_deg)
        turn = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        wanted = (own.points[0] + 0.5 - np.array(portrait.size) / 2) @ turn.T + np.array([400, 220]) - 0.5
        to_image = similarity(wanted, TEMPLATE)[:, :2]
        assert np.linalg.norm((there.points[0] - wanted) @ to_image.T, axis=1).mean() < 3  # pixels of the aligned image


@needs_mtcnn
def test_the_best_face_is_large_and_near_the_centre(portraits: list[Image.Image]) -> None:
    from app.data.faces.detect import find

    scene = in_a_scene(portraits[0], turn_deg=0, scale=1.8, centre=(330, 240))
    scene.paste(portraits[1], (10, 10))
    found = find(scene)
    assert len(found.scores) == 2
    assert 200 < found.points[0, 2, 0] < 460
    assert found.points[1, 2, 0] < 110
    assert len(find(scene, min_face=110).scores) == 1
    assert not len(find(Image.linear_gradient("L").convert("RGB")).scores)


@needs_mtcnn
def test_a_folder_becomes_aligned_faces_and_a_passport(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(folder, "align=auto", "json=true")
    assert code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["passport"]["left_out"]) == (3, {"no face found": 2})
    with out.with_name("left_out.csv").open(encoding="utf-8", newline="") as file:
        assert [*csv.reader(file)] == [
            ["file", "reason"], ["Ana/sky.png", "no face found"], ["Ana/tiny.png", "no face found"]
        ]  # fmt: skip
    images = np.load(out)
    assert np.array_equal(images[1], np.full((112, 112, 3), (1, 2, 3)))  # already aligned, so unchanged
    assert np.load(out.with_name("labels.npy")).tolist() == [0, 0, 1]
    people = out.with_name("people.csv").read_text(encoding="utf-8").splitlines()
    assert people == ["label,person,images", "0,Ana,2", '1,"Zoë, “B”",1']
    page = out.with_name("passport.html").read_text(encoding="utf-8")
    assert "Ana/sky.png · no face found" in page
    assert "Zoë, “B”" in page
    assert page.count("data:image/jpeg;base64,") >= 5
    assert not [*out.parent.glob(".*")]
    # The saved landmarks give the same images.
    code, again = run(folder, f"landmarks={out.with_name('landmarks.csv')}", out="again")
    assert code == 0
    assert np.abs(np.load(again).astype(int) - images).mean() < 0.5
    assert run(folder, "align=auto")[0] == 0
    assert "already exists" in capsys.readouterr().out
    assert run(folder, "align=all")[0] == 2
    assert "other or older images" in capsys.readouterr().err


def test_photographs_that_differ_in_a_folder_above_are_examined_each(tmp_path: Path) -> None:
    """Of one size and time, as an archive leaves them, and with the names that a list of pairs may have."""
    files = [tmp_path / place / "all" / "1.ppm" for place in ("one", "two")]
    for file, size in zip(files, ((30, 20), (20, 30)), strict=True):
        file.parent.mkdir(parents=True)
        Image.new("RGB", size).save(file)
        os.utime(file, (1e9, 1e9))
    assert files[0].stat().st_size == files[1].stat().st_size
    found = examine.examine(files, examine.Look(), tmp_path / "notes")
    assert [(each.width, each.height) for each in found] == [(30, 20), (20, 30)]


@needs_mtcnn
def test_an_interrupted_search_continues(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    searched: list[str] = []
    search = examine.examine_one

    def stopped(file: Path, look: examine.Look) -> examine.Examined:
        if len(searched) == 3:
            raise KeyboardInterrupt
        searched.append(file.name)
        return search(file, look)

    monkeypatch.setattr(examine, "PIECE", 1)
    monkeypatch.setattr(examine, "examine_one", stopped)
    assert run(folder, "align=auto", "workers=1")[0] == 130
    assert "run the same command" in capsys.readouterr().err
    monkeypatch.setattr(examine, "examine_one", lambda file, look: searched.append(file.name) or search(file, look))
    assert run(folder, "align=auto", "workers=1")[0] == 0
    assert searched == ["corner.png", "done.png", "sky.png", "tiny.png", "corner.png"]


@needs_mtcnn
def test_a_folder_without_a_face_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "Zoë, “B”")
    for name in ("corner.png", "done.png"):
        (folder / "Ana" / name).unlink()
    code, out = run(folder, "align=auto")
    assert code == 2
    assert "none of the 2 photographs becomes an image: no face found" in capsys.readouterr().err
    assert not out.exists()
    code, out = run(folder, "align=auto", "not_found=keep", "fit=pad")
    assert code == 0
    assert len(np.load(out)) == 2


def test_landmarks_align_without_a_detector(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Landmarks at three times the template's size give the photograph's own pixels, reduced by three."""
    scene = Image.open(folder / "Ana" / "corner.png").convert("RGB")
    points = TEMPLATE * 3 + 20
    (folder.parent / "points.csv").write_text(
        "Ana\\corner.png," + ",".join(map(str, points.ravel())) + "\n", encoding="utf-8"
    )
    code, out = run(folder, f"landmarks={folder.parent / 'points.csv'}")
    assert code == 0
    assert "no landmarks" in capsys.readouterr().out
    images = np.load(out)
    expected = np.asarray(scene.crop((19, 19, 19 + 336, 19 + 336)).reduce(3), np.int16)
    assert np.abs(images[0] - expected)[2:-2, 2:-2].mean() < 2
    assert len(images) == 2  # corner.png and the aligned done.png


def test_a_large_face_is_reduced_without_aliasing() -> None:
    """A fine checkerboard becomes grey; sampling single pixels would keep it black and white."""
    board = np.indices((896, 896)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(board[..., None].astype(np.uint8), 3, axis=2))
    assert np.abs(cut(image, TEMPLATE * 8).astype(int) - 127.5).max() < 3


@pytest.mark.parametrize(("fit", "corner", "middle"), [("crop", 255, 255), ("squash", 9, 255), ("pad", 0, 255)])
def test_each_fit_scales_as_it_says(fit: str, corner: int, middle: int) -> None:
    wide = np.full((100, 300, 3), 9, np.uint8)
    wide[:, 100:200] = 255
    face = decode_face(_png(wide), fit)
    assert face.shape == (112, 112, 3)
    assert abs(int(face[2, 2, 0]) - corner) < 3
    assert abs(int(face[56, 56, 0]) - middle) < 3


def _png(image: np.ndarray) -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


LINE = "a/1.jpg,1,2,3,2,2,3,1,4,3,4"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "file is empty"),
        ("b/9.jpg,1,2,3,2,2,3,1,4,3,4\n", "such as b/9.jpg"),
        (f"{','.join(COLUMNS)}\na/1.jpg,1,2\n", "line 2"),
        (f"{LINE}\n{LINE}\n", "second time"),
        ("a/1.jpg,3,2,1,2,2,3,3,4,1,4\n", "right before left"),
        ("a/1.jpg,1,2,1,2,1,3,1,4,1,4\n", "on one line"),
        ("a/1.jpg,1e9,2,3,2,2,3,1,4,3,4\n" * 2, "is not a file and 10 numbers"),
        ("a/1.jpg,nan,2,3,2,2,3,1,4,3,4\n" * 2, "is not a file and 10 numbers"),
    ],
)
def test_landmarks_that_do_not_fit_are_named(text: str, answer: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(text, encoding="utf-8")
    with pytest.raises(WrongUse, match=answer):
        read_landmarks(tmp_path / "l.csv", ["a/1.jpg"])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["fit=stretch"], "fit=crop|squash|pad"),
        (["align=yes"], "align=none|auto|all"),
        (["several=skip"], "add align=auto"),
        (["not_found=keep"], "add align=auto"),
        (["landmarks=nowhere.csv"], "there is no file nowhere.csv"),
        (["min_face=5"], "add align=auto"),
    ],
)
def test_options_that_do_nothing_are_refused(
    words: list[str], answer: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(folder, *words)
    assert code == 2
    assert answer in capsys.readouterr().err
    assert not out.exists()


def test_suspects_are_found() -> None:
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(0, 255, (5, 14, 14, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    again = np.clip(base[0].astype(int) + rng.integers(-3, 4, base[0].shape), 0, 255).astype(np.uint8)
    grey = np.repeat(base[4][..., :1], 3, axis=2)
    images = np.stack([base[0], base[1], again, base[2], base[3], grey])
    plain = examine.Examined(112, 112)
    rows = [
        Row("a/1", "a", plain, 0),
        Row("a/2", "a", plain._replace(width=300), 1),
        Row("b/1", "b", plain, 2),
        Row("b/2", "b", plain._replace(height=60), 3),
        Row("b/3", "b", plain._replace(turned=True), 4),
        Row("b/bad", "b", plain, None, "unreadable"),
        Row("c/1", "c", plain, 5),
    ]
    told = passport(rows, images)
    assert told.findings == {
        "left out": [[5]],
        "the same picture of two people": [[0, 2]],
        "duplicates": [[0, 2]],
        "people of one image": [[6]],
        "smaller than 112 pixels": [[3]],
        "not square": [[1], [3]],
        "grey": [[6]],
        "turned upright by EXIF": [[4]],
    }
    assert told.summary["found"]["duplicates"] == 1
    assert (told.summary["photographs"], told.summary["images"], told.summary["people"]) == (7, 6, 3)
