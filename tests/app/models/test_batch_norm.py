"""BN's averages before the first step: every network computes finite embeddings in eval mode, in every precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.config import load
from app.models import build_backbone
from app.models.batch_norm import calibrate, norms_of
from app.recipes import RECIPES, SelfSupervised, Supervised
from app.runtime.dist import World
from app.runtime.precision import DTYPES
from tests.app.support.training import TINY, run

DEEP = ["backbone.name=iresnet", "backbone.layers=[3,4,14,3]", "backbone.width=8"]  # as deep as iresnet50


def made(kind: str, small_data: Path, alone: World, *words: str) -> SelfSupervised | Supervised:
    config = load([*TINY, f"recipe={kind}", *words, "backbone.image_size=32", f"data.binary_cache_path={small_data}"])
    return RECIPES[kind](config, RECIPES[kind].training_data(config), alone)


@pytest.mark.parametrize(
    "name",
    [
        *("iresnet18", "mobilefacenet", "vit_t"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("iresnet34", "iresnet50", "iresnet100", "iresnet200", "vit_b")
        ),
    ],
)
def test_an_untrained_momentum_encoder_gives_finite_keys_in_every_precision(
    name: str, small_data: Path, alone: World
) -> None:
    configured = load([f"backbone={name}"]).backbone
    words = [f"backbone.name={configured.name}", f"backbone.layers={configured.layers}"]
    recipe = made("self_supervised", small_data, alone, *words, f"backbone.width={configured.width}")
    recipe.calibrate()
    views = recipe.augment(torch.from_numpy(recipe.data.images[:4].copy()), torch.Generator().manual_seed(0))
    for precision in DTYPES.values():
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            keys, embeddings = recipe.momentum(views)
        assert torch.isfinite(keys).all()
        assert torch.isfinite(embeddings).all()
        assert (keys @ keys.T).min() < 0.999  # keys of different images differ


@pytest.mark.parametrize("kind", ["self_supervised", "supervised"])
def test_what_is_evaluated_has_the_statistics_of_the_data(kind: str, small_data: Path, alone: World) -> None:
    recipe = made(kind, small_data, alone, *DEEP, *(["recipe.ema=0.9"] if kind == "supervised" else []))
    views = recipe.augment(torch.from_numpy(recipe.data.images[:32].copy()), torch.Generator().manual_seed(0))
    weights = {name: p.clone() for name, p in recipe.modules.named_parameters()}
    sizes = []
    for _ in range(2):
        with torch.no_grad():
            sizes.append(float(recipe.embedder.eval()(views).abs().mean()))
        recipe.calibrate()
    assert sizes[0] > 100  # running averages of 0 and 1 normalise nothing
    assert 0.5 < sizes[1] < 1.5  # the last layer is BN; a normal number has a mean size of 0.8
    assert all(torch.equal(p, weights[name]) for name, p in recipe.modules.named_parameters())


def test_the_averages_are_the_mean_statistics_of_the_batches_and_modes_stay() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(3)).train()
    network[1].eval()
    batches = [torch.randn(16, 3, generator=torch.Generator().manual_seed(seed)) * 3 + seed for seed in range(4)]
    calibrate(network, batches)
    assert torch.allclose(network[0].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), atol=1e-5)
    assert torch.allclose(network[0].running_var, torch.stack([b.var(0) for b in batches]).mean(0), rtol=1e-5)
    assert [m.training for m in network] == [True, False, True]
    assert [(m.momentum, int(m.num_batches_tracked)) for m in norms_of(network)] == [(0.1, 0)] * 2


def test_a_backbone_that_brings_its_averages_keeps_them(small_data: Path, alone: World) -> None:
    recipe = made("self_supervised", small_data, alone)
    recipe.calibrate()
    before = {name: b.clone() for name, b in recipe.modules.named_buffers()}
    for norm in norms_of(recipe.encoder.projection):
        norm.reset_running_stats()
    recipe.calibrate(backbone=False)
    after = dict(recipe.modules.named_buffers())
    assert all(torch.equal(after[name], b) for name, b in before.items() if "backbone" in name)
    for part in ("encoder.projection.1.running_var", "momentum.encoder.projection.1.running_var"):
        assert not torch.equal(after[part], torch.ones_like(after[part]))


@pytest.mark.slow  # 16-bit convolutions are slow on a CPU
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_deep_network_takes_its_steps_in_16_bits(
    precision: str, small_data: Path, tmp_path: Path, alone: World
) -> None:
    words = [*DEEP, f"train.precision={precision}", "train.epochs=3", "train.optimizer.name=adamw"]
    seen = run(small_data, tmp_path, alone, *words, "train.optimizer.lr=0.001")
    assert sum(e["event"] == "skipped" for e in seen) <= 8  # fp16 first searches for its loss scale
    assert seen[-1]["reason"] == "done"
    saved = torch.load(tmp_path / "checkpoints" / "epoch_002.pt", weights_only=True)["modules"]
    assert all(torch.isfinite(t).all() for t in saved.values() if t.is_floating_point())
    build_backbone(load([*TINY, *DEEP]).backbone).load_state_dict(
        {n.removeprefix("encoder.backbone."): t for n, t in saved.items() if n.startswith("encoder.backbone.")}
    )
