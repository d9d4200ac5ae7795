"""Run experiments on a CPU as on a GPU: with their own depth, precision, head and recipe, on 32-pixel faces.

benchmarks/gpu/small.py lists the experiments: the project's own, and published ones for each kind of training. Only
what costs time is reduced, not what decides whether training works: image size, batch and number of epochs. Products
of 16-bit numbers are rounded as a GPU rounds them (tensor_cores.py). Each experiment trains, mines if its recipe does,
saves a checkpoint and resumes from it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app import prepare, train
from app.config import Config
from app.data.sources.source import Source
from app.runtime.folder import RunFolder
from benchmarks.gpu.small import BATCH, EXPERIMENTS, command_line
from tests.app.config.published import NETWORKS, PUBLISHED, Published, configured
from tests.app.conftest import faces
from tests.app.shadow.tensor_cores import TensorCores
from tests.app.support.training import PROJECT, events

# `auto` becomes bf16 or fp16 on a GPU, depending on the GPU, and fp32 on a CPU.
PRECISIONS = {"auto": ["fp32", "bf16", "fp16"], "fp32": ["fp32"], "bf16": ["bf16"], "fp16": ["fp16"]}
# Experiments made for one GPU; the others train on two ranks.
ONE_GPU = {
    "drawn",
    "tryout",
    "tryout_supervised",
    "ms1mv3_r50_onegpu",
    "wf42m_pfc03_40epoch_64gpu_vit_t_catface",
}
THE_PROJECTS = "sniperface"  # runs in each precision on one rank, and in fp16 on two
MOST_FRAGILE = "fp16"  # other deep networks, and two ranks, run in this precision only
UPDATES, SCALE_SEARCH = 3, 5  # per epoch; fp16 gets more, to find its loss scale
PEOPLE, EACH, HELD_OUT = 40, 4, 20


@dataclass(frozen=True)
class Case:
    """One experiment in one precision."""

    experiment: str
    precision: str
    more: tuple[str, ...] = ()  # words of the command line

    @property
    def config(self) -> Config:
        return configured(self.experiment)

    @property
    def updates(self) -> int:
        return UPDATES + (SCALE_SEARCH if self.precision == "fp16" else 0)

    @property
    def takes_long(self) -> bool:
        return sum(self.config.backbone.layers) > 8

    def words(self, data: Path, folder: Path, ranks: int = 1) -> list[str]:
        """The command line: the experiment, and the words that make it small."""
        rows = PEOPLE * EACH - HELD_OUT
        small = command_line(self.experiment, data, folder, updates=self.updates, rows=rows, ranks=ranks)
        return [*small, f"train.precision={self.precision}", *self.more]


def cases(ranks: int) -> list[Any]:
    """The experiments for this number of ranks, in each precision; deep networks and two ranks in fp16 only."""
    found = []
    for experiment in EXPERIMENTS:
        if experiment != THE_PROJECTS and (experiment in ONE_GPU) != (ranks == 1):
            continue
        for precision in PRECISIONS[configured(experiment).train.precision]:
            case = Case(experiment, precision)
            in_each = ranks == 1 and (not case.takes_long or experiment == THE_PROJECTS)
            if precision == MOST_FRAGILE or in_each:
                marks = [pytest.mark.slow] if case.takes_long else []
                found.append(pytest.param(case, id=f"{experiment}-{precision}", marks=marks))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled synthetic faces, enough for the longest epoch, in blocks of one batch."""
    images = faces(people=PEOPLE, each=EACH)
    labels = np.repeat(np.arange(PEOPLE, dtype=np.int32), EACH)
    source = Source(
        name="drawn",
        count=len(images),
        read=lambda start, stop: images[start:stop],
        labels=labels,
        held_out=HELD_OUT,
        block_rows=BATCH,
    )
    out = tmp_path_factory.mktemp("data") / "images.npy"
    prepare.prepare(source, out)
    return out


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM, which app.train replaces, for the tests that follow."""
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def test_every_kind_of_training_that_is_published_is_among_them() -> None:
    def kinds(row: Published) -> set[tuple[str, object]]:
        family = NETWORKS[row.network][0]
        return {
            ("network", family),
            ("margins", row.margins),
            ("optimizer", row.optimizer),
            ("samples", row.sample_rate < 1),
            ("accumulates", row.accumulate > 1),
        }

    tried = set().union(*(kinds(PUBLISHED[name]) for name in EXPERIMENTS if name in PUBLISHED))
    assert {kind for row in PUBLISHED.values() for kind in kinds(row)} == tried
    own = {path.stem for path in (PROJECT / "conf" / "experiment").glob("*.yaml")} - PUBLISHED.keys()
    assert own - {"tryout_distill"} <= set(EXPERIMENTS)  # needs a teacher: tests/app/recipes/test_distill.py


@pytest.mark.parametrize("case", cases(ranks=1))
def test_an_experiment_trains_in_its_own_precision(case: Case, data: Path, tmp_path: Path) -> None:
    def run(*words: str) -> None:
        with TensorCores():
            assert train.main([*case.words(data, tmp_path / "run"), *words]) == 0

    run("train.epochs=1")
    check_steps(case, tmp_path / "run", epoch=0)
    run("train.epochs=2", "train.resume=auto")
    check_resumed(case, tmp_path / "run")


def test_the_recipe_of_the_project_takes_its_first_steps(data: Path, tmp_path: Path) -> None:
    """IResNet50 with MoCo in fp16, in seconds: deep networks overflow if BN's averages are not measured first."""
    case = Case("sniperface", "fp16", ("train.batch.grad_accum_steps=1", "data.data_fraction=0.17", "train.epochs=1"))
    with TensorCores():
        assert train.main(case.words(data, tmp_path / "run")) == 0
    steps = [event["loss"] for event in events(tmp_path / "run") if event["event"] == "step"]
    assert [loss for loss in steps if loss is not None], "every step was skipped"
    assert_finite(tensors(tmp_path / "run", epoch=0))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backbone", ["iresnet100", "iresnet200"])
