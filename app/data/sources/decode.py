"""Decoders that are faster than Pillow: the same pixels without its detours (simplejpeg), or other hardware (DALI).

Pillow and simplejpeg are both libjpeg-turbo, so which of them decodes an image changes nothing but the time; tests
compare them bit by bit. DALI decodes with nvJPEG, whose pixels may differ from these by a level or two.
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
except ImportError:  # no build of it for this computer: Pillow does all
    simplejpeg = None

SAME_COLOURS = ("YCbCr", "Gray", "RGB")  # of CMYK each makes RGB in its own way
DALI = "nvidia-dali-cuda130"
DALI_BATCH = 256  # images at most
DALI_THREADS = 4  # of the CPU, which unpacks what the GPU then decodes


def fast_jpeg(data: bytes, side: int) -> NDArray[np.uint8] | None:
    """A JPEG of side x side as uint8 [side, side, 3] RGB; None for anything else, and where something is odd about it.

    What is odd (cut short, damaged, CMYK) is left to Pillow, which decides what can be read and how.
    """
    if simplejpeg is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        same = height == width == side and colours in SAME_COLOURS
        return simplejpeg.decode_jpeg(data, "RGB") if same else None
    except ValueError:
        return None


def need_dali() -> None:
    """Raises WrongUse where DALI is not installed; it is large, and only who asks for it needs it."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise WrongUse(f"decoder=dali needs the package {DALI}; run `pip install {DALI}`, or give decoder=cpu")


def with_dali(files: Sequence[bytes]) -> list[NDArray[np.uint8]]:
    """Image files, decoded on the first GPU, each [height, width, 3] RGB.

    No test of the project has run this on a GPU. Raises WrongUse with DALI's own words, such as for a broken image.
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


@cache  # making one takes longer than decoding a batch
def _dali_pipeline() -> Any:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=DALI_BATCH, num_threads=DALI_THREADS, device_id=0, prefetch_queue_depth=1)
    def pipeline() -> Any:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(files, device="mixed", output_type=types.RGB, jpeg_fancy_upsampling=True)

    built = pipeline()
    built.build()
    return built
