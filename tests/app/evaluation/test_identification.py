"""Identification in a gallery: by hand, against a search in loops, and by the command from folders of people."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app import evaluate, prepare
from app.config import load
from app.errors import WrongUse
from app.evaluation.gallery import open_gallery, split
from app.evaluation.identification import FPIRS, Identification, curve, search
from app.evaluation.sets import open_set
from app.models import build_backbone
from app.runtime.dist import World
from tests.app.conftest import faces

NETWORK = ["backbone=iresnet18", "backbone.layers=[1,1]", "backbone.width=8", "backbone.embedding_dim=32",
           "backbone.image_size=32"]  # fmt: skip


def at_angles(*degrees: float) -> np.ndarray:
    """Embeddings [N, 2] on a circle; lengths differ, as they must not matter."""
    turned = np.deg2rad(np.array(degrees))
    return (np.stack([np.cos(turned), np.sin(turned)], 1) * np.arange(1, len(degrees) + 1)[:, None]).astype(np.float32)


def test_a_case_by_hand(alone: World) -> None:
    """Three people at 0, 90 and 180 degrees; the first has two images, at -10 and 10."""
    gallery = at_angles(-10, 10, 90, 180)
    probes = at_angles(20, 60, 100, 80, 140, 45)
    # Probes of the people:  0: 20 and 60 (nearer to 90: rank 2).  1: 100.  2: 80 (rank 3).  Strangers: 140, 45.
    person = np.array([0, 0, 1, 2, 0, 0, 1, 2, 8, 9])
    in_gallery = np.arange(10) < 4
    embeddings = np.concatenate([gallery / np.linalg.norm(gallery, axis=1, keepdims=True), probes]).astype(np.float32)
    found = search(embeddings, person, in_gallery)
    assert found.rank.tolist() == [1, 2, 1, 3]
    assert found.of_mates == pytest.approx(np.cos(np.deg2rad([20, 60, 10, 100])), abs=1e-6)
    assert found.of_strangers == pytest.approx(np.cos(np.deg2rad([40, 45])), abs=1e-6)
    thresholds, fpir, tpir = curve(found)
    # From the highest score down: 10 degrees finds its person, 20 too, then the strangers at 40 and 45 are accepted.
    assert thresholds[1:] == pytest.approx(np.cos(np.deg2rad([10, 20, 40, 45])), abs=1e-6)
    assert fpir.tolist() == [0, 0, 0, 0.5, 1]
    assert tpir.tolist() == [0, 0.25, 0.5, 0.5, 0.5]
    protocol = Identification(person, in_gallery)
    outcome = protocol.judge(embeddings, alone)
    assert outcome is not None
    assert dict(outcome.numbers) == {
        "rank1": 0.5, "rank5": 1.0, "rank10": 1.0,
        "tpir_at_fpir_1e-3": None, "tpir_at_fpir_1e-2": None, "tpir_at_fpir_1e-1": None,
    }  # fmt: skip
    assert protocol.too_few() == {"tpir_at_fpir_1e-3": 1000, "tpir_at_fpir_1e-2": 100, "tpir_at_fpir_1e-1": 10}
    assert outcome.thresholds == {}


def brute_force(embeddings: np.ndarray, person: np.ndarray, in_gallery: np.ndarray) -> dict[str, float]:
    """Rank and rates by the definitions alone: one loop over probes, one over thresholds."""
    unit = [row / math.sqrt(sum(float(v) ** 2 for v in row)) for row in embeddings.astype(np.float64)]
    templates: dict[int, np.ndarray] = {}
    for name in sorted({*person[in_gallery].tolist()}):
        mean = sum(unit[i] for i in range(len(unit)) if in_gallery[i] and person[i] == name)
        templates[name] = mean / np.linalg.norm(mean)
    mated, strangers = [], []
    for i in np.flatnonzero(~in_gallery).tolist():
        scores = {name: float(unit[i] @ template) for name, template in templates.items()}
        name = int(person[i])
        if name not in scores:
            strangers.append(max(scores.values()))
        else:
            others = [score for other, score in scores.items() if other != name]
            mated.append((1 + sum(score >= scores[name] for score in others), scores[name]))
    told = {f"rank{k}": sum(rank <= k for rank, _ in mated) / len(mated) for k in (1, 5, 10)}
    for exponent in (3, 2, 1):
        candidates = sorted({*strangers, *(score for rank, score in mated if rank == 1)})
        allowed = [t for t in candidates if sum(s >= t for s in strangers) * 10**exponent <= len(strangers)]
        if len(strangers) >= 10**exponent and allowed:
            told[f"tpir_at_fpir_1e-{exponent}"] = sum(r == 1 and s >= allowed[0] for r, s in mated) / len(mated)
            told[f"threshold_1e-{exponent}"] = allowed[0]
    return told


@pytest.mark.parametrize(("seed", "strangers", "noise"), [(0, 1000, 0.5), (1, 310, 0.9), (2, 99, 1.3), (3, 10, 0.7)])
def test_the_measures_are_those_of_a_search_by_loops(seed: int, strangers: int, noise: float, alone: World) -> None:
    rng = np.random.default_rng(seed)
    known, enrolled, probes = 20, 2, 8
    centres = rng.normal(size=(known + strangers, 12))
    person = np.concatenate([np.repeat(np.arange(known), enrolled + probes), known + np.arange(strangers)])
    in_gallery = np.concatenate([np.tile(np.arange(enrolled + probes) < enrolled, known), np.zeros(strangers, bool)])
    embeddings = (centres[person] + noise * rng.normal(size=(len(person), 12))).astype(np.float32)
    shuffled = rng.permutation(len(person))
    person, in_gallery, embeddings = person[shuffled], in_gallery[shuffled], embeddings[shuffled]
    expected = brute_force(embeddings, person, in_gallery)
    outcome = Identification(person, in_gallery).judge(embeddings, alone)
    assert outcome is not None
    shown = [name for name in outcome.numbers if outcome.numbers[name] is not None]
    assert shown == [name for name in expected if not name.startswith("threshold")]
    assert [outcome.numbers[name] for name in shown] == pytest.approx([expected[name] for name in shown])
    for name, threshold in outcome.thresholds.items():
        assert threshold.cosine == pytest.approx(expected[name.replace("fpir", "threshold")], abs=1e-9)
    assert len(outcome.thresholds) == sum(strangers >= round(1 / fpir) for fpir in FPIRS)


def test_a_network_that_gives_the_same_for_all_finds_nobody(alone: World) -> None:
    person = np.array([0, 1, 2, *range(3), *range(10, 30)])
    outcome = Identification(person, np.arange(len(person)) < 3).judge(np.ones((len(person), 4), np.float32), alone)
    assert outcome is not None
    assert (outcome.numbers["rank1"], outcome.numbers["tpir_at_fpir_1e-1"]) == (0, 0)
    assert outcome.thresholds == {}


def test_half_of_the_people_are_enrolled_with_one_image_always_the_same() -> None:
    person = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5])  # person 2 has one image
    chosen = split(person)
    assert chosen is not None
    again, other = split(person), split(person, seed=1)
    assert again is not None
    assert other is not None
    assert np.array_equal(chosen, again)
    assert not np.array_equal(chosen, other)
    enrolled = person[chosen]
    assert len(enrolled) == len({*enrolled.tolist()}) == 3  # of the five people with two images
    assert 2 not in enrolled
    assert split(np.array([0, 0, 1, 2])) is None


def people_at(root: Path, images: dict[str, list[np.ndarray]]) -> Path:
    for name, pictures in images.items():
        (root / name).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A set with gallery/ and probes/: four people in both, twelve only in probes/, one only in gallery/."""
    drawn = faces(people=17, each=3).reshape(17, 3, 112, 112, 3)
    root = tmp_path / "office"
    people_at(root / "gallery", {f"p{i:02}": [drawn[i, 0]] for i in (0, 1, 2, 3, 16)})
    people_at(root / "probes", {f"p{i:02}": [*drawn[i, 1:]] for i in range(16)})
    (root / "probes" / "p00" / "._0.png").write_bytes(b"a Mac's notes")
    (root / "probes" / "p00" / "notes.txt").write_text("notes")
    torch.manual_seed(3)
    torch.save(build_backbone(load(NETWORK).backbone).state_dict(), tmp_path / "weights.pt")
    return root


