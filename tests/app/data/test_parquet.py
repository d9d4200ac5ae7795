"""Parquet files in the published forms: both kinds of image column, any row groups, and refused files."""

from __future__ import annotations

import io
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app import prepare
from app.data.sources.parquet import parquet
from app.errors import WrongUse


def png(number: int, size: tuple[int, int] = (20, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def save(file: Path, columns: dict[str, Any], group_rows: int | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=group_rows)
    return file


def numbers(source: Any, start: int, stop: int) -> list[int]:
    images = source.decode(source.read(start, stop))
    assert images.shape[1:] == (112, 112, 3)
    return [int(image[50, 50, 0]) + 256 * int(image[50, 50, 1]) for image in images]


def test_plain_bytes_with_names_of_people(tmp_path: Path) -> None:
    path = save(tmp_path / "faces.parquet", {
        "image_bytes": [png(number) for number in range(5)], "identity": ["zoë", "ana", "zoë", "bo", "ana"],
    })  # fmt: skip
    out = tmp_path / "out" / "images.npy"
    assert prepare.main(["source=parquet", f"path={path}", f"out={out}"]) == 0
    assert np.load(out)[:, 10, 10, 0].tolist() == [0, 1, 2, 3, 4]
    assert np.load(out.with_name("labels.npy")).tolist() == [0, 1, 0, 2, 1]
    assert json.loads(out.with_name("manifest.json").read_text())["name"] == "faces"


def test_the_struct_form_in_several_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    def struct(start: int, stop: int) -> list[dict]:
        return [{"bytes": png(number), "path": f"{number}.png"} for number in range(start, stop)]

    save(tmp_path / "data" / "train-00001.parquet", {"image": struct(3, 8), "label": [70, 5, 5, -1, 2**40]}, 2)
    save(tmp_path / "data" / "train-00000.parquet", {"image": struct(0, 3), "label": [9, 9, 5]})
    (tmp_path / "data" / "README.md").write_text("no parquet")
    source = parquet(tmp_path)
    assert numbers(source, 0, 8) == list(range(8))
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 2, 1, 1, -1, 3]  # -1 stays: the person is unknown


@pytest.mark.parametrize(
    "files", [("data/train-00000-of-00001", "data/test-00000-of-00001"), ("train/a", "validation/a"), ("train", "val")]
)
def test_splits_are_never_mixed(tmp_path: Path, files: tuple[str, str]) -> None:
    for number, name in enumerate(files):
        save(tmp_path / f"{name}.parquet", {"image": [png(number)] * 2, "label": [0, 1]})
    with pytest.raises(WrongUse, match="give split=train, or path="):
        parquet(tmp_path)
    assert numbers(parquet(tmp_path, split="train"), 0, 2) == [0, 0]
    with pytest.raises(
        WrongUse, match=r"choose from train, validation|choose from test, train|choose from validation, train"
    ):
        parquet(tmp_path, split="all")


def test_files_without_a_split_in_their_names_are_one_set(tmp_path: Path) -> None:
    for number, name in enumerate(("part-0", "part-1")):
        save(tmp_path / f"{name}.parquet", {"image": [png(number)] * 2, "label": [0, 1]})
    assert numbers(parquet(tmp_path), 0, 4) == [0, 0, 1, 1]


def test_a_dictionary_of_names_is_numbered_by_rows_not_by_its_own_order(tmp_path: Path) -> None:
    names = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2, 1]), pa.array(["a", "b", "c"]))
    source = parquet(save(tmp_path / "a.parquet", {"jpg": [png(1)] * 4, "Person": names}))
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 2]


