"""Users' photographs: rotated, with 16 bits, in folders with other files, and some of them damaged."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from app import prepare
from app.data.faces.align import TEMPLATE, aligned
from app.data.sources import source as sources
from app.data.sources.photograph import (
    ORIENTATION,
    UNREADABLE,
    OtherSize,
    decode_face,
    decode_stored,
    load_face,
    outline,
    photograph,
)
from app.errors import WrongUse, quoted

SIDE = 112


def picture(seed: int = 0) -> NDArray[np.uint8]:
    """A picture of 4 x 4 coloured squares with different corners, so that any rotation or mirroring shows."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(30, 226, (4, 4, 3)), np.ones((28, 28, 1))).astype(np.uint8)


def oriented_jpeg(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    """A JPEG with this EXIF orientation. The APP1 segment is written by hand, as EXIF 2.3 defines it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    return file.getvalue()[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + file.getvalue()[2:]


# What a camera stores for an upright scene, by orientation: EXIF 2.3, "0th row / 0th column".
STORED = {
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.transpose(1, 0, 2),
    6: lambda scene: np.rot90(scene, 1),
    7: lambda scene: scene[::-1, ::-1].transpose(1, 0, 2),
    8: lambda scene: np.rot90(scene, -1),
}


def png16(grey: NDArray[np.uint16]) -> bytes:
    """A PNG of 16-bit grey, written chunk by chunk."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [SIDE, 168])  # not resampled, and resampled
def test_a_photograph_is_upright_however_the_camera_was_held(orientation: int, side: int) -> None:
    scene = np.asarray(Image.fromarray(picture()).resize((side, side), Image.Resampling.NEAREST))
    decoded = decode_face(oriented_jpeg(np.ascontiguousarray(STORED[orientation](scene)), orientation))
    assert np.abs(decoded.astype(int) - picture()).mean() < 8  # a wrong orientation gives 60 or more


@pytest.mark.parametrize("orientation", [None, 1, 3, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_size_and_turn_are_those_of_the_file_in_a_folder_and_in_a_container(
    kind: str, orientation: int | None, tmp_path: Path
) -> None:
    wide = np.ascontiguousarray(picture()[:60])
    data = encoded(kind, pixels=wide) if orientation is None or kind != "JPEG" else oriented_jpeg(wide, orientation)
    (tmp_path / "a").write_bytes(data)
    turned = kind == "JPEG" and orientation in (3, 6)
    size = (60, SIDE) if turned and orientation == 6 else (SIDE, 60)
    assert outline(tmp_path / "a") == outline(data) == (size, turned)


@pytest.mark.parametrize("side", [SIDE, 168])  # read by the fast decoder if nothing tells a turn, and by Pillow
def test_a_turn_that_only_xmp_tells_is_made_at_any_size(side: int) -> None:
    scene = Image.fromarray(picture()).resize((side, side), Image.Resampling.NEAREST)
    plain = encoded("JPEG", pixels=np.rot90(np.asarray(scene), 1).copy())
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + plain[2:]
    assert outline(data) == ((side, side), True)
    assert np.abs(decode_face(data).astype(int) - picture()).mean() < 8


def test_no_file_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the name of the file."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not looked for yet
    with pytest.raises(UnidentifiedImageError):
        decode_face(encoded("EPS"))
    assert not started.exists()


def test_decoding_in_threads_leaves_the_warnings_of_others() -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode_stored, [encoded("PNG")] * 1000))
    with pytest.raises(UserWarning, match="of another module"):  # pyproject.toml makes them errors
        warnings.warn("of another module", stacklevel=1)


def test_a_file_that_names_a_huge_size_is_refused_without_decoding_and_without_a_warning() -> None:
    small = encoded("JPEG")
    at = small.index(b"\xff\xc0") + 5
    for side in (10_000, 65_000):  # Pillow warns of the first, and refuses the second itself
        with pytest.raises((OtherSize, Image.DecompressionBombError)):
            decode_stored(small[:at] + struct.pack(">HH", side, side) + small[at + 4 :])


def test_a_photograph_with_too_many_pixels_is_told_as_that(tmp_path: Path) -> None:
    """Such as the 200 million of some telephones. It is a good image, and saving it as .jpg again would not help."""
    file, small = tmp_path / "a.jpg", encoded("JPEG")
    at = small.index(b"\xff\xc0") + 5
    file.write_bytes(small[:at] + struct.pack(">HH", 12240, 16320) + small[at + 4 :])
    with pytest.raises(WrongUse, match=r"a\.jpg has more than 179 million pixels; save it smaller"):
        load_face(file)


def test_a_damaged_avif_is_unreadable() -> None:
    whole = encoded("AVIF")
    with pytest.raises(UNREADABLE):
        decode_face(whole[:-40] + bytes(40))


def test_a_jpeg_of_4_4_1_is_read_as_pillow_reads_it() -> None:
    """As jpegtran makes it of a 4:1:1 that it turns upright. Here a 4:2:0 gets the head of one: both have 56 MCUs."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate([picture(), picture(1)[:16]])).save(file, "JPEG", subsampling="4:2:0")
    head, sampling = struct.pack(">HHB", 128, 112, 3), file.getvalue().index(b"\x01\x22\x00") + 1
    data = bytearray(file.getvalue())
    data[sampling] = 0x14
    jpeg = bytes(data).replace(head, struct.pack(">HHB", 112, 112, 3), 1)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    assert np.array_equal(decode_face(jpeg), expected)
    assert np.array_equal(decode_stored(jpeg), expected)
    assert outline(jpeg) == ((112, 112), False)


def test_an_error_of_any_type_in_a_decoder_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.tif"
    Image.fromarray(picture()).save(file)
    strips, of_floats = (struct.pack("<HHI", 273, kind, 1) for kind in (4, 11))
    assert strips in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(strips, of_floats))  # Pillow raises TypeError
    with pytest.raises(WrongUse, match=r"broken\.tif is not a readable image; remove it"):
        load_face(file)
    with pytest.raises(UNREADABLE):
        aligned(file, TEMPLATE)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_damaged_png_is_refused(interlaced: bool) -> None:
    """Pillow decodes a PNG to find its EXIF data. After an error there, it gives black rows, or raises TypeError."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112), np.uint8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[28] = interlaced  # the last byte of IHDR
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    data[6000:6004] = bytes(4)
    for decode in (decode_face, decode_stored, photograph):
        with pytest.raises(UNREADABLE):
            decode(bytes(data))


@pytest.mark.parametrize("orientation", STORED)
def test_a_tiff_is_turned_once(orientation: int) -> None:
    """Pillow turns it while it decodes it."""
    scene = np.concatenate([picture(), picture(1)], axis=1)
    file, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](scene))).save(file, "TIFF", exif=exif)
    assert np.array_equal(np.asarray(photograph(file.getvalue())), scene)
    assert outline(file.getvalue()) == ((224, 112), orientation != 1)


