"""The search (1:N) of IJB-B and IJB-C: against loops by the published definitions, and from files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from app import evaluate
from app.config import load
from app.errors import WrongUse
from app.evaluation.gallery import open_gallery
from app.evaluation.identification import Listed, TemplateSearch
from app.evaluation.protocols import Pooled
from app.models import build_backbone
from app.runtime.dist import World
from tests.app.conftest import faces
from tests.app.evaluation.test_identification import NETWORK, brute_force
from tests.app.evaluation.test_measures import reference_templates
from tests.app.support.ijb import write_ijb, write_search

PEOPLE, PROBES_EACH = 80, 5


def test_it_is_the_published_protocol(alone: World) -> None:
    """Ranks in both galleries together; TPIR as the mean over the galleries, strangers being the other one's people."""
    rng = np.random.default_rng(4)
    person = np.tile(np.arange(PEOPLE), 1 + PROBES_EACH)  # of each template: first the galleries, then the probes
    template = np.repeat(rng.permutation(900)[: len(person)], 3)
    media, score = rng.integers(0, 2, len(template)), rng.random(len(template)).astype(np.float32)
    centre = rng.normal(size=(PEOPLE, 16))
    x = (np.repeat(centre[person], 3, axis=0) + 0.7 * rng.normal(size=(len(template), 16))).astype(np.float32)
    ascending = np.argsort(template[::3])
    place = np.empty(len(person), np.int64)
    place[ascending] = np.arange(len(person))
    first, second, probes = np.split(np.arange(len(person)), [PEOPLE // 2, PEOPLE])
    protocol = TemplateSearch(
        Pooled(template, media, score),
        (Listed(place[first], person[first]), Listed(place[second], person[second])),
        Listed(place[probes], person[probes]),
    )
    outcome = protocol.judge(x, alone)
    assert outcome is not None

    pooled = reference_templates(x * score[:, None], template, media)[place]
    closed = brute_force(pooled, person, np.arange(len(person)) < PEOPLE)
    alone_in = []
    for gallery in (first, second):
        rows = np.concatenate([gallery, probes])
        alone_in.append(brute_force(pooled[rows], person[rows], np.arange(len(rows)) < len(gallery)))
    for k in (1, 5, 10):
        assert outcome.numbers[f"rank{k}"] == closed[f"rank{k}"]
    assert outcome.numbers["tpir_at_fpir_1e-3"] is None  # 200 probes of other people
    for exponent in (1, 2):
        name = f"tpir_at_fpir_1e-{exponent}"
        assert outcome.numbers[name] == pytest.approx(np.mean([each[name] for each in alone_in]))
        highest = max(each[f"threshold_1e-{exponent}"] for each in alone_in)
        assert outcome.thresholds[f"fpir_1e-{exponent}"].cosine == pytest.approx(highest, abs=1e-6)
    assert 0.3 < outcome.numbers["tpir_at_fpir_1e-2"] < outcome.numbers["rank1"] < 1
    assert protocol.facts() == {
        "pairs": 400 * 80, "galleries": 2, "gallery_people": 80, "gallery_templates": 80,
        "probes_of_gallery_people": 400, "probes_of_other_people": 200,
    }  # fmt: skip


def test_one_gallery_leaves_no_strangers(alone: World) -> None:
    rng = np.random.default_rng(5)
    pooled = Pooled(np.arange(8), np.zeros(8, np.int64), np.ones(8, np.float32))
    side = [Listed(np.arange(4) + start, np.arange(4)) for start in (0, 4)]
    outcome = TemplateSearch(pooled, (side[0],), side[1]).judge(rng.normal(size=(8, 3)).astype(np.float32), alone)
    assert outcome is not None
    assert outcome.numbers["rank5"] == 1
    assert outcome.numbers["tpir_at_fpir_1e-1"] is None


def test_the_command_searches_an_ijb_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_search(write_ijb(tmp_path / "IJBC", faces(6, 4)))
    torch.save(build_backbone(load(NETWORK).backbone).state_dict(), tmp_path / "weights.pt")
    words = [f"weights={tmp_path / 'weights.pt'}", *NETWORK, f"gallery={folder}", f"out={tmp_path / 'out'}"]
    assert evaluate.main(words) == 0
    assert "IJBC-1N: rank-1 identification" in capsys.readouterr().out
    [weights] = json.loads((tmp_path / "out" / "eval.json").read_text())["weights"]
    numbers = weights["sets"]["IJBC-1N"]
    assert 0 < numbers["rank1"] <= numbers["rank5"] <= numbers["rank10"] == 1  # of six people
    assert evaluate.main([*words, f"probes={tmp_path}"]) == 2
    assert "has its own lists of galleries and probes; leave probes=" in capsys.readouterr().err


def test_lists_that_do_not_fit_are_told(tmp_path: Path) -> None:
    folder = write_search(write_ijb(tmp_path / "IJBC", faces(6, 4)))
    for file in list((folder / "meta").iterdir()):
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")  # as macOS does on a disk without attributes
    images = open_gallery(folder, None)
    assert (images.name, images.count, images.protocol.pairs) == ("IJBC-1N", 24, 36)
    for name, old, new, sentence in (
        (
            "gallery_G1",
            "1,0,img/1",
            "x,0,img/1",
            "line 2 of .* must begin with the numbers of a template",
        ),
        ("gallery_G1", "1,0,img/2", "1,4,img/2", "gives template 1 to two people, 0 and 4"),
        ("gallery_G2", "7,3,", "77,3,", "names template 77, which has no image"),
        ("probe_mixed", "2,0,", "2", "line 2 of"),
    ):
        file = folder / "meta" / f"ijbc_1N_{name}.csv"
        whole = file.read_text()
        file.write_text(whole.replace(old, new))
        with pytest.raises(WrongUse, match=sentence):
            open_gallery(folder, None)
        file.write_text(whole)
    probes = folder / "meta" / "ijbc_1N_probe_mixed.csv"
    probes.write_text("TEMPLATE_ID,SUBJECT_ID\n2,99\n")
    with pytest.raises(WrongUse, match=r"no person of .* is in ijbc_1N_gallery_G1.csv"):
        open_gallery(folder, None)
    probes.write_text("TEMPLATE_ID,SUBJECT_ID\n")
    with pytest.raises(WrongUse, match="is empty"):
        open_gallery(folder, None)
    probes.unlink()
    with pytest.raises(WrongUse, match=r"it has 2 and 0"):
        open_gallery(folder, None)
