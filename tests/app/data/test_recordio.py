"""RecordIO: written records are read back; the error for a truncated or damaged file names the byte."""

from __future__ import annotations

import io
import json
import re
import struct
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app import prepare
from app.data.sources import decode, recordio
from app.data.sources.photograph import decode_face
from app.data.sources.recordio import MAGIC_BYTES, NO_IMAGE, Records, rec
from app.errors import WrongUse
from tests.app.support.recordio import framed, image_record

payloads = st.lists(
    st.lists(st.one_of(st.just(MAGIC_BYTES), st.binary(max_size=5)), max_size=6).map(b"".join), min_size=1, max_size=8
)


def jpeg(number: int, size: tuple[int, int] = (112, 112), **options: object) -> bytes:
    """A JPEG of a smooth picture, different for each number."""
    file = io.BytesIO()
    coarse = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", **options)
    return file.getvalue()


def write(file: Path, records: Sequence[bytes], *, index: bool = True) -> list[int]:
    """Write a .rec file and, with `index`, its .idx; return the byte at which each record begins."""
    pieces = [framed(record) for record in records]
    starts = [0, *accumulate(len(piece) for piece in pieces)][:-1]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(pieces))
    if index:
        lines = [f"{key}\t{start}\n" for key, start in enumerate(starts)]
        file.with_suffix(".idx").write_text("".join(lines))
    return starts


def insightface(people: Sequence[int]) -> list[bytes]:
    """Records for the given numbers of images per person, in the order of face2rec: images, header, people."""
    owners = [person for person, count in enumerate(people) for _ in range(count)]
    images = [image_record(jpeg(i), [float(owner), 1.0], i + 1) for i, owner in enumerate(owners)]
    firsts = [1, *accumulate(people, initial=1)][1:]
    end = len(images) + 1
    header = image_record(b"", [float(end), float(end + len(people))], 0)
    ranges = [(first, first + count) for first, count in zip(firsts, people, strict=False)]
    return [*images, header, *(image_record(b"", list(map(float, r)), end + i) for i, r in enumerate(ranges))]


def decoded(source: object) -> np.ndarray:
    return source.decode(source.read(0, source.count))  # type: ignore[attr-defined]


def test_a_record_is_what_the_format_says() -> None:
    assert framed(b"abcde") == bytes.fromhex("0a23d7ce 05000000") + b"abcde\0\0\0"
    assert framed(b"") == bytes.fromhex("0a23d7ce 00000000")
    # Split at the magic at byte 4, not at byte 9, which is no multiple of 4. Part 1 has 4 bytes, part 3 has 6.
    assert framed(b"abcd" + MAGIC_BYTES + b"x" + MAGIC_BYTES + b"y") == (
        bytes.fromhex("0a23d7ce 04000020")
        + b"abcd"
        + bytes.fromhex("0a23d7ce 06000060")
        + b"x"
        + MAGIC_BYTES
        + b"y\0\0"
    )
    parts = struct.unpack("<6I", framed(MAGIC_BYTES * 2))
    assert [part >> 29 for part in parts[1::2]] == [1, 2, 3]
    assert image_record(b"file", 7.0, 3) == struct.pack("<IfQQ", 0, 7.0, 3, 0) + b"file"
    assert image_record(b"file", [7.0, 1.0], 3) == struct.pack("<IfQQff", 2, 0.0, 3, 0, 7.0, 1.0) + b"file"