@settings(max_examples=30)
@given(
    files=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 100)), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 270), max_size=5),
)
def test_any_rows_are_read_whatever_the_row_groups(files: list[tuple[int, int]], cuts: list[int]) -> None:
    total = sum(rows for rows, _ in files)
    if total == 0:
        return
    with tempfile.TemporaryDirectory() as folder:
        first = 0
        for number, (rows, group_rows) in enumerate(files):
            images = pa.array([str(row).encode() for row in range(first, first + rows)], pa.binary())
            ids = pa.array(range(first, first + rows), pa.int64())
            save(Path(folder) / f"{number}.parquet", {"image": images, "label": ids}, group_rows)
            first += rows
        source = parquet(Path(folder))
        assert source.count == total
        assert source.labels is not None
        assert source.labels.tolist() == list(range(total))
        edges = sorted({min(cut, total) for cut in cuts} | {0, total})
        ranges = list(pairwise(edges))
        for start, stop in [*ranges, *ranges[1::2], ranges[0]]:  # in a row; with gaps; from the start again
            assert [int(stored.data) for stored in source.read(start, stop)] == list(range(start, stop))


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"no image", "is not a readable image"), (b"", "no image bytes"), (None, "no image bytes")],
)
def test_a_broken_image_is_named_by_file_and_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes | None, what: str
) -> None:
    save(tmp_path / "in" / "a.parquet", {"image": [png(0)] * 3, "label": [0, 0, 1]})
    path = save(tmp_path / "in" / "b.parquet", {"image": [png(0), png(1), data, png(3)], "label": [1, 2, 2, 3]}, 2)
    out = tmp_path / "out" / "images.npy"
    assert prepare.main(["source=parquet", f"path={tmp_path / 'in'}", f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert f"row 2 of {path}" in said
    assert what in said
    assert "remove that row" in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_half_an_image_is_a_broken_one(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((60, 60), 90).convert("RGB").save(file, "JPEG")
    source = parquet(save(tmp_path / "a.parquet", {"image": [file.getvalue()[:900]], "label": [0]}))
    with pytest.raises(WrongUse, match=r"row 0 of .*a\.parquet is not a readable image"):
        numbers(source, 0, 1)


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"x": [1.5], "who": ["a"]}, {}, ["x (double)", "who (string)", "export the file again"]),
        ({"picture": [b"1"], "age": [0.5]}, {}, ["picture (binary)", "age (double)", "whole numbers"]),
        ({"a": [b"1"], "b": [b"2"], "label": [3]}, {}, ["a (binary)", "b (binary)", "image_column=a"]),
        ({"image": [b"1"], "one": [1], "two": [2]}, {}, ["one (int64)", "label_column=one"]),
        ({"image": [b"1"], "label": [1]}, {"image_column": "imag"}, ["no column imag ", "image_column=image"]),
        ({"image": [b"1"], "label": [1]}, {"label_column": "image"}, ["no column image ", "label_column=label"]),
        ({"image": [b"1"], "label": pa.array([None], pa.int64())}, {}, ["row 0", "has no label"]),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, {}, ["no rows"]),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_those_that_are_there(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, str], words: list[str]
) -> None:
    path = save(tmp_path / "a.parquet", columns)
    with pytest.raises(WrongUse) as raised:
        parquet(path, **options)
    assert [word for word in words if word not in str(raised.value)] == []


def test_columns_can_be_named_and_the_only_ones_that_fit_are_taken(tmp_path: Path) -> None:
    both = {"before": [png(1)], "after": [png(2)], "left": ["a"], "right": ["b"]}
    path = save(tmp_path / "a.parquet", both)
    assert numbers(parquet(path, image_column="after", label_column="right"), 0, 1) == [2]
    path = save(tmp_path / "b.parquet", {"foto": [png(3)], "wer": ["a"], "size": [0.5]})
    assert numbers(parquet(path), 0, 1) == [3]


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (pa.binary_view(), pa.string_view()),  # as DataFusion writes them
        (pa.large_binary(), pa.large_string()),
        (pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int8(), pa.string())),
    ],
)
def test_all_types_of_bytes_and_names_are_read(tmp_path: Path, images: Any, names: Any) -> None:
    columns = {"image": [png(number) for number in range(4)], "name": ["b", "a", "b", "c"]}
    path = save(tmp_path / "a.parquet", columns)
    table = pq.read_table(path)
    pq.write_table(pa.table([table["image"].cast(images), table["name"].cast(names)], ["image", "name"]), path)
    source = parquet(path)
    assert numbers(source, 0, 4) == [0, 1, 2, 3]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 2]


def test_files_of_other_programs_are_ignored(tmp_path: Path) -> None:
    """macOS leaves `._` files on foreign disks, Delta Lake a log beside the data."""
    for name in ("._a.parquet", "_delta_log/1.checkpoint.parquet", ".cache/a.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no images")
    save(tmp_path / "a.parquet", {"image": [png(5)], "label": [3]})
    assert numbers(parquet(tmp_path), 0, 1) == [5]


def test_numbers_in_one_file_and_names_in_another_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", {"image": [png(0)], "label": [3]})
    save(tmp_path / "b.parquet", {"image": [png(1)], "label": ["3"]})
    with pytest.raises(WrongUse, match=r"label holds numbers in some files of .*, and names in others"):
        parquet(tmp_path)


def test_files_that_are_no_parquet_or_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"no \.parquet file"):
        parquet(tmp_path)
    path = save(tmp_path / "a.parquet", {"image": [png(0)] * 50, "label": [0] * 50})
    (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WrongUse, match=r"b\.parquet is not a complete parquet file"):
        parquet(tmp_path)
    save(tmp_path / "b.parquet", {"image": [png(0)], "name": ["a"]})
    with pytest.raises(WrongUse, match=r"b\.parquet has no column label"):
        parquet(tmp_path)


def test_a_file_of_one_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, row_bytes = 6000, 8_000
    images = [rng.bytes(row_bytes) for _ in range(rows)]
    source = parquet(save(tmp_path / "a.parquet", {"image": images, "label": [0] * rows}))
    del images
    before, peak = pa.total_allocated_bytes(), 0
    for start in range(0, rows, 60):
        source.read(start, start + 60)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < rows * row_bytes / 2  # at most two pages of 1024 rows are in memory
