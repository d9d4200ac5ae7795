"""Held-out people are divided: some choose the checkpoint, the result is of the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from app import evaluate, prepare, train
from app.config import load
from app.data.dataset import open_configured
from app.data.sources.source import Source
from app.errors import WrongUse
from app.evaluation.evaluator import Meter
from app.evaluation.sets import held_out
from app.evaluation.validation import choosing, held_out_people, in_fixed_order
from app.evaluation.verification import all_pairs, verification_accuracy
from app.mining.embed import embed
from app.models.embedder import Embedder
from app.recipes.self_supervised import SelfSupervised
from app.runtime.checkpoint import sha256
from app.runtime.dist import World
from app.runtime.resume import told_by
from tests.app.conftest import faces
from tests.app.support.training import TINY, events, run

EACH = 4


def labels(people: int, each: int = EACH) -> np.ndarray:
    return np.repeat(np.arange(people, dtype=np.int32) * 7 + 3, each)


@pytest.fixture(scope="module")
def many_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images.npy with 27 people, 4 images each; the last 23 are held out."""
    images = faces(people=27, each=EACH)
    made = Source("many", len(images), lambda a, b: images[a:b], labels(27), held_out=23 * EACH, block_rows=EACH)
    out = tmp_path_factory.mktemp("many") / "images.npy"
    prepare.prepare(made, out)
    return out


@pytest.mark.parametrize(
    ("people", "each", "asked", "choose"),
    [
        (10, 4, "auto", None),  # as the held-out people of ORL
        (19, 4, "auto", None),
        (20, 4, "auto", 10),
        (23, 4, "auto", 11),
        (40, 1, "auto", None),  # no pair of one person
        (40, 4, "none", None),
        (10, 4, "0.5", 5),
        (40, 4, "0.25", 10),
        (40, 4, "0.9", 36),
    ],
)
def test_people_are_divided_by_person(people: int, each: int, asked: str, choose: int | None) -> None:
    of = labels(people, each)
    found = choosing(of, asked)
    if choose is None:
        assert found is None
        return
    assert found is not None
    chosen, left = set(of[found].tolist()), set(of[~found].tolist())
    assert (len(chosen), len(left)) == (choose, people - choose)
    assert not chosen & left
    assert np.array_equal(found, choosing(of, asked))
    shuffled = np.random.default_rng(0).permutation(len(of))
    assert np.array_equal(choosing(of[shuffled], asked), found[shuffled])  # the order of the images is no matter


def test_the_order_of_two_people_does_not_depend_on_the_others() -> None:
    few, more = in_fixed_order(labels(12)).tolist(), in_fixed_order(labels(40)).tolist()
    assert [person for person in more if person in few] == few
    assert few != sorted(few)


@pytest.mark.parametrize(
    ("people", "asked", "words"),
    [
        (10, "0.95", r"validation=0\.95 takes 10 of 10 held-out people, .* measure the others; give 0\.5, or none$"),
        (10, "0.1", r"validation=0\.1 takes 1 of 10 held-out people, .* measure them; give 0\.5, or none$"),
        (3, "0.5", "give none$"),
    ],
)
def test_a_share_that_leaves_too_few_pairs_is_refused(people: int, asked: str, words: str) -> None:
    with pytest.raises(WrongUse, match=words):
        choosing(labels(people), asked)


@pytest.mark.parametrize("value", ["half", "0", "1", "-0.5", "1.5", "nan", "true"])
def test_another_value_is_refused_with_those_that_work(value: str) -> None:
    with pytest.raises(WrongUse, match=r"^train\.eval\.validation=\S+ is not known; give auto, none, .* 0\.5"):
        load([f"train.eval.validation={value}"])


def test_held_out_images_without_a_label_are_not_one_person(many_people: Path, tmp_path: Path) -> None:
    config = load([f"data.binary_cache_path={many_people}"])
    whole = open_configured(config.data)
    assert whole.labels is not None
    unknown = whole.held_out_rows[1::5]
    told = np.array(whole.labels)
    told[unknown] = -1
    np.save(tmp_path / "labels.npy", told)
    config.data.labels_path = str(tmp_path / "labels.npy")
    found = held_out_people(open_configured(config.data), config.train.eval)
    assert found.rows.tolist() == np.setdiff1d(whole.held_out_rows, unknown).tolist()
    assert found.labels is not None
    assert (found.labels >= 0).all()
    assert held_out(config).count == len(found.result)


