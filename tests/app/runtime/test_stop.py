"""Every command ends within seconds of SIGTERM, whatever it is doing. Processes and signals are real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from app.config import load, save_resolved
from app.models import build_backbone
from app.runtime.dist import World
from app.runtime.stop import Interrupted, Stop
from tests.app.conftest import faces
from tests.app.support.training import PROJECT, events, wait_for
from tests.support.forks import run_training, start_training
from tests.support.load import under_load

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGTERM ends a process at once on Windows")
LIMIT_S = 2.0
OF_TORCH = re.compile(r"\[W\d{4} ")  # a warning of its C++ parts, such as of a CPU that NNPACK does not know
# Without an interruption the work takes 15 seconds or more.
SLOW = ["backbone.layers=[3,4,14,3]", "backbone.width=32", "backbone.image_size=112", "backbone.embedding_dim=64"]
FEW_STEPS = [
    "train.batch.size=2", "train.log_every_steps=1", "recipe.moco.queue_size=16", "recipe.moco.mask_most_similar=2",
    "recipe.moco.projection_hidden=32", "recipe.moco.projection_dim=16", "train.lr_schedule.warmup.epochs=0",
]  # fmt: skip


@contextmanager
def started(log: Path, module: str, *words: str, processes: int = 1) -> Iterator[subprocess.Popen]:
    """Start a command: as a fork with torch loaded, or, with several processes, as a user does, under torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        if processes > 1:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            command = [*torchrun, "-m", module, *words]
            job = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=output, stderr=output)
        else:
            job = start_training(["-m", module, *words], PROJECT, environment, output=output)
        try:
            yield job
        finally:
            job.kill()
            job.wait()


def ends_soon(job: subprocess.Popen, limit_s: float = LIMIT_S, name: str = "SIGTERM") -> None:
    """Send a signal to the job and check that it ends in time."""
    asked_at = time.monotonic()
    job.send_signal(getattr(signal, name))
    job.wait(under_load(60))
    took = time.monotonic() - asked_at
    assert took < under_load(limit_s), f"{took:.1f} s"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images without labels, so that nothing is measured before training."""
    folder = tmp_path_factory.mktemp("many")
    np.save(folder / "images.npy", faces(people=40, each=10))
    return folder / "images.npy"


@pytest.fixture(scope="module")
def weights(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the slow network in a run folder."""
    folder = tmp_path_factory.mktemp("weights")
    config = load([*SLOW, f"data.binary_cache_path={many}", "mining.batch_size=8"])
    (folder / "checkpoints").mkdir()
    save_resolved(config, folder / "config.yaml")
    torch.save(build_backbone(config.backbone).state_dict(), folder / "checkpoints" / "epoch_000.pt")
    return folder / "checkpoints" / "epoch_000.pt"


