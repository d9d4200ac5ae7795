"""Evaluation sets: each kind is read from its files on disk; an unusable set is refused in one sentence."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.data.faces.align import TEMPLATE, aligned, similarity
from app.errors import WrongUse
from app.evaluation.image_set import ImageSet, decode
from app.evaluation.protocols import PairList, People, Templates
from app.evaluation.sets import open_set
from app.runtime.dist import World
from tests.app.conftest import faces
from tests.app.data.test_photographs import STORED, oriented_jpeg
from tests.app.support.ijb import write_ijb

PEOPLE, EACH = 6, 4
FACES = faces(PEOPLE, EACH)
PAIRS = [(p * EACH + i, p * EACH + i + 1, 1) for p in range(PEOPLE) for i in range(2)]
PAIRS += [(p * EACH + i, (p * EACH + i + 5) % 24, 0) for p in range(PEOPLE) for i in range(2)]


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, compress_level=0)  # noise becomes no smaller, and many tests write it
    return out.getvalue()


def write_bin(path: Path) -> Path:
    files = [encoded(FACES[i]) for a, b, _ in PAIRS for i in (a, b)]
    path.write_bytes(pickle.dumps((files, [bool(same) for *_, same in PAIRS])))
    return path


def write_csv(path: Path, header: str = "img1,img2,label\n") -> Path:
    (path.parent / "faces").mkdir(exist_ok=True)
    for number, face in enumerate(FACES):
        (path.parent / "faces" / f"{number}.png").write_bytes(encoded(face))
    path.write_text(header + "".join(f"faces/{a}.png, faces/{b}.png, {same}\n" for a, b, same in PAIRS))
    return path


def write_lfw(path: Path, folder: str = "lfw", suffix: str = ".jpg", head: str = "2\t6\n") -> Path:
    """The same pairs as LFW lists them. A person is a quarter of the photographs; the image files are PNG inside."""
    lines = []
    for a, b, same in PAIRS:
        names = ["Ann_Lee", "Ann_Lee" if same else "Bo"]
        for name, number in zip(names, (a, b), strict=True):
            (path.parent / folder / name).mkdir(parents=True, exist_ok=True)
            (path.parent / folder / name / f"{name}_{number + 1:04}{suffix}").write_bytes(encoded(FACES[number]))
        lines.append(f"Ann_Lee\t{a + 1}\t{b + 1}\n" if same else f"Ann_Lee\t{a + 1}\tBo\t{b + 1}\n")
    half = len(lines) // 2
    ordered = [line for k in range(2) for line in (*lines[k * 6 : k * 6 + 6], *lines[half + k * 6 : half + k * 6 + 6])]
    path.write_text(head + "".join(ordered))
    return path


def write_arrays(folder: Path, asked: str) -> Path:
    folder.mkdir()
    np.save(folder / "images.npy", FACES)
    content = {"pairs.npy": np.array(PAIRS), "labels.npy": np.repeat(np.arange(PEOPLE), EACH)}
    np.save(folder / asked, content[asked])
    return folder


def all_of(images: ImageSet) -> np.ndarray:
    import torch

    return decode(images, np.arange(images.count), World(0, 1, torch.device("cpu")))


def seen_pairs(images: ImageSet) -> list[tuple[bytes, bytes, bool]]:
    protocol, pixels = images.protocol, all_of(images)
    assert isinstance(protocol, PairList)
    triples = zip(protocol.left, protocol.right, protocol.same, strict=True)
    return [(pixels[a].tobytes(), pixels[b].tobytes(), bool(s)) for a, b, s in triples]


WANTED = [(FACES[a].tobytes(), FACES[b].tobytes(), bool(same)) for a, b, same in PAIRS]


@pytest.mark.parametrize("kind", ["bin", "csv", "csv without header", "arrays"])
def test_pairs_come_in_the_files_order_and_each_image_once(tmp_path: Path, kind: str) -> None:
    path = {
        "bin": lambda: write_bin(tmp_path / "lfw.bin"),
        "csv": lambda: write_csv(tmp_path / "pairs.csv"),
        "csv without header": lambda: write_csv(tmp_path / "pairs.csv", header=""),
        "arrays": lambda: write_arrays(tmp_path / "arrays", "pairs.npy"),
    }[kind]()
    images = open_set(path)
    assert seen_pairs(images) == WANTED
    assert images.count == (24 if kind == "arrays" else len({i for a, b, _ in PAIRS for i in (a, b)}))
    assert images.name == path.stem
    assert len(images.sha256) == 64


@pytest.mark.parametrize(
    ("name", "folder", "suffix"),
    [("pairs.txt", "lfw", ".jpg"), ("lfw/pairs.txt", ".", ".png"), ("pairs.txt", "a b", ".JPG")],
)
def test_lfws_own_list_is_read_where_it_lies(tmp_path: Path, name: str, folder: str, suffix: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "other" / "Bo").mkdir(parents=True)  # not the folder of the first name
    images = open_set(write_lfw(path, folder, suffix))
    assert sorted(seen_pairs(images)) == sorted(WANTED)
    for words in ("1\t12", "12", "12\n\n", "12\t"):
        write_lfw(path, folder, suffix, head=f"{words}\n")
        assert sorted(seen_pairs(open_set(path))) == sorted(WANTED)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b" \r\n\r\n"))  # as an editor on Windows may
    assert sorted(seen_pairs(open_set(path))) == sorted(WANTED)


def test_a_second_folder_of_the_photographs_is_not_passed_over(tmp_path: Path) -> None:
    """Such as aligned ones beside the originals: which of them is measured is no matter of the alphabet."""
    path = write_lfw(tmp_path / "pairs.txt")
    (tmp_path / "aligned" / "Ann_Lee").mkdir(parents=True)
    with pytest.raises(WrongUse, match=r"both .*aligned and .*lfw have a folder Ann_Lee; put pairs\.txt into the one"):
        open_set(path)
    assert sorted(seen_pairs(open_set(path.rename(tmp_path / "lfw" / "pairs.txt")))) == sorted(WANTED)


def test_photographs_that_are_no_aligned_faces_are_noted(tmp_path: Path) -> None:
    path = write_lfw(tmp_path / "pairs.txt")
    assert open_set(path).notes == ()
    for file in tmp_path.glob("lfw/*/*"):
        Image.new("RGB", (250, 200)).save(file, "PNG")
    (note,) = open_set(path).notes
    assert "250 x 200, are scaled and no face is searched" in note
    assert f"source=pairs align=auto path={path}" in note
    next(tmp_path.glob("lfw/Ann_Lee/Ann_Lee_0001*")).write_bytes(b"")
    assert open_set(path).notes == ()  # the file is named when it is decoded


def test_the_folds_of_lfws_list_are_its_own(tmp_path: Path) -> None:
    """Ten sets in a row, each with its pairs of one person first."""
    (tmp_path / "lfw" / "A").mkdir(parents=True)
    (tmp_path / "lfw" / "B").mkdir()
    for number, face in enumerate(FACES[:4], 1):
        for person in "AB":
            (tmp_path / "lfw" / person / f"{person}_{number:04}.jpg").write_bytes(encoded(face))
    (tmp_path / "pairs.txt").write_text("10 3\n" + 10 * ("A 1 2\nA 1 3\nA 2 3\n" + "A 1 B 2\nA 1 B 3\nA 4 B 4\n"))
    protocol = open_set(tmp_path / "pairs.txt").protocol
    assert isinstance(protocol, PairList)
    assert protocol.fold.tolist() == [place // 6 for place in range(60)]
    assert protocol.same.tolist() == 10 * [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it must begin with the numbers of folds and of pairs, such as 10 300"),
        ("Ann_Lee 1 2\n", "it must begin with the numbers of folds and of pairs"),
        ("2 6\nAnn_Lee 1 2\n", "has 1 pairs, and its first line says 24; get the file again"),
        ("1\nAnn_Lee 1 2\nAnn_Lee x Bo 2\n", "line 3 of .* is 'Ann_Lee x Bo 2'; it must be such as Name 1 4"),
        ("1\nAnn_Lee 1 2\nAnn_Lee 1 Bo 2 3\n", "line 3 of .* it must be such as Name 1 4"),
        ("1\nAnn_Lee 1 99\nAnn_Lee 1 Bo 6\n", "line 2 of .* names photograph 99 of Ann_Lee, and there is no .*_0099"),
        ("1\nAnn_Lee 1 2\nAnn_Lee 1 Cy 1\n", "line 3 of .* names photograph 1 of Cy"),
        ("1\nNobody 1 2\nAnn_Lee 1 Bo 6\n", "there is no folder Nobody in .* or a folder of it; put pairs.txt beside"),
        ("1\n../lfw 1 2\nAnn_Lee 1 Bo 6\n", "names photograph 1 of ../lfw, and there is no"),
        (f"1\n{'A' * 300} 1 2\nAnn_Lee 1 Bo 6\n", "line 2 of .* and there is no folder AAA"),
        (f"1\nAnn_Lee 1 2\n{'A' * 300} 1 Bo 6\n", "line 3 of .* names photograph 1 of AAA"),
        (b"\xff\xfe1\x00", "is not text in UTF-8"),
    ],
)
def test_a_wrong_line_of_lfws_list_is_named(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    path = write_lfw(tmp_path / "pairs.txt")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WrongUse, match=sentence):
        open_set(path)


@pytest.mark.parametrize("kind", ["bin", "csv"])
def test_photographs_of_a_set_are_upright_however_the_camera_was_held(kind: str, tmp_path: Path) -> None:
    turned = [oriented_jpeg(np.ascontiguousarray(STORED[way](FACES[way])), way) for way in range(1, 9)]
    same = [True, False] * 12
    pairs = [(a, (a + step) % 8) for step in (1, 2, 3) for a in range(8)]
    if kind == "bin":
        path = tmp_path / "a.bin"
        path.write_bytes(pickle.dumps(([turned[i] for pair in pairs for i in pair], same)))
    else:
        path = tmp_path / "a.csv"
        for number, file in enumerate(turned):
            (tmp_path / f"{number}.jpg").write_bytes(file)
        path.write_text("".join(f"{a}.jpg,{b}.jpg,{int(s)}\n" for (a, b), s in zip(pairs, same, strict=True)))
    read = all_of(open_set(path)).astype(int)
    order = list(dict.fromkeys(i for pair in pairs for i in pair))
    apart = [np.abs(face - FACES[1 + number]).mean() for face, number in zip(read, order, strict=True)]
    wrong = np.abs(np.rot90(FACES[1]).astype(int) - FACES[1]).mean()
    assert max(apart) < wrong / 3


def test_labels_ask_for_all_pairs(tmp_path: Path) -> None:
    images = open_set(write_arrays(tmp_path / "people", "labels.npy"))
    assert isinstance(images.protocol, People)
    assert images.protocol.pairs == 24 * 23 // 2
    assert np.array_equal(all_of(images), FACES)


def test_ijb_faces_are_cut_out_upright(tmp_path: Path) -> None:
    images = open_set(write_ijb(tmp_path / "IJBC", FACES))
    assert (images.name, images.count, images.protocol.pairs) == ("IJBC", 24, 66)
    assert isinstance(images.protocol, Templates)
    assert images.protocol.pooled.template.tolist() == [n // 2 + 1 for n in range(24)]
    assert images.protocol.pooled.detector_score[:2] == pytest.approx([0.90, 0.91])
    assert (images.protocol.left[0], images.protocol.right[0]) == (0, 1)
    # The landmarks put doubled pixels half a pixel away from their centres.
    apart = np.abs(all_of(images).astype(int) - FACES)[:, 2:-2, 2:-2]
    assert np.median(apart) <= 16
    assert np.abs(all_of(images)[0].astype(int) - FACES[1])[2:-2, 2:-2].mean() > apart[0].mean()


def test_the_similarity_is_found_and_never_a_mirror_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        angle, scale, shift = rng.uniform(-3, 3), rng.uniform(0.3, 3), rng.uniform(-50, 50, 2)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        source = rng.uniform(0, 100, (5, 2))
        assert np.allclose(similarity(source, source @ turn.T + shift), np.column_stack([turn, shift]))
        found = similarity(source, source[:, ::-1] + rng.normal(0, 5, (5, 2)))
        assert np.linalg.det(found[:, :2]) > 0
        target = rng.uniform(0, 100, (5, 2))
        best = np.square(source @ (m := similarity(source, target))[:, :2].T + m[:, 2] - target).sum()
        for _ in range(20):  # least squares: no similarity nearby is better
            a, b, c, d = np.array([m[0, 0], m[1, 0], m[0, 2], m[1, 2]]) + rng.normal(0, 0.05, 4)
            other = source @ np.array([[a, -b], [b, a]]).T + [c, d]
            assert np.square(other - target).sum() >= best


def test_a_face_already_in_place_stays_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(FACES[0]).save(tmp_path / "face.png")
    for shift_x, shift_y in ((0, 0), (3, -2)):
        found = aligned(tmp_path / "face.png", TEMPLATE + np.array([shift_x, shift_y])).astype(int)
        wanted = FACES[0][4 + shift_y : 108 + shift_y, 4 + shift_x : 108 + shift_x]
        assert np.abs(found[4:108, 4:108] - wanted).max() <= 1  # because values are rounded down


def broken_csv(tmp_path: Path, text: str) -> Path:
    path = write_csv(tmp_path / "pairs.csv")
    path.write_bytes(text.encode("latin1"))
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("img1,img2,label\nfaces/0.png,faces/1.png,1\nfaces/0.png,faces/nobody.png,0\n", "row 3 .* faces/nobody.png"),
        ("faces/0.png,faces/1.png,1\n" * 12, "too few pairs of two people: 0"),
        ("img1,img2,label\n", "has no pairs"),
        ("", "has no pairs"),
        ("faces/0.png,faces/1.png,1\nfaces/0.png,faces/2.png,maybe\n", "row 2 .*maybe"),
        ("faces/0.png,faces/1.png,maybe\nfaces/0.png,faces/2.png,1\n", "row 1 .*maybe"),
        ("faces/0.png;faces/1.png;1\n", "must be img1,img2,label"),
        ("faces/\xe9.png,faces/1.png,1\n", "not CSV text in UTF-8"),
    ],
)
def test_what_is_wrong_with_a_csv_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(WrongUse, match=sentence) as told:
        open_set(broken_csv(tmp_path, text))
    assert "\n" not in str(told.value)


def spoil_arrays(folder: Path, name: str, content: np.ndarray) -> Path:
    write_arrays(folder, "pairs.npy" if name == "pairs.npy" else "labels.npy")
    np.save(folder / name, content)
    return folder


def test_what_is_wrong_with_arrays_is_told(tmp_path: Path) -> None:
    for number, (name, content, sentence) in enumerate(
        [
            ("pairs.npy", np.array([[0, 24, 1]]), "rows 0 to 23"),
            ("pairs.npy", np.zeros((0, 3), int), "has no pairs"),
            ("pairs.npy", np.zeros((3, 2), int), r"int of shape \[P, 3\]"),
            ("pairs.npy", np.array([[0, 1, 1]] * 20), "too few pairs of two people: 0"),
            ("labels.npy", np.zeros(24, int), "fewer than 10 pairs"),
            ("labels.npy", np.arange(24), "fewer than 10 pairs"),
            ("labels.npy", np.arange(24) - 1, "without a label"),
            ("labels.npy", np.arange(23), "23 labels for 24 images"),
        ]
    ):
        with pytest.raises(WrongUse, match=sentence):
            open_set(spoil_arrays(tmp_path / str(number), name, content))


def test_what_is_no_set_is_told(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text("nothing")
    (tmp_path / "alone").mkdir()
    np.save(tmp_path / "alone" / "images.npy", FACES)
    for path, sentence in (
        ("nowhere.bin", "there is no set"),
        ("set.json", "is not a verification set"),
        ("alone", "put pairs.npy or"),
    ):
        with pytest.raises(WrongUse, match=sentence):
            open_set(tmp_path / path)


def test_what_is_wrong_with_ijb_is_told(tmp_path: Path) -> None:
    folder = write_ijb(tmp_path / "IJBC", FACES)
    for name, old, new, sentence in (
        ("face_tid_mid", "2.png 1 1\n", "", "do not list the same images"),
        ("face_tid_mid", "2.png 1 1\n", "2.png 1\n", "line 2 of .* has 2 words"),
        ("face_tid_mid", "2.png 1 1\n", "2.png one 1\n", "word where a number"),
        ("template_pair_label", "1 2 1\n", "1 77 1\n", "names template 77"),
        ("template_pair_label", "1 2 1\n", "1 2 5\n", "lines of template, template, 1 or 0"),
        ("template_pair_label", "1 2 1\n", "1 2 one\n", "not three whole numbers"),
    ):
        file = folder / "meta" / f"ijbc_{name}.txt"
        whole = file.read_text()
        file.write_text(whole.replace(old, new, 1))
        with pytest.raises(WrongUse, match=sentence):
            open_set(folder)
        file.write_text(whole)
    (folder / "meta" / "ijbc_name_5pts_score.txt").unlink()
    with pytest.raises(WrongUse, match="must hold one list such as ijbc_name_5pts_score"):
        open_set(folder)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    files, same = pickle.loads(write_bin(tmp_path / "a.bin").read_bytes())  # noqa: S301 - our own
    files[5] = files[5][:40]
    (tmp_path / "a.bin").write_bytes(pickle.dumps((files, same)))
    folder = write_ijb(tmp_path / "IJBC", FACES)
    (folder / "loose_crop" / "7.png").unlink()
    csv_set = open_set(write_csv(tmp_path / "pairs.csv"))
    (tmp_path / "faces" / "1.png").write_bytes(b"no image")
    for images, sentence in (
        (open_set(tmp_path / "a.bin"), r"image 5 of .*a\.bin"),
        (open_set(folder), r"line 7 of .*7\.png"),
        (csv_set, r"1\.png is not a readable image"),
    ):
        with pytest.raises(WrongUse, match=sentence):
            all_of(images)
