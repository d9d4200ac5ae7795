"""A run of arcface_torch is continued here: weights, class centres and momentum, as if it had not stopped there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from app.config import Config, load
from app.errors import WrongUse
from app.models import build_backbone
from app.recipes import Supervised
from app.runtime import checkpoint
from app.runtime.dist import World
from app.runtime.optimizer import build_optimizer
from app.runtime.resume import facts_of
from app.runtime.start import refuse_unfit_files
from tests.app.support.training import TINY, run

PUBLISHED = [
    "recipe=supervised", "train.optimizer.decay_all=true", "train.optimizer.nesterov=false", "train.precision=fp32",
    "recipe.head.update=dense", "train.optimizer.weight_decay=0.0005", "train.epochs=3",
]  # fmt: skip
CLASSES, STEPS = 8, 4  # small_data has 8 people to train on, and 4 updates an epoch


class Theirs:
    """A run there: one optimizer over the backbone and the centres of a rank; the gradients are drawn."""

    def __init__(self, config: Config, optimizer: str, ranks: int) -> None:
        torch.manual_seed(3)
        self.backbone = build_backbone(config.backbone)
        self.centres = [nn.Parameter(0.01 * torch.randn(CLASSES // ranks, 32)) for _ in range(ranks)]
        self.options = {"lr": 0.1, "weight_decay": 5e-4, **({"momentum": 0.9} if optimizer == "sgd" else {})}
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
        # A rank has a replica of the backbone; here one optimizer updates it, and the others only their centres.
        groups = [[*self.backbone.parameters(), self.centres[0]], *([each] for each in self.centres[1:])]
        self.optimizers = [kind(group, **self.options) for group in groups]

    def step(self, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        """Take a step; returns the gradients of the backbone by name, and of all centres [C, D]."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            name: torch.randn(p.shape, generator=generator)
            for name, p in self.backbone.named_parameters()
            if p.requires_grad
        }
        of_centres = torch.randn(CLASSES, 32, generator=generator)
        for name, p in self.backbone.named_parameters():
            p.grad = drawn[name].clone() if name in drawn else None
        for p, grad in zip(self.centres, of_centres.chunk(len(self.centres)), strict=True):
            p.grad = grad.clone()
        for optimizer in self.optimizers:
            optimizer.step()
        return drawn, of_centres

    def save(self, folder: Path) -> Path:
        count = len(list(self.backbone.parameters()))
        whole = self.optimizers[0].state_dict()
        for rank, centre in enumerate(self.centres):
            state = {number: value for number, value in whole["state"].items() if number < count}
            last = self.optimizers[rank].state_dict()["state"][count if rank == 0 else 0]
            content = {
                "epoch": 1,
                "global_step": STEPS,
                "state_dict_backbone": self.backbone.state_dict(),
                "state_dict_softmax_fc": {"weight": centre.detach()},
                "state_optimizer": {"state": {**state, count: last}, "param_groups": whole["param_groups"]},
                "state_lr_scheduler": {"last_epoch": STEPS},
            }
            torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")
        return folder / "checkpoint_gpu_0.pt"


@pytest.mark.parametrize(("kind", "ranks"), [("sgd", 2), ("adamw", 1)])
def test_the_next_step_is_the_one_that_they_would_have_taken(
    kind: str, ranks: int, small_data: Path, tmp_path: Path, alone: World
) -> None:
    config = load(
        [*TINY, *PUBLISHED, f"data.binary_cache_path={small_data}", f"train.optimizer.name={kind}", "recipe.ema=0.9"]
    )
    theirs = Theirs(config, kind, ranks)
    for seed in range(STEPS):
        theirs.step(seed)
    first = theirs.save(tmp_path)
    recipe = Supervised(config, Supervised.training_data(config), alone)
    optimizer = build_optimizer(config.train.optimizer, recipe.param_groups())
    facts = facts_of(config, data="d", images=None, rows=32, classes="c", labels="l", ranks=1)
    found = checkpoint.examine(
        first, recipe.modules, facts, alone, own=False, foreign=lambda path: recipe.foreign(path, optimizer)
    )
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = checkpoint.load(found, recipe.modules, recipe.take_tables, optimizer, scaler, alone)
    assert (state.epoch, state.seen, state.step) == (1, 0, STEPS)
    count = len(list(recipe.backbone.parameters()))
    trained = len([p for p in recipe.backbone.parameters() if p.requires_grad])
    assert f"optimizer state of {trained} of {count} parameters" in found.verdict.notes[0]
    assert torch.equal(recipe.embedder.fc.weight, recipe.backbone.fc.weight)
    gradients, of_centres = theirs.step(99)
    for name, p in recipe.backbone.named_parameters():
        p.grad = torch.empty_like(p).copy_(gradients[name]) if name in gradients else None
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    recipe.head.centres.add(torch.arange(CLASSES), of_centres.clone())
    recipe.head.step(0.1)
    for name, p in theirs.backbone.named_parameters():
        torch.testing.assert_close(recipe.backbone.get_parameter(name), p, rtol=1e-5, atol=1e-6)
    expected = torch.cat([centre.detach() for centre in theirs.centres])
    torch.testing.assert_close(recipe.tables()["weight"], expected, rtol=1e-5, atol=1e-6)


def test_a_run_continues_at_their_epoch_and_says_what_it_took(small_data: Path, tmp_path: Path, alone: World) -> None:
    config = load([*TINY, *PUBLISHED])
    theirs = Theirs(config, "adamw", 2)
    for seed in range(STEPS):
        theirs.step(seed)
    first = theirs.save(tmp_path)
    refuse_unfit_files(load([*TINY, *PUBLISHED, f"train.resume={first}"]), alone)
    seen = run(small_data, tmp_path / "run", alone, *PUBLISHED, f"train.resume={first}")
    start = next(e for e in seen if e["event"] == "start")
    assert (start["epoch"], start["step"]) == (1, STEPS)
    assert start["notes"] == [
        "continues arcface_torch's checkpoint_gpu_0.pt: took backbone, class centres, without their optimizer state, "
        "no state of adamw; its settings are unknown"
    ]
    assert [e["epoch"] for e in seen if e["event"] == "epoch"] == [1, 2]
    assert seen[-1]["reason"] == "done"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backbone.width=16"], "does not fit this configuration: conv1.weight"),
        (["train.epochs=1"], "1 epoch is done already; give train.epochs=2 or more"),
        (["recipe=self_supervised"], "is a full checkpoint of arcface_torch, which recipe=supervised resumes"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    words: list[str], said: str, small_data: Path, tmp_path: Path, alone: World
) -> None:
    theirs = Theirs(load([*TINY, *PUBLISHED]), "sgd", 1)
    theirs.step(0)
    own = [word for word in PUBLISHED if not (words[0].startswith("recipe=") and word.startswith("recipe"))]
    with pytest.raises(WrongUse, match=re.escape(said)):
        run(small_data, tmp_path / "run", alone, *own, *words, f"train.resume={theirs.save(tmp_path)}")
