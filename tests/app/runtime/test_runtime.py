"""Schedules, processes and trackers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.config import LrScheduleConfig, WarmupConfig, load
from app.errors import WrongUse
from app.report.leave import LIMIT_S
from app.runtime.checkpoint import TrainState
from app.runtime.data_parallel import data_parallel
from app.runtime.dist import GROUP_TIMEOUT_S, World
from app.runtime.durations import clock
from app.runtime.folder import RunFolder
from app.runtime.schedule import by_epoch, learning_rate
from app.runtime.start import refuse_unfit_files
from app.runtime.track import FINISH_ARTIFACTS_S, end_last_line, name_of, tracker
from tests.app.support.ranks import run_ranks
from tests.app.support.training import TINY
from tests.app.support.wandb_service import service
from tests.support.load import under_load

PROJECT = Path(__file__).parents[3]


def rates(name: str, **changes: object) -> list[float]:
    config = LrScheduleConfig(name=name, warmup=WarmupConfig(epochs=2, start_lr=0.0), **changes)
    return [learning_rate(1.0, config, step / 10, epochs=10) for step in range(100)]


@pytest.mark.parametrize("name", ["cosine", "poly", "multistep"])
def test_warm_up_rises_linearly_to_the_base(name: str) -> None:
    assert rates(name)[:21] == pytest.approx([step / 20 for step in range(21)])


def test_each_schedule_follows_its_formula() -> None:
    assert rates("cosine")[60] == pytest.approx(0.5)
    assert rates("poly", power=2.0)[60] == pytest.approx(0.25)
    assert rates("cosine", final_lr=0.1)[99] == pytest.approx(0.1, abs=0.01)
    stepped = rates("multistep", milestones=[4, 6], gamma=0.5)
    assert (stepped[39], stepped[40], stepped[60]) == (1.0, 0.5, 0.25)
    assert all(math.isfinite(r) and r >= 0 for r in rates("poly"))


def test_without_a_start_rate_there_is_no_warm_up() -> None:
    config = LrScheduleConfig(warmup=WarmupConfig(epochs=2, start_lr=None))
    assert learning_rate(0.3, config, 0.0, 10) == 0.3


def test_values_by_epoch() -> None:
    assert [by_epoch([2, 5], [0.3, 0.6], epoch) for epoch in (0, 2, 4, 5, 99)] == [0.0, 0.3, 0.3, 0.6, 0.6]


COLLECTIVES = """
import torch
from app.runtime import dist
with dist.world() as here:
    rows = torch.arange(here.rank * 2.0)[:, None] + 10 * here.rank          # 0, 2 and 4 rows
    gathered = dist.gather_rows(rows, here).flatten().tolist()
    assert gathered == [10, 11, 20, 21, 22, 23], gathered
    assert dist.any_rank(here.rank == 2, here) and not dist.any_rank(False, here)
    assert dist.from_main(("word", here.rank), here) == ("word", 0)
    assert float(dist.mean(torch.tensor(float(here.rank)), here)) == 1.0
    shares = [dist.share(torch.arange(7).numpy(), dist.World(r, 3, here.device)).tolist() for r in range(3)]
    assert sum(shares, []) == list(range(7))
    bn = torch.nn.BatchNorm1d(2)
    bn.running_mean.fill_(here.rank)
    dist.put_averages(bn, dist.mean(dist.averages_of(bn), here))
    assert bn.running_mean.tolist() == [1.0, 1.0]
