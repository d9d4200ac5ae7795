"""Decoders that are faster than Pillow: simplejpeg on the CPU, DALI on a GPU.

Pillow and simplejpeg both use libjpeg-turbo, so they give the same pixels; tests compare them bit by bit. DALI decodes
with nvJPEG, whose pixels may differ from theirs by a level or two.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import WrongUse

try:
    import simplejpeg
except ImportError:  # no build for this platform: Pillow decodes everything
    simplejpeg = None

NOT_FAST = (ValueError, KeyError)  # simplejpeg's error for a damaged file, and for 4:4:1, which it has no name for
SAME_COLOURS = ("YCbCr", "Gray", "RGB")  # the decoders convert CMYK to RGB differently
DALI = "nvidia-dali-cuda130"
DALI_BATCH = 256  # images at most
DALI_THREADS = 4  # CPU threads, which unpack the files for the GPU


def fast_jpeg(data: bytes, side: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG of side x side pixels to uint8 [side, side, 3] RGB; return None for any other file.

    Truncated, damaged and CMYK files also return None; Pillow then decides whether and how to read them. So do files
    of 4:4:1, such as a 4:1:1 turned without loss.
    """
    if simplejpeg is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        same = height == width == side and colours in SAME_COLOURS
        return simplejpeg.decode_jpeg(data, "RGB") if same else None
    except NOT_FAST:
        return None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG as stored, from its header; None for any other file."""
    if simplejpeg is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except NOT_FAST:
        return None
    return width, height


def need_dali() -> None:
    """Raise WrongUse if DALI is not installed; it is large, so it is an optional dependency."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise WrongUse(f"decoder=dali needs the package {DALI}; run `pip install {DALI}`, or give decoder=cpu")


def with_dali(files: Sequence[bytes]) -> list[NDArray[np.uint8]]:
    """Decode image files on the first GPU, each to [height, width, 3] RGB.

    No test of the project has run this on a GPU. Raises WrongUse with DALI's message, for example for a broken image.
    """
    images: list[NDArray[np.uint8]] = []
    try:
        pipeline = _dali_pipeline()
        for at in range(0, len(files), DALI_BATCH):
            pipeline.feed_input("files", [np.frombuffer(file, np.uint8) for file in files[at : at + DALI_BATCH]])
            (decoded,) = pipeline.run()
            images += [np.array(image) for image in decoded.as_cpu()]
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise WrongUse(
            f"decoder=dali does not work here ({said}); give decoder=cpu, which names a broken image"
        ) from error
    return images


@cache  # building the pipeline takes longer than decoding a batch
def _dali_pipeline() -> Any:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=DALI_BATCH, num_threads=DALI_THREADS, device_id=0, prefetch_queue_depth=1)
    def pipeline() -> Any:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(files, device="mixed", output_type=types.RGB, jpeg_fancy_upsampling=True)

    built = pipeline()
    built.build()
    return built
