"""Read insightface's verification sets: NAME.bin, a Python pickle (lfw.bin, cfp_fp.bin, agedb_30.bin, …).

The pickle is a pair: a list of 2P encoded images (bytes, or uint8 arrays of bytes) and a list of P booleans, true if
images 2i and 2i + 1 show one person. Python 2 or 3 wrote it.

A pickle can name any function and have it called. Here the few names that such a file needs map to functions of this
module, which make only bytes and plain numpy arrays. Every other name is refused before it is looked up. Even numpy's
own reconstruction code never runs on data from the file.

Letters: P pairs.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from app.errors import WrongUse

# Errors that a truncated pickle, or bytes that are no pickle, can cause.
MALFORMED = (
    *(pickle.UnpicklingError, struct.error, EOFError, MemoryError, OverflowError, RecursionError),
    *(ArithmeticError, AttributeError, AssertionError, LookupError, TypeError, ValueError),
)
FRAME_BYTES = 9  # of the operation FRAME and its length
MOST_KEPT = 1 << 22  # objects of a file that others in it can refer to
KINDS = "biufS"  # booleans, numbers and bytes; no objects, no structures


def read_bin(path: Path) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Read the 2P encoded images and P answers of a .bin file. Raises WrongUse; runs no code from the file."""
    content = _unpickle(path)
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise WrongUse(f"{path} is a pickle but not a verification set; give a verification set such as lfw.bin")
    images, same = ([_plain(item) for item in _items(part, path)] for part in content)
    if len(images) != 2 * len(same):
        raise WrongUse(f"{path} has {len(images)} images for {len(same)} pairs; a complete file has two per pair")
    for number, image in enumerate(images):
        if not isinstance(image, bytes):
            raise WrongUse(
                f"{path}: image {number} is not an encoded image; a verification set holds JPEG or PNG files"
            )
    # Booleans, 1 and 0, or 1 and -1, as integers or floats.
    if not all(isinstance(answer, bool | int | float) and answer in (0, 1, -1) for answer in same) or {0, -1} <= {
        *same
    }:
        raise WrongUse(f"{path} holds answers that are neither true nor false; give a verification set such as lfw.bin")
    return images, np.array([answer == 1 for answer in same], np.bool_)


def _unpickle(path: Path) -> Any:
    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in damaged text, which nobody can mend
            _check_operations(data)
            return _Restricted(io.BytesIO(data), encoding="bytes").load()
    except _Refused as refused:
        raise WrongUse(
            f"{path} asks for {refused}, which no verification set needs: it may be malicious and was not run; "
            "get it from another source"
        ) from refused
    except MALFORMED as error:
        raise WrongUse(f"{path} is not a complete pickle ({len(data):,} bytes); copy it again") from error


def _check_operations(data: bytes) -> None:
    """Refuse what the unpickler would obey before it looks: lengths past the end, places far apart, false frames.

    It keeps what it has read in a table as long as the largest place that is named: one number could cost 64 GiB. It
    also reads a frame at once. A frame that ends inside an operation, or holds another frame, makes it go on elsewhere,
    with operations that nothing has checked.
    """
    frame_end, after = 0, 0  # 0: outside of a frame
    for operation, argument, where in pickletools.genops(data):
        at = where or 0
        if frame_end and at >= frame_end:
            _check(at == frame_end)
            frame_end = 0
        is_place = operation.name.endswith("PUT")
        _check(not is_place or (isinstance(argument, int) and argument < MOST_KEPT))
        if operation.name == "FRAME":
            _check(not frame_end and isinstance(argument, int))
            frame_end = at + FRAME_BYTES + int(argument or 0)
        after = at + 1  # of the last operation, STOP
    _check(frame_end in (0, after))


class _Refused(Exception):
    """A name that is not in ALLOWED."""


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _Refused(f"{module}.{name}")
        stand_in = ALLOWED[module, name]
        # A new function each time, so that a file cannot change a shared one, for example by setting attributes.
        return lambda *given: stand_in(*given)

    def persistent_load(self, _: Any) -> NoReturn:
        raise _Refused("an object outside the file")


class _Dtype:
    """Stand-in for numpy.dtype: kind, size and byte order."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        _check(isinstance(name, str | bytes))
        self.value = np.dtype(_text(name))
        _check(self.value.kind in KINDS)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = _text(state[1])
        _check(order in ("<", ">", "|", "=") and state[2:5] == (None, None, None))  # no parts, no names, no fields
        self.value = self.value.newbyteorder(">" if order == ">" else "<")


class _Array:
    """Stand-in for numpy.ndarray: created empty, then filled by `__setstate__`."""

    value: NDArray[Any]

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = _from_buffer(raw, dtype, shape, "F" if is_fortran else "C").value


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str | bytes) -> _Array:
    array = _Array()
    array.value = np.frombuffer(raw, dtype.value).reshape(shape, order="F" if _text(order) == "F" else "C")
    return array


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.value, count=1)[0]


def _encode(text: str, encoding: str | bytes = "latin1") -> bytes:
    """Stand-in for the call by which Python 3 writes bytes into a pickle for Python 2."""
    _check(_text(encoding) in ("latin1", "latin-1"))
    return text.encode("latin1")


def _bytes(*parts: Any) -> bytes:
    """The same for empty bytes."""
    _check(parts == ())
    return b""


def _bytearray(*parts: Any) -> bytes:
    """Stand-in for bytearray: from nothing, from bytes, or from text and its encoding."""
    _check(len(parts) <= 2 and all(isinstance(part, bytes | str) for part in parts))
    if len(parts) == 2:
        return _encode(*parts)
    return parts[0] if parts else b""


def _text(name: str | bytes) -> str:
    return name.decode("ascii") if isinstance(name, bytes) else name


def _check(fine: bool) -> None:
    if not fine:
        raise pickle.UnpicklingError("no plain array")


ALLOWED = {
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
    ("__builtin__", "bytearray"): _bytearray,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


def _items(part: Any, path: Path) -> list[Any]:
    if isinstance(part, _Array):
        return list(part.value)
    if not isinstance(part, list | tuple):
        raise WrongUse(f"{path} is a pickle but not a verification set; give a verification set such as lfw.bin")
    return list(part)


def _plain(item: Any) -> Any:
    """Convert byte arrays to bytes and numpy scalars to Python numbers; other arrays become None, the rest stays."""
    if isinstance(item, _Array):
        item = item.value
    if isinstance(item, np.ndarray):
        # cv2.imencode returns a column of bytes [n, 1], so accept arrays with a single long axis.
        return item.tobytes() if item.dtype.kind in "uS" and item.size == max(item.shape, default=1) else None
    if isinstance(item, bytearray):
        return bytes(item)
    return item.item() if isinstance(item, np.generic) else item