def test_links_to_nothing_are_unreadable_and_pipes_are_no_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    person = tmp_path / "photos" / "a"
    person.mkdir(parents=True)
    for number in range(3):
        (person / f"{number}.png").write_bytes(encoded("PNG"))
    for name in ("gone.jpg", "gone"):
        (person / name).symlink_to("nowhere")
    for name in ("pipe.jpg", "pipe"):
        os.mkfifo(person / name)  # reading it would wait for a writer
    words = ["source=folder", f"path={tmp_path / 'photos'}", f"out={tmp_path / 'out' / 'images.npy'}", "workers=1"]
    assert prepare.main(words) == 2
    assert "gone.jpg cannot be opened (No such file or directory); make it readable" in capsys.readouterr().err
    assert prepare.main([*words, "unreadable=skip"]) == 0
    assert "3 files left out: 2 no suffix, 1 .jpg" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"] == 3


def test_damaged_metadata_does_not_cost_the_image() -> None:
    good = oriented_jpeg(picture(), 1)
    for broken in (
        good.replace(b"MM\0*", b"XX\0*"),
        good.replace(struct.pack(">IH", 8, 1), struct.pack(">IH", 9999, 1)),
    ):
        assert np.abs(decode_face(broken).astype(int) - picture()).mean() < 8


