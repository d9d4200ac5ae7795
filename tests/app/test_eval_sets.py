"""Sets evaluated during training: events and checkpoints have the numbers that app.evaluate gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app import evaluate
from app.config import load
from app.errors import WrongUse
from app.evaluation.while_training import NamedSets
from app.models import build_backbone
from app.runtime.dist import World
from app.runtime.stop import Interrupted, Stop
from tests.app.conftest import faces
from tests.app.support.training import run


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in a folder whose name needs quotes."""
    folder = tmp_path_factory.mktemp("sets") / "it's a set"
    folder.mkdir()
    np.save(folder / "images.npy", faces(people=8, each=4, seed=7))
    np.save(folder / "labels.npy", np.repeat(np.arange(8, dtype=np.int32), 4))
    return folder


def test_a_set_is_measured_with_the_epochs_as_evaluate_measures_it(
    small_data: Path, sets: Path, tmp_path: Path, alone: World
) -> None:
    told = run(small_data, tmp_path / "run", alone, "train.eval.every_epochs=1", f"train.eval.sets={sets}")
    of_set = [event for event in told if event["event"] == "eval" and event["what"] == "sets/it's a set"]
    assert [event["epoch"] for event in of_set] == [0, 1, 2]
    note = json.loads((tmp_path / "run" / "checkpoints" / "epoch_002.json").read_text())
    assert note["eval"]["sets"]["it's a set"]["accuracy"] == of_set[-1]["accuracy"]
    assert note["eval"]["accuracy"] is not None  # the held-out people are still measured
    given = [f"weights={tmp_path}/run/checkpoints/epoch_002.pt", f"sets={sets}", f"out={tmp_path}/eval"]
    assert evaluate.main(given) == 0
    (row,) = json.loads((tmp_path / "eval" / "eval.json").read_text())["weights"]
    assert row["sets"]["it's a set"]["accuracy"] == pytest.approx(of_set[-1]["accuracy"], abs=1e-6)
    assert row["sets"]["it's a set"]["thresholds"]["ten_folds"]["cosine"] == pytest.approx(
        of_set[-1]["threshold"], abs=1e-5
    )


def test_a_set_is_measured_every_so_many_steps(small_data: Path, sets: Path, tmp_path: Path, alone: World) -> None:
    words = ("train.epochs=1", f"train.eval.sets={sets}", "train.eval.every_steps=2")
    told = run(small_data, tmp_path / "run", alone, *words)
    measured = [event["step"] for event in told if event["event"] == "eval" and event["what"].startswith("sets/")]
    assert measured[:2] == [2, 4]


def test_a_resumed_run_measures_at_the_next_multiple(
    small_data: Path, sets: Path, tmp_path: Path, alone: World
) -> None:
    words = ("train.epochs=2", f"train.eval.sets={sets}", "train.eval.every_steps=3", "train.eval.every_epochs=9")
    told = run(small_data, tmp_path / "run", alone, *words, stop_at=4)
    told = run(small_data, tmp_path / "run", alone, *words, "train.resume=auto")[len(told) :]
    measured = [event["step"] for event in told if event["event"] == "eval" and event["what"].startswith("sets/")]
    assert measured == [6, 8]  # 8: the end


def test_the_step_of_a_measurement_is_that_of_its_weights(
    small_data: Path, sets: Path, tmp_path: Path, alone: World
) -> None:
    """Without a line of the log at that step, the next update is launched before the host knows the one before it."""
    words = (f"train.eval.sets={sets}", "train.eval.every_steps=2", "train.eval.every_epochs=9")
    told = run(small_data, tmp_path / "run", alone, *words, "train.epochs=1", "train.log_every_steps=99")
    of_sets = [event for event in told if event["event"] == "eval" and event["what"].startswith("sets/")]
    run(small_data, tmp_path / "stopped", alone, "train.epochs=1", stop_at=of_sets[0]["step"])
    (weights,) = (tmp_path / "stopped" / "checkpoints").glob("*.pt")
    assert evaluate.main([f"weights={weights}", f"sets={sets}", f"out={tmp_path}/eval"]) == 0
    (row,) = json.loads((tmp_path / "eval" / "eval.json").read_text())["weights"]
    measured = row["sets"]["it's a set"]["thresholds"]["ten_folds"]["cosine"]
    assert measured == pytest.approx(of_sets[0]["threshold"], abs=1e-5)


def test_a_run_that_is_measured_on_nothing_says_so(tmp_path: Path, alone: World) -> None:
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "images.npy", faces(people=8, each=4, seed=7))
    told = run(tmp_path / "data" / "images.npy", tmp_path / "run", alone, "train.epochs=1")
    (start,) = [event for event in told if event["event"] == "start"]
    assert any("nothing is measured" in note for note in start["notes"])


def test_a_set_that_is_missing_ends_the_run_before_it_begins(small_data: Path, tmp_path: Path, alone: World) -> None:
    with pytest.raises(WrongUse, match=r"there is no set .*lfw\.bin"):
        run(small_data, tmp_path / "run", alone, f"train.eval.sets={tmp_path}/lfw.bin")


def test_a_stop_is_heard_while_measuring(sets: Path, alone: World) -> None:
    config = load(["backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", f"train.eval.sets={sets}"])
    stop = Stop()
    stop.asked.set()
    with pytest.raises(Interrupted):
        NamedSets(config, build_backbone(config.backbone), alone).measure(0, stop)


@pytest.mark.parametrize(
    ("word", "paths"),
    [
        ("train.eval.sets=lfw.bin,a b/pairs.csv", ["lfw.bin", "a b/pairs.csv"]),
        ("train.eval.sets=[lfw.bin,pairs.csv]", ["lfw.bin", "pairs.csv"]),
        ("train.eval.sets=it's.bin", ["it's.bin"]),
    ],
)
def test_sets_are_given_as_to_evaluate(word: str, paths: list[str]) -> None:
    assert load([word]).train.eval.sets == paths