@pytest.mark.slow
def test_train_while_it_measures_what_to_beat(many: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.repeat(np.arange(40, dtype=np.int32), 10))
    manifest = '{"rows": 400, "held_out_rows": 380, "block_rows": 20, "dataset_id": "x"}'
    data = tmp_path / "images.npy"
    data.write_bytes(many.read_bytes())
    (tmp_path / "manifest.json").write_text(manifest)
    folder = tmp_path / "run"
    with started(
        tmp_path / "log", "app.train", *SLOW, *FEW_STEPS, f"data.binary_cache_path={data}", f"run.dir={folder}"
    ) as job:
        wait_for((folder / "config.yaml").exists, job)
        ends_soon(job)
        assert job.returncode == 0
    assert events(folder)[-1]["reason"] == "stopped"
    assert not list(folder.glob("checkpoints/*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_train_while_it_mines(many: Path, tmp_path: Path, processes: int) -> None:
    folder = tmp_path / "run"
    words = [*SLOW, *FEW_STEPS, "mining.start_epoch=0", "mining.batch_size=4", "backbone.image_size=32"]
    words += [f"data.binary_cache_path={many}", f"run.dir={folder}"]
    slow = words if processes > 1 else [word for word in words if not word.startswith("backbone.image_size=32")]
    with started(tmp_path / "log", "app.train", *slow, processes=processes) as job:
        wait_for((folder / "mining" / "embedding").exists, job)
        ends_soon(job, LIMIT_S if processes == 1 else 2 * LIMIT_S)  # torchrun itself polls every second
    assert events(folder)[-1]["reason"] == "stopped"


@pytest.mark.slow
def test_train_while_it_measures_an_epoch_keeps_the_epoch(tmp_path: Path) -> None:
    """A stop ends the evaluation of an epoch; the checkpoint of the epoch is still written."""
    images = faces(people=40, each=10)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", np.repeat(np.arange(40, dtype=np.int32), 10))
    (tmp_path / "manifest.json").write_text('{"rows": 400, "held_out_rows": 392, "block_rows": 8, "dataset_id": "x"}')
    folder = tmp_path / "run"
    words = [*FEW_STEPS, "backbone.layers=[1,1,1,1]", "backbone.width=32", "backbone.embedding_dim=32"]
    words += [f"data.binary_cache_path={tmp_path / 'images.npy'}", f"run.dir={folder}", "train.eval.every_epochs=1"]
    with started(tmp_path / "log", "app.train", *words) as job:
        wait_for(lambda: any(e["event"] == "epoch" for e in events(folder)), job)
        ends_soon(job)
        assert job.returncode == 0
    assert events(folder)[-1]["reason"] == "stopped"
    assert (folder / "checkpoints" / "epoch_000.pt").exists()


@pytest.mark.slow
def test_a_sweep_ends_with_its_run(many: Path, tmp_path: Path) -> None:
    words = [
        *SLOW,
        *FEW_STEPS,
        "backbone.image_size=32",
        f"data.binary_cache_path={many}",
        f"run.dir={tmp_path / 'sweep'}",
    ]
    with started(tmp_path / "log", "app.train", "--multirun", *words, "train.optimizer.lr=0.1,0.2") as job:
        wait_for(lambda: any(e["event"] == "step" for e in events(tmp_path / "sweep" / "0")), job)
        ends_soon(job, 3 * LIMIT_S)  # with a step and its checkpoint
        assert job.returncode == 0
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["0"]


@pytest.mark.slow
def test_mine(weights: Path, tmp_path: Path) -> None:
    with started(tmp_path / "log", "app.mine", f"checkpoint={weights}", f"out={tmp_path / 'out'}") as job:
        wait_for((tmp_path / "out" / "embedding").exists, job)
        ends_soon(job)
        assert job.returncode == 1
    assert [line for line in (tmp_path / "log").read_text().splitlines() if not OF_TORCH.match(line)] == [
        "stopped; run the same command to continue"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluate(weights: Path, many: Path, tmp_path: Path, processes: int) -> None:
    """The set is a folder of arrays: 400 images of 40 people."""
    people = tmp_path / "people"
    people.mkdir()
    np.save(people / "images.npy", np.load(many))
    np.save(people / "labels.npy", np.repeat(np.arange(40, dtype=np.int32), 10))
    words = [f"weights={weights}", f"sets={people}", f"out={tmp_path / 'out'}"]
    log = tmp_path / "log"
    with started(log, "app.evaluate", *words, processes=processes) as job:
        wait_for(lambda: "images, decoded" in log.read_text(), job)
        ends_soon(job, LIMIT_S if processes == 1 else 2 * LIMIT_S)
        assert job.returncode == 1
    assert "contains the finished results: 0 of 1 sets" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc: run this on Linux")
def test_embed_leaves_nothing(weights: Path, many: Path, tmp_path: Path, name: str) -> None:
    out, log = tmp_path / "out" / "embeddings.npy", tmp_path / "log"
    with started(log, "app.embed", f"weights={weights}", f"images={many}", f"out={out}") as job:
        wait_for(lambda: out.parent.exists() or log.read_text(), job)
        ends_soon(job, name=name)
        assert job.returncode == 1
    assert [line for line in log.read_text().splitlines() if not OF_TORCH.match(line)] == [
        "stopped; run the same command to start again"
    ]
    assert list(out.parent.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc: run this on Linux")
def test_export_leaves_nothing(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(tmp_path / "log", "app.export", f"checkpoint={weights}", f"out={out / 'model.onnx'}") as job:
        wait_for(lambda: listens(job.pid), job)
        ends_soon(job)
        assert job.returncode == 1
    assert not out.exists()


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare_goes_on_afterwards(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "images.npy"
    words = ["source=synthetic", "identities=400", "per_identity=20", f"workers={workers}", f"out={out}"]
    notes = out.with_name(".images.npy.blocks.part")
    with started(tmp_path / "log", "app.prepare", *words) as job:
        wait_for(notes.exists, job)
        ends_soon(job)
        assert job.returncode == 130
    assert notes.exists()
    assert not out.exists()
    assert "run the same command to continue" in (tmp_path / "log").read_text()


def test_a_stop_before_or_inside_work_that_can_be_given_up(alone: World) -> None:
    stop = Stop()
    stop.asked.set()
    with pytest.raises(Interrupted), stop.at_once(alone):
        pytest.fail("must not get here")
    with stop.at_once(World(0, 2, torch.device("cpu"))):
        pass  # several ranks poll instead
    for ask in (lambda: signal.raise_signal(signal.SIGTERM), lambda: signal.raise_signal(signal.SIGINT)):
        heard(ask, alone)


def heard(ask: Callable[[], None], alone: World) -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    stop = Stop().listen()
    try:
        with pytest.raises(Interrupted), stop.at_once(alone):
            ask()
        ask()  # outside of at_once a stop is only remembered
        assert stop.asked.is_set()
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def test_a_handler_that_takes_every_exception_does_not_hide_a_stop(alone: World) -> None:
    before, stop = signal.getsignal(signal.SIGTERM), Stop().listen()

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise ValueError("the file is corrupt") from error

    try:
        with pytest.raises(Interrupted), stop.at_once(alone):
            work()
        with pytest.raises(ValueError, match="its own"), Stop().at_once(alone):
            raise ValueError("its own")
    finally:
        signal.signal(signal.SIGTERM, before)


DIES = """
import os, sys
sys.path.insert(0, sys.argv[1])
from app.errors import WrongUse
from app.runtime import dist
with dist.world() as here:
    if sys.argv[2] == "orderly":
        with dist.together(here):
            if here.rank == 1:
                raise WrongUse("rank 1 has none; give it one")
    if here.rank == 1:
        raise RuntimeError("rank 1 is broken")
    dist.gather_rows(__import__("torch").ones(1), here)   # waits for rank 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["broken", "orderly"])
def test_a_rank_that_fails_does_not_wait_for_the_others(tmp_path: Path, how: str) -> None:
    """Its peers wait in a collective, and torchrun ends them once the failed rank has exited."""
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(PROJECT), how]
    job = run_training(command, PROJECT, {**os.environ, "OMP_NUM_THREADS": "1"}, limit_s=60)
    assert job.returncode == 1
    wanted = "rank 1 is broken" if how == "broken" else "rank 1 has none; give it one"
    assert wanted in job.stderr