def test_16_bits_of_grey_are_scaled_not_clipped() -> None:
    grey = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).round().astype(np.uint16)
    expected = np.repeat((grey / 257).round().astype(np.uint8)[..., None], 3, 2)
    assert np.array_equal(decode_face(png16(grey)), expected)
    pgm = b"P5\n112 112\n65535\n" + grey.astype(">u2").tobytes()
    assert np.array_equal(decode_face(pgm), expected)
    tiff = io.BytesIO()
    Image.fromarray(grey).save(tiff, "TIFF")
    assert np.array_equal(decode_face(tiff.getvalue()), expected)


@pytest.mark.parametrize(("kind", "words"), [(np.float32, "floating-point"), (np.int32, "32-bit whole numbers")])
def test_pixels_without_a_known_white_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type, words: str
) -> None:
    for person in "ab":
        (tmp_path / "in" / person).mkdir(parents=True)
    Image.fromarray(np.ones((SIDE, SIDE), kind)).save(tmp_path / "in" / "a" / "1.tif")
    Image.fromarray(picture()).save(tmp_path / "in" / "b" / "1.png")
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert "1.tif" in said
    assert words in said
    assert "8 or 16 bits" in said


def run(tmp_path: Path, *words: str) -> int:
    return prepare.main(["source=folder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'out' / 'images.npy'}", *words])


def tree(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def encoded(kind: str, seed: int = 0, *, pixels: NDArray[np.uint8] | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed) if pixels is None else pixels).save(file, kind)
    return file.getvalue()


def test_a_folder_is_taken_as_people_have_it_and_what_is_left_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jpeg = encoded("JPEG")
    tree(
        tmp_path / "in",
        {
            "ada/1.jpg": jpeg, "ada/2.JFIF": jpeg, "ada/._1.jpg": b"\0\5\x16\7 a Mac's", "ada/.DS_Store": b"x",
            "ada/notes.txt": b"x", "ada/3.mov": b"x", "ada/4.mov": b"x",
            "bob/scan": encoded("PNG", 1), "bob/moving.gif": encoded("GIF", 1), "bob/plain": b"just text",
            "empty/Thumbs.db": b"x", ".ipynb_checkpoints/1.jpg": jpeg, "loose.jpg": jpeg,
        },
    )  # fmt: skip
    assert run(tmp_path) == 0
    said = capsys.readouterr().err
    assert "5 files left out: 2 .mov, 1 .txt, 1 no suffix, 1 .db" in said
    assert "1 sub-folder without images: empty" in said
    assert "1 image left out: not in a sub-folder" in said
    assert np.load(tmp_path / "out" / "labels.npy").tolist() == [0, 0, 1, 1]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["left_out"]) == 3


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # the start of a photograph of an iPhone
PLUGIN = f"""
import io
from PIL import Image

def opener(file, name):
    file.seek({len(HEIC)})
    return Image.open(io.BytesIO(file.read()))

def register_heif_opener():
    Image.register_open("HEIF", opener, lambda head: head[4:12] == b"ftypheic")
"""