print("fine")
"""


def test_collectives_of_three_processes_with_unequal_shares() -> None:
    run_ranks(COLLECTIVES, 3)


class OfTorch211:
    """DistributedDataParallel with the argument of torch 2.11."""

    def __init__(self, module: nn.Module, *, broadcast_buffers: bool = True, **more: object) -> None:
        self.module, self.more, self.syncs = module, more, broadcast_buffers


class OfTorch213:
    """DistributedDataParallel with the argument of torch 2.13."""

    def __init__(self, module: nn.Module, *, forward_sync_buffers: bool = True, **more: object) -> None:
        self.module, self.more, self.syncs = module, more, forward_sync_buffers


@pytest.mark.parametrize("wrapper", [OfTorch211, OfTorch213])
def test_each_torch_is_told_not_to_synchronise_buffers(monkeypatch: pytest.MonkeyPatch, wrapper: type) -> None:
    """The recipe averages them, once an update. torch renamed the argument after 2.11."""
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", wrapper)
    made: Any = data_parallel(nn.Linear(2, 2), World(0, 2, torch.device("cpu")))
    assert isinstance(made, wrapper)
    assert made.syncs is False


def test_only_rank_0_records(tmp_path: Path) -> None:
    config, folder = load([]), RunFolder(tmp_path / "run")
    track = tracker(config, folder, World(1, 2, torch.device("cpu")))
    track.event("end", TrainState(), reason="done", message="", seconds=1.0)
    track.close()
    assert not folder.path.exists()


def test_half_a_line_of_a_killed_run_does_not_swallow_the_next_event(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"event": "epoch"}\n{"event": "st')
    end_last_line(folder)
    track = tracker(load([]), folder, World(0, 1, torch.device("cpu")))
    track.event("end", TrainState(), reason="done", message="", seconds=1.0)
    track.close()
    lines = folder.metrics.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["reason"] == "done"


def test_clock() -> None:
    assert [clock(s) for s in (5, 75, 3700)] == ["0:05", "1:15", "1:01:40"]


def test_wandb_without_its_package_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(WrongUse, match=r"`python bootstrap\.py invoke train --set track=wandb` installs it"):
        refuse_unfit_files(load(["track=wandb"]), World(0, 1, torch.device("cpu")))


WANDB = """
import sys
import torch
from pathlib import Path
from app.config import load
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime import track
track.FINISH_S = float(sys.argv[1]) if sys.argv[1:] else track.FINISH_S
folder = RunFolder(Path("run"))
track = track.tracker(load(["track=wandb"]), folder, World(0, 1, torch.device("cpu")))
track.event("end", TrainState(0, 0, 5), reason="done", message="", seconds=1.0)
track.close()
"""


def log_to_wandb(folder: Path, finish_s: float = 25, **more: str) -> subprocess.CompletedProcess[str]:
    """Log one event of a run in `folder`, in a process of its own. Raises TimeoutExpired."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-c", WANDB, str(finish_s)],
        cwd=folder,
        env=environment | {"HOME": str(folder), "PYTHONPATH": str(PROJECT)} | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=under_load(120),
    )


@pytest.mark.slow
@pytest.mark.parametrize("hostile", [False, True])
def test_wandb_without_a_key_logs_offline_never_asks_and_never_stops_a_run(tmp_path: Path, hostile: bool) -> None:
    done = log_to_wandb(tmp_path, **({"WANDB_MODE": "no such mode"} if hostile else {}))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["reason"] == "done"
    if hostile:
        assert "metrics.jsonl continues" in done.stdout
    else:
        assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_a_wandb_service_that_falls_silent_does_not_hold_a_run_that_has_ended(tmp_path: Path) -> None:
    """The package itself tries to reach it for hours, and the machine costs money."""
    key = "0123456789" * 4
    with service() as wandb:
        wandb.falls_silent_after = "file_stream"
        done = log_to_wandb(tmp_path, 2, WANDB_BASE_URL=wandb.address, WANDB_API_KEY=key)
        assert wandb.silent.is_set()
    assert done.returncode == 0, done.stderr
    (files,) = (tmp_path / "run" / "wandb").glob("run-*")
    assert f"upload them with `wandb sync run/wandb/{files.name}`" in done.stdout
    assert list(files.glob("*.wandb"))
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if key.encode() in file.read_bytes()]
    assert key not in done.stdout + done.stderr


