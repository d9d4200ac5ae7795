"""The supervised recipe learns labels of any kind, and a resumed run equals one that never stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from app.config import DataConfig, load
from app.data.dataset import open_dataset, with_classes
from app.errors import WrongUse
from app.models import build_backbone
from app.models.partial_fc import PartialFC
from app.recipes import Supervised
from app.recipes.update import batches, update
from app.runtime import checkpoint
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.optimizer import build_optimizer
from app.runtime.weights import load_backbone
from app.train import main
from tests.app.support.training import TINY, assert_equal_bits, run, train_by_changing_processes

SUPERVISED = ["recipe=supervised", "recipe.head.scale=16", "recipe.head.margin=0.2", "train.epochs=3"]


def tables(folder: Path, name: str = "epoch_002.pt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["tables"]


def test_it_learns_to_tell_the_people_apart(small_data: Path, tmp_path: Path, alone: World) -> None:
    seen = run(small_data, tmp_path, alone, *SUPERVISED, "train.epochs=12", "train.optimizer.lr=0.1")
    losses = [e["loss"] for e in seen if e["event"] == "epoch"]
    assert losses[-1] < 0.5 * losses[0]
    assert not [e for e in seen if e["event"] == "mining"]
    assert seen[-1]["reason"] == "done"
    centres = tables(tmp_path, "epoch_011.pt")["weight"]
    assert centres.shape == (8, 32)  # 4 of 12 people are held out


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_room_for_the_class_centres_is_asked_for_at_the_start(
    optimizer: str, small_data: Path, tmp_path: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million classes take most of a checkpoint: the first one after hours must not be what finds the disk full."""
    words = [*SUPERVISED, f"train.optimizer.name={optimizer}", f"data.binary_cache_path={small_data}"]
    config = load([*TINY, *words])
    recipe = Supervised(config, Supervised.training_data(config), alone)
    assert recipe.table_bytes() == sum(table.nbytes for table in recipe.tables().values()) > 0
    parts = [PartialFC(1000, 32, config.recipe.head, config.train.optimizer, here, seed=0)
             for here in (alone, World(2, 3, alone.device))]  # fmt: skip
    assert parts[0].table_bytes() == parts[1].table_bytes()
    trained = build_optimizer(config.train.optimizer, recipe.param_groups())
    free = 2 * checkpoint.estimated_bytes(recipe.modules, trained) + recipe.table_bytes()  # for the tables of one
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(WrongUse, match="two checkpoints: "):
        run(small_data, tmp_path, alone, *words)


WAYS = {
    "sgd": [],
    "sampled": ["recipe.head.sample_rate=0.4"],
    "dense": ["recipe.head.sample_rate=0.4", "recipe.head.update=dense", "train.optimizer.decay_all=true"],
    "adamw with running mean": ["train.optimizer.name=adamw", "train.optimizer.lr=0.001", "recipe.ema=0.9"],
    "adaface, accumulated": ["recipe.head.name=adaface", "recipe.head.margin=null", "train.batch.grad_accum_steps=2"],
    "curricularface": ["recipe.head.name=curricularface", "recipe.head.margin=null"],
}


