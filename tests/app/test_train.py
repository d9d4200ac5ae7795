"""Training: it learns, it leaves a whole run folder, and a stopped run goes on as if it had never stopped."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from app import train
from app.config import load
from app.errors import WrongUse
from app.runtime import checkpoint
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.stop import Stop
from app.runtime.track import JsonLines, Tracker

PROJECT = Path(__file__).parents[2]
TINY = [
    "backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", "backbone.embedding_dim=32",
    "recipe.moco.projection_hidden=32", "recipe.moco.projection_dim=16", "recipe.moco.queue_size=24",
    "recipe.moco.momentum=0.9", "recipe.moco.mask_most_similar=2", "mining.start_epoch=1",
    "mining.every_epochs=1", "mining.neighbours=4", "recipe.positives.epochs=[0,1]",
    "recipe.positives.probability=[0,0.8]", "train.epochs=3", "train.batch.size=8", "train.log_every_steps=1",
    "train.lr_schedule.warmup.epochs=0",
]  # fmt: skip


class Hook:
    """A sink that calls a function at each event."""

    def __init__(self, call: Callable[[dict], None]) -> None:
        self.event = call

    def close(self) -> None:
        pass


def run(data: Path, folder: Path, alone: World, *words: str, stop_at: int | None = None) -> list[dict]:
    """Train in this process, asked to stop after update `stop_at`; the events."""
    config = load([*TINY, f"data.binary_cache_path={data}", f"run.dir={folder}", *words])
    run_folder, stop = RunFolder(folder), Stop()

    def ask(record: dict) -> None:
        if record["event"] == "step" and record["step"] == stop_at:
            stop.asked.set()

    track = Tracker([JsonLines(run_folder), Hook(ask)])
    try:
        train.train(config, train.open_data(config), run_folder, alone, track, stop)
    finally:
        track.close()
    return events(folder)


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    momentum = {str(k): v["momentum_buffer"] for k, v in content["optimizer"]["state"].items()}
    return {**content["modules"], **momentum}


def assert_equal_bits(a: Path, b: Path) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


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
    seen = run(small_data, tmp_path, alone, "train.epochs=8")
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
    stop, track = Stop(), Tracker([JsonLines(RunFolder(tmp_path))])
    stop.asked.set()  # while the pseudo-IDs of the next epoch are mined, say
    train.train(config, train.open_data(config), RunFolder(tmp_path), alone, track, stop)
    track.close()
    assert events(tmp_path)[-1]["reason"] == "stopped"
    assert saved.stat().st_mtime_ns == before
    run(small_data, tmp_path, alone, "train.resume=auto")
    assert_equal_bits(undisturbed / "checkpoints" / "epoch_002.pt", tmp_path / "checkpoints" / "epoch_002.pt")


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
    with pytest.raises(WrongUse, match=r"epoch_002\.pt does not fit.*conv1"):
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
    with pytest.raises(WrongUse, match="corrupt or no checkpoint of ours"):
        checkpoint.read(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_last_checkpoint(small_data: Path, tmp_path: Path) -> None:
    words = [*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path}", "train.optimizer.lr=1e30"]
    assert train.main([*words, "train.optimizer.clip_grad_norm=1e30"]) == 1
    last = events(tmp_path)[-1]
    assert (last["event"], last["reason"]) == ("end", "failed")
    assert "train.optimizer.lr" in last["message"]
    assert "none yet" in last["message"]


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


# Real processes under torchrun


@contextmanager
def launch(data: Path, folder: Path, *words: str, processes: int = 2) -> Iterator[subprocess.Popen]:
    """torchrun with its input held open, as the supervisor does; nothing of it outlives the block."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "-m", "app.train", *TINY, "train.batch.size=4", f"data.binary_cache_path={data}", f"run.dir={folder}", *words,
    ]  # fmt: skip
    environment = {**os.environ, "SNIPERFACE_SUPERVISED": "1", "OMP_NUM_THREADS": "1"}
    log = folder.with_suffix(".log")
    with (
        log.open("ab") as output,
        subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
        ) as job,
    ):
        try:
            yield job
        finally:
            job.kill()  # the ranks then see the end of their input


def wait_for(condition: Callable[[], bool], job: subprocess.Popen, limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert job.poll() is None, f"the job ended with {job.returncode}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)  # a poll, bounded by the deadline


def reached(folder: Path, step: int) -> Callable[[], bool]:
    metrics = folder / "metrics.jsonl"
    return lambda: metrics.exists() and f'"step": {step},' in metrics.read_text()


@pytest.mark.slow
def test_two_processes_stopped_by_the_end_of_input_and_resumed_equal_never_stopped(
    small_data: Path, tmp_path: Path
) -> None:
    with launch(small_data, tmp_path / "whole") as job:
        assert job.wait(90) == 0
    with launch(small_data, tmp_path / "cut") as job:
        wait_for(reached(tmp_path / "cut", 6), job)
        job.stdin.close()
        assert job.wait(90) == 0
    assert events(tmp_path / "cut")[-1]["reason"] == "stopped"
    with launch(small_data, tmp_path / "cut", "train.resume=auto") as job:
        assert job.wait(90) == 0
    assert events(tmp_path / "cut")[-1]["reason"] == "done"
    final = Path("checkpoints") / "epoch_002.pt"
    assert_equal_bits(tmp_path / "whole" / final, tmp_path / "cut" / final)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals: run this on Linux or macOS")
def test_a_killed_rank_ends_the_job_soon_and_the_checkpoints_stay_whole(small_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launch(small_data, folder, "train.epochs=500") as job:
        wait_for(lambda: (folder / "checkpoints" / "epoch_001.json").exists(), job)
        found = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True)
        killed_at = time.monotonic()
        os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
        assert job.wait(60) != 0
        assert time.monotonic() - killed_at < 10
    newest = checkpoint.newest(RunFolder(folder))
    assert newest is not None
    assert checkpoint.read(newest)["state"]["step"] >= 8
