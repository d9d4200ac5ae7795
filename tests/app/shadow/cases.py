"""The experiments of the shadow tests, in each precision and made small, and what a trained one must show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.config import Config
from app.runtime.folder import RunFolder
from benchmarks.gpu.small import EXPERIMENTS, command_line
from tests.app.config.published import configured
from tests.app.support.training import events

# All have the precision `auto`: it becomes bf16 or fp16 on a GPU, depending on the GPU, and fp32 on a CPU.
PRECISIONS = ("fp32", "bf16", "fp16")
# Of eight layers at most, so that both epochs take seconds. A test compares both tables with what the experiments say:
# to read it here, each process that collects tests would compose all of them, for more than a second.
SHALLOW = {"drawn", "tryout", "tryout_supervised"}
# Experiments made for one GPU; the others train on two ranks. The one of 100 layers would take a minute on each rank:
# here it shows their depth under a margin head, and the ViT shows sampled classes on two ranks.
ONE_GPU = {
    "drawn",
    "tryout",
    "tryout_supervised",
    "ms1mv3_r50_onegpu",
    "wf42m_pfc02_16gpus_r100",
    "wf42m_pfc03_40epoch_64gpu_vit_t_catface",
}
THE_PROJECTS = "sniperface"  # runs in each precision on one rank (in fp16 at full width), and in fp16 on two
TWIN = "tryout"  # has the recipe and the network of `drawn`, which shows the other precisions in seconds
MOST_FRAGILE = "fp16"  # other deep networks, and two ranks, run in this precision only
UPDATES, SCALE_SEARCH = 3, 5  # per epoch; fp16 gets more, to find its loss scale
PEOPLE, EACH, HELD_OUT = 40, 4, 20
# Channels of the first stage, or size of a token, of deep networks. Convolutions under a margin head keep their width:
# narrow ones need more steps to find their loss scale.
NARROW = {"iresnet": 16, "vit": 128}
# One held-out image makes no pair. To measure a deep network, also before its training, takes as long as its updates.
UNMEASURED = "train.eval.max_images=1"


@dataclass(frozen=True)
class Case:
    """One experiment in one precision; with `full_width`, no network is made narrow and the report is drawn."""

    experiment: str
    precision: str
    more: tuple[str, ...] = ()  # words of the command line
    full_width: bool = False

    @property
    def config(self) -> Config:
        return configured(self.experiment)

    @property
    def takes_long(self) -> bool:
        return self.experiment not in SHALLOW

    @property
    def is_narrow(self) -> bool:
        may = self.config.backbone.name == "vit" or self.config.recipe.name == "self_supervised"
        return may and self.takes_long and not self.full_width

    def words(self, data: Path, folder: Path, epochs: int, ranks: int = 1) -> list[str]:
        """The words of a small run of this many epochs. The first ends after one epoch, the next one resumes it."""
        rows = PEOPLE * EACH - HELD_OUT
        updates = UPDATES + (SCALE_SEARCH if self.precision == "fp16" else 0)
        small = command_line(self.experiment, data, folder, updates=updates, rows=rows, ranks=ranks)
        small += [f"train.epochs={epochs}", f"train.resume={'none' if epochs == 1 else 'auto'}"]
        if not self.full_width:
            small.append("run.report=false")  # tests/app/report draws reports, and so do the runs at full width
        if self.is_narrow:
            small.append(f"backbone.width={NARROW[self.config.backbone.name]}")
        if self.takes_long and epochs == 1:
            small.append(UNMEASURED)  # the run that resumes this one measures
        return [*small, f"train.precision={self.precision}", *self.more]


def cases(ranks: int, slow: pytest.MarkDecorator) -> list[Any]:
    """The experiments for this number of ranks, in each precision; deep networks and two ranks in fp16 only.

    Those that take long, and those that another shows as well, get the mark `slow`.
    """
    found = []
    for experiment in EXPERIMENTS:
        if experiment != THE_PROJECTS and (experiment in ONE_GPU) != (ranks == 1):
            continue
        for precision in PRECISIONS:
            full_width = experiment == THE_PROJECTS and precision == MOST_FRAGILE and ranks == 1
            case = Case(experiment, precision, full_width=full_width)
            in_each = ranks == 1 and (not case.takes_long or experiment == THE_PROJECTS)
            if precision == MOST_FRAGILE or in_each:
                in_seconds = not case.takes_long and (experiment != TWIN or precision == MOST_FRAGILE)
                marks = [] if in_seconds else [slow]
                found.append(pytest.param(case, id=f"{experiment}-{precision}", marks=marks))
    return found


def check_steps(case: Case, folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    """The updates were taken, the run is done and its checkpoint is finite; fp16 may skip some to find its scale.

    Returns the tensors of the checkpoint.
    """
    told = events(folder)
    assert told[-1]["event"] == "end"
    assert told[-1]["reason"] == "done"
    steps = [event["loss"] for event in told if event["event"] == "step" and event["epoch"] == epoch]
    taken = [loss for loss in steps if loss is not None]
    assert len(taken) >= UPDATES
    assert len(taken) == len(steps) or case.precision == "fp16"
    assert np.isfinite(taken).all()
    found = tensors(folder, epoch)
    assert_finite(found)
    return found


def assert_finite(found: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), f"{name} is not finite"


def check_resumed(case: Case, folder: Path, before: dict[str, torch.Tensor]) -> None:
    """The second run resumed from the first one's checkpoint, mined if its recipe does, and changed every weight.

    `before` are the tensors of the first one.
    """
    starts = [event for event in events(folder) if event["event"] == "start"]
    assert starts[-1]["resumed_from"] == "epoch_000.pt"
    after = check_steps(case, folder, epoch=1)
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