def test_the_deepest_networks_give_finite_keys(backbone: str, precision: str, data: Path, tmp_path: Path) -> None:
    """If BN does not normalise, 100 and 200 layers overflow even fp32. The keys are those in the queue."""
    more = (f"backbone={backbone}", "train.batch.grad_accum_steps=1", "data.data_fraction=0.17", "train.epochs=1")
    with TensorCores():
        assert train.main(Case("sniperface", precision, more).words(data, tmp_path / "run")) == 0
    found = tensors(tmp_path / "run", epoch=0)
    assert_finite(found)
    (keys,) = [tensor for name, tensor in found.items() if name.endswith("queue.keys")]
    assert torch.allclose(keys.norm(dim=1)[:4], torch.ones(4), atol=0.01)  # one batch at least was pushed


@pytest.mark.parametrize("case", cases(ranks=2))
def test_an_experiment_trains_on_two_ranks(case: Case, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    module = ["-m", "tests.app.shadow.tensor_cores"]

    def run(*words: str) -> None:
        words = (*case.words(data, tmp_path / "run", ranks=2), *words)
        done = subprocess.run(
            [*command, *module, *words], cwd=PROJECT, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    run("train.epochs=1")
    check_steps(case, tmp_path / "run", epoch=0)
    run("train.epochs=2", "train.resume=auto")
    check_resumed(case, tmp_path / "run")


def check_steps(case: Case, folder: Path, epoch: int) -> None:
    """The updates were taken, the run is done and its checkpoint is finite; fp16 may skip some to find its scale."""
    told = events(folder)
    assert told[-1]["event"] == "end"
    assert told[-1]["reason"] == "done"
    steps = [event["loss"] for event in told if event["event"] == "step" and event["epoch"] == epoch]
    taken = [loss for loss in steps if loss is not None]
    assert len(taken) >= UPDATES
    assert len(taken) == len(steps) or case.precision == "fp16"
    assert np.isfinite(taken).all()
    assert_finite(tensors(folder, epoch))


def assert_finite(found: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), f"{name} is not finite"


def check_resumed(case: Case, folder: Path) -> None:
    """The second run resumed from the first one's checkpoint, mined if its recipe does, and changed every weight."""
    starts = [event for event in events(folder) if event["event"] == "start"]
    assert starts[-1]["resumed_from"] == "epoch_000.pt"
    check_steps(case, folder, epoch=1)
    before, after = tensors(folder, 0), tensors(folder, 1)
    weights = [name for name, tensor in before.items() if tensor.is_floating_point() and tensor.ndim > 1]
    rests = [name for name in weights if torch.equal(before[name], after[name])]
    assert len(weights) > 5
    assert rests == []
    mined = [event for event in events(folder) if event["event"] == "mining"]
    assert bool(mined) == (case.config.recipe.name == "self_supervised")


def tensors(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: networks, queues, tables of a head, the optimizer's state."""
    content = torch.load(RunFolder(folder).checkpoints / f"epoch_{epoch:03d}.pt", weights_only=True)
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        for key, inner in value.items() if isinstance(value, dict) else ():
            collect(f"{name}.{key}", inner)

    collect("", content)
    return found
