"""Training with captured passes is equal to the bit to training without, as far as a CPU can emulate a capture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.config import load
from app.errors import WrongUse
from app.models.embedder import Embedder
from app.recipes import RECIPES, Recipe
from app.recipes.update import batches, update
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.graphs import Captured, is_on, unfit
from app.runtime.optimizer import build_optimizer
from tests.app.shadow import cuda_graphs
from tests.app.support.training import TINY, run

SUPERVISED = ["recipe=supervised", "recipe.head.scale=16"]
RECIPES_TO_CAPTURE = {
    "moco": [],
    "moco fp16": ["train.precision=fp16"],
    "moco bf16, adamw": ["train.precision=bf16", "train.optimizer.name=adamw"],
    "vit": ["backbone.name=vit", "backbone.layers=[2]", "backbone.width=16"],
    "arcface": SUPERVISED,
    "mean": [*SUPERVISED, "recipe.ema=0.9"],
}


def trained(
    data: Path, alone: World, monkeypatch: pytest.MonkeyPatch, *words: str, capture: bool, accumulate: int = 1
) -> Recipe:
    """A recipe after five updates."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", cuda_graphs.make_graphed_callables)
    config = load([*TINY, f"data.binary_cache_path={data}", f"train.batch.grad_accum_steps={accumulate}", *words])
    kind = RECIPES[config.recipe.name]
    recipe: Recipe = kind(config, kind.training_data(config), alone)
    recipe.calibrate()
    if capture:
        recipe.capture()
    optimizer = build_optimizer(config.train.optimizer, recipe.param_groups())
    scaler = torch.amp.GradScaler("cpu", enabled=config.train.precision == "fp16", init_scale=16.0)
    recipe.begin_epoch(0, None)
    micro_batches = batches(config, recipe, recipe.data, TrainState(), alone)
    for _ in range(4 // accumulate):
        assert update(config, recipe, optimizer, scaler, micro_batches, 0.01, alone).verdict().taken
    recipe.catch_up()
    return recipe


def differing(one: Recipe, other: Recipe) -> list[str]:
    theirs = other.modules.state_dict()
    return [name for name, tensor in one.modules.state_dict().items() if not torch.equal(tensor, theirs[name])]


@pytest.mark.parametrize("name", RECIPES_TO_CAPTURE)
def test_captured_passes_train_the_same_to_the_bit(
    name: str, small_data: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RECIPES_TO_CAPTURE[name], "train.batch.size=8"]
    plain = trained(small_data, alone, monkeypatch, *words, capture=False)
    captured = trained(small_data, alone, monkeypatch, *words, capture=True)
    assert isinstance(captured.parallel, Captured)  # type: ignore[attr-defined]
    assert differing(plain, captured) == []  # weights, BN's averages, queue


def test_two_micro_batches_would_train_wrongly_and_are_refused(
    small_data: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay writes its gradients where those of the first micro-batch still are."""
    words = [*SUPERVISED, "train.batch.size=4"]
    plain = trained(small_data, alone, monkeypatch, *words, capture=False, accumulate=2)
    captured = trained(small_data, alone, monkeypatch, *words, capture=True, accumulate=2)
    assert differing(plain, captured)
    config = load([*TINY, "train.cuda_graphs=on", "train.batch.grad_accum_steps=2"])
    assert "give train.batch.grad_accum_steps=1" in (unfit(config, 1, "cuda") or "")


def test_a_copy_of_the_network_does_not_run_the_graph_of_the_original(
    small_data: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mining and evaluation copy the network, fold BN and use it outside training."""
    recipe = trained(small_data, alone, monkeypatch, *SUPERVISED, "train.batch.size=8", capture=True)
    recipe.modules.train()
    size = recipe.config.backbone.image_size  # type: ignore[attr-defined]
    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        found, _ = Embedder(recipe.embedder, size)(x)
        recipe.modules.eval()
        wanted = recipe.embedder(x)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_capture_fails_where_the_host_would_wait() -> None:
    class Curious(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1.0 if x.sum() > 0 else 2.0)

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        cuda_graphs.make_graphed_callables(Curious(2, 2), (torch.ones(1, 2),))


@pytest.mark.parametrize(
    ("words", "processes", "device", "advice"),
    [
        ([], 1, "cuda", None),
        ([], 1, "cpu", "give train.cuda_graphs=off"),
        ([], 2, "cuda", "give --nproc_per_node=1"),
        (["train.compile=true"], 1, "cuda", "give train.compile=false"),
        (["train.batch.grad_accum_steps=2"], 1, "cuda", "give train.batch.grad_accum_steps=1"),
        (["backbone.dropout=0.4"], 1, "cuda", "give 0 for backbone.dropout, drop_path and mask_ratio"),
        (["backbone.gradient_checkpointing=true"], 1, "cuda", "give backbone.gradient_checkpointing=false"),
    ],
)
def test_what_a_captured_run_lacks_is_named(words: list[str], processes: int, device: str, advice: str | None) -> None:
    reason: Any = unfit(load([*TINY, *words]), processes, device)
    assert (reason is None) == (advice is None)
    assert advice is None or advice in reason


def test_nothing_is_captured_unless_asked_and_a_cpu_refuses(small_data: Path, tmp_path: Path, alone: World) -> None:
    """No card has measured it yet, so `auto` is off."""
    assert not is_on(load(TINY))
    assert not is_on(load([*TINY, "train.cuda_graphs=auto"]))
    with pytest.raises(WrongUse, match=r"^train\.cuda_graphs=on needs a GPU; give train\.cuda_graphs=off"):
        run(small_data, tmp_path, alone, "train.cuda_graphs=on")
