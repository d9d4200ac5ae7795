"""python -m app.mine: pseudo-IDs from a checkpoint, with a report and a picture, also with several processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import mine
from app.mining.gate import bcubed_f, pair_f
from app.runtime.dist import World
from tests.app.support.planted import planted
from tests.app.support.training import PROJECT, run
from tests.support.forks import run_training


@pytest.fixture(scope="module")
def trained(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("trained")
    run(small_data, folder, World(0, 1, torch.device("cpu")))
    return folder / "checkpoints" / "epoch_002.pt"


def test_it_leaves_ids_a_report_and_a_picture_in_the_runs_folder(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mine.main([f"checkpoint={trained}"]) == 0
    out = trained.parents[1] / "mining" / "epoch_002"
    ids = np.load(out / "pseudo_ids.npy")
    assert (ids.dtype, ids.shape) == (np.int32, (48,))
    assert (ids[32:] == -1).all()  # held out
    assert (ids[:32] >= 0).any()
    report = json.loads((out / "report.json").read_text())
    assert (report["checkpoint"], report["count"]) == ("epoch_002.pt", len(set(ids[ids >= 0].tolist())))
    with Image.open(out / "clusters.png") as picture:
        assert picture.width > 100
    said = capsys.readouterr().out
    assert str(out) in said
    assert f"{report['count']} pseudo-IDs" in said


def test_settings_can_be_changed_and_the_outcome_put_elsewhere(trained: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={trained}", f"out={tmp_path / 'here'}", "mining.method=parity", "mining.similarity=0.9"]
    assert mine.main(words) == 0
    assert json.loads((tmp_path / "here" / "report.json").read_text())["floor"] == 0.9


@pytest.mark.slow
def test_three_processes_find_what_one_finds(trained: Path, tmp_path: Path) -> None:
    assert mine.main([f"checkpoint={trained}", f"out={tmp_path / 'one'}"]) == 0
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "-m", "app.mine"]
    words = [f"checkpoint={trained}", f"out={tmp_path / 'three'}"]
    done = run_training([*command, *words], PROJECT, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pseudo-IDs") == 1
    one, three = (np.load(tmp_path / name / "pseudo_ids.npy") for name in ("one", "three"))
    assert np.array_equal(one, three)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "checkpoint=…"),
        (["checkpoint=/nowhere/checkpoints/epoch_001.pt"], "no checkpoint /nowhere"),
        (["chekpoint={trained}"], "did you mean checkpoint?"),
        (["checkpoint={trained}", "mining.methd=parity"], "mining.method"),
        (["checkpoint={trained}", "backbone=iresnet18"], "cannot change what was trained"),
        (["checkpoint={trained}", "data.binary_cache_path=/nowhere.npy"], "no file /nowhere.npy"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    words: list[str], answer: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mine.main([word.format(trained=trained) for word in words]) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.count("\n") == 1


def test_embeddings_of_anybody_are_clustered_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank, labels = planted([30] * 20 + [1] * 50, 64, 0.6)
    np.save(tmp_path / "x.npy", 3 * bank)  # rows need not have length 1
    np.save(tmp_path / "y.npy", labels.astype(np.int64) + 2**40)
    words = [f"embeddings={tmp_path / 'x.npy'}", f"labels={tmp_path / 'y.npy'}", f"out={tmp_path / 'out'}"]
    assert mine.main(words) == 0
    ids = np.load(tmp_path / "out" / "pseudo_ids.npy").astype(np.int64)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pair_f"] == pair_f(ids, labels) > 0.95
    assert report["bcubed_f"] == bcubed_f(ids, labels) > 0.95
    assert report["floor"] < 1
    assert f"BCubed F {report['bcubed_f']:.3f}" in capsys.readouterr().out


def test_labels_below_0_are_of_nobody(tmp_path: Path) -> None:
    bank, labels = planted([30] * 20 + [1] * 50, 64, 0.6)
    labels[::3] = -1
    known = labels >= 0
    np.save(tmp_path / "x.npy", bank)
    np.save(tmp_path / "y.npy", labels.astype(np.int64))
    words = [f"embeddings={tmp_path / 'x.npy'}", f"labels={tmp_path / 'y.npy'}", f"out={tmp_path / 'out'}"]
    assert mine.main(words) == 0
    ids = np.load(tmp_path / "out" / "pseudo_ids.npy").astype(np.int64)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pair_f"] == pair_f(ids[known], labels[known]) > 0.95
    assert report["bcubed_f"] == bcubed_f(ids[known], labels[known]) > 0.95


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_order_and_the_length_of_embeddings_change_nothing(factor: float, tmp_path: Path) -> None:
    bank = planted([20] * 10, 32, 0.5)[0]
    np.save(tmp_path / "x.npy", bank)
    np.save(tmp_path / "other.npy", np.asfortranarray(bank * np.float32(factor)))
    for name in ("x", "other"):
        assert mine.main([f"embeddings={tmp_path / name}.npy", f"out={tmp_path / name}"]) == 0
    ids, others = (np.load(tmp_path / name / "pseudo_ids.npy") for name in ("x", "other"))
    assert (ids >= 0).mean() > 0.9
    assert np.array_equal(ids, others)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("embeddings=x.npy", "out=… is missing"),
        ("embeddings=none.npy out=o", "cannot be read"),
        ("embeddings=empty.npy out=o", "it is not a complete .npy file"),
        ("embeddings=y.npy out=o", "floats [N, D]"),
        ("embeddings=x.npy labels=x.npy out=o", "integers [N]"),
        ("embeddings=x.npy labels=y.npy out=o", "4 rows"),
    ],
)
def test_wrong_arrays_get_a_sentence_and_leave_nothing(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.eye(5, dtype=np.float32))
    np.save("y.npy", np.arange(4))
    Path("empty.npy").touch()
    assert mine.main(words.split()) == 2
    assert said in capsys.readouterr().err
    assert not Path("o").exists()