@settings(max_examples=60)
@given(payloads)
def test_whatever_is_written_is_read_back(wanted: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.rec"
        starts = write(file, wanted)
        records = Records(file)
        assert records.scan().tolist() == starts
        assert records.indexed(file.with_suffix(".idx")).tolist() == starts
        assert [records.payload(start) for start in starts] == wanted


@settings(max_examples=25)
@given(payloads)
def test_cut_anywhere_whole_records_are_read_or_it_is_refused(wanted: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.rec"
        starts = write(file, wanted)
        data = file.read_bytes()
        for size in range(len(data)):
            file.write_bytes(data[:size])
            if size in starts[1:]:
                records = Records(file)
                assert [records.payload(start) for start in records.scan()] == wanted[: starts.index(size)]
            else:
                with pytest.raises(WrongUse, match=rf"a\.rec ends at byte {size},"):
                    Records(file).scan()
            with pytest.raises(WrongUse, match=r"a\.(rec|idx) .*copy"):
                Records(file).indexed(file.with_suffix(".idx"))


@settings(max_examples=60)
@given(st.data())
def test_one_wrong_bit_in_a_head_is_refused_with_the_byte_or_changes_that_record_alone(data: st.DataObject) -> None:
    wanted = data.draw(payloads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.rec"
        starts = write(file, [image_record(image, 1.0) for image in wanted])
        number, bit = data.draw(st.integers(0, len(starts) - 1)), data.draw(st.integers(0, 64 + 8 * 24 - 1))
        content = bytearray(file.read_bytes())
        content[starts[number] + bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        for indexed in (False, True):
            try:
                records = Records(file)
                places = records.indexed(file.with_suffix(".idx")) if indexed else records.scan()
                records.heads(places)
            except WrongUse as error:
                assert re.search(r"byte \d+", str(error))  # noqa: PT017 - either is right
            else:
                # Without an index, a longer record may end exactly where a later one does: it then holds that too.
                held = 0 if indexed else len(starts) - len(places)
                assert places.tolist() == [*starts[: number + 1], *starts[number + 1 + held :]]
                others = [place for place in range(len(starts)) if not number <= place <= number + held]
                assert [records.image(starts[place]) for place in others] == [wanted[place] for place in others]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.floats(width=32, allow_nan=False), st.lists(st.floats(0, 9, width=32), min_size=1, max_size=3)
            ),
            st.sampled_from([b"", b"file", b"abcd" + MAGIC_BYTES + b"x", MAGIC_BYTES]),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_labels_and_images_of_any_mixture(rows: list[tuple[float | list[float], bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.rec"
        starts = write(file, [image_record(image, labels) for labels, image in rows])
        records = Records(file)
        labels, sizes = records.heads(records.scan())
        assert labels.tolist() == [told if isinstance(told, float) else told[0] for told, _ in rows]
        wanted = [len(image) if image or isinstance(told, float) else NO_IMAGE for told, image in rows]
        assert sizes.tolist() == wanted
        assert [records.image(start) for start in starts] == [image for _, image in rows]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("order", ["behind", "before"])
def test_the_dialect_of_insightface(tmp_path: Path, index: bool, order: str) -> None:
    people = [2, 3, 1]
    records = insightface(people)
    if order == "before":
        records = [records[6], *records[:6], *records[7:]]
    write(tmp_path / "faces" / "train.rec", records, index=index)
    (tmp_path / "faces" / "property").write_text("3,112,112\n")
    source = rec(tmp_path / "faces")
    assert (source.name, source.count) == ("faces", 6)
    assert source.labels is not None
    assert (source.labels.tolist(), source.labels.dtype) == ([0, 0, 1, 1, 1, 2], np.int32)
    assert np.array_equal(decoded(source), [np.asarray(Image.open(io.BytesIO(jpeg(i)))) for i in range(6)])


@pytest.mark.parametrize("index", [True, False])
def test_the_dialect_of_im2rec_in_any_order_and_size(tmp_path: Path, index: bool) -> None:
    sizes = [(112, 112), (90, 130), (112, 112)]
    images = [jpeg(i, size) for i, size in enumerate(sizes)]
    records = [
        image_record(image, label, i) for i, (image, label) in enumerate(zip(images, (5.0, -1.0, 2.0), strict=True))
    ]
    write(tmp_path / "some.rec", records, index=index)
    source = rec(tmp_path / "some.rec")
    assert source.name == "some"
    assert source.labels is not None
    assert source.labels.tolist() == [5, -1, 2]
    assert np.array_equal(decoded(source), [decode_face(image) for image in images])


def test_an_index_may_name_some_of_the_records(tmp_path: Path) -> None:
    starts = write(tmp_path / "a.rec", [image_record(jpeg(i), float(i)) for i in range(5)])
    (tmp_path / "a.idx").write_text(f"7\t{starts[3]}\n2\t{starts[1]}\n")
    source = rec(tmp_path / "a.rec")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 3]


def test_prepare_writes_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    write(tmp_path / "in" / "train.rec", insightface([7] * 8))
    for workers in (1, 2):
        out = tmp_path / str(workers) / "images.npy"
        words = ["source=rec", f"path={tmp_path / 'in'}", f"out={out}", f"workers={workers}", "held_out=7"]
        assert prepare.main(words) == 0
    assert out.read_bytes() == (tmp_path / "1" / "images.npy").read_bytes()
    images = np.load(out)
    assert np.array_equal(images[30], np.asarray(Image.open(io.BytesIO(jpeg(30)))))
    assert np.load(out.with_name("labels.npy")).tolist() == np.repeat(np.arange(8), 7).tolist()
    manifest = json.loads(out.with_name("manifest.json").read_text())
    assert (manifest["name"], manifest["held_out_rows"]) == ("in", 7)


def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str], path: Path) -> str:
    """Return the sentence with which prepare refuses the file; check that it leaves no data set."""
    out = tmp_path / "out" / "images.npy"
    assert prepare.main(["source=rec", f"path={path}", f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not out.exists()  # no file that looks complete
    return said


@pytest.mark.parametrize(
    ("place", "new", "sentence"),
    [
        # Record 0 is the header, 1 to 4 are images, 5 and 6 are people. `place`: a record, and a byte in that record.
        ((2, 100), None, "ends at byte {size}, inside a record"),
        ((4, 0), None, "ends at byte {at[4]} with 3 images, and its header lists 4;"),
        ((0, 0), None, "ends at byte 0,"),
        ((2, 0), b"\0\0\0\0", "has no record at byte {at[2]};"),
        ((0, 0), b"PK\3\4", "has no record at byte 0;"),
        ((2, 4), b"\xff\xff\xff\x1f", "ends at byte {size}, inside"),
        ((2, 4), b"\x08", "has no record at byte "),
        ((2, 7), b"\x60", "has part 3 of a record at byte {at[2]},"),
        ((2, 7), b"\x20", "has part 0 of a record at byte {at[3]},"),
        ((2, 8), b"\1\1\1\1", "the record at byte {at[2]} of {file} is not an image record"),
        ((2, 40), bytes(99), "the record at byte {at[2]} of {file} holds no readable image;"),
        (
            (2, 32),
            struct.pack("<f", 2.0**24),
            "the record at byte {at[2]} of {file} has the class 16777216, and float32",
        ),
        ((2, 32), struct.pack("<f", 0.5), "the record at byte {at[2]} of {file} has the class 0.5, not a whole number"),
        ((2, 32), struct.pack("<f", -2), "has the class -2"),
        ((2, 32), struct.pack("<f", np.nan), "has the class nan"),
    ],
)
def test_damage_is_refused_with_the_file_and_the_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: tuple[int, int], new: bytes | None, sentence: str
) -> None:
    """`new` replaces bytes at `place`; None cuts the file there. The header comes first, so that lost images show."""
    records = insightface([2, 2])
    file = tmp_path / "in" / "train.rec"
    starts = write(file, [records[4], *records[:4], *records[5:]], index=False)
    data = file.read_bytes()
    at = starts[place[0]] + place[1]
    data = data[:at] if new is None else data[:at] + new + data[at + len(new) :]
    file.write_bytes(data)
    said = refusal(tmp_path, capsys, file)
    assert str(file) in said
    assert sentence.format(at=starts, size=len(data), file=file) in said


def test_files_of_something_else_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.rec", [b"text"])
    assert "the record at byte 0 of" in refusal(tmp_path, capsys, tmp_path / "a.rec")
    write(tmp_path / "b.rec", [image_record(b"", [0.0])])
    assert "no images from byte 0 to 36;" in refusal(tmp_path, capsys, tmp_path / "b.rec")
    assert f"no file {tmp_path / 'train.rec'};" in refusal(tmp_path, capsys, tmp_path)


def test_an_empty_image_of_im2rec_is_an_unreadable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """im2rec with --pass-through writes an empty file as it is. Its record is not one of insightface's."""
    file = tmp_path / "in" / "train.rec"
    starts = write(file, [image_record(jpeg(row) if row != 2 else b"", 3.0) for row in range(6)])
    assert f"the record at byte {starts[2]} of {file} holds no readable image" in refusal(tmp_path, capsys, file)
    assert prepare.main(["source=rec", f"path={file}", f"out={tmp_path / 'out/images.npy'}", "unreadable=skip"]) == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["skipped_rows"] == [2]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("0\t0\n1\t5\n", ["train.idx names byte 5, where no record begins in train.rec"]),
        ("0\t0\n1\t8\n", ["names byte 8"]),
        ("0\t0\n1\t99999999\n", ["names byte 99999999"]),
        ("0\t0\n1\t-4\n", ["line 2 of", "not a key, a tab and a byte"]),
        ("0\t0\n1\n", ["line 2 of"]),
        ("0\t0\n1\t" + "9" * 30, ["line 2 of"]),
        ("0\t0\n1\t0\n", ["names byte 0 of train.rec twice"]),
        ("", ["names no record"]),
    ],
)
def test_an_index_of_another_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], index: str, words: list[str]
) -> None:
    file = tmp_path / "in" / "train.rec"
    write(file, [image_record(jpeg(i), 1.0) for i in range(3)])
    file.with_suffix(".idx").write_text(index)
    said = refusal(tmp_path, capsys, file.parent)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4,112,112", ["lists 4 classes and train.rec has 3"]),
        ("3", ["property is not classes,height,width"]),
        ("a,b,c", ["property is not classes,height,width"]),
    ],
)
def test_a_property_file_of_another_set_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    file = tmp_path / "in" / "train.rec"
    write(file, insightface([1, 1, 1]))
    file.with_name("property").write_text(text)
    said = refusal(tmp_path, capsys, file.parent)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("5,112,112\n20\n", [i // 4 for i in range(20)]),  # as insightface's RecBuilder writes it
        ("6,112,112", [1 + i // 4 for i in range(20)]),  # its classes: the largest label + 1
        ("29,112,112\r\n20\r\n", [7 * (i // 4) for i in range(20)]),
        ("5,112,112", [7 * (i // 4) for i in range(20)]),  # older sets count the people
        ("\ufeff5,112,112", [i // 4 for i in range(20)]),
    ],
)
def test_a_property_file_counts_people_or_labels(tmp_path: Path, text: str, labels: list[int]) -> None:
    file = tmp_path / "train.rec"
    write(file, [image_record(jpeg(i), float(label)) for i, label in enumerate(labels)])
    file.with_name("property").write_bytes(text.encode("utf-8"))
    source = rec(file)
    assert source.labels is not None
    assert source.labels.tolist() == labels


def test_a_property_file_with_another_number_of_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in" / "train.rec"
    write(file, [image_record(jpeg(i), float(i // 2)) for i in range(4)])
    file.with_name("property").write_text("2,112,112\n5\n")
    assert "lists 5 images and train.rec has 4" in refusal(tmp_path, capsys, file.parent)


@pytest.mark.parametrize(("kept", "gap"), [([0, 1, 2], 3), ([1, 2, 3], 0), ([0, 2, 3], 1), ([0, 1, 2, 3], None)])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, recordio.CHUNK])
def test_an_index_that_leaves_records_out_is_told(
    tmp_path: Path, kept: list[int], gap: int | None, split: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordio, "CHUNK", chunk)
    inside = MAGIC_BYTES * 2 if split else b""
    starts = write(tmp_path / "a.rec", [image_record(jpeg(i) + inside, float(i)) for i in range(4)])
    (tmp_path / "a.idx").write_text("".join(f"{key}\t{starts[key]}\n" for key in kept))
    source = rec(tmp_path / "a.rec")
    assert source.count == len(kept)
    assert len(source.left_out) == (gap is not None)
    for sentence in source.left_out:
        assert f"the first at byte {starts[gap or 0]} of a.rec" in sentence


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95},
        {"quality": 100, "subsampling": 0},
        {"quality": 50, "subsampling": 1},
        {"quality": 90, "progressive": True},
        {"quality": 5, "optimize": True},
        {"quality": 95, "keep_rgb": True},
    ],
)
def test_the_fast_decoder_gives_the_pixels_of_pillow(options: dict[str, object]) -> None:
    for number in range(8):
        data = jpeg(number, **options)
        fast = decode.fast_jpeg(data, 112)
        assert fast is not None
        assert np.array_equal(fast, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey_is_decoded_fast_and_what_is_odd_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(mode: str, file_format: str = "JPEG") -> bytes:
        file = io.BytesIO()
        Image.open(io.BytesIO(jpeg(3))).convert(mode).save(file, file_format)
        return file.getvalue()

    grey = decode.fast_jpeg(saved("L"), 112)
    assert grey is not None
    assert np.array_equal(grey, np.asarray(Image.open(io.BytesIO(saved("L"))).convert("RGB")))
    odd = [saved("CMYK"), saved("RGB", "PNG"), jpeg(1, (90, 112)), jpeg(1)[:-30], b"\xff\xd8", b""]
    assert [decode.fast_jpeg(data, 112) for data in odd] == [None] * len(odd)
    images = [decode_face(data) for data in (jpeg(1), saved("L"), *odd[:3])]
    monkeypatch.setattr(decode, "simplejpeg", None)  # as on a platform without a build of simplejpeg
    assert decode.fast_jpeg(jpeg(1), 112) is None
    for image, data in zip(images, (jpeg(1), saved("L"), *odd[:3]), strict=True):
        assert np.array_equal(decode_face(data), image)


def test_dali_is_asked_for_by_name_only(tmp_path: Path) -> None:
    write(tmp_path / "a.rec", [image_record(jpeg(0), 1.0)])
    with pytest.raises(WrongUse, match="decoder=gpu is not known; choose from cpu, dali"):
        rec(tmp_path / "a.rec", "gpu")
    try:
        decode.need_dali()
    except WrongUse as error:
        assert "pip install nvidia-dali-cuda130" in str(error)  # noqa: PT017 - a computer may have it
