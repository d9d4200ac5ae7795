"""The packed block, a format for slow connections: a sequence of image files, JPEG or lossless WebP.

A packed block is MAGIC, the length of a head, the head as JSON (kind, rows, shape), and for each image the size of its
file and the file. Sizes and lengths are uint32, little-endian. Images are coded one by one, so only one per thread is
in memory. libjpeg-turbo and libwebp release the GIL, so threads run in parallel.

WebP is the best lossless codec measured (benchmarks/pack.py). Its fastest setting is used: the slower ones gain a few
per cent and are three to twenty times slower.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

MAGIC = b"SNIPPACK"
LOSSLESS = "lossless"
HEAD_BYTES = 4096  # upper limit of a head

Pixels = NDArray[np.uint8]  # [side, side, 3] RGB


class Damaged(Exception):
    """The data is not a complete packed block."""


@dataclass(frozen=True)
class Codec:
    """Encode one image as a file, and decode it."""

    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes], Pixels]


def codec(kind: str) -> Codec:
    """The codec `lossless` or `jpegQUALITY`. JPEG uses 4:4:4, as chroma matters for skin, and the accurate DCT."""
    if kind == LOSSLESS:
        return Codec(_to_webp, _from_webp)
    quality = int(kind.removeprefix("jpeg"))

    def to_jpeg(image: Pixels) -> bytes:
        file: bytes = simplejpeg.encode_jpeg(image, quality, "RGB", "444", fastdct=False)
        return file

    def from_jpeg(file: bytes) -> Pixels:
        image: Pixels = simplejpeg.decode_jpeg(file, "RGB", fastdct=False)
        return image

    return Codec(to_jpeg, from_jpeg)


def _to_webp(image: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True, method=0, quality=0)
    return file.getvalue()


def _from_webp(file: bytes) -> Pixels:
    with Image.open(io.BytesIO(file), formats=["WEBP"]) as image:
        return np.asarray(image.convert("RGB"))


class Writer:
    """Pack images one by one; hash the packed bytes and the pixels that unpacking them gives."""

    def __init__(self, file: IO[bytes], kind: str, rows: int, shape: tuple[int, ...]) -> None:
        self.file = file
        self.codec = codec(kind)
        self.is_lossless = kind == LOSSLESS
        self.packed = hashlib.sha256()
        self.unpacked = hashlib.sha256()
        self.bytes = 0
        head = json.dumps({"kind": kind, "rows": rows, "shape": shape}).encode()
        self._write(MAGIC + struct.pack("<I", len(head)) + head)

    def add(self, image: Pixels) -> None:
        file = self.codec.encode(image)
        self._write(struct.pack("<I", len(file)) + file)
        self.unpacked.update((image if self.is_lossless else self.codec.decode(file)).data)

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.packed.update(data)
        self.bytes += len(data)


def read(
    read_bytes: Callable[[int], bytes], size: int, kind: str, rows: int, shape: tuple[int, ...]
) -> Iterator[Pixels]:
    """Yield the images of a packed block of `size` bytes, read from start to end. Raises Damaged."""
    left = size

    def take(count: int) -> bytes:
        nonlocal left
        left -= count
        data = read_bytes(count) if left >= 0 else b""
        if len(data) < count:
            raise Damaged("it ends too early")
        return data

    if take(len(MAGIC)) != MAGIC:
        raise Damaged("it does not start with the expected bytes")
    length = _uint32(take(4))
    if length > HEAD_BYTES or _head(take(length)) != {"kind": kind, "rows": rows, "shape": list(shape)}:
        raise Damaged("its header differs from the expected one")
    decode = codec(kind).decode
    for row in range(rows):
        try:
            image = decode(take(_uint32(take(4))))
        except (ValueError, OSError, SyntaxError) as error:  # what simplejpeg and Pillow raise
            raise Damaged(f"its image {row} cannot be decoded: {error}") from error
        if image.shape != shape:
            raise Damaged(f"its image {row} has the shape {list(image.shape)}")
        yield image
    if left:
        raise Damaged("it has trailing data")


def _uint32(data: bytes) -> int:
    number: int = struct.unpack("<I", data)[0]
    return number


def _head(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