def test_heic_is_read_by_the_plugin_and_without_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in for pillow-heif takes the rest of the file as a PNG."""
    photograph = HEIC + encoded("PNG", 1)
    tree(tmp_path / "in", {"ada/1.jpg": encoded("JPEG"), "ada/2.heic": photograph, "bob/no suffix": photograph})
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert "2.heic is a HEIC photograph; run `pip install pillow-heif` to read it, or save it as .jpg" in said
    assert "2 images cannot be read" in said
    monkeypatch.delitem(sys.modules, "pillow_heif")
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "pillow_heif.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "plugin")
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    assert run(tmp_path) == 0
    images = np.load(tmp_path / "out" / "images.npy")
    wanted = decode_face(encoded("PNG", 1))
    assert len(images) == 3
    assert np.array_equal(images[1], wanted)
    assert np.array_equal(images[2], wanted)
    del sys.modules["pillow_heif"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["x y/ada/1.jpg", "x y/bob/1.jpg"], "give path=QUOTED, or"),
        (["ada/1.jpg", "bob/1.jpg", "bob/more/1.jpg"], "two levels below IN; move them into BOB, or"),
        (["1.jpg", "2.jpg"], "are not in sub-folders"),
        (["ada/1.txt"], "no images in sub-folders"),
        ([".hidden/1.jpg"], "no images in sub-folders"),
    ],
)
def test_a_tree_of_another_shape_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], words: str
) -> None:
    tree(tmp_path / "in", {file: encoded("JPEG") for file in files})
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    place = tmp_path / "in"
    words = words.replace("QUOTED", quoted(place / "x y")).replace("BOB", str(place / "bob")).replace("IN", str(place))
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("more", [(), ("align=auto", "not_found=keep")])
def test_an_unreadable_photograph_has_no_size(tmp_path: Path, more: tuple[str, ...]) -> None:
    tree(tmp_path / "in", {f"ada/{name}.png": encoded("PNG") for name in "abc"} | {"ada/d.png": b"no picture"})
    assert run(tmp_path, "unreadable=skip", *more) == 0
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["passport"]
    assert (told["shorter_side_px"], told["left_out"]) == (
        {"least": 112, "median": 112, "most": 112},
        {"unreadable": 1},
    )


def people(folder: Path, count: int, broken: tuple[int, ...] = ()) -> None:
    tree(
        folder,
        {f"p{i // 4:02d}/{i:02d}.png": encoded("PNG", i)[: 60 if i in broken else None] for i in range(count)},
    )


def test_one_call_names_every_unreadable_image_and_the_next_one_makes_only_their_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people(tmp_path / "in", 24, broken=(5, 22, 23))
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert all(f"{number:02d}.png" in said for number in (5, 22, 23))
    assert "3 images cannot be read" in said
    assert not (tmp_path / "out" / "images.npy").exists()
    people(tmp_path / "mended", 24)
    for number in (5, 22, 23):
        name = Path(f"p{number // 4:02d}/{number:02d}.png")
        (tmp_path / "in" / name).write_bytes((tmp_path / "mended" / name).read_bytes())
    made: list[int] = []
    prepare.prepare(sources.folder(tmp_path / "in"), tmp_path / "out" / "images.npy", progress=made.append)
    assert made == [21, 1, 1, 1]
    assert np.array_equal(np.load(tmp_path / "out" / "images.npy"), np.stack([picture(i) for i in range(24)]))


def test_a_bad_image_that_is_removed_keeps_the_blocks_before_it(tmp_path: Path) -> None:
    people(tmp_path / "in", 24, broken=(20,))
    assert run(tmp_path) == 2
    (tmp_path / "in" / "p05" / "20.png").unlink()
    made: list[int] = []
    prepare.prepare(sources.folder(tmp_path / "in"), tmp_path / "out" / "images.npy", progress=made.append)
    assert made == [20, 1, 1, 1]
    assert np.array_equal(np.load(tmp_path / "out" / "images.npy")[20], picture(21))


def test_unreadable_images_are_skipped_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people(tmp_path / "in", 24, broken=(0, 7, 23))
    assert run(tmp_path, "unreadable=skip") == 0
    assert "3 images left out" in capsys.readouterr().err
    kept = [i for i in range(24) if i not in (0, 7, 23)]
    assert np.array_equal(np.load(tmp_path / "out" / "images.npy"), np.stack([picture(i) for i in kept]))
    assert np.load(tmp_path / "out" / "labels.npy").tolist() == [i // 4 for i in kept]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["skipped_rows"] == [0, 7, 23]
    assert any("p05/23.png".replace("/", str(Path("/"))[0]) in sentence for sentence in manifest["left_out"])
    assert run(tmp_path, "unreadable=skip") == 0
    assert "already exists" in capsys.readouterr().out
    assert run(tmp_path, "unreadable=yes") == 2


def test_many_unreadable_images_are_listed_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people(tmp_path / "in", 32, broken=tuple(range(2, 30)))
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 22
    listing = tmp_path / "out" / "unreadable.txt"
    assert str(listing) in said
    assert listing.read_text().count("\n") == 28


def test_an_array_written_again_or_other_labels_are_another_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.stack([picture(i) for i in range(4)])
    source, labels = tmp_path / "a.npy", tmp_path / "labels.npy"
    np.save(source, images)
    np.save(labels, np.array([0, 0, 1, 1], np.int32))
    words = ["source=array", f"path={source}", f"labels={labels}", f"out={tmp_path / 'out' / 'images.npy'}"]
    assert prepare.main(words) == 0
    assert prepare.main(words) == 0
    np.save(labels, np.array([0, 1, 1, 0], np.int32))
    assert prepare.main(words) == 2
    assert "other or older images" in capsys.readouterr().err
    np.save(labels, np.array([0, 0, 1, 1], np.int32))
    assert prepare.main(words) == 0  # labels are compared by content
    np.save(source, images[::-1].copy())  # other content of the same size
    assert prepare.main(words) == 2
    assert "move it away" in capsys.readouterr().err


def test_an_archive_of_arrays_is_named_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "images.npy").open("wb") as file:
        np.savez(file, np.zeros((3, SIDE, SIDE, 3), np.uint8))
    words = ["source=array", f"path={tmp_path / 'images.npy'}", f"out={tmp_path / 'out' / 'images.npy'}"]
    assert prepare.main(words) == 2
    assert "archive of arrays" in capsys.readouterr().err


def transparent(mode: str) -> bytes:
    """A PNG whose left half is transparent over (200, 10, 20), or grey 77; the right half shows that colour."""
    file = io.BytesIO()
    hidden = 77 if mode.startswith("L") else (200, 10, 20)
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (SIDE, SIDE), (*(hidden if isinstance(hidden, tuple) else (hidden,)), 255))
        image.paste((*(hidden if isinstance(hidden, tuple) else (hidden,)), 0), (0, 0, SIDE // 2, SIDE))
        image.save(file, "PNG")
        return file.getvalue()
    palette = Image.new("P", (SIDE, SIDE), 1)
    palette.putpalette([*(200, 10, 20), *(200, 10, 20)])
    palette.paste(0, (0, 0, SIDE // 2, SIDE))
    palette.save(file, "PNG", transparency=0 if mode == "P" else bytes([0, 255]))
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P of bytes"])
def test_transparent_pixels_are_white_and_their_hidden_colour_does_not_show(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns about palettes, with a path of its own on the console
        image = decode_face(transparent(mode))
    assert np.array_equal(np.unique(image[:, : SIDE // 2]), [255])
    shown = [77, 77, 77] if mode == "LA" else [200, 10, 20]
    assert np.array_equal(np.unique(image[:, SIDE // 2 :].reshape(-1, 3), axis=0), [shown])


def test_half_transparent_pixels_are_mixed_with_white_and_opaque_ones_are_unchanged() -> None:
    pixels = np.dstack([picture(), np.full((SIDE, SIDE), 255, np.uint8)])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert np.array_equal(decode_face(file.getvalue()), picture())
    pixels[..., 3] = 51  # a fifth
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    mixed = 0.2 * picture().astype(float) + 0.8 * 255
    assert np.abs(decode_face(file.getvalue()) - mixed).max() <= 1


def test_people_of_a_folder_keep_their_names(tmp_path: Path) -> None:
    """A sub-folder without images gets no label. The names lie beside the labels, also without align=."""
    for person, count in (("Ana", 2), ("Empty", 0), ("Zoë, “B”", 1)):
        (tmp_path / "people" / person).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(number)).save(tmp_path / "people" / person / f"{number}.png")
    out = tmp_path / "out" / "images.npy"
    assert prepare.main(["source=folder", f"path={tmp_path / 'people'}", f"out={out}"]) == 0
    told = out.with_name("people.csv").read_text(encoding="utf-8").splitlines()
    assert told == ["label,person,images", "0,Ana,2", '1,"Zoë, “B”",1']
    assert np.load(out.with_name("labels.npy")).tolist() == [0, 0, 1]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such names")
def test_names_of_all_kinds_are_shown_as_they_are(tmp_path: Path) -> None:
    """A mark that reverses letters would show a name that the file does not have."""
    names = {"\u202egnp.jpg": r"\u202egnp.jpg", "a\nb.png": r"a\nb.png", os.fsdecode(b"\xff.png"): r"\udcff.png"}
    names["<b>.png"] = "&lt;b&gt;.png"
    for person in ("one", "two\u202e"):
        (tmp_path / "photos" / person).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (112, 112), (9, 0, 0)).save(tmp_path / "photos" / person / name, "PNG")
    out = tmp_path / "set" / "images.npy"
    assert prepare.main(["source=folder", f"path={tmp_path / 'photos'}", f"out={out}"]) == 0
    page = out.with_name("passport.html").read_text(encoding="utf-8")
    assert all(f"one/{shown}" in page for shown in names.values())
    assert r"<tr><td>two\u202e" in page
    assert not [each for each in page if not each.isprintable() and each != "\n"]
