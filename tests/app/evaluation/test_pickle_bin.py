"""Verification .bin files: pickles of Python 2 and 3 are read, and a hostile pickle runs no code."""

from __future__ import annotations

import codecs
import os
import pickle
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import WrongUse
from app.evaluation.pickle_bin import read_bin

IMAGES = [b"\x89one\x00\xff", b"\xff\xd8two", b"3" * 300, b"four"]
SAME = [True, False]


def written(tmp_path: Path, content: Any, protocol: int = 4) -> Path:
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        [np.frombuffer(image, np.uint8) for image in IMAGES],
        [np.frombuffer(image, np.uint8)[:, None] for image in IMAGES],  # the shape that older cv2.imencode returned
        [bytearray(image) for image in IMAGES],
    ],
    ids=["bytes", "arrays", "columns", "bytearrays"],
)
@pytest.mark.parametrize(
    "same", [SAME, np.array(SAME), [np.bool_(s) for s in SAME], [1, 0], [1, -1], [1.0, 0.0]], ids=str
)
def test_whatever_python_3_wrote_is_read(tmp_path: Path, protocol: int, images: Any, same: Any) -> None:
    read, answers = read_bin(written(tmp_path, (images, same), protocol))
    assert read == IMAGES
    assert (answers.dtype, answers.tolist()) == (np.bool_, SAME)


def python_2(images: list[bytes], same: list[bool], *, as_arrays: bool) -> bytes:
    """The pickle that Python 2 writes of (images, same) with protocol 2: 8-bit strings, old names of numpy."""

    def string(value: bytes) -> bytes:
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value

    def array(value: bytes) -> bytes:
        dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xff"
        dtype += b"J\xff\xff\xff\xffK\x00tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
        return made + b"(K\x01J" + struct.pack("<i", len(value)) + b"\x85" + dtype + b"\x89" + string(value) + b"tb"

    items = b"".join(array(image) if as_arrays else string(image) for image in images)
    answers = b"".join(b"\x88" if s else b"\x89" for s in same)
    return b"\x80\x02](" + items + b"e](" + answers + b"e\x86."


@pytest.mark.parametrize("as_arrays", [False, True])
def test_what_python_2_wrote_is_read(tmp_path: Path, as_arrays: bool) -> None:
    path = tmp_path / "set.bin"
    path.write_bytes(python_2(IMAGES, SAME, as_arrays=as_arrays))
    read, answers = read_bin(path)
    assert read == IMAGES
    assert answers.tolist() == SAME


class Call:
    """Its pickle calls `function` with `arguments` and then applies `state` to the result."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def hostile(trace: Path) -> dict[str, Any]:
    return {
        "a shell command": Call(os.system, f"touch {trace}"),
        "a file": Call(open, str(trace), "w"),
        "evaluated code": Call(eval, f"open({str(trace)!r}, 'w')"),
        "a class by way of numpy": Call(np.load, str(trace)),
        "an attribute of what is allowed": Call(getattr, "text", "encode"),
        "another encoding": Call(codecs.encode, "text", "zlib_codec"),
        "an array of objects": np.array([Call(os.system, f"touch {trace}")], object),
    }


@pytest.mark.parametrize("kind", list(hostile(Path("trace"))))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path, kind: str, protocol: int) -> None:
    trace = tmp_path / "trace"
    for content in (
        hostile(trace)[kind],
        ([hostile(trace)[kind], b"image"], [True]),
        ([b"image", b"image"], [hostile(trace)[kind]]),
    ):
        path = written(tmp_path, content, protocol)
        with pytest.raises(WrongUse, match=r"set\.bin (asks for|is not a complete pickle)") as told:
            read_bin(path)
        assert "\n" not in str(told.value)
        assert not trace.exists()


def test_a_refused_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"asks for (posix|nt)\.system"):
        read_bin(written(tmp_path, Call(os.system, "true")))


def test_a_file_cannot_change_what_the_next_one_meets(tmp_path: Path) -> None:
    """The opcode BUILD can set attributes on an allowed function; they do not affect the next file."""
    path = tmp_path / "set.bin"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__X\x01\x00\x00\x00x\x85s\x86b.")
    with pytest.raises(WrongUse):
        read_bin(path)
    assert read_bin(written(tmp_path, (IMAGES, SAME), 2))[0] == IMAGES


@given(data=st.binary(max_size=60))
def test_no_stream_of_bytes_ends_in_anything_but_a_sentence(data: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(data)
    with pytest.raises(WrongUse):
        read_bin(path)


@example(cut=0, place=7, value=ord("\\"))  # an invalid escape, of which Python warns
@given(cut=st.integers(0, 10_000), place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused(cut: int, place: int, value: int, tmp_path_factory: Any) -> None:
    whole = bytearray(pickle.dumps(([np.frombuffer(i, np.uint8) for i in IMAGES], np.array(SAME)), 2))
    whole[place % len(whole)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(whole[: cut % (len(whole) + 1)] if cut % 2 else whole)
    try:
        read, same = read_bin(path)
    except WrongUse:
        return
    assert len(read) == 2 * len(same)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"a": 1}, "not a verification set"),
        ((b"images", b"same"), "not a verification set"),
        ((IMAGES[:3], SAME), "3 images for 2 pairs"),
        (([1, 2, 3, 4], SAME), "image 0 is not an encoded image"),
        ((IMAGES, [2, 0]), "neither true nor false"),
        ((IMAGES, [-1, 0]), "neither true nor false"),
        ((IMAGES, [float("nan"), 0]), "neither true nor false"),
        (([np.zeros((2, 2), np.uint8)] * 4, SAME), "image 0 is not an encoded image"),
    ],
)
def test_other_pickles_are_told_apart(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(WrongUse, match=sentence):
        read_bin(written(tmp_path, content))


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x80\x04]r\xed\xcb\xeb\x26.",  # memo place 652,987,373: the unpickler's table would take 10 GB
        b"\x80\x02]p99999999999\n.",
        b"\x80\x05\x96\x00\x00\x00\x40\x00\x00\x00\x00.",  # a bytearray of 1 GiB in a file of twelve bytes
        b"\x80\x04\x8e\x00\x00\x00\x40\x00\x00\x00\x00.",
    ],
    ids=["place", "text place", "bytearray", "bytes"],
)
def test_a_number_in_a_small_file_takes_no_memory(hostile: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(hostile)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WrongUse, match="is not a complete pickle"):
        read_bin(tmp_path / "a.bin")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize("length", [3, 12, 40], ids=["ends inside", "holds another", "past the end"])
def test_a_frame_that_hides_operations_is_refused(length: int, tmp_path: Path) -> None:
    """A wrong length makes the unpickler drop bytes. Here it would take the size of a bytes object for an operation."""
    size = ord("N")  # as an operation: None
    content = b"C" + bytes([size]) + b"." * size + b"."
    inner = b"\x95" + struct.pack("<Q", len(content) - 1) + content
    (tmp_path / "x.bin").write_bytes(b"\x80\x04\x95" + struct.pack("<Q", length) + b"N0" + inner)
    with pytest.raises(WrongUse, match="is not a complete pickle"):
        read_bin(tmp_path / "x.bin")
