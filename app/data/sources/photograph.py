"""Decode photographs as people have them: any format, depth and orientation, to upright 8-bit RGB of 112x112 pixels."""

from __future__ import annotations

import base64
import io
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.data.arrays import SIDE
from app.data.sources.decode import fast_jpeg, jpeg_size
from app.errors import WrongUse

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif",
    ".tiff", ".webp",
}  # fmt: skip
# The first bytes of JPEG, PNG, GIF, BMP and RIFF (WebP), to recognise images without a suffix.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF")
# Errors of an image file that cannot be decoded; `decoding` turns all others of the decoders into the first.
UNREADABLE = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError, RuntimeError,
)  # fmt: skip
# Pillow's names of the formats that are read. It knows others too, and starts Ghostscript to read one of them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# What a JPEG with the camera's orientation contains: the start of EXIF metadata, or a name in XMP metadata.
TURNED = (b"Exif\0\0", b"tiff:Orientation")
PILLOW = re.compile(r"(PIL|pillow_heif)\b")  # names of modules
ORIENTATION = 0x0112  # EXIF tag of the orientation
TURNS = {  # values of that tag; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HEAD_BYTES = 12
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
SIDEWAYS = (5, 6, 7, 8)  # values that exchange width and height
PAPER = (255, 255, 255, 255)  # behind transparent pixels
JPEG_QUALITY = 85  # of pictures in a page
FITS = {
    "crop": "the largest centred square",
    "squash": "the whole image, its sides scaled separately",
    "pad": "the whole image, with black bars",
}


def why_unreadable(error: BaseException, otherwise: str) -> str:
    """What to say of an image that raised one of UNREADABLE: its own words where it has some, else `otherwise`."""
    if isinstance(error, OSError) and error.strerror:  # of the file, not of a decoder
        return f"cannot be opened ({error.strerror}); make it readable, or remove it"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels; save it smaller"
    return str(error) if isinstance(error, UnknownScale | NeedsHeif) else otherwise


def load_faces(files: Sequence[Path], fit: str = "crop") -> NDArray[np.uint8]:
    """Read image files as uint8 [n, 112, 112, 3] RGB; `fit` is a key of FITS. Raises WrongUse naming the file."""
    return np.stack([load_face(file, fit) for file in files])


def load_face(file: Path, fit: str = "crop") -> NDArray[np.uint8]:
    """Read an image file as uint8 [112, 112, 3] RGB. Raises WrongUse naming the file."""
    with readable(file):
        return decode_face(file.read_bytes(), fit)


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn the decoders' errors into one with the name of the file. Raises WrongUse."""
    try:
        yield
    except UNREADABLE as error:
        why = why_unreadable(error, "is not a readable image; remove it or save it again as .png or .jpg")
        raise WrongUse(f"{file} {why}") from error


@contextmanager
def decoding() -> Iterator[None]:
    """Turn other errors of a decoder into one of UNREADABLE: a damaged file makes Pillow raise TypeError, too.

    Raises UnidentifiedImageError instead.
    """
    try:
        yield
    except (*UNREADABLE, MemoryError):
        raise
    except Exception as error:  # no list of the types would be complete
        raise UnidentifiedImageError(f"{type(error).__name__}: {error}") from error


class UnknownScale(ValueError):
    """Pixels are 32-bit integers or floats, and the file does not define which value is white."""


class OtherSize(ValueError):
    """An image is not 112 x 112; the message has its size."""


class NeedsHeif(ValueError):
    """The image is HEIC, which Pillow does not decode, and its plugin pillow-heif is not installed."""


def is_heif(head: bytes) -> bool:
    """Whether a file's first 12 bytes are those of HEIC or HEIF; AVIF, which Pillow decodes, has others."""
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def is_image(file: Path) -> bool:
    """Recognise an image by its suffix or, without a suffix, by its first bytes; a link to nothing by its suffix."""
    try:
        is_file = stat.S_ISREG(file.stat().st_mode)
    except OSError:  # a link to nothing
        return file.suffix.lower() in IMAGE_SUFFIXES
    if file.suffix or not is_file:  # reading a pipe may never end
        return is_file and file.suffix.lower() in IMAGE_SUFFIXES
    with file.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    return head.startswith(SIGNATURES) or is_heif(head)


def _opened(file: IO[bytes]) -> Image.Image:
    """Open an image file and read its header. Raises one of UNREADABLE."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    _ignore_pillow()
    if not is_heif(head):
        return Image.open(file, formats=FORMATS)
    _register_heif()
    return Image.open(file, formats=("HEIF",))


def _ignore_pillow() -> None:
    """Ignore Pillow's warnings about damaged metadata, which name one of its own files.

    For good, because images are decoded in threads: after `warnings.catch_warnings` in several threads at once, all
    later warnings of the process may be ignored.
    """
    if not any(module == PILLOW for *_, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=PILLOW.pattern)


def _register_heif() -> None:
    """Register Pillow's plugin. Raises NeedsHeif if it is not installed."""
    try:
        import pillow_heif
    except ImportError as error:
        raise NeedsHeif("is a HEIC photograph; run `pip install pillow-heif` to read it, or save it as .jpg") from error
    pillow_heif.register_heif_opener()  # does nothing if it is registered


@decoding()
def decode_face(file: bytes, fit: str = "crop") -> NDArray[np.uint8]:
    """Decode an image file to upright uint8 [112, 112, 3] RGB, resampled; `fit` is a key of FITS.

    Raises one of UNREADABLE; the messages of UnknownScale and NeedsHeif, two of them, suggest a fix.
    """
    fast = None if _may_be_turned(file) else fast_jpeg(file, SIDE)
    return np.asarray(fitted(photograph(file), fit)) if fast is None else fast


@decoding()
def decode_stored(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file of 112 x 112 to [112, 112, 3] RGB. Raises OtherSize, or one of UNREADABLE."""
    fast = None if _may_be_turned(data) else fast_jpeg(data, SIDE)
    if fast is not None:
        return fast
    with _opened(io.BytesIO(data)) as image:
        if image.size != (SIDE, SIDE):  # before decoding, which a large image makes slow
            raise OtherSize(f"{image.width}x{image.height}")
        return np.asarray(_eight_bits(_upright(image), image.format))


@decoding()
def photograph(file: bytes) -> Image.Image:
    """Decode an image file to upright 8-bit RGB in its own size. Raises one of UNREADABLE."""
    with _opened(io.BytesIO(file)) as image:
        return _eight_bits(_upright(image), image.format)


@decoding()
def kind(file: bytes) -> tuple[str | None, tuple[int, int]]:
    """Return Pillow's name of an image file's format, and its width and height as stored. Raises one of UNREADABLE."""
    with _opened(io.BytesIO(file)) as image:
        return image.format, image.size


def lossless(image: NDArray[np.uint8]) -> bytes:
    """Encode [height, width, 3] RGB as WebP without loss: smaller than PNG, and read and written faster.

    Its fastest setting is used: the others gain a few per cent and are 3 to 20 times slower (benchmarks/pack.py).
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True, method=0, quality=0)
    return file.getvalue()


def jpeg_of(image: NDArray[np.uint8]) -> str:
    """An image [H, W, 3] as JPEG in base64, to be shown in a page."""
    made = io.BytesIO()
    Image.fromarray(image).save(made, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(made.getvalue()).decode("ascii")


@decoding()
def outline(file: Path | bytes) -> tuple[tuple[int, int], bool]:
    """Return an image file's upright width and height, and whether EXIF turns it, from its header alone.

    Raises one of UNREADABLE.
    """
    size = jpeg_size(file) if isinstance(file, bytes) and not _may_be_turned(file) else None
    if size is not None:  # much faster than Pillow, for the millions of a .rec
        return size, False
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
        image = _opened(opened)
        orientation = _orientation(image)
        width, height = image.size
        sideways = orientation in SIDEWAYS and image.format != "TIFF"  # whose upright size Pillow tells
        return ((height, width) if sideways else (width, height)), orientation in TURNS


def fitted(image: Image.Image, fit: str) -> Image.Image:
    """Scale an RGB image to 112 x 112 as a key of FITS says."""
    if image.size == (SIDE, SIDE):
        return image
    if fit == "squash":
        return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if fit == "pad":
        scale = SIDE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        whole = Image.new("RGB", (SIDE, SIDE))
        place = (SIDE - width) // 2, (SIDE - height) // 2
        whole.paste(image.resize((width, height), Image.Resampling.BICUBIC), place)
        return whole
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _may_be_turned(file: bytes) -> bool:
    """Whether a JPEG may contain the camera's orientation, which only Pillow reads."""
    return any(mark in file for mark in TURNED)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds of errors for damaged metadata; the pixels are still good
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """Decode an image, and turn it upright if its EXIF data is readable and contains an orientation.

    Pixels come first. Pillow decodes a PNG to find its EXIF data, and a second attempt after an error gives black rows.
    Pillow turns a TIFF itself when it decodes it, and then no orientation is left.
    """
    image.load()
    turned = TURNS.get(_orientation(image))
    return image if turned is None else image.transpose(turned)


def _eight_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    """Convert to 8-bit RGB. Raises UnknownScale if the file does not define white."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    # Pillow's own conversion clips 16 bits: all values above 255 become white. Pillow opens a 16-bit PGM in mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit whole numbers" if image.mode == "I" else "floating-point numbers"
        raise UnknownScale(
            f"has {kind} for pixels, and their white level is unknown; save it with 8 or 16 bits, as .png"
        )
    if image.has_transparency_data:  # its hidden colours are arbitrary; a viewer shows the paper
        return Image.alpha_composite(Image.new("RGBA", image.size, PAPER), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