def test_a_share_that_does_not_fit_the_data_writes_nothing(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'run'}", "train.eval.validation=0.1"]
    assert train.main(words) == 2
    assert "train.eval.validation=0.1 takes 0 of 4 held-out people" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_each_part_is_measured_by_itself(many_people: Path, alone: World) -> None:
    """Embedded together, then as if only one part's images existed."""
    config = load([*TINY, f"data.binary_cache_path={many_people}"])
    data = open_configured(config.data)
    recipe = SelfSupervised(config, data, alone)
    recipe.calibrate()
    meter = Meter(config, data, recipe.embedder, alone, lambda: False)
    measured = meter.measure()
    assert measured is not None
    of = held_out_people(data, config.train.eval)
    assert of.people() == (11, 12)
    assert of.labels is not None
    assert of.validation is not None
    network = Embedder(recipe.embedder, config.backbone.image_size, flip=True)
    for part, key in ((of.result, "accuracy"), (of.validation, "validation_accuracy")):
        alike = embed(
            network, data.images, of.rows[part], alone,
            batch_size=config.train.eval.batch_size, embedding_dim=config.backbone.embedding_dim,
        )  # fmt: skip
        wanted, _ = verification_accuracy(alike.cpu().numpy(), all_pairs(of.labels[part]))
        assert measured[key] == pytest.approx(wanted, abs=0.01)


def test_few_people_are_measured_as_before(small_data: Path, alone: World) -> None:
    config = load([*TINY, f"data.binary_cache_path={small_data}"])
    data = open_configured(config.data)
    recipe = SelfSupervised(config, data, alone)
    measured = Meter(config, data, recipe.embedder, alone, lambda: False).measure()
    assert measured is not None
    assert set(measured) == {"accuracy", "accuracy_std", "rank1"}
    assert held_out(config).count == 16


def test_a_run_says_who_chooses_and_evaluate_measures_the_others(
    many_people: Path, tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    told = run(many_people, folder, alone, "train.epochs=2", "train.eval.every_epochs=1")
    start = next(event for event in told if event["event"] == "start")
    assert start["notes"] == ["11 held-out people choose the best checkpoint, the result is of 12 others"]
    measured = [event for event in told if event["event"] == "eval"]
    assert [event["what"] for event in measured] == ["pixels", "untrained", "trained", "trained"]
    assert all(0 < event["validation_accuracy"] <= 1 for event in measured)
    note = json.loads((folder / "checkpoints" / "epoch_001.json").read_text())
    assert note["eval"]["validation_accuracy"] == measured[-1]["validation_accuracy"]
    assert note["facts"]["validation"] == "auto"
    assert json.loads((folder / "verification.json").read_text())["people"] == 12

    def evaluated(name: str) -> tuple[str, dict]:
        out = tmp_path / name
        assert evaluate.main([f"weights={folder}/checkpoints/epoch_001.pt", f"out={out}"]) == 0
        (set_name, numbers), = json.loads((out / "eval.json").read_text())["weights"][0]["sets"].items()  # fmt: skip
        return set_name, numbers

    name, numbers = evaluated("divided")
    assert name == f"{many_people.parent.name}-held-out-result"
    assert numbers["accuracy"] == pytest.approx(measured[-1]["accuracy"], abs=0.01)
    assert "the people of the result, 12 of 23; the others chose the best checkpoint" in capsys.readouterr().out

    # The run of an older version: no division was made, so all people are its result.
    text = (folder / "config.yaml").read_text()
    assert "    validation: auto\n" in text
    (folder / "config.yaml").write_text(text.replace("    validation: auto\n", ""))
    assert evaluated("older")[0] == f"{many_people.parent.name}-held-out"


def test_an_older_checkpoint_continues_and_says_who_chooses_now(
    many_people: Path, tmp_path: Path, alone: World
) -> None:
    folder = tmp_path / "run"
    run(many_people, folder, alone, "train.epochs=2", "train.eval.validation=none", stop_at=3)
    newest = max((folder / "checkpoints").glob("*.pt"))
    content, note = torch.load(newest, weights_only=True), json.loads(newest.with_suffix(".json").read_text())
    for facts in (content["facts"], note["facts"]):  # an older version records neither
        assert facts.pop("validation") == "none"
    torch.save(content, newest)
    newest.with_suffix(".json").write_text(json.dumps({**note, "sha256": sha256(newest)}))
    assert told_by(note)["validation"] == "none"
    shutil.copytree(folder, tmp_path / "same")
    told = run(many_people, folder, alone, "train.epochs=2", "train.resume=auto")
    start = [event for event in told if event["event"] == "start"][-1]
    assert start["resumed_from"]
    assert start["notes"] == [
        "train.eval.validation auto, was none",
        "11 held-out people choose the best checkpoint, the result is of 12 others",
    ]
    assert "validation_accuracy" in [event for event in told if event["event"] == "eval"][-1]
    same = ["train.epochs=2", "train.resume=auto", "train.eval.validation=none"]
    run(many_people, tmp_path / "same", alone, *same)
    assert [event for event in events(tmp_path / "same") if event["event"] == "start"][-1]["notes"] == []
