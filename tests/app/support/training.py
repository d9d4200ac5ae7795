"""Helpers for tests of training: a tiny run in this process, or with real processes under torchrun."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from app import train
from app.config import load
from app.recipes import RECIPES
from app.runtime import precision
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.stop import Stop
from app.runtime.track import JsonLines, Tracker
from tests.support.files import events
from tests.support.forks import start_training
from tests.support.load import under_load

PROJECT = Path(__file__).parents[3]
TINY = [
    "backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", "backbone.embedding_dim=32",
    "recipe.moco.projection_hidden=32", "recipe.moco.projection_dim=16", "recipe.moco.queue_size=24",
    "recipe.moco.momentum=0.9", "recipe.moco.mask_most_similar=2", "mining.start_epoch=1",
    "mining.every_epochs=1", "mining.neighbours=4", "recipe.positives.epochs=[0,1]",
    "recipe.positives.probability=[0,0.8]", "train.epochs=3", "train.batch.size=8", "train.log_every_steps=1",
    "run.report=false", "train.lr_schedule.warmup.epochs=0",
]  # fmt: skip


class Hook:
    """A sink that calls a function at each event."""

    def __init__(self, call: Callable[[dict], None]) -> None:
        self.event = call

    def close(self) -> None:
        pass


def run(data: Path, folder: Path, alone: World, *words: str, stop_at: int | None = None) -> list[dict]:
    """Train in this process, with a stop request after update `stop_at`; returns the events."""
    config = load([*TINY, f"data.binary_cache_path={data}", f"run.dir={folder}", *words])
    config.train.precision = precision.settle(config.train.precision, alone)
    run_folder, stop = RunFolder(folder), Stop()

    def ask(record: dict) -> None:
        if record["event"] == "step" and record["step"] == stop_at:
            stop.asked.set()

    track = Tracker([JsonLines(run_folder), Hook(ask)])
    try:
        train.train(config, RECIPES[config.recipe.name].training_data(config), run_folder, alone, track, stop)
    finally:
        track.close()
    return events(folder)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    state = content["optimizer"]["state"]
    moments = {f"{k}.{name}": torch.as_tensor(v) for k, values in state.items() for name, v in values.items()}
    return {**content["modules"], **moments}


def assert_equal_bits(a: Path, b: Path) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    unequal = [name for name in first if not torch.equal(first[name].nan_to_num(7), second[name].nan_to_num(7))]
    assert unequal == []


@contextmanager
def launch(
    data: Path, folder: Path, *words: str, processes: int = 2, where: Sequence[str] = (), log: Path | None = None
) -> Iterator[subprocess.Popen]:
    """Start torchrun and hold its standard input open, as the supervisor does; leaving the block ends all processes.

    `where`: torchrun's rendezvous flags (default: this computer only). `log`: the file for its output.
    """
    command = [
        "-m", "torch.distributed.run", *(where or ["--standalone"]), f"--nproc-per-node={processes}",
        "-m", "app.train", *TINY, "train.batch.size=4", f"data.binary_cache_path={data}", f"run.dir={folder}", *words,
    ]  # fmt: skip
    environment = {**os.environ, "SNIPERFACE_SUPERVISED": "1", "OMP_NUM_THREADS": "1"}
    with (
        (log or folder.with_suffix(".log")).open("ab") as output,
        start_training(command, PROJECT, environment, stdin=subprocess.PIPE, output=output) as job,
    ):
        try:
            yield job
        finally:
            job.kill()  # the ranks then stop at the end of their input


def wait_for(condition: Callable[[], bool], job: subprocess.Popen, limit_s: float = 90) -> None:
    """Poll a condition until it is true. `limit_s` is for an idle computer."""
    began = time.monotonic()
    while not condition():
        assert job.poll() is None, f"the job ended with {job.returncode}"
        assert time.monotonic() - began < under_load(limit_s), f"not true after {time.monotonic() - began:.0f} s"
        time.sleep(0.02)  # poll until the limit


def reached(folder: Path, step: int) -> Callable[[], bool]:
    metrics = folder / "metrics.jsonl"
    return lambda: metrics.exists() and f'"step": {step},' in metrics.read_text()


def train_by_changing_processes(data: Path, folder: Path, *words: str, stop_at: tuple[int, int]) -> None:
    """Train one run by 2, then 1, then 3 processes, the first two stopped after a step, and check that it is done."""
    for processes, last_step in ((2, stop_at[0]), (1, stop_at[1]), (3, None)):
        with launch(data, folder, *words, "train.resume=auto", processes=processes) as job:
            if last_step is not None:
                wait_for(reached(folder, last_step), job)
                assert job.stdin
                job.stdin.close()
            assert job.wait(under_load(90)) == 0
    assert [each["world_size"] for each in events(folder) if each["event"] == "start"] == [2, 1, 3]
    assert events(folder)[-1]["reason"] == "done"
