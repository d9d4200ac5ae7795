"""images.jpegs on the laptop: which files are refused, the bytes of a fraction, and staging."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from app import prepare
from app.data.dataset import open_dataset
from app.data.sources.source import Source
from deploy.errors import StepFailed, WrongUse
from deploy.shell import LocalShell
from deploy.workspace import dataset, encoded
from deploy.workspace.sources import HERE, MACHINE, URL, Origin, Url
from tests.app.data.test_recordio import jpeg
from tests.deploy.workspace.test_dataset import Staging, here

ROWS, HELD_OUT, BLOCK_ROWS = 40, 10, 5


def files_of(numbers: range) -> list[bytes]:
    return [jpeg(number, quality=50 + number) for number in numbers]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from app.data.sources.photograph import decode_stored

    source = Source(
        "photos",
        ROWS,
        lambda start, stop: range(start, stop),
        np.arange(ROWS, dtype=np.int32) // 5,
        decode=lambda rows: np.stack([decode_stored(file) for file in files_of(rows)]),
        held_out=HELD_OUT,
        block_rows=BLOCK_ROWS,
        stored=files_of,
    )
    out = tmp_path_factory.mktemp("made") / "images.jpegs"
    prepare.prepare(source, out)
    return out


@pytest.fixture
def images(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / "photos")
    return tmp_path / "photos" / "images.jpegs"


@pytest.fixture
def staging(images: Path, tmp_path: Path) -> Staging:
    return Staging(images, tmp_path / "ram disk", tmp_path / "root")


def test_the_file_and_its_folder_mean_the_same(images: Path) -> None:
    found = dataset.find(here(images), 8192)
    assert dataset.find(here(images.parent), 8192).path == images
    assert (found.rows, found.train_rows, found.block_rows) == (ROWS, ROWS - HELD_OUT, BLOCK_ROWS)
    assert found.size == images.stat().st_size
    assert found.labels == images.with_name("labels.npy")


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1])
def test_a_plan_states_the_bytes_that_are_staged_and_the_app_reads_the_same_rows(
    fraction: float, staging: Staging
) -> None:
    plan = staging.plan(fraction)
    staging.run(fraction)
    staged = Path(plan.data_path)
    assert staged.name == "images.jpegs"
    assert dataset.facts(dataset.find(here(staging.images), 1), fraction).bytes == staged.stat().st_size
    options = {"labels_path": None, "fraction": fraction, "block_rows": 1}
    whole, part = open_dataset(staging.images, **options), open_dataset(staged, **options)
    assert part.dataset_id == whole.dataset_id
    for rows, of in ((part.train_rows, whole.train_rows), (part.held_out_rows, whole.held_out_rows)):
        assert np.array_equal(part.images[rows], whole.images[of])
        assert np.array_equal(part.labels[rows], whole.labels[of])  # type: ignore[index]
    if fraction < 1:
        assert staged.stat().st_size < staging.images.stat().st_size


def test_everything_is_staged_once(staging: Staging) -> None:
    assert "staged" in (staging.run() or "")
    assert (staging.folder / "images.jpegs").read_bytes() == staging.images.read_bytes()
    before = (staging.folder / "offsets.npy").read_bytes()
    assert np.array_equal(np.load(staging.folder / "offsets.npy"), np.load(staging.images.with_name("offsets.npy")))
    assert "already there" in (staging.run() or "")
    assert (staging.folder / "offsets.npy").read_bytes() == before


def test_a_part_of_a_part_is_staged_whole(staging: Staging, tmp_path: Path) -> None:
    staging.run(0.5)
    part = staging.folder / "photos-f0.5" / "images.jpegs"
    again = Staging(part, tmp_path / "second", tmp_path / "root")
    again.run(0.5)
    assert (tmp_path / "second" / "photos-f0.5" / "images.jpegs").read_bytes() == part.read_bytes()


def test_a_broken_copy_goes_on_where_it_was(staging: Staging) -> None:
    """The source's first block is damaged after the first copy, so another copy of it would fail."""
    whole = staging.images.read_bytes()
    staging.run()
    part = staging.folder / "images.jpegs.part"
    (staging.folder / "images.jpegs").rename(part)
    spoil(part, len(whole) - 20)
    spoil(staging.images, 20)
    staging.run()
    assert (staging.folder / "images.jpegs").read_bytes() == whole
    assert not part.exists()


