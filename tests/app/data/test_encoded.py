"""images.jpegs and a .rec: the pixels, batches and checkpoints of images.npy from the same source; refusals."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app import embed, evaluate, prepare
from app.data import encoded
from app.data.about import about
from app.data.dataset import open_dataset, open_images
from app.data.encoded import EncodedImages, decoding_threads
from app.data.loader import feed
from app.data.shards import file_blocks
from app.data.sources import recordio
from app.data.sources.encoded_writer import folder_of
from app.data.sources.photograph import lossless
from app.errors import WrongUse
from app.runtime.dist import World
from tests.app.conftest import faces
from tests.app.data.test_recordio import insightface, jpeg, write
from tests.app.support.recordio import framed, image_record
from tests.app.support.training import assert_equal_bits, run

PEOPLE, EACH = 8, 6
HELD_OUT = 12


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def kinds(pixels: np.ndarray) -> dict[str, bytes]:
    """Files of one image by suffix: three that are kept as they came, and three that are not."""
    image = Image.fromarray(pixels)
    return {
        "as_it_came.jpg": saved(image, "JPEG", quality=85),
        "grey_as_it_came.jpeg": saved(image.convert("L"), "JPEG"),
        "as_it_came.webp": saved(image, "WEBP"),
        "as_it_came.png": saved(image, "PNG"),
        "plain.bmp": saved(image, "BMP"),
        "large.jpg": saved(image.resize((160, 140)), "JPEG"),
    }


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 people with 6 images each, one of every kind."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, pixels in enumerate(faces(PEOPLE, EACH)):
        person, place = divmod(number, EACH)
        (folder / f"p{person}").mkdir(exist_ok=True)
        name, content = list(kinds(pixels).items())[place]
        (folder / f"p{person}" / f"{place}_{name}").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def both(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """images.npy and images.jpegs of the same folder; the last people are held out."""
    made = []
    for name in ("images.npy", "images.jpegs"):
        out = tmp_path_factory.mktemp("prepared") / name
        words = ["source=folder", f"path={photographs}", f"out={out}", f"held_out={HELD_OUT}"]
        assert prepare.main(words) == 0
        made.append(out)
    return made[0], made[1]


@pytest.fixture
def jpegs(both: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(both[1].parent, tmp_path / "copy")
    return tmp_path / "copy" / "images.jpegs"


def test_the_pixels_labels_and_identity_are_those_of_images_npy(both: tuple[Path, Path]) -> None:
    plain, encoded = (open_dataset(path, labels_path=None, fraction=0.5, block_rows=1) for path in both)
    assert np.array_equal(encoded.images[:], plain.images)
    assert encoded.labels is not None
    assert np.array_equal(encoded.labels, plain.labels)
    assert np.array_equal(encoded.train_rows, plain.train_rows)
    assert len(encoded.train_rows) == (PEOPLE * EACH - HELD_OUT) / 2
    assert encoded.dataset_id == plain.dataset_id


def test_files_of_112_are_kept_as_they_came_and_others_lose_nothing(both: tuple[Path, Path], photographs: Path) -> None:
    images = open_images(both[1])
    assert isinstance(images, EncodedImages)
    files = sorted(photographs.glob("*/*"))
    for row, file in enumerate(files):
        stored = images.stored(row)
        if "as_it_came" in file.name:
            assert stored == file.read_bytes()
        else:
            assert stored == lossless(images[row])


def test_an_image_with_more_bytes_than_its_pixels_becomes_webp(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "in" / "a" / f"{number}.jpg").write_bytes(jpeg(number, comment=bytes(50_000)))
    out = tmp_path / "out" / "images.jpegs"
    assert prepare.main(["source=folder", f"path={tmp_path / 'in'}", f"out={out}"]) == 0
    assert open_images(out).stored(0).startswith(b"RIFF")
    assert np.array_equal(open_images(out)[0], np.asarray(Image.open(io.BytesIO(jpeg(0)))))


@pytest.mark.parametrize("which", [0, -1, slice(3, 20, 2), np.array([5, 2, 2, 40]), np.arange(PEOPLE * EACH) % 7 == 0])
def test_it_is_indexed_like_an_array(both: tuple[Path, Path], which: object) -> None:
    assert np.array_equal(open_images(both[1])[which], open_images(both[0])[which])


def test_an_index_past_the_end_is_refused(both: tuple[Path, Path]) -> None:
    with pytest.raises(IndexError):
        open_images(both[1])[PEOPLE * EACH]


def test_the_feed_gives_the_same_batches(both: tuple[Path, Path]) -> None:
    batches = [np.random.default_rng(seed).permutation(PEOPLE * EACH)[:17] for seed in range(9)]
    for rows, images in feed(open_images(both[1]), batches, torch.device("cpu")):
        assert np.array_equal(images.numpy(), open_images(both[0])[rows])


def test_a_shard_of_image_files_is_read_by_the_rows_of_the_whole(both: tuple[Path, Path], tmp_path: Path) -> None:
    """As `data.shards=by_node` stages them: blocks of bytes, with offsets of their own."""
    pixels, jpegs = both
    manifest = json.loads(jpegs.with_name("manifest.json").read_text())
    count, held_out, block_rows = (manifest[key] for key in ("rows", "held_out_rows", "block_rows"))
    blocks = file_blocks(count, held_out, block_rows, 1, 2)
    there = np.concatenate([np.arange(each * block_rows, min((each + 1) * block_rows, count)) for each in blocks])
    offsets, stored = np.load(jpegs.with_name("offsets.npy")), jpegs.read_bytes()
    files = [stored[offsets[row] : offsets[row + 1]] for row in there]
    (tmp_path / "images.jpegs").write_bytes(b"".join(files))
    np.save(tmp_path / "offsets.npy", np.cumsum([0, *map(len, files)]))
    told = {**manifest, "rows": len(there), "shard": {"number": 1, "of": 2, "rows": count}}
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    data = open_dataset(tmp_path / "images.jpegs", labels_path=None, fraction=1.0, block_rows=1)
    assert len(data.images) == count
    [(_, batch)] = feed(data.images, [there[::-1]], torch.device("cpu"))
    assert np.array_equal(batch.numpy(), np.load(pixels)[there[::-1]])
    [other, *_] = set(range(count)) - set(there.tolist())
    with pytest.raises(IndexError, match=f"image {other} is on another machine"):
        data.images[np.array([other])]


@pytest.mark.parametrize("words", [[], ["recipe=supervised"]], ids=["self_supervised", "supervised"])
def test_a_checkpoint_has_the_bits_of_one_from_images_npy(
    words: list[str], both: tuple[Path, Path], tmp_path: Path, alone: World
) -> None:
    """Training, mining and evaluation read the same rows, and a stopped run resumes, even from the other file."""
    plain, encoded = both
    run(plain, tmp_path / "plain", alone, *words)
    run(encoded, tmp_path / "encoded", alone, *words, stop_at=5)
    run(plain, tmp_path / "encoded", alone, *words, "train.resume=auto", stop_at=8)
    seen = run(encoded, tmp_path / "encoded", alone, *words, "train.resume=auto")
    assert seen[-1]["reason"] == "done"
    last = Path("checkpoints") / "epoch_002.pt"
    assert_equal_bits(tmp_path / "plain" / last, tmp_path / "encoded" / last)


def test_embeddings_evaluation_and_facts_are_those_of_images_npy(
    both: tuple[Path, Path], tmp_path: Path, alone: World
) -> None:
    plain, encoded = both
    run(plain, tmp_path / "run", alone, "train.epochs=1")
    weights = tmp_path / "run" / "checkpoints" / "epoch_000.pt"
    for name, path in (("plain", plain), ("encoded", encoded)):
        shutil.copytree(path.parent, tmp_path / "sets" / name)  # the folder names the set
        assert embed.main([f"weights={weights}", f"images={path}", f"out={tmp_path / name}.npy"]) == 0
        assert evaluate.main([f"weights={weights}", f"sets={tmp_path / 'sets' / name}", f"out={tmp_path / name}"]) == 0
    assert (tmp_path / "plain.npy").read_bytes() == (tmp_path / "encoded.npy").read_bytes()
    first, second = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("plain", "encoded"))
    assert measures(first["weights"][0]["sets"]["plain"]) == measures(second["weights"][0]["sets"]["encoded"])
    told, of_plain = about(encoded.parent, verify=True), about(plain, verify=True)
    assert told["faults"] == []
    assert told["data"] == of_plain["data"]
    assert told["people"] == PEOPLE


def measures(value: object) -> object:
    """The numbers of a document, without its names, paths and times."""
    if isinstance(value, dict):
        return {key: measures(each) for key, each in value.items() if not key.endswith("_s")}
    if isinstance(value, list):
        return [measures(each) for each in value]
    return value if isinstance(value, int | float) else None


def test_changed_bytes_are_found_by_verify(jpegs: Path) -> None:
    content = bytearray(jpegs.read_bytes())
    content[-9] ^= 1
    jpegs.write_bytes(content)
    (fault,) = about(jpegs, verify=True)["faults"]
    assert "is not what prepare wrote: rows 47 to 47 differ" in fault


def test_offsets_that_moved_within_a_block_are_found_by_verify(tmp_path: Path) -> None:
    images = np.arange(4 * 112 * 112 * 3).reshape(4, 112, 112, 3).astype(np.uint8)
    np.save(tmp_path / "x.npy", images)
    out = tmp_path / "out" / "images.jpegs"
    assert prepare.main(["source=array", f"path={tmp_path / 'x.npy'}", f"out={out}"]) == 0
    manifest, offsets = json.loads(out.with_name("manifest.json").read_text()), np.load(out.with_name("offsets.npy"))
    content = out.read_bytes()  # one block of all four, whose hash is of the bytes alone
    changed = {"block_rows": 4, "blocks": [hashlib.sha256(content).hexdigest()]}
    changed["dataset_id"] = hashlib.sha256(hashlib.sha256(images.data).hexdigest().encode()).hexdigest()[:16]
    out.with_name("manifest.json").write_text(json.dumps(manifest | changed))
    assert about(out, verify=True)["faults"] == []
    np.save(out.with_name("offsets.npy"), offsets + np.array([0, 0, 1, 0, 0]))
    assert about(out, verify=True)["faults"] == [f"image 2 of {out} is not readable; copy it or make it again"]
    np.save(out.with_name("offsets.npy"), offsets)
    out.with_name("manifest.json").write_text(json.dumps(manifest | changed | {"dataset_id": "of other decoders"}))
    (fault,) = about(out, verify=True)["faults"]
    assert "gives other pixels than prepare saw" in fault


# The writer.


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("source", ["folder", "rec", "parquet"])
def test_every_source_keeps_its_files_with_any_number_of_workers(source: str, tmp_path: Path) -> None:
    files = [jpeg(number) for number in range(10)]
    words = [f"source={source}", f"path={written(source, files, tmp_path / 'in')}"]
    made = {}
    for workers in (1, 2):
        out = tmp_path / str(workers) / "images.jpegs"
        assert prepare.main([*words, f"out={out}", f"workers={workers}"]) == 0
        made[workers] = {name: file for name, file in contents(out.parent).items() if name != "passport.html"}
    assert made[1] == made[2]
    assert made[1]["images.jpegs"] == b"".join(files)
    assert np.diff(np.load(tmp_path / "1" / "offsets.npy")).tolist() == [len(file) for file in files]


def written(source: str, files: list[bytes], folder: Path) -> Path:
    folder.mkdir()
    if source == "folder":
        (folder / "one").mkdir()
        for number, file in enumerate(files):
            (folder / "one" / f"{number:02}.jpg").write_bytes(file)
        return folder
    if source == "rec":
        write(folder / "train.rec", [image_record(file, 0.0) for file in files])
        return folder
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": files, "label": [0] * len(files)}), folder / "a.parquet")
    return folder / "a.parquet"


def test_an_interrupted_call_goes_on_at_the_first_missing_block(
    photographs: Path, both: tuple[Path, Path], tmp_path: Path
) -> None:
    """A block in the middle cannot be read; when it can, the blocks on both sides of it are kept."""
    shutil.copytree(photographs, tmp_path / "in")
    broken = sorted((tmp_path / "in").glob("*/*"))[20]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    out = tmp_path / "out" / "images.jpegs"
    source = prepare.choose({"source": "folder", "path": str(tmp_path / "in")})
    with pytest.raises(WrongUse, match=broken.name):
        prepare.prepare(source, out, held_out=str(HELD_OUT))
    assert not out.exists()
    broken.write_bytes(whole)
    counts: list[int] = []
    source = prepare.choose({"source": "folder", "path": str(tmp_path / "in")})
    prepare.prepare(source, out, held_out=str(HELD_OUT), progress=counts.append)
    assert counts == [PEOPLE * EACH - 1, 1]
    assert out.read_bytes() == both[1].read_bytes()
    assert (out.parent / "offsets.npy").read_bytes() == (both[1].parent / "offsets.npy").read_bytes()
    assert not folder_of(out).exists()


def test_a_block_that_changed_on_disk_is_made_again(photographs: Path, both: tuple[Path, Path], tmp_path: Path) -> None:
    source = prepare.choose({"source": "folder", "path": str(photographs)})
    out = tmp_path / "images.jpegs"

    class Interrupted(Exception):
        pass

    def interrupt(_: int) -> None:
        if out.with_name(".images.jpegs.blocks.part").read_text().count("\n") == 30:
            raise Interrupted

    with pytest.raises(Interrupted):
        prepare.prepare(source, out, held_out=str(HELD_OUT), progress=interrupt)
    part = out.with_name(".images.jpegs.part")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    prepare.prepare(source, out, held_out=str(HELD_OUT))
    assert out.read_bytes() == both[1].read_bytes()


def test_it_is_not_written_beside_images_npy(
    both: tuple[Path, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = both[0].with_name("images.jpegs")
    assert prepare.main(["source=folder", f"path={photographs}", f"out={out}"]) == 2
    assert "give out= in another folder" in capsys.readouterr().err


# Damage.


def refusal(path: Path) -> str:
    with pytest.raises(WrongUse) as error:
        open_dataset(path, labels_path=None, fraction=1.0, block_rows=1)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_truncated_file_is_refused(jpegs: Path) -> None:
    size = jpegs.stat().st_size
    jpegs.write_bytes(jpegs.read_bytes()[:-5])
    assert f"is truncated: it has {size - 5} bytes, and offsets.npy lists {size}" in refusal(jpegs)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda offsets: np.delete(offsets, -1), "is another file: it has"),
        (lambda offsets: offsets[::-1], "begins with"),
        (lambda offsets: np.where(np.arange(len(offsets)) == 7, offsets[6], offsets), "does not increase at image 6"),
        (lambda offsets: offsets.astype(np.float64), "is float64 of shape [49]; it must be int64"),
        (lambda offsets: offsets[:1], "it must be int64 of shape [N + 1]"),
    ],
)
def test_wrong_offsets_are_refused(change: object, sentence: str, jpegs: Path) -> None:
    file = jpegs.with_name("offsets.npy")
    np.save(file, change(np.load(file)))  # type: ignore[operator]
    assert sentence in refusal(jpegs)


def test_missing_offsets_and_another_manifest_are_refused(jpegs: Path, both: tuple[Path, Path]) -> None:
    shutil.copy(both[0].with_name("manifest.json"), jpegs.with_name("manifest.json"))
    assert "is not of images.jpegs but of another file" in refusal(jpegs)
    jpegs.with_name("offsets.npy").unlink()
    assert "there is no file" in refusal(jpegs)


def test_a_broken_image_ends_training_with_its_number(jpegs: Path, tmp_path: Path, alone: World) -> None:
    offsets = np.load(jpegs.with_name("offsets.npy"))
    content = bytearray(jpegs.read_bytes())
    content[offsets[4] : offsets[5]] = bytes(int(offsets[5] - offsets[4]))
    jpegs.write_bytes(content)
    with pytest.raises(WrongUse, match=r"image 4 of .*images\.jpegs is not readable; copy it or make it again"):
        run(jpegs, tmp_path / "run", alone)


# A .rec as it lies.


@pytest.mark.parametrize("index", [True, False])
def test_a_rec_trains_as_the_images_prepared_from_it(index: bool, tmp_path: Path, alone: World) -> None:
    rec = tmp_path / "rec" / "train.rec"
    write(rec, insightface([5, 5, 6]), index=index)
    out = tmp_path / "prepared" / "images.npy"
    assert prepare.main(["source=rec", f"path={rec.parent}", f"out={out}"]) == 0
    (rec.parent / "manifest.json").write_text("of another file")
    words = ["recipe=supervised", "train.epochs=2"]
    run(out, tmp_path / "plain", alone, *words)
    run(rec, tmp_path / "direct", alone, *words)
    last = Path("checkpoints") / "epoch_001.pt"
    assert_equal_bits(tmp_path / "plain" / last, tmp_path / "direct" / last)


def test_a_rec_of_another_size_is_refused_with_the_command(tmp_path: Path) -> None:
    rec = tmp_path / "my faces" / "train.rec"
    rec.parent.mkdir()
    write(rec, [image_record(jpeg(number, (96, 112)), 0.0) for number in range(4)])
    said = refusal(rec)
    assert f"image 0 of {rec} is 96x112, not 112x112" in said
    assert f"python -m app.prepare source=rec path='{rec}' out=images.jpegs" in said


def test_a_rec_with_an_empty_image_is_refused_before_training_comes_to_it(tmp_path: Path) -> None:
    rec = tmp_path / "train.rec"
    write(rec, [image_record(jpeg(row) if row != 77 else b"", 0.0) for row in range(200)])
    assert f"image 77 of {rec} is empty; convert it once: " in refusal(rec)


def test_opening_a_rec_takes_few_bytes_for_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of a machine opens the file, and 42 million images may be in it."""
    images = 100_000
    record = framed(image_record(saved(Image.new("RGB", (112, 112)), "JPEG", quality=5), 0.0))
    (tmp_path / "a.rec").write_bytes(record * images)
    # What is in memory at once, beside the result.
    for module, name, most in ((encoded, "READ", 1000), (recordio, "CHUNK", 1000), (encoded, "CHECKED", 2)):
        monkeypatch.setattr(module, name, most)
    tracemalloc.start()
    try:
        assert len(open_images(tmp_path / "a.rec")) == images
        assert tracemalloc.get_traced_memory()[1] < 50 * images
    finally:
        tracemalloc.stop()


def test_a_truncated_rec_is_refused_with_the_byte(tmp_path: Path) -> None:
    rec = tmp_path / "train.rec"
    write(rec, insightface([2, 2]), index=False)
    rec.write_bytes(rec.read_bytes()[:-8])
    assert "inside a record; copy it again" in refusal(rec)


@pytest.mark.parametrize(("cores", "local", "wanted"), [(16, "4", 4), (2, "8", 1), (6, None, 6), (4, "x", 4)])
def test_the_processes_of_a_machine_share_its_cores(cores: int, local: str | None, wanted: int) -> None:
    assert decoding_threads(cores, {} if local is None else {"LOCAL_WORLD_SIZE": local}) == wanted
