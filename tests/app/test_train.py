"""Training learns and leaves a complete run folder; a run that is stopped and resumed equals one never stopped."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app import train
from app.config import AugmentConfig, load
from app.data.augment import Augment
from app.data.dataset import Dataset, epoch_order, open_configured
from app.errors import WrongUse
from app.recipes import RECIPES, Batch, SelfSupervised
from app.recipes.update import batches
from app.runtime import checkpoint
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.stop import Stop
from app.runtime.track import JsonLines, Tracker
from tests.app.support.training import (
    TINY,
    assert_equal_bits,
    events,
    launch,
    reached,
    run,
    tensors,
    train_by_changing_processes,
    wait_for,
)
from tests.support.load import under_load


@pytest.fixture(scope="module")
def undisturbed(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(small_data, folder, World(0, 1, torch.device("cpu")))
    return folder


def test_a_run_leaves_a_whole_folder(undisturbed: Path) -> None:
    seen = events(undisturbed)
    assert [e["event"] for e in seen if e["event"] in ("start", "end")] == ["start", "end"]
    assert [e["what"] for e in seen if e["event"] == "eval"] == ["pixels", "untrained", "trained"]
    assert seen[-1]["reason"] == "done"
    steps = [e for e in seen if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(1, 13))
    assert all(math.isfinite(e["loss"]) and e["images_per_s"] > 0 for e in steps)
    names = sorted(file.name for file in (undisturbed / "checkpoints").iterdir())
    assert names == [*(f"epoch_00{i}.{kind}" for i in range(3) for kind in ("json", "pt")), "latest"]
    assert (undisturbed / "checkpoints" / "latest").read_text() == "epoch_002.pt"
    described = json.loads((undisturbed / "checkpoints" / "epoch_002.json").read_text())
    assert described["sha256"] == checkpoint.sha256(undisturbed / "checkpoints" / "epoch_002.pt")
    assert (described["epoch"], described["step"], described["fraction"]) == (2, 12, 1.0)
    assert described["eval"]["accuracy"] == seen[-3]["accuracy"]
    assert "binary_cache_path" in (undisturbed / "config.yaml").read_text()


def test_the_loss_falls_and_pseudo_ids_are_found(small_data: Path, tmp_path: Path, alone: World) -> None:
    seen = run(small_data, tmp_path, alone, "train.epochs=8", "recipe.moco.queue_size=8")
    losses = [e["loss"] for e in seen if e["event"] == "epoch"]
    assert losses[-1] < 0.8 * max(losses)
    mined = [e for e in seen if e["event"] == "mining" and e["accepted"]]
    assert mined
    assert mined[-1]["purity"] > 0.9


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6, 11])
def test_stopped_at_any_step_and_resumed_equals_never_stopped(
    stop_at: int, undisturbed: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    stopped = run(small_data, tmp_path, alone, stop_at=stop_at)
    assert (stopped[-1]["event"], stopped[-1]["reason"], stopped[-1]["step"]) == ("end", "stopped", stop_at)
    resumed = run(small_data, tmp_path, alone, "train.resume=auto")[len(stopped) :]
    start = next(e for e in resumed if e["event"] == "start")
    assert (start["step"], start["epoch"]) == (stop_at, stop_at // 4)
    assert resumed[-1]["reason"] == "done"
    assert_equal_bits(undisturbed / "checkpoints" / "epoch_002.pt", tmp_path / "checkpoints" / "epoch_002.pt")


def test_a_stop_between_two_epochs_leaves_the_checkpoint_of_the_epoch_alone(
    undisturbed: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    run(small_data, tmp_path, alone, stop_at=4)
    saved = tmp_path / "checkpoints" / "epoch_000.pt"
    before = saved.stat().st_mtime_ns
    config = load([*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path}", "train.resume=auto"])
    config.train.precision = "fp32"
    stop, track = Stop(), Tracker([JsonLines(RunFolder(tmp_path))])
    stop.asked.set()  # for example while the pseudo-IDs of the next epoch are mined
    train.train(config, open_configured(config.data), RunFolder(tmp_path), alone, track, stop)
    track.close()
    assert events(tmp_path)[-1]["reason"] == "stopped"
    assert saved.stat().st_mtime_ns == before
    run(small_data, tmp_path, alone, "train.resume=auto")
    assert_equal_bits(undisturbed / "checkpoints" / "epoch_002.pt", tmp_path / "checkpoints" / "epoch_002.pt")


def test_an_epoch_that_ends_with_skipped_updates_is_saved(small_data: Path, tmp_path: Path, alone: World) -> None:
    run(small_data, tmp_path, alone, "train.epochs=1", stop_at=3)
    # fp16 searches its scale: the one update that is left overflows, so the epoch ends at the step of its beginning.
    seen = run(small_data, tmp_path, alone, "train.epochs=1", "train.resume=auto", "train.precision=fp16")
    assert [e["step"] for e in seen if e["event"] == "skipped"] == [3]
    assert (seen[-1]["reason"], seen[-1]["step"]) == ("done", 3)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "epoch_000.pt"
    assert checkpoint.newest(RunFolder(tmp_path)) == tmp_path / "checkpoints" / "epoch_000.pt"


def test_a_checkpoint_before_the_newest_of_its_folder_is_continued_in_another(
    small_data: Path, tmp_path: Path, alone: World
) -> None:
    """In the same folder, a restart with `auto` would continue the newest one, which the user went back behind."""
    one, other = tmp_path / "one", tmp_path / "other"
    run(small_data, one, alone)
    first = one / "checkpoints" / "epoch_000.pt"
    before = events(one)
    with pytest.raises(WrongUse, match=r"before epoch_002\.pt, .* give another run\.dir, or train\.resume=auto"):
        run(small_data, one, alone, f"train.resume={first}")
    assert [e["event"] for e in events(one)[len(before) :]] == []
    seen = run(small_data, other, alone, f"train.resume={first}", stop_at=6)
    assert seen[-1]["reason"] == "stopped"
    seen = run(small_data, other, alone, "train.resume=auto")[len(seen) :]
    assert next(e for e in seen if e["event"] == "start")["resumed_from"] == "epoch_001_step_00000006.pt"


def test_accumulated_micro_batches_make_one_update(small_data: Path, tmp_path: Path, alone: World) -> None:
    seen = run(small_data, tmp_path, alone, "train.batch.size=4", "train.batch.grad_accum_steps=2", "train.epochs=1")
    start = next(e for e in seen if e["event"] == "start")
    assert (start["steps_per_epoch"], start["global_batch"]) == (4, 8)
    assert seen[-1]["step"] == 4


def test_a_fraction_trains_on_fewer_images_and_says_so(small_data: Path, tmp_path: Path, alone: World) -> None:
    seen = run(small_data, tmp_path, alone, "data.data_fraction=0.5", "train.epochs=1")
    assert next(e for e in seen if e["event"] == "start")["train_rows"] == 16
    assert json.loads((tmp_path / "checkpoints" / "epoch_000.json").read_text())["fraction"] == 0.5


def test_data_without_labels_is_trained_on_and_not_measured(small_data: Path, tmp_path: Path, alone: World) -> None:
    (tmp_path / "data").mkdir()
    bare = tmp_path / "data" / "images.npy"
    bare.write_bytes(small_data.read_bytes())
    seen = run(bare, tmp_path / "run", alone, "train.epochs=2")
    assert not [e for e in seen if e["event"] == "eval"]
    assert all(e["purity"] is None for e in seen if e["event"] == "mining")
    assert json.loads((tmp_path / "run" / "checkpoints" / "epoch_001.json").read_text())["eval"] is None


def test_only_the_newest_checkpoints_are_kept(small_data: Path, tmp_path: Path, alone: World) -> None:
    run(small_data, tmp_path, alone, "train.checkpoint.keep=2", "train.eval.every_epochs=9")
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pt")) == ["epoch_001.pt", "epoch_002.pt"]


def test_a_checkpoint_of_another_network_is_refused_before_training(
    undisturbed: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    saved = undisturbed / "checkpoints" / "epoch_002.pt"
    with pytest.raises(WrongUse, match=r"epoch_002\.pt does not fit.*backbone\.width=8, here it is 16"):
        run(small_data, tmp_path, alone, "backbone.width=16", f"train.resume={saved}")
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_a_corrupt_checkpoint_is_refused_and_auto_passes_over_it(
    undisturbed: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    for file in (undisturbed / "checkpoints").iterdir():
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "checkpoints" / "epoch_002.pt"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(WrongUse, match=r"epoch_002\.pt is corrupt"):
        checkpoint.read(broken)
    broken.with_suffix(".json").unlink()
    with pytest.raises(WrongUse, match=r"epoch_002\.pt is corrupt"):
        checkpoint.read(broken)
    seen = run(small_data, tmp_path, alone, "train.resume=auto")
    assert next(e for e in seen if e["event"] == "start")["resumed_from"] == "epoch_001.pt"
    assert_equal_bits(undisturbed / "checkpoints" / "epoch_002.pt", broken)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"state": Evil(), "modules": {}, "optimizer": {}, "scaler": {}}, tmp_path / "evil.pt")
    with pytest.raises(WrongUse, match="could run code when they are loaded"):
        checkpoint.read(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_stays_not_finite_ends_the_run_and_names_the_last_checkpoint(
    small_data: Path, tmp_path: Path
) -> None:
    words = [*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path}", "train.optimizer.lr=1e30"]
    assert train.main([*words, "train.optimizer.clip_grad_norm=1e30", "train.max_nonfinite_steps=3"]) == 1
    seen = events(tmp_path)
    assert [e["in_a_row"] for e in seen if e["event"] == "skipped"][-3:] == [1, 2, 3]
    assert (seen[-1]["event"], seen[-1]["reason"]) == ("end", "failed")
    assert "3 times in a row" in seen[-1]["message"]
    assert "train.optimizer.lr" in seen[-1]["message"]
    assert seen[-1]["message"].endswith("; there is no checkpoint yet")


def test_fp16_searches_its_scale_longer_than_an_epoch_of_few_updates(small_data: Path, tmp_path: Path) -> None:
    """Such epochs come from a small part of the data, as in a trial before the whole run."""
    words = [*TINY, "recipe=supervised", f"data.binary_cache_path={small_data}", f"run.dir={tmp_path}"]
    words += ["train.precision=fp16", "train.batch.size=16", "recipe.head.scale=1e3", "train.epochs=8"]
    assert train.main(words) == 0
    seen = events(tmp_path)
    assert len([e for e in seen if e["event"] == "skipped" and e["epoch"] == 0]) == 2, "the whole epoch"
    assert seen[-1]["step"] > 0
    assert checkpoint.newest(RunFolder(tmp_path)) == tmp_path / "checkpoints" / "epoch_007.pt"


def test_an_epoch_without_a_step_is_a_failure_and_leaves_no_checkpoint(small_data: Path, tmp_path: Path) -> None:
    """In fp16 the first updates are skipped until the scale fits; a run of three may be over before that."""
    words = [*TINY, "recipe=supervised", f"data.binary_cache_path={small_data}", f"run.dir={tmp_path}"]
    words += ["train.epochs=1"]
    # With this scale of the head, gradients overflow at every scale of the loss that three updates reach.
    assert train.main([*words, "train.precision=fp16", "train.batch.size=12", "recipe.head.scale=1e6"]) == 1
    seen = events(tmp_path)
    skipped = [e for e in seen if e["event"] == "skipped"]
    assert len(skipped) == 3
    assert {e["step"] for e in seen} == {0}  # neither the schedule nor the count of steps moves
    end = seen[-1]
    assert (end["event"], end["reason"]) == ("end", "failed")
    assert "no step of epoch 0 was taken" in end["message"]
    assert "continue with train.precision=fp32, or a lower train.optimizer.lr than" in end["message"]
    assert end["message"].endswith("; there is no checkpoint yet")
    assert not [*(tmp_path / "checkpoints").glob("*.pt")]


@pytest.mark.parametrize(
    "words",
    [
        ["train.precision=bf16"],
        ["train.precision=fp16", "recipe.moco.multi_positive=true"],
        ["train.optimizer.name=adamw", "train.optimizer.lr=0.001", "train.lr_schedule.name=poly"],
    ],
    ids=["bf16", "fp16 and several positives", "adamw and poly"],
)
def test_other_ways_to_train_train_and_resume(words: list[str], small_data: Path, tmp_path: Path, alone: World) -> None:
    run(small_data, tmp_path, alone, *words, "train.epochs=2", stop_at=6)
    seen = run(small_data, tmp_path, alone, *words, "train.epochs=2", "train.resume=auto")
    skipped = [e for e in seen if e["event"] == "skipped"]
    assert (seen[-1]["reason"], seen[-1]["step"] + len(skipped)) == (
        "done",
        8,
    )  # steps that were not taken do not count
    assert all(math.isfinite(e["loss"]) for e in seen if e["event"] == "epoch" and e["loss"] is not None)
    assert all(e["in_a_row"] == 0 for e in seen if e["event"] == "skipped")  # fp16 searches for its loss scale


def test_compiling_without_a_compiler_is_refused_at_the_start(
    small_data: Path, tmp_path: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(WrongUse, match=r"C\+\+ compiler such as g\+\+"):
        run(small_data, tmp_path, alone, "train.compile=true")


def test_a_compiled_network_trains_and_its_checkpoint_fits_an_uncompiled_one(
    small_data: Path, tmp_path: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend aot_eager traces and differentiates as usual, but compiles no C++, which would take a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setenv("CXX", sys.executable)
    embedded = run(small_data, tmp_path, alone, "train.epochs=1", "train.compile=true", "mining.start_epoch=0")
    assert [event["accepted"] for event in embedded if event["event"] == "mining"]  # by a compiled network, too
    seen = run(small_data, tmp_path, alone, "train.epochs=2", "train.resume=auto")
    assert (seen[-1]["reason"], seen[-1]["step"]) == ("done", 8)


class Faulty(SelfSupervised):
    """The recipe, but the loss of the third update is NaN, after all other effects of the loss."""

    updates = 0

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = super().loss(batch)
        return loss * (math.nan if self.updates == 2 else 1.0), metrics

    def after_step(self, lr: float, grad_scale: torch.Tensor, *, taken: torch.Tensor) -> None:
        before = {name: tensor.clone() for name, tensor in self.modules.state_dict().items()}
        super().after_step(lr, grad_scale, taken=taken)
        if self.updates == 2:
            assert not taken
            after = self.modules.state_dict()
            self.moved = [n for n in before if not torch.equal(before[n], after[n]) and "running" not in n]
            self.finite = all(bool(torch.isfinite(t).all()) for t in after.values() if t.is_floating_point())
            Faulty.seen = (self.moved, self.finite)
        self.updates += 1


def test_a_step_that_is_not_finite_is_skipped_and_changes_nothing(
    small_data: Path, tmp_path: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "self_supervised", Faulty)
    seen = run(small_data, tmp_path, alone, "train.epochs=2")
    assert [(e["step"], e["in_a_row"]) for e in seen if e["event"] == "skipped"] == [(2, 1)]
    assert Faulty.seen == ([], True)
    assert [e["step"] for e in seen if e["event"] == "step"] == list(range(1, 8))  # 7 of 8 updates were taken
    assert (seen[-1]["reason"], seen[-1]["step"]) == ("done", 7)


def test_a_warm_start_takes_the_backbone_alone(
    undisturbed: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    config = load([*TINY, f"data.binary_cache_path={small_data}"])
    data = open_configured(config.data)
    saved = tensors(undisturbed / "checkpoints" / "epoch_002.pt")
    fresh, warm = SelfSupervised(config, data, alone), SelfSupervised(config, data, alone)
    warm.warm_start(undisturbed / "checkpoints" / "epoch_002.pt")
    for name, tensor in warm.modules.state_dict().items():
        backbone = name.partition("backbone.")[2]
        wanted = saved[f"momentum.encoder.backbone.{backbone}"] if backbone else fresh.modules.state_dict()[name]
        assert torch.equal(tensor, wanted), name
    torch.save({k: v for k, v in warm.embedder.state_dict().items() if "tracked" not in k}, tmp_path / "published.pt")
    fresh.warm_start(tmp_path / "published.pt")
    assert torch.equal(fresh.embedder.conv1.weight, warm.embedder.conv1.weight)
    seen = run(small_data, tmp_path, alone, f"train.warm_start={tmp_path / 'published.pt'}", "train.epochs=1")
    assert (seen[-1]["reason"], seen[-1]["step"]) == ("done", 4)
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(WrongUse, match=r"other\.pt does not fit"):
        run(small_data, tmp_path, alone, f"train.warm_start={tmp_path / 'other.pt'}")


def test_features_met_while_training_can_be_mined(small_data: Path, tmp_path: Path, alone: World) -> None:
    words = ["mining.features=bank", "train.epochs=5", "mining.min_coverage=0"]
    seen = run(small_data, tmp_path / "whole", alone, *words)
    mined = [e for e in seen if e["event"] == "mining"]
    assert [e["epoch"] for e in mined] == [1, 2, 3, 4]
    assert mined[-1]["count"] > 0
    run(small_data, tmp_path / "cut", alone, *words, stop_at=10)
    run(small_data, tmp_path / "cut", alone, *words, "train.resume=auto")
    final = Path("checkpoints") / "epoch_004.pt"
    assert_equal_bits(tmp_path / "whole" / final, tmp_path / "cut" / final)


@pytest.mark.parametrize("features", [("fresh", "bank"), ("bank", "fresh")], ids=["fresh-bank", "bank-fresh"])
def test_a_resumed_run_may_mine_other_features(
    features: tuple[str, str], small_data: Path, tmp_path: Path, alone: World
) -> None:
    """The bank begins empty. Until an image was met it has no pseudo-ID, and labels of too few images are rejected."""
    before, after = (f"mining.features={each}" for each in features)
    seen = run(small_data, tmp_path, alone, before, stop_at=8)
    seen = run(small_data, tmp_path, alone, after, "train.epochs=4", "train.resume=auto")[len(seen) :]
    assert seen[-1]["reason"] == "done"
    mined = {e["epoch"]: e["accepted"] for e in seen if e["event"] == "mining"}
    assert mined == {2: features[1] == "fresh", 3: True}
    assert ("bank.features" in tensors(tmp_path / "checkpoints" / "epoch_003.pt")) == (features[1] == "bank")


def test_a_stop_while_embedding_is_heard_and_the_run_goes_on_from_there(
    undisturbed: Path, small_data: Path, tmp_path: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.mining.kept.LONG_S", 0.0)  # as a pass over many images
    run(small_data, tmp_path, alone, stop_at=4)
    config = load([*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path}", "train.resume=auto"])
    stop, track = Stop(), Tracker([JsonLines(RunFolder(tmp_path))])
    kept = tmp_path / "mining" / "embedding"

    class OnceKept(threading.Event):
        def is_set(self) -> bool:
            end = time.monotonic() + (0.5 if kept.is_dir() else 0)  # a thread writes the chunk
            while not (found := list(kept.glob("*.chunk.npy"))) and time.monotonic() < end:
                pass
            return bool(found)

    stop.asked = OnceKept()
    train.train(config, open_configured(config.data), RunFolder(tmp_path), alone, track, stop)
    track.close()
    assert list((tmp_path / "mining" / "embedding").glob("*.chunk.npy"))
    run(small_data, tmp_path, alone, "train.resume=auto")
    assert not list((tmp_path / "mining" / "embedding").glob("*.chunk.npy"))
    assert_equal_bits(undisturbed / "checkpoints" / "epoch_002.pt", tmp_path / "checkpoints" / "epoch_002.pt")


def test_a_sweep_runs_every_combination_in_a_folder_of_its_own_and_leaves_nothing_else(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY, f"data.binary_cache_path={small_data}", "run.dir=sweep", "train.epochs=1"]
    assert train.main([*words, "--multirun", "train.optimizer.lr=0.1,0.2"]) == 0
    rates = [load([], base=tmp_path / "sweep" / str(n) / "config.yaml").train.optimizer.lr for n in (0, 1)]
    assert rates == [0.1, 0.2]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


def test_cfg_job_prints_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--cfg", "job", f"run.dir={tmp_path / 'run'}", "train.epochs=7"]) == 0
    assert "epochs: 7" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 60),
    size=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    worlds=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4),
)
def test_the_order_of_an_epoch_is_the_same_for_any_and_changing_numbers_of_processes(
    images: int, size: int, accumulate: int, worlds: list[tuple[int, int]]
) -> None:
    """Worlds (processes, updates) train in turn; a last one finishes the epoch."""
    data = Dataset(np.zeros((images, 1, 1, 3), np.uint8), None, np.arange(images), np.arange(0), None, 1.0)
    config = load([f"train.batch.size={max(size, 2)}", f"train.batch.grad_accum_steps={accumulate}"])
    size = config.train.batch.size
    seen: list[int] = []
    state = TrainState(epoch=1)
    for processes, updates in [*worlds, (worlds[0][0], 10**6)]:
        ranks = [
            batches(config, Alone(), data, state, World(rank, processes, torch.device("cpu")))
            for rank in range(processes)
        ]
        for _ in range(updates):
            if state.seen >= images:
                break
            for _ in range(accumulate):
                for rank in ranks:
                    seen += next(rank).rows.tolist()
            state.seen = min(state.seen + size * processes * accumulate, images)
    order = epoch_order(data.train_rows, seed=config.train.seed, epoch=1).tolist()
    assert seen[:images] == order
    assert seen[images:] == (order * len(seen))[: len(seen) - images]  # the start of the order fills the last update


class Alone:
    """The parts of a recipe that `batches` needs."""

    augment = Augment(AugmentConfig(), 112)

    def pick(self, rows: np.ndarray, chance: np.ndarray) -> np.ndarray:
        assert chance.shape == (len(rows), 2)
        return rows

    def targets(self, rows: np.ndarray) -> np.ndarray:
        return rows


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "data.binary_cache_path is not set"),
        (["data.binary_cache_path=/nowhere.npy"], "no file /nowhere.npy"),
        (["train.epcohs=2"], "train.epochs"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(words) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("key", ["train.warm_start", "train.resume"])
@pytest.mark.parametrize("content", [b"junk", b"", b"PK\x03\x04" + bytes(99)])
def test_a_file_that_cannot_be_read_is_refused_before_anything_is_written(
    key: str, content: bytes, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    words = [f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'run'}", f"{key}={tmp_path / 'file.pt'}"]
    assert train.main([*TINY, *words]) == 2
    said = capsys.readouterr().err
    assert "file.pt is corrupt or not a Sniperface checkpoint" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Real processes under torchrun


@pytest.mark.slow
def test_two_processes_stopped_by_the_end_of_input_and_resumed_equal_never_stopped(
    small_data: Path, tmp_path: Path
) -> None:
    with launch(small_data, tmp_path / "whole") as job:
        assert job.wait(under_load(90)) == 0
    with launch(small_data, tmp_path / "cut") as job:
        wait_for(reached(tmp_path / "cut", 6), job)
        job.stdin.close()
        assert job.wait(under_load(90)) == 0
    assert events(tmp_path / "cut")[-1]["reason"] == "stopped"
    with launch(small_data, tmp_path / "cut", "train.resume=auto") as job:
        assert job.wait(under_load(90)) == 0
    assert events(tmp_path / "cut")[-1]["reason"] == "done"
    final = Path("checkpoints") / "epoch_002.pt"
    assert_equal_bits(tmp_path / "whole" / final, tmp_path / "cut" / final)


@pytest.mark.slow
def test_what_users_type_works_and_the_number_of_processes_may_change(small_data: Path, tmp_path: Path) -> None:
    """2, then 1, then 3 processes train; the queue has the rows in the order of the epochs."""
    folder = tmp_path / "run"
    words = [
        "train.batch.grad_accum_steps=1", "train.optimizer.lr=0.03", "train.lr_schedule.warmup.start_lr=0.003",
        "data.data_fraction=1.0", "train.epochs=3", "recipe.moco.queue_size=160",
    ]  # fmt: skip
    train_by_changing_processes(small_data, folder, *words, stop_at=(2, 5))
    rows = tensors(folder / "checkpoints" / "epoch_002.pt")["queue.rows"]  # in epoch 0 a positive is the same image
    order = epoch_order(np.arange(32), seed=load([]).train.seed, epoch=0)
    assert rows[:32].tolist() == order.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.log"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals: run this on Linux or macOS")
def test_a_killed_rank_ends_the_job_soon_and_the_checkpoints_stay_whole(small_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launch(small_data, folder, "train.epochs=500") as job:
        wait_for(lambda: (folder / "checkpoints" / "epoch_001.json").exists(), job)
        found = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True)
        killed_at = time.monotonic()
        os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
        assert job.wait(under_load(60)) != 0
        assert time.monotonic() - killed_at < under_load(10)
    newest = checkpoint.newest(RunFolder(folder))
    assert newest is not None
    assert checkpoint.read(newest)["state"]["step"] >= 8