def spoil(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\0\1\2\3")


def test_a_wrong_hash_names_the_block_and_nothing_is_staged(staging: Staging) -> None:
    spoil(staging.images, int(np.load(staging.images.with_name("offsets.npy"))[12]) + 20)
    with pytest.raises(StepFailed) as caught:
        staging.run()
    assert "block 2" in " ".join(caught.value.evidence)
    assert not (staging.folder / "images.jpegs").exists()


def test_pixels_that_were_staged_before_give_way(staging: Staging, tmp_path: Path) -> None:
    """Both forms use the same manifest.json and labels.npy, and there is room for one of them."""
    from tests.deploy.support.pretend.app.prepare import make

    pixels = tmp_path / "pixels" / "images.npy"
    make(pixels, rows=40)
    Staging(pixels, staging.folder, tmp_path / "root").run()
    staging.run()
    names = {file.name for file in staging.folder.iterdir()}
    assert names == {"images.jpegs", "offsets.npy", "labels.npy", "manifest.json"}
    Staging(pixels, staging.folder, tmp_path / "root").run()
    names = {file.name for file in staging.folder.iterdir()}
    assert "images.npy" in names
    assert "images.jpegs" not in names


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda images: images.write_bytes(images.read_bytes()[:-1]), "is truncated: it has"),
        (lambda images: images.write_bytes(images.read_bytes() + b"1"), "does not match its offsets"),
        (lambda images: offsets(images, lambda o: np.where(np.arange(len(o)) == 3, o[4], o)), "does not increase"),
        (lambda images: offsets(images, lambda o: o + 1), "does not increase from 0"),
        (lambda images: offsets(images, lambda o: o.astype(np.int32)), "it holds <i4 of shape [41], not int64"),
        (lambda images: images.with_name("offsets.npy").write_bytes(b"what"), "not a complete file of offsets"),
        (lambda images: images.with_name("offsets.npy").unlink(), "not a complete file of offsets"),
        (lambda images: cut(images.with_name("offsets.npy")), "(truncated)"),
        (lambda images: manifest(images, rows=41), "does not match the images"),
        (lambda images: manifest(images, format="pixels"), "does not match the images"),
        (lambda images: images.unlink(), "there is no file"),
    ],
)
def test_wrong_files_are_named_with_what_would_work(
    change: Callable[[Path], object], sentence: str, images: Path
) -> None:
    change(images)
    with pytest.raises(WrongUse) as caught:
        dataset.find(here(images), 8192)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def offsets(images: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    file = images.with_name("offsets.npy")
    np.save(file, change(np.load(file)))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def manifest(images: Path, **changed: object) -> None:
    file = images.with_name("manifest.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize(
    ("where", "path", "words"),
    [
        (HERE, "faces/train.rec", "--source rec --path {}/faces --encoded"),
        (HERE, "faces/web.rec", "--source rec --path {}/faces/web.rec --encoded"),
        (MACHINE, "/workspace/my faces/train.rec", "--on TARGET --source rec --path '/workspace/my faces' --encoded"),
        (URL, "https://host/faces/train.rec", "--source rec --path DIR --encoded"),
    ],
)
def test_a_rec_is_refused_with_the_command_that_converts_it(where: str, path: str, words: str, tmp_path: Path) -> None:
    place = {HERE: tmp_path / path, MACHINE: PurePosixPath(path), URL: Url(path)}[where]
    with pytest.raises(WrongUse) as error:
        dataset.find(Origin(where, place, LocalShell()), 8192)
    told = f"train.rec is not sent as it is: convert it once with `invoke prepare {words.format(tmp_path)}`"
    assert str(error.value).endswith(told.replace("train.rec", place.name))


def test_a_folder_with_a_rec_is_refused_like_it_unless_it_has_images_too(tmp_path: Path, images: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "train.rec").write_bytes(b"x")
    with pytest.raises(WrongUse, match=r"train\.rec is not sent as it is"):
        dataset.find(here(tmp_path / "faces"), 8192)
    images.with_name("train.rec").write_bytes(b"x")
    assert dataset.find(here(images.parent), 8192).path == images


def test_images_of_an_interrupted_prepare_are_refused(images: Path) -> None:
    """Their held-out images are not known before the manifest is written."""
    dataset.unfinished(images).touch()
    assert dataset.find(here(images), 8192).held_out_rows == HELD_OUT
    images.with_name("manifest.json").unlink()
    with pytest.raises(WrongUse, match=r"images\.jpegs is not complete, `prepare` was interrupted"):
        dataset.find(here(images), 8192)


def test_offsets_of_ranges_are_moved_to_the_start(tmp_path: Path) -> None:
    encoded.write_offsets(LocalShell(), tmp_path / "offsets.npy", [0, 3, 4, 9, 11], [range(1, 2), range(3, 4)])
    assert np.load(tmp_path / "offsets.npy").tolist() == [0, 1, 3]
