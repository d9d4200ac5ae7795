"""Only networks use 16 bits: views are equal to the bit, losses and gradients stay near those in 64 bits."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.config import AugmentConfig, load
from app.config.schema import HEADS, MocoConfig
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
    with_mix_rows = dataclasses.replace(calm, amplitude_mix=1e-9)  # its random rows are drawn, but it changes no image
    views = [Augment(c, 48)(images, torch.Generator().manual_seed(2)) for c in (calm, with_mix_rows)]
    assert torch.equal(*views)
    noisy = Augment(dataclasses.replace(calm, noise=1.0), 48)(images, torch.Generator().manual_seed(2))
    assert 0.005 < (noisy - views[0]).abs().mean() < 0.05


@pytest.mark.parametrize("half", HALVES)
def test_the_contrastive_loss_is_fp32_inside_autocast(half: torch.dtype) -> None:
    """With cosines in 16 bits, divided by the temperature, the gradient would be wrong by 13 %."""
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
                    mine, k, queue, rows, rows, ids, MocoConfig(temperature=0.05, margin=0.15, mask_most_similar=8)
                )
        loss.backward()
        grads.append(mine.grad.double())
    assert relative(grads[0], grads[1]) < 1e-4


def plain_loss(q: Tensor, k: Tensor, queue: Queue) -> Tensor:
    """InfoNCE without the 8 nearest negatives, in the type of its inputs."""
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
    """Loss and gradients of one batch, with the random numbers of seed 0."""
    torch.manual_seed(0)
    recipe.modules.train()
    recipe.modules.zero_grad(set_to_none=True)
    loss, _ = recipe.loss(batch)
    loss.backward()
    named = [*recipe.parallel.named_parameters()]
    return float(loss.detach()), torch.cat([p.grad.double().flatten() for _, p in named if p.grad is not None])


MOST = 3  # times the error of a network with exact arithmetic and rounded activations


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_loss_and_gradients_in_16_bits_are_near_those_in_64(words: list[str], small_data: Path, alone: World) -> None:
    """The error with autocast is at most MOST times the error that rounding stored numbers alone causes.

    A network in 64 bits, which rounds the inputs, weights and outputs of its layers and their gradients to 16 bits,
    measures that error. The gradient's bound also holds for the loss, whose relative error is smaller.
    """

    def found(kind: torch.dtype | None, rounds: torch.dtype | None = None) -> tuple[float, Tensor]:
        """Loss and gradients in `kind` or, if it is None, in 64 bits; with `rounds`, layers round to that type."""
        recipe, batch = first_batch(
            words, {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[kind], small_data
        )
        if kind is None:
            in_64_bits(recipe, rounds)
        return loss_and_gradients(recipe, batch)

    def first_batch(words: list[str], precision: str, data: Path) -> tuple[Recipe, Batch]:
        more = [f"data.binary_cache_path={data}", "recipe.moco.temperature=0.2", f"train.precision={precision}"]
        config = load([*TINY, *words, *more])
        recipe = RECIPES[config.recipe.name](config, RECIPES[config.recipe.name].training_data(config), alone)
        if calibrated:
            recipe.modules.load_state_dict(calibrated)
        else:  # always in fp32, so the same for all
            recipe.calibrate()
            calibrated.update(copy.deepcopy(recipe.modules.state_dict()))
        recipe.begin_epoch(0, None)
        rows = recipe.pick(np.arange(16), chances(0, 16, seed=0, epoch=0))
        draws = recipe.augment.draw(len(rows), torch.Generator().manual_seed(0))
        images = torch.from_numpy(recipe.data.images[rows])
        if config.recipe.name == "self_supervised":
            keys = F.normalize(torch.randn(24, 16, generator=torch.Generator().manual_seed(3)), dim=1)
            recipe.queue.push(keys, torch.arange(24) + 20, torch.ones(()))
        return recipe, Batch(images, rows, torch.from_numpy(recipe.targets(rows)), draws, seed=0)

    calibrated: dict[str, Any] = {}
    loss, gradients = found(None)
    for half in HALVES:
        _, rounded = found(None, half)
        bound = MOST * relative(rounded, gradients)
        assert bound < MOST / 2, "a network that is half noise compares nothing"
        ours_loss, ours = found(half)
        assert relative(ours, gradients) < bound, half
        assert abs(ours_loss - loss) < bound * abs(loss), half


class Rounded(torch.autograd.Function):
    """Round a tensor in 64 bits to a type, and its gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: torch.dtype) -> Tensor:
        ctx.half = half
        return x.to(half).double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.half).double(), None


ROUNDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.PReLU)  # layers whose results autocast stores in 16 bits


def in_64_bits(recipe: Recipe, rounds: torch.dtype | None = None) -> None:
    """Make the network compute in 64 bits. The loss stays in fp32: its own tests compare it with 64 bits.

    With `rounds`, layers round their inputs and outputs, and products round their weights.
    """
    for network in {id(n): n for n in (recipe.parallel, getattr(recipe, "keys_of", recipe.parallel))}.values():
        network.double()
        for layer in network.modules() if rounds else ():
            if isinstance(layer, ROUNDS):
                layer.register_forward_pre_hook(lambda _, inputs: tuple(Rounded.apply(x, rounds) for x in inputs))
                layer.register_forward_hook(lambda _, __, out: Rounded.apply(out, rounds))
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.data = layer.weight.data.to(rounds).double()
        network.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))
        network.register_forward_hook(
            lambda _, __, out: tuple(o.float() for o in out) if isinstance(out, tuple) else out.float()
        )


def test_jpeg_without_hue_and_blur_trains_in_16_bits(small_data: Path, tmp_path: Path, alone: World) -> None:
    words = ["recipe.augment.hue=0", "recipe.augment.blur=0", "recipe.augment.jpeg=0.9", "train.precision=bf16"]
    seen = run(small_data, tmp_path, alone, *words, "train.epochs=1")
    assert (seen[-1]["reason"], seen[-1]["step"]) == ("done", 4)
