"""16 bits are for networks alone: views are equal to the bit, losses and gradients stay near those of 64 bits."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.config import AugmentConfig, load
from app.config.checks import HEADS
from app.data.augment import Augment
from app.data.dataset import chances
from app.models.moco import Queue, contrastive_loss
from app.recipes import RECIPES, Batch, Recipe
from app.runtime.dist import World
from tests.app.support.training import TINY, run

HALVES = [torch.bfloat16, torch.float16]
EVERY = AugmentConfig(rotation_deg=9, amplitude_mix=0.5, blur=0.5, jpeg=0.5, noise=0.5, cutout=0.5)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "config",
    [EVERY, AugmentConfig(), AugmentConfig(hue=0, blur=0, jpeg=0.9), AugmentConfig(jitter=0, gray=0, jpeg=0, noise=0)],
    ids=["every", "default", "jpeg", "crop"],
)
def test_views_inside_and_outside_of_autocast_are_equal_to_the_bit(config: AugmentConfig, half: torch.dtype) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3)).astype(np.uint8))
    views = []
    for enabled in (True, False):
        with torch.autocast("cpu", half, enabled=enabled):
            views.append(Augment(config, 40)(images, torch.Generator().manual_seed(1)))
    assert views[0].dtype == torch.float32
    assert torch.equal(*views)


def test_turning_one_change_off_leaves_the_others_as_they_were() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3)).astype(np.uint8))
    calm = AugmentConfig(blur=0, jpeg=0, noise=0, cutout=0)
    with_mix_rows = dataclasses.replace(calm, amplitude_mix=1e-9)  # its rows are drawn and fall on no image
    views = [Augment(c, 48)(images, torch.Generator().manual_seed(2)) for c in (calm, with_mix_rows)]
    assert torch.equal(*views)
    noisy = Augment(dataclasses.replace(calm, noise=1.0), 48)(images, torch.Generator().manual_seed(2))
    assert 0.005 < (noisy - views[0]).abs().mean() < 0.05


@pytest.mark.parametrize("half", HALVES)
def test_the_contrastive_loss_is_fp32_inside_autocast(half: torch.dtype) -> None:
    """Cosines of 16 bits, divided by the temperature, put the gradient off by 13 %."""
    generator = torch.Generator().manual_seed(0)
    queue = Queue(4096, 64)
    queue.push(F.normalize(torch.randn(4096, 64, generator=generator), dim=1), torch.arange(4096), torch.ones(()))
    q, k = (F.normalize(torch.randn(8, 64, generator=generator), dim=1) for _ in range(2))
    rows, ids = torch.arange(8), torch.full((5000,), -1)
    grads = []
    for enabled, dtype in ((True, torch.float32), (False, torch.float64)):
        mine = q.detach().to(dtype).clone().requires_grad_()
        if dtype == torch.float64:
            queue = copy.deepcopy(queue).double()
            loss = plain_loss(mine, k.double(), queue)
        else:
            with torch.autocast("cpu", half, enabled=enabled):
                loss, _ = contrastive_loss(
                    mine, k, queue, rows, rows, ids, temperature=0.05, margin=0.15, mask_most_similar=8
                )
        loss.backward()
        grads.append(mine.grad.double())
    assert relative(grads[0], grads[1]) < 1e-4


def plain_loss(q: Tensor, k: Tensor, queue: Queue) -> Tensor:
    """InfoNCE with its 8 nearest negatives left out, in the type of its inputs."""
    queued = q @ queue.keys.T
    own = torch.arange(len(q))
    queued = queued.index_put((own, own), torch.tensor(-torch.inf, dtype=queued.dtype))  # the queue's rows 0 … 7
    nearest = queued.topk(8, dim=1).indices
    queued = queued.scatter(1, nearest, -torch.inf)
    logits = torch.cat([(q * k).sum(1, keepdim=True) - 0.15, queued], 1) / 0.05
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


NETWORKS = {
    "iresnet": ["backbone.name=iresnet", "backbone.layers=[1,1,1]", "backbone.width=16"],
    "mobilefacenet": ["backbone.name=mobilefacenet", "backbone.layers=[1,1,1,1]", "backbone.width=64"],
    "vit": ["backbone.name=vit", "backbone.layers=[2]", "backbone.width=32"],
}
HEAD_WORDS = {name: ["recipe=supervised", f"recipe.head.name={name}", "recipe.head.scale=16"] for name in HEADS}
CASES = {
    **{f"moco, {name}": words for name, words in NETWORKS.items()},
    **{f"arcface, {name}": [*HEAD_WORDS["arcface"], *words] for name, words in NETWORKS.items()},
    **{f"{head}, iresnet": [*HEAD_WORDS[head], *NETWORKS["iresnet"]] for head in HEADS if head != "arcface"},
}


def loss_and_gradients(recipe: Recipe, batch: Batch) -> tuple[float, Tensor]:
    """Of one batch, with the random numbers of its seed."""
    torch.manual_seed(0)
    recipe.modules.train()
    recipe.modules.zero_grad(set_to_none=True)
    loss, _ = recipe.loss(batch)
    loss.backward()
    named = [*recipe.parallel.named_parameters()]
    return float(loss.detach()), torch.cat([p.grad.double().flatten() for _, p in named if p.grad is not None])


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_loss_and_gradients_in_16_bits_are_near_those_in_64(words: list[str], small_data: Path, alone: World) -> None:
    """The bound is that of 16-bit activations: 8 (bf16) and 11 (fp16) bits through a few layers."""
    found = {}
    for precision in ("bf16", "fp16", "fp64"):
        config = load(
            [
                *TINY,
                *words,
                f"data.binary_cache_path={small_data}",
                "recipe.moco.temperature=0.2",
                f"train.precision={'fp32' if precision == 'fp64' else precision}",
            ]
        )
        recipe = RECIPES[config.recipe.name](config, RECIPES[config.recipe.name].training_data(config), alone)
        recipe.calibrate()
        recipe.begin_epoch(0, None)
        rows = recipe.pick(np.arange(16), chances(0, 16, seed=0, epoch=0))
        draws = recipe.augment.draw(len(rows), torch.Generator().manual_seed(0))
        images = torch.from_numpy(recipe.data.images[rows])
        batch = Batch(images, rows, torch.from_numpy(recipe.targets(rows)), draws, seed=0)
        if config.recipe.name == "self_supervised":
            keys = F.normalize(torch.randn(24, 16, generator=torch.Generator().manual_seed(3)), dim=1)
            recipe.queue.push(keys, torch.arange(24) + 20, torch.ones(()))
        if precision == "fp64":
            in_64_bits(recipe)
        found[precision] = loss_and_gradients(recipe, batch)
    loss, gradients = found["fp64"]
    for precision, bound in (("bf16", 0.4), ("fp16", 0.1)):
        assert found[precision][0] == pytest.approx(loss, rel=bound / 3)
        assert relative(found[precision][1], gradients) < bound, precision


def in_64_bits(recipe: Recipe) -> None:
    """The network computes in 64 bits; the loss goes on in fp32, as its own tests compare it with 64 bits."""
    for network in {id(n): n for n in (recipe.parallel, getattr(recipe, "keys_of", recipe.parallel))}.values():
        network.double()
        network.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))
        network.register_forward_hook(
            lambda _, __, out: tuple(o.float() for o in out) if isinstance(out, tuple) else out.float()
        )


def test_jpeg_without_hue_and_blur_trains_in_16_bits(small_data: Path, tmp_path: Path, alone: World) -> None:
    words = ["recipe.augment.hue=0", "recipe.augment.blur=0", "recipe.augment.jpeg=0.9", "train.precision=bf16"]
    seen = run(small_data, tmp_path, alone, *words, "train.epochs=1")
    assert (seen[-1]["reason"], seen[-1]["step"]) == ("done", 4)