SILENT = """
import sys
from app import train
from app.runtime import track
track.FINISH_S = 2.0
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_has_its_report_before_it_waits_for_wandb(small_data: Path, tmp_path: Path) -> None:
    """A stopped job is killed a minute later, and W&B may have more time than that."""
    words = [f"data.binary_cache_path={small_data}", "run.dir=run", "track=wandb", "train.epochs=1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    with service() as wandb:
        wandb.falls_silent_after = "file_stream"
        environment |= {"WANDB_BASE_URL": wandb.address, "WANDB_API_KEY": "0123456789" * 4}
        done = subprocess.run(
            [sys.executable, "-c", SILENT, *TINY, *words, "run.report=true"], cwd=tmp_path, stdin=subprocess.DEVNULL,
            env=environment | {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True,
            timeout=under_load(120),
        )  # fmt: skip
        assert wandb.silent.is_set()
    assert done.returncode == 0, done.stderr
    assert [line.split(" ")[0] for line in done.stdout.splitlines()[-2:]] == ["report:", "W&B"]


def test_ranks_wait_for_the_end_of_rank_0() -> None:
    """They wait in a collective until it has uploaded the last checkpoint and made the report."""
    assert FINISH_ARTIFACTS_S + LIMIT_S < 0.95 * GROUP_TIMEOUT_S


@pytest.mark.slow
def test_what_wandb_writes_offline_holds_no_secret(tmp_path: Path) -> None:
    """W&B's files are downloaded with the run and may be shared, so they contain no secret of the job."""
    planted = {"WANDB_API_KEY": "5ec2e7" * 6 + "abcd", "AWS_SECRET_ACCESS_KEY": "planted/s3+cret=33cc"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT), "WANDB_MODE": "offline", **planted}
    done = subprocess.run(
        [sys.executable, "-c", WANDB], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=under_load(120),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = [
        (path.name, name) for path, data in written.items() for name, value in planted.items() if value.encode() in data
    ]
    assert found == []
    assert not any(value in done.stdout + done.stderr for value in planted.values())


def test_runs_of_two_sweeps_have_names_of_their_own_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B continues a run of the same id, so run 0 of each sweep would be one run."""
    folders = ("runs/a", "runs/sweep-1/0", "runs/sweep-2/0")
    assert [name_of(RunFolder(Path(each))) for each in folders] == ["a", "sweep-1-0", "sweep-2-0"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert name_of(RunFolder(Path("."))) == "here"


WANDB_TWICE = """
import sys, torch
from pathlib import Path
from app.config import load
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.track import tracker
folder = RunFolder(Path("run"))
for number in (0, 1):  # the second resumes in the same folder
    track = tracker(load(["track=wandb", "wandb.artifacts=true"]), folder, World(0, 1, torch.device("cpu")))
    folder.checkpoints.mkdir(exist_ok=True)
    name = f"epoch_00{number}.pt"
    for file in (folder.checkpoints / name, folder.checkpoints / f"epoch_00{number}.json"):
        file.write_text(f"weights of {file.name}")
    state = TrainState(number, 0, number + 5)
    track.event("eval", state, what="sets/lfw", accuracy=0.5, measure="10-fold", rank1=0.1)
    track.event("checkpoint", state, file=name, sha256="0" * 64, bytes=7)
    track.close()
"""


@pytest.mark.slow
def test_wandb_keeps_checkpoints_as_artifacts_and_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", WANDB_TWICE], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=under_load(240),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stopped logging" not in done.stdout
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert {file.name for file in files} == {"run-run.wandb"}, "both under the id `run`"
    told = b"".join(file.read_bytes() for file in files)
    for name in (b"run-checkpoint", b"epoch_000.pt", b"epoch_000.json", b"epoch_001.pt", b"eval/sets/lfw/accuracy"):
        assert name in told
    staged = [
        path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"weights of epoch_001.pt"
    ]
    assert len(staged) > 1, "a copy waits for the upload"


LEAVE = """
import atexit
from app.runtime import dist
class Late:
    def __del__(self):
        print("the interpreter shuts down", flush=True)
late = Late()
atexit.register(print, "atexit")
print("buffered")
dist.leave(3)
"""


@pytest.mark.parametrize("world_size", ["1", "2"])
def test_a_process_of_a_group_leaves_before_the_interpreter_shuts_down(world_size: str) -> None:
    environment = {**os.environ, "WORLD_SIZE": world_size, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", LEAVE], env=environment, capture_output=True, text=True, timeout=under_load(60)
    )
    assert (done.returncode, done.stdout.splitlines()) == (3, ["buffered", "atexit"]), done.stderr
