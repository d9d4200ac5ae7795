"""Headers of .npy files, read and written without numpy."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from deploy.workspace.sources import Files, Place

HEADER_BYTES = 64 << 10  # limit of an array's .npy header


@dataclass(frozen=True)
class Header:
    """Header of a .npy file."""

    dtype: str
    fortran_order: bool
    shape: tuple[int, ...]
    data_offset: int


def read_header(path: Place, files: Files) -> Header:
    """Read the header of a .npy file. Raises ValueError if it is not one."""
    start = files.read(path, 0, HEADER_BYTES)
    if start[:6] != b"\x93NUMPY":
        raise ValueError("not a .npy file")
    length_bytes = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(start[8 : 8 + length_bytes], "little")
    text = start[8 + length_bytes : 8 + length_bytes + length]
    if len(text) < length:
        raise ValueError("truncated")
    try:
        values = ast.literal_eval(text.decode("latin-1"))
        dtype, order, shape = values["descr"], values["fortran_order"], values["shape"]
    except (SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("invalid .npy header") from error
    numbers = isinstance(shape, tuple) and all(type(each) is int and 0 <= each < 1 << 63 for each in shape)
    if not (isinstance(dtype, str) and isinstance(order, bool) and numbers):
        raise ValueError("its header does not describe an array of numbers")
    return Header(dtype, order, shape, 8 + length_bytes + length)


def header_bytes(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return a .npy header (format 1.0), padded to a multiple of 64 bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin-1")
