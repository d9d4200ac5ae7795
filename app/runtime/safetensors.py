"""Read safetensors files, as many published weights are stored: a JSON table of contents, then the bytes of tensors.

Layout: 8 bytes with the size of the table as a little-endian number; the table, name -> {dtype, shape, data_offsets};
the bytes, to which the offsets refer. `__metadata__` holds strings and is no tensor.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.runtime.foreign import TABLE_BYTES

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read(path: Path) -> dict[str, Tensor]:
    """Read all tensors. Raises ValueError or OSError for a damaged file; no size is taken on trust."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size < TABLE_BYTES:
            raise ValueError("the table of contents has no valid size")
        text = file.read(size)
        if len(text) < size:
            raise ValueError("the table of contents is cut short")
        table = json.loads(text)
        content = bytearray(file.read())
    if not isinstance(table, dict):
        raise ValueError("the table of contents is no object")
    table.pop("__metadata__", None)
    return {name: _tensor(entry, content) for name, entry in table.items()}


def _tensor(entry: Any, content: bytearray) -> Tensor:
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
        raise ValueError("an entry names no known kind of numbers")
    dtype = DTYPES[entry["dtype"]]
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if len(offsets) != 2:
        raise ValueError("an entry has no place")
    start, stop = offsets
    count = math.prod(shape)
    if not start <= stop <= len(content) or stop - start != count * dtype.itemsize:
        raise ValueError("a tensor ends outside of the file or has another size than its shape")
    if not count:
        return torch.empty(shape, dtype=dtype)
    part = torch.frombuffer(content, dtype=torch.uint8, count=stop - start, offset=start)
    return part.clone().view(dtype).view(shape)


def _counts(value: Any) -> list[int]:
    """Check that a value is a list of numbers from 0 on. Raises ValueError."""
    if not isinstance(value, list) or not all(type(number) is int and number >= 0 for number in value):
        raise ValueError("an entry has no shape or no place")
    return value
