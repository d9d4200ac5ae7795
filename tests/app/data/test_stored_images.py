"""The passport of images that come in one file: .rec, parquet, an array."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app import prepare
from app.data import __main__
from app.data.dataset import open_images
from app.data.faces import stored_images
from app.data.sources.photograph import decode_face
from app.evaluation.gallery import open_gallery
from app.evaluation.identification import Identification
from tests.app.data.test_photographs import HEIC, oriented_jpeg, picture
from tests.app.data.test_recordio import write
from tests.app.support.recordio import image_record


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def grey(seed: int) -> np.ndarray:
    return np.repeat(picture(seed)[..., :1], 3, 2)


# Label and image file of each row. Person 5 has one image; -1 is nobody.
ROWS: list[tuple[int, bytes]] = [
    (1, encoded(picture(0))),
    (1, encoded(picture(1))),
    (1, encoded(picture(0), quality=60)),  # row 0 again
    (2, encoded(picture(2))),
    (2, b"no image"),
    (2, encoded(picture(1), quality=70)),  # row 1, of another person
    (3, encoded(np.pad(picture(3), ((0, 0), (30, 30), (0, 0)), mode="edge"))),
    (3, encoded(picture(4)[::2, ::2])),
    (4, oriented_jpeg(np.ascontiguousarray(np.rot90(picture(5), 1)), 6)),
    (4, encoded(grey(6))),
    (5, encoded(picture(7))),
    (-1, encoded(picture(8))),
    (-1, encoded(picture(2), quality=60)),  # row 3, of an unknown person: no contradiction
]
FOUND = {
    "left out": 1, "the same picture of two people": 2, "duplicates": 3, "people of one image": 1,
    "smaller than 112 pixels": 1, "not square": 1, "grey": 1, "turned upright by EXIF": 1,
}  # fmt: skip


def as_rec(folder: Path) -> list[str]:
    write(folder / "train.rec", [image_record(file, float(label)) for label, file in ROWS])
    return ["source=rec", f"path={folder}"]


def as_parquet(folder: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    names = pa.array([-1 if label < 0 else 100 + label for label, _ in ROWS])
    pq.write_table(pa.table({"image": [file for _, file in ROWS], "identity": names}), folder / "a.parquet")
    return ["source=parquet", f"path={folder / 'a.parquet'}"]


@pytest.mark.parametrize("form", ["images.npy", "images.jpegs"])
@pytest.mark.parametrize("source", [as_rec, as_parquet], ids=["rec", "parquet"])
def test_a_file_of_images_has_a_passport(
    source: Any, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stored_images, "PIECE", 5)  # several tasks
    words, out = source(tmp_path / "in"), tmp_path / "out" / form
    assert prepare.main([*words, f"out={out}", "unreadable=skip", "workers=1"]) == 0
    said = capsys.readouterr().out
    assert "1 of 13 rows left out: 1 unreadable" in said
    assert "1 of 13 rows are not square: their middle is used\n" in said
    passport = json.loads(out.with_name("manifest.json").read_text())["passport"]
    assert passport == {
        "rows": 13, "images": 12, "people": 5, "images_a_person": {"least": 1, "median": 2, "most": 3},
        "people_without_images": 0, "shorter_side_px": {"least": 56, "median": 112, "most": 112},
        "left_out": {"unreadable": 1}, "found": FOUND,
    }  # fmt: skip
    with out.with_name("left_out.csv").open(encoding="utf-8", newline="") as file:
        assert [*csv.reader(file)] == [["file", "reason"], ["row 4", "unreadable"]]
    page = "".join(out.with_name("passport.html").read_text(encoding="utf-8").splitlines())
    person = "102" if source is as_parquet else "label 2"
    assert f"<tr><th>person<th>rows<th>images<tr><td>{person}<td class=n>3<td class=n>2" in page
    assert "row 4 · unreadable" in page
    across = page.split("the same picture of two people (2)")[1].split("<h2>")[0]
    assert [name in across for name in (">row 1<", ">row 5<", ">row 0<", ">row 3<")] == [True, True, False, False]
    assert __main__.main([f"data={out.parent}", "json=true"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["suspects"] == {title: count for title, count in FOUND.items() if title != "left out"}
    assert about["left_out"] == {"unreadable": 1}
    people = out.with_name("people.csv")
    if source is as_parquet:
        lines = ["label,person,images", "0,101,3", "1,102,2", "2,103,2", "3,104,2", "4,105,1"]
        assert people.read_text(encoding="utf-8").splitlines() == lines
    else:
        assert not people.exists()


@pytest.mark.parametrize("form", ["images.npy", "images.jpegs"])
@pytest.mark.parametrize("source", [as_rec, as_parquet], ids=["rec", "parquet"])
def test_an_image_that_is_left_out_moves_no_other_to_its_label(source: Any, form: str, tmp_path: Path) -> None:
    """The blocks behind it have the same places in the file, but other images than in the first attempt."""
    out = tmp_path / "out" / form
    assert prepare.main([*source(tmp_path / "in"), f"out={out}", "unreadable=skip"]) == 0
    expected = np.stack([decode_face(file) for _, file in ROWS if file != b"no image"])
    assert np.array_equal(open_images(out)[: len(expected)], expected)
    labels = np.array([label for label, file in ROWS if file != b"no image"])
    assert np.array_equal(np.load(out.with_name("labels.npy")), labels - (labels > 0) * (source is as_parquet))


def test_a_data_set_whose_labels_an_earlier_version_may_have_mixed_up_is_not_taken_for_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "images.npy"
    words = [*as_rec(tmp_path / "in"), f"out={out}", "unreadable=skip"]
    assert prepare.main(words) == 0
    assert prepare.main(words) == 0
    assert "already exists\n" in capsys.readouterr().out
    manifest = out.with_name("manifest.json")
    manifest.write_text(manifest.read_text().replace(" without rows ", " without "))
    assert prepare.main(words) == 2
    assert "already exists, with other or older images" in capsys.readouterr().err


def test_more_processes_and_pieces_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {}
    for workers, piece in ((1, 4096), (1, 3), (2, 4)):
        monkeypatch.setattr(stored_images, "PIECE", piece)
        place = tmp_path / f"{workers} {piece}"
        words = [*as_rec(place / "in"), f"out={place / 'out' / 'images.npy'}"]
        assert prepare.main([*words, "unreadable=skip", f"workers={workers}"]) == 0
        pages[workers, piece] = (place / "out" / "passport.html").read_bytes()
    assert len({*pages.values()}) == 1


def test_an_array_has_a_passport_without_sizes(tmp_path: Path) -> None:
    images = np.stack([picture(0), picture(1), picture(0), grey(2)])
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "l.npy", np.array([7, 7, 8, 8], np.int32))
    words = ["source=array", f"path={tmp_path / 'a.npy'}", f"out={tmp_path / 'out' / 'images.npy'}"]
    assert prepare.main([*words, f"labels={tmp_path / 'l.npy'}"]) == 0
    passport = json.loads((tmp_path / "out" / "manifest.json").read_text())["passport"]
    assert "shorter_side_px" not in passport
    assert passport["found"] == {"the same picture of two people": 2, "duplicates": 1, "grey": 1}
    assert passport["left_out"] == {}
    assert not (tmp_path / "out" / "left_out.csv").exists()


def test_images_without_labels_have_no_people(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.stack([picture(0), picture(0), picture(1)]))
    out = tmp_path / "out" / "images.npy"
    assert prepare.main(["source=array", f"path={tmp_path / 'a.npy'}", f"out={out}"]) == 0
    passport = json.loads(out.with_name("manifest.json").read_text())["passport"]
    assert passport == {"rows": 3, "images": 3, "left_out": {}, "found": {"duplicates": 1}}
    assert "<h2>people" not in out.with_name("passport.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("source", [as_rec, as_parquet], ids=["rec", "parquet"])
def test_an_image_of_an_unknown_white_or_a_heic_says_what_to_do(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    floats = io.BytesIO()
    Image.fromarray(np.ones((112, 112), np.float32)).save(floats, "TIFF")
    monkeypatch.setattr(f"{__name__}.ROWS", [(0, encoded(picture(0))), (0, HEIC + b"rest"), (1, floats.getvalue())])
    words = source(tmp_path / "in")
    assert prepare.main([*words, f"out={tmp_path / 'out' / 'images.npy'}"]) == 2
    said = capsys.readouterr().err
    assert "is a HEIC photograph; run `pip install pillow-heif` to read it" in said
    assert "has floating-point numbers for pixels" in said


def test_people_of_parquet_files_are_found_among_each_other_by_name(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for side, names in (("gallery", ["zoë", "ana"]), ("probes", ["ana", "zoë", "bo", "ana"])):
        table = pa.table({"image": [encoded(picture(n)) for n in range(len(names))], "name": names})
        pq.write_table(table, tmp_path / f"{side}.parquet")
        out = tmp_path / side / "images.npy"
        assert prepare.main(["source=parquet", f"path={tmp_path / f'{side}.parquet'}", f"out={out}"]) == 0
    protocol = open_gallery(tmp_path / "gallery", tmp_path / "probes").protocol
    assert isinstance(protocol, Identification)
    zoe, ana, *probes = protocol.person.tolist()
    assert [*probes[:2], probes[3]] == [ana, zoe, ana]
    assert probes[2] not in (zoe, ana)