@pytest.mark.parametrize("way", WAYS)
def test_stopped_and_resumed_equals_never_stopped(way: str, small_data: Path, tmp_path: Path, alone: World) -> None:
    words = [*SUPERVISED, *WAYS[way]]
    run(small_data, tmp_path / "whole", alone, *words)
    middle = 3 if "accumulated" in way else 6
    stopped = run(small_data, tmp_path / "cut", alone, *words, stop_at=middle)
    assert stopped[-1]["reason"] == "stopped"
    run(small_data, tmp_path / "cut", alone, *words, "train.resume=auto")
    final = Path("checkpoints") / "epoch_002.pt"
    assert_equal_bits(tmp_path / "whole" / final, tmp_path / "cut" / final)
    whole, cut = tables(tmp_path / "whole"), tables(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_what_is_evaluated_is_the_running_mean_and_is_what_other_commands_load(
    small_data: Path, tmp_path: Path, alone: World
) -> None:
    run(small_data, tmp_path, alone, *SUPERVISED, "recipe.ema=0.9")
    path = tmp_path / "checkpoints" / "epoch_002.pt"
    modules = torch.load(path, weights_only=True)["modules"]
    assert not torch.equal(modules["embedder.fc.weight"], modules["backbone.fc.weight"])
    config = load([*TINY, *SUPERVISED])
    backbone = build_backbone(config.backbone)
    load_backbone(path, backbone)
    assert torch.equal(backbone.fc.weight, modules["embedder.fc.weight"])


def frozen_bn(recipe: Supervised) -> None:
    """Make BN use its running averages, because a big batch has other statistics than four small ones."""
    for module in recipe.backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train = lambda *_, module=module: module
            module.training = False


def one_update(data_path: Path, alone: World, *words: str) -> dict[str, torch.Tensor]:
    """The state and the metrics after one update of 32 images."""
    config = load(
        [
            *TINY,
            *SUPERVISED,
            "train.precision=fp32",
            "recipe.augment.flip=0",
            f"data.binary_cache_path={data_path}",
            *words,
        ]
    )
    data = Supervised.training_data(config)
    recipe = Supervised(config, data, alone)
    frozen_bn(recipe)
    optimizer = build_optimizer(config.train.optimizer, recipe.param_groups())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    micro_batches = batches(config, recipe, data, checkpoint.TrainState(), alone)
    updated = update(config, recipe, optimizer, scaler, micro_batches, 0.1, alone)
    assert updated.verdict().taken
    return {**recipe.modules.state_dict(), **recipe.tables(), **updated.metrics}


FOUR = ["train.batch.size=8", "train.batch.grad_accum_steps=4"]


@pytest.mark.parametrize("head", ["arcface", "magface"])
def test_an_accumulated_batch_equals_one_big_batch(head: str, small_data: Path, alone: World) -> None:
    words = [f"recipe.head.name={head}", "recipe.head.margin=null"]
    one = one_update(small_data, alone, *words, "train.batch.size=32")
    four = one_update(small_data, alone, *words, *FOUR)
    for name, value in one.items():
        if name == "head.calls":
            continue
        torch.testing.assert_close(
            four[name], value, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_as_published_accumulated_losses_are_added(small_data: Path, alone: World) -> None:
    mean = one_update(small_data, alone, *FOUR)
    added = one_update(small_data, alone, *FOUR, "train.batch.parity_sum=true")
    torch.testing.assert_close(added["grad_norm"], 4 * mean["grad_norm"])
    torch.testing.assert_close(added["loss"], mean["loss"])


def test_centres_of_the_same_classes_can_be_kept_when_classes_are_added(
    small_data: Path, tmp_path: Path, alone: World
) -> None:
    labels = np.load(small_data.with_name("labels.npy"))
    few = np.where(labels < 5, labels, -1).astype(np.int32)
    np.save(tmp_path / "few.npy", few)
    run(small_data, tmp_path / "few", alone, *SUPERVISED, f"data.train_labels_path={tmp_path / 'few.npy'}")
    first = tmp_path / "few" / "checkpoints" / "epoch_002.pt"
    config = load(
        [
            *TINY,
            *SUPERVISED,
            f"data.binary_cache_path={small_data}",
            "recipe.head.warm_start=true",
            f"train.warm_start={first}",
        ]
    )
    recipe = Supervised(config, Supervised.training_data(config), alone)
    fresh = recipe.tables()["weight"]
    recipe.warm_start(first)
    kept = recipe.tables()["weight"]
    assert torch.equal(kept[:5], tables(tmp_path / "few")["weight"])
    assert torch.equal(kept[5:], fresh[5:])
    # The label decides, not the number of its class: the first person is left out here.
    np.save(tmp_path / "later.npy", np.where(labels > 0, labels, -1).astype(np.int32))
    config.data.train_labels_path = str(tmp_path / "later.npy")
    recipe = Supervised(config, Supervised.training_data(config), alone)
    recipe.warm_start(first)
    assert torch.equal(recipe.tables()["weight"][:4], tables(tmp_path / "few")["weight"][1:])
    with pytest.raises(WrongUse, match="was trained with other labels"):
        run(small_data, tmp_path / "more", alone, *SUPERVISED, f"train.resume={first}")


def test_other_labels_are_refused_though_there_are_as_many(small_data: Path, tmp_path: Path, alone: World) -> None:
    run(small_data, tmp_path / "one", alone, *SUPERVISED, "train.epochs=1")
    labels = np.load(small_data.with_name("labels.npy"))
    np.save(tmp_path / "other.npy", labels + 100)
    with pytest.raises(WrongUse, match="other labels"):
        run(
            small_data, tmp_path / "two", alone, *SUPERVISED, f"data.train_labels_path={tmp_path / 'other.npy'}",
            f"train.resume={tmp_path / 'one' / 'checkpoints' / 'epoch_000.pt'}",
        )  # fmt: skip


def test_a_folder_of_another_run_is_refused_and_what_was_just_written_is_never_removed(
    small_data: Path, tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(small_data, folder, alone, *SUPERVISED, "train.epochs=2")
    words = [*TINY, *SUPERVISED, f"data.binary_cache_path={small_data}", f"run.dir={folder}"]
    assert main(words) == 2
    assert "train.resume=auto" in capsys.readouterr().err
    first = folder / "checkpoints" / "epoch_000.pt"
    checkpoint.prune(RunFolder(folder), keep=1, spare=first)
    assert first.is_file()


def test_images_without_a_label_are_left_out_and_labels_of_any_kind_are_numbered(small_data: Path) -> None:
    data = open_dataset(small_data, labels_path=None, fraction=1.0, block_rows=8)
    found = with_classes(data, DataConfig())
    assert found.classes is not None
    assert found.classes[:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (found.classes[data.held_out_rows] == -1).all()
    odd = np.full(48, -1, np.int32)
    odd[4:12], odd[20], odd[40:] = 70, 9, 5  # the last are held out
    path = small_data.with_name("odd.npy")
    np.save(path, odd)
    found = with_classes(data, DataConfig(train_labels_path=str(path)))
    assert found.classes is not None
    assert found.train_rows.tolist() == [*range(4, 12), 20]
    assert found.classes[found.train_rows].tolist() == [1] * 8 + [0]
    assert found.labels is data.labels


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe.head.name=arcfase"], "did you mean arcface"),
        (["recipe.head.sample_rate=-0.1"], "from 0 to 1"),
        (["recipe.head.update=sparse"], "lazy, dense"),
        (["recipe.ema=1"], "below 1"),
        (["recipe.head.margins=[1,2]"], "three numbers"),
        (["data.train_labels_path=nowhere.npy"], "there is no file nowhere.npy"),
        (["recipe=self_supervised", "data.train_labels_path=x.npy"], "recipe=supervised"),
        (["recipe=self_supervised", "recipe.head.name=adaface"], "recipe=supervised"),
        (["recipe.head.name=cosface", "recipe.head.margins=[1,0,0.4]"], "recipe.head.name=combined"),
        (["recipe.head.name=combined", "recipe.head.margin=0.3"], "recipe.head.margins"),
        (["recipe.head.margin=28.6"], "radians"),
        (["recipe.head.margin=nan"], "from 0 to 1.57 (radians, not degrees), such as 0.4"),
        (["recipe.head.name=sphereface", "recipe.head.margin=0.5"], "from 1 to 4 (a factor of the angle)"),
        (["recipe.head.name=sphereface", "recipe.head.margin=nan"], "from 1 to 4 (a factor of the angle), such as 1.7"),
        (["recipe.head.filter_above=nan"], "not a cosine; give one such as 0.4, or null"),
        (["recipe.head.warm_start=true"], "train.warm_start=PATH"),
        (["train.optimizer.momentum=0"], "nesterov=false"),
        (["train.optimizer.weight_decay=-1"], "from 0 on"),
        (["train.lr_schedule.warmup.start_lr=-1"], "from 0 on"),
        (["backbone.dropout=2"], "below 1"),
        (["backbone.layers=[1,0]"], "one to four numbers"),
        (["train.seed=-1"], "too small"),
        (["train.warm_start=nowhere.pt"], "is not a file"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: list[str], said: str, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'run'}"]
    assert main([*TINY, "recipe=supervised", *place, *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_data_without_labels_is_refused(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare.npy"
    bare.write_bytes(small_data.read_bytes())
    assert main(["recipe=supervised", f"data.binary_cache_path={bare}"]) == 2
    assert "data.train_labels_path" in capsys.readouterr().err
    np.save(tmp_path / "one.npy", np.zeros(48, np.int32))
    words = [f"data.binary_cache_path={bare}", f"data.train_labels_path={tmp_path / 'one.npy'}"]
    assert main(["recipe=supervised", *words]) == 2
    assert "at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_number_of_processes_may_change(small_data: Path, tmp_path: Path) -> None:
    """2, then 1, then 3 processes train; each process holds another part of the centres."""
    folder = tmp_path / "run"
    words = [*SUPERVISED, "recipe.head.sample_rate=0.5"]
    train_by_changing_processes(small_data, folder, *words, stop_at=(5, 14))
    assert tables(folder)["weight"].shape == (8, 32)
