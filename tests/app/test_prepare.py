"""Preparing data from real photographs, folders and arrays; refusals; no half-written file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import prepare
from app.config import DataConfig
from app.data.dataset import open_dataset, with_classes
from app.errors import WrongUse

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
    assert "already exists" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("later", "name"),
    [("images.npy", "images.npy"), ("images.npy", "images.jpegs"), ("a.npy", "a.npy"), ("a.npy", "b.npy")],
)
def test_a_call_does_not_overwrite_what_another_has_finished_meanwhile(tmp_path: Path, later: str, name: str) -> None:
    """The second one looked at `out` while the first one was at work on it."""
    for person in "ab":
        (tmp_path / "photos" / person).mkdir(parents=True)
        Image.new("RGB", (112, 150), (200, 0, 0)).save(tmp_path / "photos" / person / "1.png")
    words = ["source=folder", f"path={tmp_path / 'photos'}"]
    options = prepare.parse([*words, f"out={tmp_path / later}", "fit=pad"])
    source, out = prepare.choose(options), tmp_path / later
    placing = prepare.how_to_place(options, source)
    assert prepare.whole(placing.of(source), out) is None
    assert prepare.main([*words, f"out={tmp_path / name}"]) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with pytest.raises(WrongUse, match=r"has finished a data set in .* run this command again"):
        prepare.make_photographs(placing.of(source), out, options, 1, placing)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(("first", "second"), [("images.npy", "train.npy"), ("one.npy", "two.npy")])
def test_a_folder_takes_one_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, second: str
) -> None:
    """A second one would replace the manifest and labels of the first."""
    words = ["source=synthetic", "identities=4", "per_identity=3"]
    assert prepare.main([*words, f"out={tmp_path / first}"]) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert prepare.main([*words, "seed=1", f"out={tmp_path / second}"]) == 2
    assert f"{first} is there, with its own manifest.json" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    (tmp_path / first).unlink()
    np.save(tmp_path / "embeddings.npy", np.zeros((3, 8), np.float32))
    (tmp_path / "odd.npy").write_bytes(b"")
    assert prepare.main([*words, "seed=1", f"out={tmp_path / second}"]) == 0


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


@pytest.mark.parametrize("file_format", ["png", "jpg"])
def test_a_folder_is_what_recipe_supervised_learns_from(tmp_path: Path, file_format: str) -> None:
    for person in range(3):
        (tmp_path / "photos" / str(person)).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (112, 112), (80 * person, 0, 9)).save(
                tmp_path / "photos" / str(person) / f"{i}.{file_format}"
            )
    out = tmp_path / "images.npy"
    assert prepare.main(["source=folder", f"path={tmp_path / 'photos'}", f"out={out}", "held_out=2"]) == 0
    data = open_dataset(out, labels_path=None, fraction=1.0, block_rows=1)
    assert data.labels is not None
    assert data.labels.dtype == np.int32
    classes = with_classes(data, DataConfig(binary_cache_path=str(out))).classes
    assert classes is not None
    assert classes.tolist() == [0, 0, 1, 1, -1, -1]


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
        (["source=olr", "out=a.npy"], "orl, folder, pairs, array"),
        (["source=orl", "out=a.txt"], ".npy"),
        (["source=orl"], ".npy"),
        (["source=folder", "out=a.npy"], "path="),
        (["source=folder", "path=/nowhere", "out=a.npy"], "no folder /nowhere"),
        (["source=array", "path=/nowhere.npy", "out=a.npy"], "no file /nowhere.npy"),
        (["source=orl", "held_out=400", "out=a.npy"], "from 0 to 398"),
        (["source=orl", "held_out=-1", "out=a.npy"], "from 0 to 398"),
        (["source=orl", "workers=0", "out=a.npy"], "workers=0 must be a whole number from 1"),
        (["source=orl", "workers=two", "out=a.npy"], "workers=two"),
        (["source=orl", "identities=5", "out=a.npy"], "identities= is not an option of source=orl; it takes out="),
        (["source=synthetic", "identites=5", "out=a.npy"], "did you mean identities=…?"),
        (["source=synthetic", "path=x", "out=a.npy"], "path= is not an option of source=synthetic"),
        (["source=synthetic", "identities=0", "out=a.npy"], "identities=0"),
        (["source=synthetic", "identities=1e3", "out=a.npy"], "such as identities=2000"),
        (["source=synthetic", "per_identity=1", "out=a.npy"], "per_identity=1"),
        (["source=synthetic", "seed=-1", "out=a.npy"], "seed=-1"),
        (["source=synthetic", f"identities={'9' * 5000}", "out=a.npy"], "must be a whole number"),
        (["source=orl", "out=a.npy", "out=b.npy"], "out= is given twice"),
        (["source=parquet", "out=a.npy"], "path="),
        (["source=parquet", "path=/nowhere", "out=a.npy"], "no .parquet file at /nowhere"),
        (["source=rec", "out=a.npy"], "path="),
        (["source=rec", "path=/nowhere", "out=a.npy"], "no file /nowhere"),
        (["source=rec", "path=/nowhere", "decoder=gpu", "out=a.npy"], "choose from cpu, dali"),
        (["source=folder", "path=/nowhere", "decoder=cpu", "out=a.npy"], "decoder= is not an option of source=folder"),
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


def test_a_folder_that_cannot_be_made_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert prepare.main(["source=orl", f"out={tmp_path / 'file' / 'images.npy'}"]) == 2
    said = capsys.readouterr().err
    assert "file, which cannot be created as a folder" in said
    assert said.count("\n") == 1


def test_help_names_every_source_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"source={source}" in said for source in prepare.OPTIONS)
    assert all(f"{key}=" in said for keys in prepare.OPTIONS.values() for key in keys)


def test_a_broken_image_is_named_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.jpg").write_bytes(b"no jpeg")
    out = tmp_path / "out" / "images.npy"
    assert prepare.main(["source=folder", f"path={tmp_path / 'photos'}", f"out={out}"]) == 2
    assert "1.jpg" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_what_is_there_and_something_else_is_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "images.npy"
    faces = ["source=synthetic", "identities=4", "per_identity=2", f"out={out}"]
    np.save(out, np.zeros((3, 112, 112, 3), np.uint8))
    assert prepare.main(faces) == 2
    assert "is not from prepare" in capsys.readouterr().err
    out.unlink()
    assert prepare.main(faces) == 0
    assert prepare.main(faces) == 0
    assert "already exists" in capsys.readouterr().out
    before = out.read_bytes()
    for other, answer in (
        ("seed=1", "other or older images"),
        ("identities=5", "rows=8"),
        ("held_out=2", "held_out_rows=4"),
    ):
        kept = [word for word in faces if word.split("=")[0] != other.split("=")[0]]
        assert prepare.main([*kept, other]) == 2
        assert answer in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_disk_that_fails_is_one_sentence_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.npy").mkdir()
    words = ["source=synthetic", "identities=4", "per_identity=2", f"out={tmp_path / 'images.npy'}"]
    assert prepare.main(words) == 1
    said = capsys.readouterr().err
    assert "run the same command to continue" in said
    assert said.count("\n") == 1
    (tmp_path / "labels.npy").rmdir()
    assert prepare.main(words) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_is_named_with_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".labels.npy.part").symlink_to("/dev/full")
    words = ["source=synthetic", "identities=4", "per_identity=2", f"out={tmp_path / 'images.jpegs'}"]
    assert prepare.main(words) == 1
    told = f"{tmp_path} has no room left; free some space, then run the same command to continue"
    assert told in capsys.readouterr().err
    with pytest.raises(WrongUse, match=r"images\.jpegs is not complete, `prepare` was interrupted"):
        open_dataset(tmp_path / "images.jpegs", labels_path=None, fraction=1.0, block_rows=1)
    assert prepare.main(words) == 0
    assert len(open_dataset(tmp_path / "images.jpegs", labels_path=None, fraction=1.0, block_rows=1).images) == 8


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with prepare.Bar(total=2000) as bar:
        bar.mininterval = bar.delay = 0
        bar.update(500)
        bar.update(1500)
    said = capsys.readouterr().err
    assert [line.split(",")[0] for line in said.split("\n")] == ["  500 of 2000 images", "  2000 of 2000 images", ""]
    assert "\r" not in said