def measured(root: Path, out: Path, *words: str) -> dict[str, Any]:
    assert evaluate.main([f"weights={root.parent / 'weights.pt'}", f"out={out}", *NETWORK, *words]) == 0
    document: dict[str, Any] = json.loads((out / "eval.json").read_text())
    return document


def test_the_command_measures_two_folders_of_people(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one set, as two folders, and prepared: always the same numbers."""
    one = measured(two, tmp_path / "a", f"sets={two}")
    told = capsys.readouterr().out
    assert "office-1N: rank-1 identification" in told
    assert "; TPIR " in told
    assert " % at FPIR 1e-1" in told
    assert "1 file left out: 1 .txt" in told
    assert "office-1N: TPIR n/a at FPIR 1e-3 (1,000), 1e-2 (100); in brackets how many probes of people" in told
    assert "(FPIR 1e-1)" in told
    about = one["sets"]["office-1N"]
    assert {key: about[key] for key in about if "pe" in key} == {
        "gallery_people": 5, "probes_of_gallery_people": 8, "probes_of_other_people": 24,
        "probes_of_other_people_needed": {"tpir_at_fpir_1e-3": 1000, "tpir_at_fpir_1e-2": 100},
    }  # fmt: skip
    numbers = one["weights"][0]["sets"]["office-1N"]
    assert numbers["rank1"] <= numbers["rank5"] <= numbers["rank10"] == 1.0
    assert numbers["tpir_at_fpir_1e-1"] <= numbers["rank1"]
    assert set(numbers["thresholds"]) == {"fpir_1e-1"}
    with Image.open(tmp_path / "a" / "tpir_office-1N.png") as picture:
        assert picture.size == (760, 560)
    sides = [f"{side}={two / side}" for side in ("gallery", "probes")]
    assert measured(two, tmp_path / "b", *sides)["weights"][0]["sets"]["office-1N"] == numbers
    for side in ("gallery", "probes"):
        words = ["source=folder", f"path={two / side}", f"out={tmp_path / 'data' / side / 'images.npy'}"]
        assert prepare.main(words) == 0
    sides = [f"{side}={tmp_path / 'data' / side}" for side in ("gallery", "probes")]
    assert measured(two, tmp_path / "c", *sides)["weights"][0]["sets"]["data-1N"] == numbers


def test_a_gallery_alone_is_split(two: Path, tmp_path: Path) -> None:
    document = measured(two, tmp_path / "out", f"gallery={two / 'probes'}")
    about = document["sets"]["probes-1N"]
    assert (about["gallery_people"], about["gallery_images"], about["images"]) == (8, 8, 32)
    assert (about["probes_of_gallery_people"], about["probes_of_other_people"]) == (8, 16)


def test_probes_of_gallery_people_alone_give_ranks_without_rates(two: Path, tmp_path: Path) -> None:
    for number in range(4, 16):
        shutil.rmtree(two / "probes" / f"p{number:02}")
    numbers = measured(two, tmp_path / "out", f"sets={two}")["weights"][0]["sets"]["office-1N"]
    assert numbers["rank1"] is not None
    assert numbers["tpir_at_fpir_1e-1"] is None
    assert not [*(tmp_path / "out").glob("*.png")]


def test_a_file_in_both_is_told(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(two / "gallery" / "p01" / "0.png", two / "probes" / "p01" / "again.png")
    measured(two, tmp_path / "out", f"sets={two}")
    assert "1 of the files are in both gallery and probes, so they find themselves" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="Windows and macOS take such names for one")
@pytest.mark.parametrize(("one", "other"), [("Anna", "anna"), ("M\u00fcller", "Mu\u0308ller")])
def test_names_that_another_system_takes_for_one_are_told(two: Path, one: str, other: str) -> None:
    assert not any("different people" in note for note in open_gallery(two / "gallery", two / "probes").notes)
    (two / "gallery" / "p00").rename(two / "gallery" / one)
    (two / "probes" / "p00").rename(two / "probes" / other)
    notes = open_gallery(two / "gallery", two / "probes").notes
    first, second = sorted((one, other))
    assert f"{first!a} and {second!a} count as different people" in notes[-1]
    (two / "probes" / one).mkdir()
    for number in (0, 1):
        shutil.copy(two / "probes" / other / f"{number}.png", two / "probes" / one)
    assert f"{first!a} and {second!a} count as different people" in open_gallery(two / "probes", None).notes[-1]


def test_a_set_that_cannot_be_searched_is_refused_in_one_sentence(two: Path, tmp_path: Path) -> None:
    gallery, probes = two / "gallery", two / "probes"
    strangers = people_at(tmp_path / "strangers", {"x": [faces(1, 1)[0]]})
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    np.save(numbers / "images.npy", faces(2, 2))
    cases = {
        "gallery and probes are both": (gallery, gallery),
        "no person of .*strangers is in .*gallery; a person needs the same name in both": (gallery, strangers),
        "there is no .*nowhere; give a folder with one sub-folder": (gallery, tmp_path / "nowhere"),
        "is not a folder of people": (gallery, tmp_path / "weights.pt"),
        "fewer than two people with two images": (gallery, None),
        "has no labels.npy, so its people are unknown": (gallery, numbers),
    }
    for sentence, (one, other) in cases.items():
        with pytest.raises(WrongUse, match=sentence):
            open_gallery(one, other)
    np.save(numbers / "labels.npy", np.array([0, 0, 1, 1]))
    with pytest.raises(WrongUse, match=r"has no people\.csv, so its labels cannot be matched with names"):
        open_gallery(gallery, numbers)
    (numbers / "people.csv").write_text("label,person,images\n0,p00,2\n")
    with pytest.raises(WrongUse, match="has no line for the label 1"):
        open_gallery(gallery, numbers)
    for damaged in ("a,b\n0,p00\n", "label,person\n0,p00\n1\n", f"label,person\n0,{'p' * 200_000}\n1,p01\n",
                    "label,person\n0,p00\n1,p01\n0,p01\n"):  # fmt: skip
        (numbers / "people.csv").write_text(damaged)
        with pytest.raises(WrongUse, match=r"is not as app\.prepare wrote it"):
            open_gallery(gallery, numbers)
    (numbers / "people.csv").write_text("label,person\n0,p00\n1,p01\n", encoding="utf-8-sig")  # as Excel saves it
    assert open_gallery(gallery, numbers)
    with pytest.raises(WrongUse, match="with gallery/ and probes/"):
        open_set(tmp_path)
    with pytest.raises(WrongUse, match="needs a gallery to be searched in; add gallery=DIR"):
        evaluate.decide([f"weights={two.parent / 'weights.pt'}", f"probes={probes}", *NETWORK])
